//! Traffic control: a token bucket in front of a device, and the redirection of what comes in by
//! one device to another. With an IFB device (a queue for packets that came in) the two shape both
//! directions.
//!
//! Attributes are those of include/uapi/linux/pkt_sched.h and pkt_cls.h; the library has neither
//! the token bucket nor a way to make the redirection.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute, TcFilterU32Option,
    TcHandle, TcMessage, TcOption,
};

use super::{Request, Result, Rtnl};

/// A token bucket (tc-tbf(8)): packets leave at a rate, and as many bytes at once as have gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tbf {
    /// Bytes per second.
    pub rate: u64,
    /// The most bytes at once. A packet that is larger never leaves.
    pub burst: u32,
    /// The most bytes that wait; what comes then is dropped.
    pub limit: u32,
}

impl Tbf {
    /// A bucket in which a packet waits no longer than `latency_ms` once the bucket is empty.
    pub fn with_latency(rate: u64, burst: u32, latency_ms: u64) -> Tbf {
        let waiting = u128::from(rate) * u128::from(latency_ms) / 1000 + u128::from(burst);
        Tbf {
            rate,
            burst,
            limit: u32::try_from(waiting).unwrap_or(u32::MAX),
        }
    }

    /// Whether the kernel's bucket is this one. It keeps the burst as a time, so it reads back
    /// with a small error.
    pub fn is_like(&self, observed: &Tbf) -> bool {
        let tolerance = self.burst / 100 + 64;
        self.rate == observed.rate
            && self.limit == observed.limit
            && self.burst.abs_diff(observed.burst) <= tolerance
    }

    /// `struct tc_tbf_qopt` and what does not fit in it.
    fn options(&self) -> Vec<u8> {
        let mut spec = [0u8; 12];
        // A link layer that is named needs no table of rates (`TC_LINKLAYER_ETHERNET`).
        spec[1] = 1;
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        spec[8..].copy_from_slice(&rate.to_ne_bytes());
        let mut parms = spec.to_vec();
        parms.extend([0; 12]);
        parms.extend(self.limit.to_ne_bytes());
        parms.extend([0; 8]);
        let mut options = nla(TBF_PARMS, &parms);
        if self.rate > u64::from(u32::MAX) {
            options.extend(nla(TBF_RATE64, &self.rate.to_ne_bytes()));
        }
        options.extend(nla(TBF_BURST, &self.burst.to_ne_bytes()));
        options
    }

    fn decode(options: &[u8]) -> Option<Tbf> {
        let parms = attribute(options, TBF_PARMS)?;
        let word = |at: usize| Some(u32::from_ne_bytes(parms.get(at..at + 4)?.try_into().ok()?));
        let rate = match attribute(options, TBF_RATE64) {
            Some(bytes) => u64::from_ne_bytes(bytes.try_into().ok()?),
            None => word(8)?.into(),
        };
        let nanoseconds = u128::from(word(28)?) * TICK_NS;
        let burst = u128::from(rate) * nanoseconds / 1_000_000_000;
        Some(Tbf {
            rate,
            burst: u32::try_from(burst).unwrap_or(u32::MAX),
            limit: word(24)?,
        })
    }
}

const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// `PSCHED_TICKS2NS(1)`.
const TICK_NS: u128 = 64;
/// `TCA_OPTIONS`.
const OPTIONS: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// The handle of every ingress queueing discipline, as a parent.
const INGRESS_PARENT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// A device's queueing discipline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Qdisc {
    /// A token bucket for what the device sends.
    Tbf(Tbf),
    /// The place of filters for what the device receives.
    Ingress,
    /// Another by the kernel's name.
    Other(String),
}

/// Puts a token bucket in front of what a device sends, in place of what is there.
pub fn set_tbf(link: u32, tbf: &Tbf) -> Request {
    let message = message(link, TcHandle::ROOT, "tbf", tbf.options());
    Request::new(
        format!(
            "shape #{link} to {} bytes per second, {} at once",
            tbf.rate, tbf.burst
        ),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewQueueDiscipline(message),
    )
}

/// Takes away what is in front of what a device sends: the kernel's default is back.
pub fn delete_root(link: u32) -> Request {
    let mut message = TcMessage::with_index(link as i32);
    message.header.parent = TcHandle::ROOT;
    Request::new(
        format!("remove the queueing discipline of #{link}"),
        0,
        RouteNetlinkMessage::DelQueueDiscipline(message),
    )
}

/// Makes the place of filters for what a device receives; `EEXIST` if there is one.
pub fn add_ingress(link: u32) -> Request {
    let mut message = message(link, TcHandle::INGRESS, "ingress", Vec::new());
    message.header.handle = INGRESS_PARENT;
    Request::new(
        format!("make the ingress queueing discipline of #{link}"),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewQueueDiscipline(message),
    )
}

/// Takes away the place of filters for what a device receives, with the filters.
pub fn delete_ingress(link: u32) -> Request {
    let mut message = TcMessage::with_index(link as i32);
    message.header.parent = TcHandle::INGRESS;
    Request::new(
        format!("remove the ingress queueing discipline of #{link}"),
        0,
        RouteNetlinkMessage::DelQueueDiscipline(message),
    )
}

/// Sends all that a device receives out by another device. Needs [`add_ingress`] before it.
pub fn redirect_ingress(link: u32, to: u32) -> Request {
    // struct tc_u32_sel with one key that matches everything.
    let mut selector = vec![TERMINAL, 0, 1, 0];
    selector.extend([0; 28]);
    // struct tc_mirred: stolen here, redirected to where the other device sends.
    let mut mirred = Vec::new();
    for word in [0, 0, ACT_STOLEN, 0, 0, EGRESS_REDIRECT, to] {
        mirred.extend(word.to_ne_bytes());
    }
    let mut action = nla(ACT_KIND, b"mirred\0");
    action.extend(nla(ACT_OPTIONS | NESTED, &nla(MIRRED_PARMS, &mirred)));
    let mut options = nla(U32_SEL, &selector);
    options.extend(nla(U32_ACT | NESTED, &nla(FIRST_ACTION | NESTED, &action)));
    let mut message = message(link, INGRESS_PARENT, "u32", options);
    message.header.info = FILTER_PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    Request::new(
        format!("redirect what #{link} receives to #{to}"),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewTrafficFilter(message),
    )
}

/// `TC_U32_TERMINAL`.
const TERMINAL: u8 = 1;
/// `TC_ACT_STOLEN`.
const ACT_STOLEN: u32 = 4;
/// `TCA_EGRESS_REDIR`.
const EGRESS_REDIRECT: u32 = 1;
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;
const U32_SEL: u16 = 5;
const U32_ACT: u16 = 7;
/// Actions are numbered in the order in which they run.
const FIRST_ACTION: u16 = 1;
const FILTER_PRIORITY: u32 = 1;
const ETH_P_ALL: u16 = 3;

fn message(link: u32, parent: TcHandle, kind: &str, options: Vec<u8>) -> TcMessage {
    let mut message = TcMessage::with_index(link as i32);
    message.header.parent = parent;
    message.attributes = vec![TcAttribute::Kind(kind.to_owned())];
    if !options.is_empty() {
        let options = DefaultNla::new(OPTIONS | NESTED, options);
        message.attributes.push(TcAttribute::Other(options));
    }
    message
}

/// One attribute: length, kind, value, padded to four bytes.
fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    let mut bytes = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !NESTED;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

impl Rtnl {
    /// The queueing disciplines of all devices, with each device's index. Those that the kernel
    /// gives by default are among them.
    pub fn qdiscs(&mut self) -> Result<Vec<(u32, Qdisc)>> {
        let message = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        self.dump("list queueing disciplines", &message, |message| {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = message else {
                return None;
            };
            Some((message.header.index as u32, qdisc(&message)?))
        })
    }

    /// The index of the device to which a device redirects all that it receives.
    pub fn ingress_redirect(&mut self, link: u32) -> Result<Option<u32>> {
        let mut message = TcMessage::with_index(link as i32);
        message.header.parent = INGRESS_PARENT;
        let message = RouteNetlinkMessage::GetTrafficFilter(message);
        let found = self.dump("list filters", &message, |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(message) => redirect(&message),
            _ => None,
        });
        match found {
            Ok(found) => Ok(found.into_iter().next()),
            // Without an ingress queueing discipline there is nothing to list.
            Err(error) if error.is_errno(&[libc::EINVAL, libc::ENOENT]) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn qdisc(message: &TcMessage) -> Option<Qdisc> {
    let kind = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    Some(match kind {
        "tbf" => Qdisc::Tbf(message.attributes.iter().find_map(|a| match a {
            TcAttribute::Options(options) => options.iter().find_map(tbf),
            _ => None,
        })?),
        "ingress" => Qdisc::Ingress,
        other => Qdisc::Other(other.to_owned()),
    })
}

/// Of a discipline that it does not know the library keeps the options in one piece.
fn tbf(option: &TcOption) -> Option<Tbf> {
    use netlink_packet_core::Nla;
    let TcOption::Other(options) = option else {
        return None;
    };
    let mut bytes = vec![0; options.value_len()];
    options.emit_value(&mut bytes);
    Tbf::decode(&bytes)
}

fn redirect(message: &TcMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .filter_map(|option| match option {
            TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
            _ => None,
        })
        .flatten()
        .flat_map(|action| &action.attributes)
        .filter_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_and_burst_make_the_limit() {
        let tbf = Tbf::with_latency(125_000, 32_000, 25);
        assert_eq!(tbf.limit, 3_125 + 32_000);
        assert_eq!(
            Tbf::with_latency(u64::MAX / 8, u32::MAX, 25).limit,
            u32::MAX
        );
    }

    #[test]
    fn buckets_are_compared_with_the_kernels_rounding() {
        let tbf = Tbf::with_latency(1_000_000, 100_000, 25);
        assert!(tbf.is_like(&Tbf {
            burst: 99_980,
            ..tbf
        }));
        assert!(!tbf.is_like(&Tbf {
            burst: 50_000,
            ..tbf
        }));
        assert!(!tbf.is_like(&Tbf {
            rate: 1_000_001,
            ..tbf
        }));
    }
}
