//! Bandwidth: a token bucket before what the node sends to the pod, and one before what comes from
//! it, which is first redirected to a device of its own (IFB). Both are on the node's side, where
//! the pod cannot remove them.

use hostnet::netlink::link::{self, NewLink};
use hostnet::netlink::tc::{self, Qdisc, Tbf};
use hostnet::netlink::{AbsentOk, LinkKind, Rtnl};
use hostnet::vocab::IfName;

use crate::error::{CniError, Code};
use crate::record::Record;
use crate::request::rates::Rate;

/// How long a packet may wait at most: what the reference plugin has.
const LATENCY_MS: u64 = 25;

/// What a frame has beside its MTU: the header, and a tag.
const FRAME_OVERHEAD: u32 = 18;

/// The shaping of one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shaping {
    /// The node's end of the cable.
    pub veth: IfName,
    /// The MTU of the cable in bytes.
    pub mtu: u32,
    /// What the pod receives.
    pub ingress: Option<Tbf>,
    /// What the pod sends: by which device, and its bucket.
    pub egress: Option<(IfName, Tbf)>,
}

impl Shaping {
    /// The shaping that an attachment shall have; `None` if it is unlimited.
    pub fn of(record: &Record) -> Option<Shaping> {
        if record.rates.is_empty() {
            return None;
        }
        let tbf = |rate: Rate| bucket(rate, record.mtu);
        Some(Shaping {
            veth: record.veth.clone(),
            mtu: record.mtu,
            ingress: record.rates.ingress.map(tbf),
            egress: record.ifb.clone().zip(record.rates.egress.map(tbf)),
        })
    }

    /// Makes what is missing or different. Returns what was done, in words; empty if all was
    /// right. A veth that is gone has nothing to shape.
    ///
    /// # Errors
    /// Code 7 where the kernel has no IFB devices; else the kernel's refusal.
    pub fn apply(&self, rtnl: &mut Rtnl) -> Result<Vec<String>, CniError> {
        let mut done = Vec::new();
        let Some(veth) = rtnl.link(&self.veth)? else {
            return Ok(done);
        };
        let qdiscs = rtnl.qdiscs()?;
        if let Some(tbf) = &self.ingress
            && !has_bucket(&qdiscs, veth.index, tbf)
        {
            rtnl.apply(tc::set_tbf(veth.index, tbf))?;
            done.push(format!("shape what {} sends to the pod", self.veth));
        }
        let Some((name, tbf)) = &self.egress else {
            return Ok(done);
        };
        let ifb = match rtnl.link(name)? {
            Some(link) => link,
            None => {
                done.push(format!("create {name}"));
                create_ifb(rtnl, name, self.mtu)?
            }
        };
        if !ifb.up {
            let up = link::Change {
                up: Some(true),
                ..link::Change::default()
            };
            rtnl.apply(link::change(ifb.index, &up))?;
        }
        // The bucket first: what is redirected then passes it from the first packet on.
        if !has_bucket(&qdiscs, ifb.index, tbf) {
            rtnl.apply(tc::set_tbf(ifb.index, tbf))?;
            done.push(format!("shape what {name} sends"));
        }
        if rtnl.ingress_redirect(veth.index)? != Some(ifb.index) {
            if qdiscs.contains(&(veth.index, Qdisc::Ingress)) {
                rtnl.apply(tc::delete_ingress(veth.index)).absent_ok()?;
            }
            rtnl.apply(tc::add_ingress(veth.index))?;
            rtnl.apply(tc::redirect_ingress(veth.index, ifb.index))?;
            done.push(format!("redirect what {} receives to {name}", self.veth));
        }
        Ok(done)
    }

    /// What is not as it shall be, in words.
    pub fn differences(&self, rtnl: &mut Rtnl) -> Result<Vec<String>, CniError> {
        let mut wrong = Vec::new();
        let Some(veth) = rtnl.link(&self.veth)? else {
            return Ok(wrong);
        };
        let qdiscs = rtnl.qdiscs()?;
        if let Some(tbf) = &self.ingress
            && !has_bucket(&qdiscs, veth.index, tbf)
        {
            wrong.push(format!("{} does not shape to {}", self.veth, words(tbf)));
        }
        if let Some((name, tbf)) = &self.egress {
            match rtnl.link(name)? {
                None => wrong.push(format!("{name} is gone")),
                Some(ifb) => {
                    if !ifb.up {
                        wrong.push(format!("{name} is down"));
                    }
                    if !has_bucket(&qdiscs, ifb.index, tbf) {
                        wrong.push(format!("{name} does not shape to {}", words(tbf)));
                    }
                    if rtnl.ingress_redirect(veth.index)? != Some(ifb.index) {
                        wrong.push(format!("{} does not redirect to {name}", self.veth));
                    }
                }
            }
        }
        Ok(wrong)
    }
}

fn words(tbf: &Tbf) -> String {
    format!("{} bytes per second", tbf.rate)
}

/// A burst of less than one packet would let none through.
fn bucket(rate: Rate, mtu: u32) -> Tbf {
    Tbf::with_latency(rate.rate, rate.burst.max(mtu + FRAME_OVERHEAD), LATENCY_MS)
}

fn has_bucket(qdiscs: &[(u32, Qdisc)], link: u32, tbf: &Tbf) -> bool {
    qdiscs
        .iter()
        .any(|(of, qdisc)| *of == link && matches!(qdisc, Qdisc::Tbf(found) if tbf.is_like(found)))
}

fn create_ifb(rtnl: &mut Rtnl, name: &IfName, mtu: u32) -> Result<link::Link, CniError> {
    let new = NewLink {
        mtu: Some(mtu),
        up: true,
        ..NewLink::new(name.clone(), LinkKind::Other("ifb".to_owned()))
    };
    match rtnl.apply(link::create(&new)) {
        Err(error) if error.is_exists() => {}
        Err(error) => return Err(no_ifb(&error).unwrap_or_else(|| error.into())),
        Ok(()) => {}
    }
    rtnl.link(name)?
        .ok_or_else(|| CniError::new(Code::Kernel, format!("{name} vanished")))
}

/// The error of a kernel that does not know the kind of device.
fn no_ifb(error: &hostnet::netlink::Error) -> Option<CniError> {
    // EOPNOTSUPP.
    error.is_errno(&[95]).then(|| {
        let msg = "bandwidth.egressRate needs devices of the kind ifb, which this kernel does not \
                   have: load or build its module ifb, or ask for no egress rate";
        CniError {
            details: error.to_string(),
            ..CniError::new(Code::InvalidConfig, msg)
        }
    })
}

/// Removes the device that shaped what a pod sent. Its bucket goes with it.
pub fn remove_ifb(rtnl: &mut Rtnl, name: &IfName) -> Result<(), CniError> {
    Ok(rtnl.apply(link::delete(name)).absent_ok()?)
}

#[cfg(test)]
mod tests {
    use hostnet::netlink::Error;

    use super::*;
    use crate::record::tests::record;
    use crate::request::rates::Rates;

    #[test]
    fn a_burst_lets_a_packet_through() {
        let rate = Rate {
            rate: 1000,
            burst: 10,
        };
        assert_eq!(bucket(rate, 1450).burst, 1468);
        let shaped = Record {
            rates: Rates {
                ingress: Some(rate),
                egress: None,
            },
            ..record("c1")
        };
        let shaping = Shaping::of(&shaped).unwrap();
        assert_eq!(
            (shaping.ingress.unwrap().rate, shaping.egress),
            (1000, None)
        );
        assert_eq!(Shaping::of(&record("c1")), None);
    }

    #[test]
    fn a_kernel_without_ifb_is_named() {
        let refused = |errno| Error::Kernel {
            what: "create ifb bwp1".to_owned(),
            message: "Unknown device type".to_owned(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        let error = no_ifb(&refused(95)).unwrap();
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.msg.contains("ifb") && error.details.contains("Unknown device type"));
        assert_eq!(no_ifb(&refused(1)), None);
    }
}
