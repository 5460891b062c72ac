//! Ethernet addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

/// A text that is not an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a MAC address: expected six pairs of hexadecimal digits such as 0a:58:0a:f4:03:01"
)]
pub struct MacError {
    text: String,
}

impl Mac {
    /// All zeroes: what the kernel shows for a device that has no address yet.
    pub const ZERO: Mac = Mac([0; 6]);

    /// A unicast, locally administered address made of these bytes (IEEE 802, the two low bits
    /// of the first octet).
    pub fn local_from(bytes: [u8; 6]) -> Mac {
        let mut bytes = bytes;
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Mac(bytes)
    }

    /// The address that belongs to an IP address: `0a:58` and the four octets of an IPv4 address,
    /// or four octets folded from an IPv6 address. Devices made twice for the same address so
    /// have the same MAC, and neighbours' caches stay right.
    pub fn for_ip(addr: IpAddr) -> Mac {
        let [a, b, c, d] = match addr {
            IpAddr::V4(v4) => v4.octets(),
            // The halves of a /64 differ in their low bits most; a rotation keeps equal groups
            // from cancelling each other out.
            IpAddr::V6(v6) => v6
                .octets()
                .chunks_exact(4)
                .fold(0u32, |sum, part| {
                    sum.rotate_left(7) ^ u32::from_be_bytes([part[0], part[1], part[2], part[3]])
                })
                .to_be_bytes(),
        };
        Mac([0x0a, 0x58, a, b, c, d])
    }

    /// Whether this is one of [`Mac::for_ip`]'s addresses.
    pub fn is_for_ip(self) -> bool {
        self.0[..2] == [0x0a, 0x58]
    }

    /// Whether a device may own it: neither multicast (which includes broadcast) nor all zeroes.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self != Mac::ZERO
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let error = || MacError {
            text: text.to_owned(),
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        match parts.next() {
            None => Ok(Mac(bytes)),
            Some(_) => Err(error()),
        }
    }
}

super::serde_as_text!(Mac, "a MAC address such as 0a:58:0a:f4:03:01");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_refusals() {
        let mac: Mac = "0A:58:0a:f4:03:01".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:f4:03:01");
        assert_eq!(
            serde_json::from_str::<Mac>("\"0a:58:0a:f4:03:01\"").unwrap(),
            mac
        );
        for bad in [
            "",
            "0a:58:0a:f4:03",
            "0a:58:0a:f4:03:01:02",
            "0a:58:0a:f4:03:1",
            "0a:58:0a:f4:03:+1",
            "0a-58-0a-f4-03-01",
        ] {
            let error = bad.parse::<Mac>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn which_addresses_a_device_may_own() {
        let unicast = |text: &str| text.parse::<Mac>().unwrap().is_unicast();
        assert!(unicast("02:00:00:00:00:01"));
        assert!(!unicast("00:00:00:00:00:00"));
        assert!(!unicast("ff:ff:ff:ff:ff:ff"));
        assert!(!unicast("01:00:5e:00:00:01"));
        assert!(Mac::local_from([0xff; 6]).is_unicast());
    }

    #[test]
    fn the_mac_of_an_address() {
        let v4 = Mac::for_ip("10.244.3.1".parse().unwrap());
        assert_eq!(v4.to_string(), "0a:58:0a:f4:03:01");
        let a = Mac::for_ip("fd00::1".parse().unwrap());
        let b = Mac::for_ip("fd00:0:0:1::1".parse().unwrap());
        assert_ne!(a, b);
        assert!(v4.is_for_ip() && a.is_for_ip() && a.is_unicast());
    }
}
