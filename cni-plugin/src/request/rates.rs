//! Bandwidth that is asked for: `runtimeConfig.bandwidth` (capability `bandwidth`), or the same
//! keys at the top of the configuration, which come first.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::Fields;
use crate::error::CniError;

/// The rates of an attachment; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// What the pod receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// What the pod sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

/// The rate of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes per second.
    pub rate: u64,
    /// The most bytes at once.
    pub burst: u32,
}

impl Rates {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Rates::default()
    }
}

/// Reads the keys. Those at the top are for all pods and beat what one pod asks for.
pub(super) fn read(document: &Fields<'_>) -> Result<Rates, CniError> {
    let keys = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
    let at_top = keys.iter().any(|key| document.value(key).is_some());
    let runtime = document.object("runtimeConfig")?.object("bandwidth")?;
    let fields = if at_top { document.clone() } else { runtime };
    Ok(Rates {
        ingress: direction(&fields, "ingressRate", "ingressBurst")?,
        egress: direction(&fields, "egressRate", "egressBurst")?,
    })
}

/// Rates come in bits per second, bursts in bits.
fn direction(fields: &Fields<'_>, rate: &str, burst: &str) -> Result<Option<Rate>, CniError> {
    let expected = "bits per second, at least 8";
    let bits = match fields.get::<u64>(rate, expected)? {
        None | Some(0) => None,
        Some(bits @ 1..8) => return Err(fields.wrong(rate, &bits.into(), expected)),
        Some(bits) => Some(bits),
    };
    let expected = "bits, from 8 to 34359738360";
    let burst_bits = match fields.get::<u64>(burst, expected)? {
        None | Some(0) => None,
        Some(bits) => Some(
            u32::try_from(bits / 8)
                .ok()
                .filter(|bytes| *bytes > 0)
                .ok_or_else(|| fields.wrong(burst, &bits.into(), expected))?,
        ),
    };
    match (bits, burst_bits) {
        (None, None) => Ok(None),
        (Some(bits), Some(burst)) => Ok(Some(Rate {
            rate: bits / 8,
            burst,
        })),
        (Some(_), None) => Err(fields.missing(burst, "bits, beside a rate")),
        (None, Some(_)) => {
            let value = fields.value(burst).cloned().unwrap_or(Value::Null);
            Err(fields.wrong(burst, &value, &format!("none without {rate}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(document: Value) -> Result<Rates, CniError> {
        let Value::Object(object) = document else {
            unreachable!()
        };
        read(&Fields::document(&object))
    }

    #[test]
    fn bits_become_bytes_and_static_keys_win() {
        let runtime = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000});
        let rates = parse(json!({"runtimeConfig": {"bandwidth": runtime}})).unwrap();
        let rate = Rate {
            rate: 1_000_000,
            burst: 100_000,
        };
        assert_eq!((rates.ingress, rates.egress), (Some(rate), None));
        let both =
            json!({"egressRate": 80, "egressBurst": 80, "runtimeConfig": {"bandwidth": runtime}});
        let rates = parse(both).unwrap();
        assert_eq!(
            (rates.ingress, rates.egress.map(|r| r.rate)),
            (None, Some(10))
        );
        assert!(
            parse(json!({"runtimeConfig": {"bandwidth": {}}}))
                .unwrap()
                .is_empty()
        );
    }

    /// containerd 2.4 writes Go's own field names, zeros for a direction without limit, and the largest burst.
    #[test]
    fn what_containerd_sends() {
        let bandwidth = json!({"IngressRate": 8_000_000, "IngressBurst": u32::MAX, "EgressRate": 0, "EgressBurst": 0});
        let rates = parse(json!({"runtimeConfig": {"bandwidth": bandwidth}})).unwrap();
        assert_eq!(rates.ingress.map(|rate| rate.rate), Some(1_000_000));
        assert_eq!(rates.egress, None);
    }

    #[test]
    fn half_a_direction_is_refused() {
        for (document, text) in [
            (json!({"ingressRate": 80}), "ingressBurst is missing"),
            (
                json!({"egressBurst": 80}),
                "egressBurst is 80: expected none without egressRate",
            ),
            (
                json!({"ingressRate": 7, "ingressBurst": 80}),
                "ingressRate is 7",
            ),
            (
                json!({"ingressRate": 80, "ingressBurst": 1u64 << 36}),
                "ingressBurst is 68719476736",
            ),
            (
                json!({"runtimeConfig": {"bandwidth": {"ingressRate": "1M"}}}),
                r#"runtimeConfig.bandwidth.ingressRate is "1M""#,
            ),
        ] {
            let error = parse(document).unwrap_err();
            assert!(error.msg.contains(text), "{text}: {error}");
        }
    }
}
