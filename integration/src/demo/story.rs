//! The story: what the packet meets, in the order in which it meets it.

use anyhow::{Context, Result};
use serde_json::Value;

use super::Mode;
use super::cluster::{
    CLUSTER_IP, Cluster, MASTER, NODE_1, NODE_2, NODE_PORT, NODES, POD_IP, POD_PORT, SERVICE_PORT,
    SERVICE_PORTS,
};
use super::expect::Expected;
use super::page::Page;
use crate::inspect;
use crate::lab::{Lab, Pod};
use crate::machine::Machine;
use crate::node::Node;

const TABLE: &str = "ip twill-proxy";

/// Tells it on `page`.
pub(super) fn tell(lab: &Lab, cluster: &Cluster, mode: Mode, page: &mut Page) -> Result<()> {
    let mut story = Story { lab, page };
    match mode {
        Mode::Nftables => {
            story.hooks()?;
            story.cluster_ips()?;
            story.node_ports()?;
            story.endpoints()?;
        }
        Mode::Iptables => story.chains()?,
    }
    story.pods_node(cluster)?;
    story.other_nodes()
}

pub(super) struct Story<'a> {
    lab: &'a Lab,
    pub(super) page: &'a mut Page,
}

impl Story<'_> {
    fn hooks(&mut self) -> Result<()> {
        self.page
            .chapter("Every new connection meets twill-proxy's table")?;
        self.page.say(
            "What comes in goes through `prerouting`, what the node itself sends through `output`.",
        )?;
        let node = self.machine(NODE_1)?;
        for chain in ["prerouting", "output"] {
            self.look(
                &node,
                &format!("nft list chain {TABLE} {chain}"),
                &[
                    Expected::line(["type nat hook", chain, "priority"]),
                    Expected::line(["goto services"]),
                ],
            )?;
        }
        Ok(())
    }

    fn cluster_ips(&mut self) -> Result<()> {
        self.page
            .chapter("Each cluster IP and port is one element of a map")?;
        self.page
            .say("It says how many endpoints there are to choose from, not which.")?;
        let node = self.machine(NODE_1)?;
        let element = |(_, protocol, address, port): &(&str, &str, &str, u16), verdict| {
            Expected::element([&format!("{address} . {protocol} . {port}"), verdict])
        };
        let vips: Vec<_> = SERVICE_PORTS
            .iter()
            .map(|port| element(port, "goto lb-1"))
            .collect();
        self.look(&node, &format!("nft list map {TABLE} vips"), &vips)?;

        self.page.chapter(
            "What does not come from a pod is masqueraded, so that the answer finds back",
        )?;
        let masquerade: Vec<_> = SERVICE_PORTS
            .iter()
            .map(|port| element(port, "goto masq-not-pods"))
            .collect();
        self.look(
            &node,
            &format!("nft list map {TABLE} masq-vips"),
            &masquerade,
        )?;
        self.look(
            &node,
            &format!("nft list chain {TABLE} masq-not-pods"),
            &[
                Expected::line(["ip saddr 10.244.0.0/16 return"]),
                Expected::line(["masquerade fully-random"]),
            ],
        )
    }

    fn node_ports(&mut self) -> Result<()> {
        self.page
            .chapter("Last come the node ports, on every node's own address")?;
        for (name, _) in NODES {
            let node = self.lab.node(name)?;
            let (machine, address) = (node.machine().clone(), node.ip().to_string());
            self.look(
                &machine,
                &format!("nft list set {TABLE} nodeport-ips"),
                &[Expected::element([&address])],
            )?;
            self.look(
                &machine,
                &format!("nft list map {TABLE} nodeports"),
                &[Expected::element([
                    &format!("tcp . {NODE_PORT}"),
                    "goto np-1",
                ])],
            )?;
        }
        let machine = self.machine(MASTER)?;
        self.look(
            &machine,
            &format!("nft list map {TABLE} masq-nodeports"),
            &[Expected::element([
                &format!("tcp . {NODE_PORT}"),
                "goto masq-always",
            ])],
        )
    }

    fn endpoints(&mut self) -> Result<()> {
        self.page
            .chapter("A chain picks a slot at random, a map knows the endpoint in it")?;
        self.page
            .say("All Services with the same number of endpoints share the chain.")?;
        let machine = self.machine(MASTER)?;
        let endpoint = format!("{POD_IP} . {POD_PORT}");
        for (chain, map, key) in [
            (
                "lb-1",
                "endpoints",
                format!("{CLUSTER_IP} . tcp . {SERVICE_PORT} . 0"),
            ),
            (
                "np-1",
                "nodeport-endpoints",
                format!("tcp . {NODE_PORT} . 0"),
            ),
        ] {
            self.look(
                &machine,
                &format!("nft list chain {TABLE} {chain}"),
                &[Expected::line([
                    "dnat ip",
                    "numgen random mod 1",
                    &format!("map @{map}"),
                ])],
            )?;
            self.look(
                &machine,
                &format!("nft list map {TABLE} {map}"),
                &[Expected::element([&key, &endpoint])],
            )?;
        }
        self.page
            .say("A pod that reaches itself through its Service is masqueraded (hairpin):")?;
        let machine = self.machine(NODE_2)?;
        self.look(
            &machine,
            &format!("nft list set {TABLE} hairpin"),
            &[Expected::element([&format!("{POD_IP} . {POD_IP}")])],
        )
    }

    fn pods_node(&mut self, cluster: &Cluster) -> Result<()> {
        self.page
            .chapter("On the pod's node its subnet is a bridge (layer 2)")?;
        let machine = self.machine(NODE_2)?;
        self.look(
            &machine,
            "ip route show 10.244.3.0/24",
            &[Expected::line([
                "10.244.3.0/24 dev cni0 proto kernel scope link src 10.244.3.1",
            ])],
        )?;
        self.look(
            &machine,
            "ip -br link show type bridge",
            &[Expected::line(["cni0", "UP"])],
        )?;
        self.page.say(
            "Each pod is a cable: one end on the bridge, the other in the pod. Which is whose:",
        )?;
        for pod in [&cluster.hello, &cluster.neighbour] {
            self.cable(&machine, pod)?;
        }
        Ok(())
    }

    /// The pod's own end names the index of the host's end, which is on the bridge.
    fn cable(&mut self, machine: &Machine, pod: &Pod) -> Result<()> {
        let inside = inspect::json_in(pod.netns(), "ip -j -d address show dev eth0")?;
        let link = inside.first().context("the pod has no eth0")?;
        let veth = inspect::host_veth(machine, pod.netns())?;
        self.page.prompt(pod.name(), "ip address show dev eth0")?;
        let shown = inspect::run_in(pod.netns(), "ip address show dev eth0")?;
        let index = number(link, "ifindex")?;
        let peer = number(link, "link_index")?;
        for expected in [
            Expected::line([&format!("{index}: eth0@if{peer}:"), "UP"]),
            Expected::line([&format!("inet {}/24", pod.ip())]),
        ] {
            self.check(&expected, &shown)?;
        }
        self.look(
            machine,
            &format!("ip link show dev {veth}"),
            &[Expected::line([
                &format!("{peer}: {veth}@if{index}:"),
                "master cni0",
                "state UP",
            ])],
        )
    }

    fn other_nodes(&mut self) -> Result<()> {
        self.page
            .chapter("On every other node the subnet lies behind the tunnel (layer 3)")?;
        let owner = self.lab.node(NODE_2)?;
        let mac = mac_of_tunnel(owner)?;
        let (target, mac) = (owner.ip().to_string(), mac.as_str());
        for name in [MASTER, NODE_1] {
            let machine = self.machine(name)?;
            self.look(
                &machine,
                "ip route show 10.244.3.0/24",
                &[Expected::line([
                    "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink",
                ])],
            )?;
            self.look(
                &machine,
                "ip neigh show 10.244.3.0 dev flannel.1",
                &[Expected::line([&format!("lladdr {mac}"), "PERMANENT"])],
            )?;
            self.look(
                &machine,
                "bridge fdb show dev flannel.1",
                &[Expected::line([mac, &format!("dst {target}"), "permanent"])],
            )?;
        }
        self.page
            .say("The tunnel is VXLAN over UDP port 8472, and that hardware address is k8s-node-2's end:")?;
        let machine = self.machine(NODE_2)?;
        self.look(
            &machine,
            "ip -d link show dev flannel.1",
            &[
                Expected::line([&format!("link/ether {mac}")]),
                Expected::line(["vxlan id 1", &format!("local {target}"), "dstport 8472"]),
            ],
        )
    }

    pub(super) fn machine(&self, node: &str) -> Result<Machine> {
        Ok(self.lab.node(node)?.machine().clone())
    }

    /// Runs a command on a machine and checks its output for lines.
    pub(super) fn look(
        &mut self,
        machine: &Machine,
        command: &str,
        expected: &[Expected],
    ) -> Result<()> {
        self.page.prompt(machine.name(), command)?;
        let shown = machine
            .run(command)
            .unwrap_or_else(|error| format!("{error:#}"));
        for line in expected {
            self.check(line, &shown)?;
        }
        Ok(())
    }

    fn check(&mut self, expected: &Expected, shown: &str) -> Result<()> {
        match expected.find(shown) {
            Some(line) => self.page.right(&line),
            None => self.page.wrong(&expected.to_string(), shown),
        }
    }
}

fn mac_of_tunnel(node: &Node) -> Result<String> {
    let links = inspect::json(node.machine(), "ip -j link show dev flannel.1")?;
    let mac = links.first().and_then(|link| link["address"].as_str());
    Ok(mac.context("flannel.1 has no hardware address")?.to_owned())
}

fn number(link: &Value, key: &str) -> Result<u64> {
    link[key]
        .as_u64()
        .with_context(|| format!("eth0 has no {key}"))
}
