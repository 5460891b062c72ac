//! The story's first half in iptables mode: chain by chain, as in the days of kube-proxy 1.18.

use anyhow::Result;

use super::cluster::{
    CLUSTER_IP, MASTER, NODE_1, NODE_2, NODE_PORT, POD_IP, POD_PORT, SERVICE_PORT,
};
use super::expect::Expected;
use super::story::Story;

/// The hash of `default/hello-world-service:tcp`.
const SVC: &str = "KUBE-SVC-5MRENC7Q6ZQR6GKR";
/// The same, of its endpoint.
const SEP: &str = "KUBE-SEP-JNUJINTC6VOLRDUD";

const NAT: &str = "iptables-save -t nat";
const FILTER: &str = "iptables-save -t filter";

impl Story<'_> {
    /// From the hooks to the endpoint.
    pub(super) fn chains(&mut self) -> Result<()> {
        self.hooks_of_chains()?;
        self.services_chain()?;
        self.node_ports_chain()?;
        self.endpoint_chains()
    }

    fn hooks_of_chains(&mut self) -> Result<()> {
        self.page
            .chapter("KUBE-SERVICES is where every new connection goes")?;
        let node = self.machine(NODE_1)?;
        let portals = "kubernetes service portals";
        let nat = ["PREROUTING", "OUTPUT"]
            .map(|hook| Expected::line([&format!("-A {hook} "), portals, "-j KUBE-SERVICES"]));
        self.look(&node, NAT, &nat)?;
        let filter = ["INPUT", "FORWARD", "OUTPUT"].map(|hook| {
            let hook = format!("-A {hook} ");
            Expected::line([&hook, "--ctstate NEW", portals, "-j KUBE-SERVICES"])
        });
        self.look(&node, FILTER, &filter)
    }

    fn services_chain(&mut self) -> Result<()> {
        self.page
            .chapter("For each cluster IP and port there are two rules")?;
        self.page
            .say("What does not come from a pod is marked for masquerade; all goes on to the Service's chain.")?;
        let node = self.machine(NODE_1)?;
        let hello = "default/hello-world-service: cluster IP";
        let mut expected = Vec::new();
        for (address, protocol, port, name, chain) in [
            (CLUSTER_IP, "tcp", SERVICE_PORT, hello, SVC),
            (
                "10.96.0.10",
                "udp",
                53,
                "kube-system/kube-dns:dns cluster IP",
                "KUBE-SVC-TCOU7JCQXEZGVUNU",
            ),
            (
                "10.96.0.10",
                "tcp",
                53,
                "kube-system/kube-dns:dns-tcp cluster IP",
                "KUBE-SVC-ERIFXISQEP7F7OF4",
            ),
            (
                "10.96.0.10",
                "tcp",
                9153,
                "kube-system/kube-dns:metrics cluster IP",
                "KUBE-SVC-JD5MR3NA4I4DYORP",
            ),
            (
                "10.96.0.1",
                "tcp",
                443,
                "default/kubernetes:https cluster IP",
                "KUBE-SVC-NPX46M4PTMTKRN6Y",
            ),
        ] {
            let (to, named) = (
                format!("-d {address}/32 -p {protocol} "),
                format!("\"{name}\""),
            );
            let port = format!("--dport {port} ");
            expected.push(Expected::line([
                "-A KUBE-SERVICES ! -s 10.244.0.0/16",
                &to,
                &named,
                &port,
                "-j KUBE-MARK-MASQ",
            ]));
            expected.push(Expected::line([
                &format!("-A KUBE-SERVICES {to}"),
                &named,
                &port,
                &format!("-j {chain}"),
            ]));
        }
        self.look(&node, NAT, &expected)
    }

    fn node_ports_chain(&mut self) -> Result<()> {
        self.page
            .chapter("The last rule leads what goes to the node itself to KUBE-NODEPORTS")?;
        let port = format!("--dport {NODE_PORT}");
        for name in [MASTER, NODE_1, NODE_2] {
            let node = self.machine(name)?;
            self.look(
                &node,
                NAT,
                &[
                    Expected::line([
                        "-A KUBE-SERVICES",
                        "kubernetes service nodeports; NOTE: this must be the last rule in this chain",
                        "--dst-type LOCAL -j KUBE-NODEPORTS",
                    ]),
                    Expected::line(["-A KUBE-NODEPORTS -p tcp", &port, "-j KUBE-MARK-MASQ"]),
                    Expected::line(["-A KUBE-NODEPORTS -p tcp", &port, &format!("-j {SVC}")]),
                ],
            )?;
        }
        Ok(())
    }

    fn endpoint_chains(&mut self) -> Result<()> {
        self.page
            .chapter("The Service's chain picks an endpoint, whose chain is the DNAT")?;
        self.page
            .say("A pod that reaches itself through its Service is masqueraded (hairpin).")?;
        let node = self.machine(MASTER)?;
        self.look(
            &node,
            NAT,
            &[
                Expected::line([&format!("-A {SVC} "), &format!("-j {SEP}")]),
                Expected::line([&format!("-A {SEP} -s {POD_IP}/32"), "-j KUBE-MARK-MASQ"]),
                Expected::line([
                    &format!("-A {SEP} -p tcp"),
                    &format!("-j DNAT --to-destination {POD_IP}:{POD_PORT}"),
                ]),
                Expected::line(["-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"]),
                Expected::line(["-A KUBE-POSTROUTING", "-j MASQUERADE --random-fully"]),
            ],
        )
    }
}
