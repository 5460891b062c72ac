//! What the reference plugins left for a container that they attached, and whose DEL comes to us:
//! portmap's and bridge's chains in iptables' tables of either variant, the rules of portmap's own
//! table, and flannel's cached configuration.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use hostnet::nft::{Comment, Nft, TableId};
use hostnet::vocab::Family;
use hostnet::xtables;
use sha2::{Digest, Sha512};

use crate::error::{CniError, Code};
use crate::request::Identity;

/// The table of iptables in which both plugins work.
const NAT: &str = "nat";

/// The longest name of a chain in iptables.
const CHAIN_MAX: usize = 28;

/// The table of portmap's nftables backend, one for each family, and its chains in which a
/// container's rules have its id as comment.
const PORTMAP_TABLE: &str = "cni_hostport";
const PORTMAP_CHAINS: [&str; 3] = ["hostports", "hostip_hostports", "masquerading"];

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
/// the rules that lead to them, and portmap's rules in nf_tables. Where there are none, nothing is
/// done. All is tried.
pub(super) fn remove_rules(
    nft: &mut Nft,
    network: &str,
    identity: &Identity,
) -> Result<(), CniError> {
    let chains = [
        chain("DN-", network, identity),
        chain("", network, identity),
    ];
    let is_theirs = |name: &str| chains.iter().any(|theirs| theirs == name);
    let marks = [Comment::new(identity.container_id.as_str())];
    let mut errors = Vec::new();
    for family in Family::ALL {
        let removed = nft
            .leftover_chains(&TableId::new(family, NAT), is_theirs)
            .and_then(|changes| nft.apply(&changes));
        errors.extend(removed.err().map(CniError::from));
        errors.extend(remove_legacy(family, is_theirs).err());
        let table = TableId::new(family, PORTMAP_TABLE);
        for chain in PORTMAP_CHAINS {
            let removed = nft.set_marked_rules(&table, chain, &marks, &[]);
            errors.extend(removed.err().map(CniError::from));
        }
    }
    CniError::join(errors).map_or(Ok(()), Err)
}

/// Removes chains of the old tables by the programs of `iptables-legacy`; the kernel has no other
/// way to change these in part. Without the programs the chains are named on standard error: they
/// are not ours, and the container's end is not held up for them.
fn remove_legacy(family: Family, is_theirs: impl Fn(&str) -> bool) -> Result<(), CniError> {
    let mut found = xtables::chains(family, NAT).unwrap_or_default();
    found.retain(|chain| is_theirs(chain));
    if found.is_empty() {
        return Ok(());
    }
    let program = match family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    };
    let saved = match run(&format!("{program}-save"), &["-t", NAT], "") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!(
                "twill-cni: the chains {} of a container that is gone stay in the old tables of \
                 iptables, because {program} is not there: install it and remove them by hand, \
                 or restart the node",
                found.join(", ")
            );
            return Ok(());
        }
        saved => saved,
    };
    saved
        .and_then(|saved| {
            let document = without(&saved, &found);
            run(
                &format!("{program}-restore"),
                &["--noflush", "--wait"],
                &document,
            )
        })
        .map(drop)
        .map_err(|error| CniError {
            details: error.to_string(),
            ..CniError::new(Code::Kernel, format!("cannot remove {}", found.join(", ")))
        })
}

/// What `iptables-restore --noflush` is told to remove chains, with the rules that lead to them.
fn without(saved: &str, chains: &[String]) -> String {
    let leads = |rule: &str| {
        // The last one: a comment may hold anything.
        let to = ["-j ", "-g "]
            .iter()
            .filter_map(|word| rule.rsplit_once(word));
        to.map(|(_, to)| to)
            .any(|to| chains.iter().any(|c| c == to))
    };
    let rules = saved.lines().filter_map(|line| line.strip_prefix("-A "));
    let mut document = format!("*{NAT}\n");
    // A chain that is declared is emptied.
    document.extend(chains.iter().map(|chain| format!(":{chain} - [0:0]\n")));
    document.extend(
        rules
            .filter(|r| leads(r))
            .map(|rule| format!("-D {rule}\n")),
    );
    document.extend(chains.iter().map(|chain| format!("-X {chain}\n")));
    document + "COMMIT\n"
}

/// Runs a program with an input to its end, and returns what it printed.
fn run(program: &str, args: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", said.trim())))
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

    #[test]
    fn chains_in_the_old_tables_go_with_the_rules_that_lead_to_them() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:CNI-DN-a - [0:0]\n:CNI-DN-ab - [0:0]\n\
            -A CNI-HOSTPORT-DNAT -m comment --comment \"of -j CNI-DN-a\" -j CNI-DN-ab\n\
            -A CNI-HOSTPORT-DNAT -m comment --comment \"id: \\\"a\\\"\" -j CNI-DN-a\n\
            -A CNI-DN-a -p tcp -j DNAT --to-destination 10.244.3.2:80\nCOMMIT\n";
        assert_eq!(
            without(saved, &["CNI-DN-a".to_owned()]),
            "*nat\n:CNI-DN-a - [0:0]\n\
             -D CNI-HOSTPORT-DNAT -m comment --comment \"id: \\\"a\\\"\" -j CNI-DN-a\n\
             -X CNI-DN-a\nCOMMIT\n"
        );
    }
}
