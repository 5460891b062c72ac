//! The way back: how the answer of a pod of this node finds its client.

use hostnet::netlink::LinkKind;
use hostnet::vocab::{Family, names};

use super::Tracer;
use crate::report::Hop;
use crate::view::Result;
use crate::walk::Packet;

impl Tracer<'_> {
    /// How the answer of a pod of this node goes.
    pub(super) fn back(&mut self, packet: &Packet, bridged: bool) -> Result<Hop> {
        let source = packet.source;
        if self.is_local(source)? {
            let text = match packet.original {
                Some(_) => "the answer comes to this node, which translates it back",
                None => "the answer comes to this node",
            };
            return Ok(Hop::new("back", text));
        }
        if self.pod_at(source).is_some() {
            let hop = Hop::new(
                "back",
                format!("the answer goes to {source} over {}", names::BRIDGE),
            );
            return match packet.original {
                Some(_) if !bridged => self.translated_on_the_bridge(hop, packet.family()),
                _ => Ok(hop),
            };
        }
        let route = self.view.route(source)?;
        let text = route.as_ref().map(|route| self.route_text(route));
        let text = text.unwrap_or_else(|| source.to_string());
        let hop = Hop::new("back", format!("the answer goes to {source}: {text}"));
        Ok(match self.route_fault(source, route.as_ref()) {
            Some((cause, remedy)) => hop.fault(format!("no answer comes back: {cause}"), remedy),
            None => hop,
        })
    }

    /// Between two pods of one bridge the answer is not routed: it must be translated back on the bridge.
    fn translated_on_the_bridge(&mut self, hop: Hop, family: Family) -> Result<Hop> {
        let word = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let bridge = self.link_called(names::BRIDGE).map(|link| &link.kind);
        let is_told = match (bridge, family) {
            (Some(LinkKind::Bridge(bridge)), Family::V4) => bridge.nf_call_iptables,
            (Some(LinkKind::Bridge(bridge)), Family::V6) => bridge.nf_call_ip6tables,
            _ => true,
        };
        let switch = self.view.switch(&format!("bridge/bridge-nf-call-{word}"))?;
        Ok(match switch.as_deref() {
            None => hop.fault(
                "the answer stays on the bridge and is not translated back: the module br_netfilter is not loaded",
                "`modprobe br_netfilter`, and a file in /etc/modules-load.d that says so",
            ),
            Some("0") if !is_told => hop.fault(
                format!("the answer stays on the bridge and is not translated back: bridge netfilter is off for {}", names::BRIDGE),
                format!("`ip link set {} type bridge nf_call_{word} 1`; flanneld and twill-cni do so too", names::BRIDGE),
            ),
            Some(_) => hop,
        })
    }
}
