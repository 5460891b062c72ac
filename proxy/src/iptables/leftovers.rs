//! Owns the removal of proxies' chains where no program of iptables may be there: over netlink from iptables-nft's
//! tables; from the old tables by `iptables-legacy` if it is there, else they are named.

use hostnet::nft::{self, Nft, TableId};
use hostnet::vocab::Family;
use hostnet::xtables;

use super::apply::{IptablesBackend, IptablesError};
use super::counters;
use super::names::{FIREWALL, KUBELET_CANARY, is_of_port, is_shared};
use super::options::Options;
use super::program::{ProgramError, Variant};
use super::script::Table;
use crate::backend::Backend;

/// Why chains could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// The kernel, or the way to it.
    #[error("chains in iptables-nft's tables")]
    Nft(#[from] nft::Error),
    /// The programs.
    #[error("chains in iptables-legacy's tables")]
    Legacy(#[from] IptablesError),
}

/// Removes a proxy's chains, ours and kube-proxy's, from all tables of iptables, with the rules that lead to them.
/// Returns how many changes that took. Chains in the old tables that cannot be removed are named in the log.
///
/// # Errors
/// [`LeftoverError`]: some of them may be gone.
pub fn remove() -> Result<usize, LeftoverError> {
    let removed = remove_of(Variant::Nft)? + remove_of(Variant::Legacy)?;
    counters::remove();
    Ok(removed)
}

/// As [`remove`], from the tables of one variant alone.
///
/// # Errors
/// As [`remove`].
pub fn remove_of(variant: Variant) -> Result<usize, LeftoverError> {
    match variant {
        Variant::Nft => remove_nft(),
        Variant::Legacy => remove_legacy(),
    }
}

fn remove_nft() -> Result<usize, LeftoverError> {
    let mut nft = Nft::open()?;
    let mut removed = 0;
    for family in Family::ALL {
        let mangle = TableId::new(family, Table::Mangle.name());
        let canary = nft.leftover_chains(&mangle, |chain| chain == KUBELET_CANARY)?;
        let has_kubelet = !canary.ops.is_empty();
        for table in Table::ALL {
            let table = TableId::new(family, table.name());
            let changes = nft.leftover_chains(&table, |chain| is_proxys(chain, has_kubelet))?;
            if !changes.ops.is_empty() {
                removed += changes.ops.len();
                nft.apply(&changes)?;
            }
        }
    }
    Ok(removed)
}

/// Whether a chain is a proxy's: where there is a kubelet, KUBE-FIREWALL is the kubelet's too.
pub(super) fn is_proxys(chain: &str, has_kubelet: bool) -> bool {
    is_shared(chain) || is_of_port(chain) || chain == FIREWALL && !has_kubelet
}

fn remove_legacy() -> Result<usize, LeftoverError> {
    let chains = |family, table: Table| xtables::chains(family, table.name()).unwrap_or_default();
    let found: Vec<String> = (Family::ALL.into_iter())
        .flat_map(|family| Table::ALL.map(|table| chains(family, table)))
        .flatten()
        .filter(|chain| is_proxys(chain, true))
        .collect();
    let Some(first) = found.first() else {
        return Ok(0);
    };
    match IptablesBackend::new(Options::default(), Variant::Legacy).cleanup() {
        Ok(applied) => Ok(applied.ops),
        Err(IptablesError::Program {
            source: ProgramError::Missing(program),
            ..
        }) => {
            tracing::warn!(
                chains = found.len(),
                first,
                program,
                "a proxy's chains are in the old tables of iptables, and still in force: \
                 install iptables there, or run `iptables-legacy-save` and `iptables-legacy-restore` without them, or reboot"
            );
            Ok(0)
        }
        Err(error) => Err(error.into()),
    }
}
