//! What the reference plugins left for a container that they attached, and whose DEL comes to us:
//! portmap's and bridge's chains in iptables-nft's tables, and flannel's cached configuration.

use std::io;
use std::path::Path;

use hostnet::nft::{Nft, TableId};
use hostnet::vocab::Family;
use sha2::{Digest, Sha512};

use crate::error::{CniError, Code};
use crate::request::Identity;

/// The table of iptables-nft in which both plugins work.
const NAT: &str = "nat";

/// The longest name of a chain in iptables.
const CHAIN_MAX: usize = 28;

/// A container's chain: `CNI-`, what it is for, and of the SHA-512 of network and container as
/// many digits as fit.
fn chain(purpose: &str, network: &str, identity: &Identity) -> String {
    let hash = Sha512::new()
        .chain_update(network)
        .chain_update(identity.container_id.as_str())
        .finalize();
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = format!("CNI-{purpose}{digits}");
    name.truncate(CHAIN_MAX);
    name
}

/// Removes portmap's chain for a container (`CNI-DN-…`) and bridge's (`CNI-…`, of `ipMasq`), with
/// the rules that lead to them. Where there are none, nothing is done.
pub(super) fn remove_chains(
    nft: &mut Nft,
    network: &str,
    identity: &Identity,
) -> Result<(), CniError> {
    let ours = [
        chain("DN-", network, identity),
        chain("", network, identity),
    ];
    let mut errors = Vec::new();
    for family in Family::ALL {
        let removed = nft
            .leftover_chains(&TableId::new(family, NAT), |name| {
                ours.iter().any(|ours| ours == name)
            })
            .and_then(|changes| nft.apply(&changes));
        errors.extend(removed.err().map(CniError::from));
    }
    CniError::join(errors).map_or(Ok(()), Err)
}

/// Removes the configuration that flannel's plugin kept for a container it attached.
pub(super) fn forget_flannel(flannel_dir: &Path, identity: &Identity) -> Result<(), CniError> {
    let path = flannel_dir.join(identity.container_id.as_str());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let msg = format!("cannot remove {}", path.display());
            Err(CniError {
                details: error.to_string(),
                ..CniError::new(Code::Io, msg)
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachment::tests::identity;

    #[test]
    fn chains_are_named_as_the_plugins_do() {
        // The first digits of the SHA-512 of "test1234".
        let id = identity("1234");
        assert_eq!(chain("", "test", &id), "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(chain("DN-", "test", &id), "CNI-DN-2bbe0c48b91a7d1b8a675");
    }
}
