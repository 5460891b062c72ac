//! Owns the choice of the packet filter, and the choices of iptables mode.

use crate::iptables::{Naming, Options, Variant};

/// Which packet filter carries the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// nf_tables, over netlink.
    Nftables,
    /// kube-proxy's chains, by the programs of iptables.
    Iptables {
        /// What rules depend on besides the plan.
        options: Options,
        /// Which of the kernel's two iptables it shall be; `None`: the one that the host uses.
        variant: Option<Variant>,
    },
}

impl Mode {
    /// kube-proxy's name of it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables { .. } => "iptables",
        }
    }
}

/// What is given for iptables mode, file before flags. `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) legacy_names: Option<bool>,
    pub(super) masquerade_bit: Option<u8>,
    pub(super) localhost_node_ports: Option<bool>,
    pub(super) variant: Option<Variant>,
}

impl Given {
    /// The mode that follows.
    pub(super) fn mode(self) -> Mode {
        let usual = Options::default();
        Mode::Iptables {
            options: Options {
                naming: match self.legacy_names {
                    Some(true) => Naming::Legacy,
                    _ => Naming::Today,
                },
                masquerade_bit: self.masquerade_bit.unwrap_or(usual.masquerade_bit),
                localhost_node_ports: (self.localhost_node_ports)
                    .unwrap_or(usual.localhost_node_ports),
                ..usual
            },
            variant: self.variant,
        }
    }
}
