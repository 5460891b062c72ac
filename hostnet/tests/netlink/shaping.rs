//! Token buckets, and what comes in redirected to an IFB.

use hostnet::netlink::LinkKind;
use hostnet::netlink::link::{self, NewLink};
use hostnet::netlink::tc::{self, Qdisc, Tbf};

use crate::{cable, name, private};

#[test]
fn a_bucket_reads_back_and_is_replaced() {
    let (_ns, mut rtnl) = private();
    let link = cable(&mut rtnl, "a").index;
    // The last rate needs 64 bits.
    for (rate, burst) in [
        (125_000, 32_000),
        (12_500_000, 268_435_455),
        (8_000_000_000, 1_000_000),
    ] {
        let tbf = Tbf::with_latency(rate, burst, 25);
        rtnl.apply(tc::set_tbf(link, &tbf)).unwrap();
        let observed: Vec<Tbf> = rtnl
            .qdiscs()
            .unwrap()
            .into_iter()
            .filter_map(|(of, qdisc)| match qdisc {
                Qdisc::Tbf(tbf) if of == link => Some(tbf),
                _ => None,
            })
            .collect();
        assert_eq!(observed.len(), 1);
        assert!(tbf.is_like(&observed[0]), "{tbf:?} {observed:?}");
    }
    rtnl.apply(tc::delete_root(link)).unwrap();
    let left = rtnl.qdiscs().unwrap();
    assert!(!left.iter().any(|(_, qdisc)| matches!(qdisc, Qdisc::Tbf(_))));
}

#[test]
fn what_comes_in_is_redirected() {
    let (_ns, mut rtnl) = private();
    let link = cable(&mut rtnl, "a").index;
    assert_eq!(rtnl.ingress_redirect(link).unwrap(), None);
    let ifb = NewLink {
        up: true,
        ..NewLink::new(name("bwp1"), LinkKind::Other("ifb".to_owned()))
    };
    rtnl.apply(link::create(&ifb)).unwrap();
    let ifb = rtnl.link(name("bwp1")).unwrap().unwrap().index;
    rtnl.apply(tc::add_ingress(link)).unwrap();
    assert!(rtnl.apply(tc::add_ingress(link)).unwrap_err().is_exists());
    assert_eq!(rtnl.ingress_redirect(link).unwrap(), None);
    rtnl.apply(tc::redirect_ingress(link, ifb)).unwrap();
    assert_eq!(rtnl.ingress_redirect(link).unwrap(), Some(ifb));
    assert!(rtnl.qdiscs().unwrap().contains(&(link, Qdisc::Ingress)));
    rtnl.apply(tc::delete_ingress(link)).unwrap();
    assert_eq!(rtnl.ingress_redirect(link).unwrap(), None);
}
