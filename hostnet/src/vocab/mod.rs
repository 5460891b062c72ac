//! The words that the binaries share: addresses, names and the file and annotation formats in
//! which they talk to each other and to flannel. Plain comparable data, no I/O.

pub mod annotations;
mod cidr;
mod family;
mod ifname;
pub mod lease;
mod mac;
pub mod names;
pub mod subnet_env;

pub use annotations::{AnnotationKeys, BackendData};
pub use cidr::{Cidr, CidrError, Subnet};
pub use family::Family;
pub use ifname::{IfName, IfNameError};
pub use mac::{Mac, MacError};
pub use subnet_env::{SubnetEnv, SubnetEnvError};

/// Gives a type its text form (`Display` and `FromStr`) as its serde form.
macro_rules! serde_as_text {
    ($type:ty, $expecting:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
use serde_as_text;
