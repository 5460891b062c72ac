//! Owns the programs: which of the kernel's two iptables the host uses, and running `iptables-save` and
//! `iptables-restore` of that kind.

use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use hostnet::nft::{Nft, TableId};
use hostnet::vocab::Family;
use hostnet::xtables;

use super::names::KUBELET_CANARY;
use super::script::Script;

/// How long the lock is waited for that other iptables programs hold, in seconds.
const LOCK: u32 = 5;

/// As much as a pipe takes at once.
const PIPE: usize = 64 << 10;

/// Before this release `iptables-restore` knows no `--wait`, and no rule `--random-fully`. kube-proxy's
/// `WaitRestoreMinVersion` and `RandomFullyMinVersion`.
const LEAST: [u32; 3] = [1, 6, 2];

/// Chains of other components that were made so that programs in containers can tell which iptables the host uses:
/// of kubeadm and others, and the kubelet's (KEP-3178).
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", KUBELET_CANARY];

/// Which of the kernel's packet filters iptables programs work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// nf_tables: programs `iptables-nft-…`.
    Nft,
    /// The old tables: programs `iptables-legacy-…`.
    Legacy,
}

impl Variant {
    /// What names of programs have between `iptables-` and the command.
    pub fn as_str(self) -> &'static str {
        match self {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        }
    }

    /// The one that the host uses: by hints that others have left, else the one that has rules, else the one whose
    /// program there is, nf_tables first.
    pub fn of_host() -> Variant {
        if Variant::Nft.has_hint() {
            return Variant::Nft;
        }
        let legacy = |table| xtables::chains(Family::V4, table).unwrap_or_default();
        let tables = ["filter", "nat", "mangle"];
        let has_rules = || {
            tables.iter().any(|table| !legacy(table).is_empty())
                && !tables.iter().any(|table| nft_has(table, |_| true))
        };
        if Variant::Legacy.has_hint()
            || has_rules()
            || !is_there("iptables-nft-restore") && is_there("iptables-legacy-restore")
        {
            return Variant::Legacy;
        }
        Variant::Nft
    }

    /// The other one, if hints of others say that the host uses that, and none that it uses this.
    pub fn contradicted(self) -> Option<Variant> {
        let other = self.other();
        (other.has_hint() && !self.has_hint()).then_some(other)
    }

    /// The other one.
    pub fn other(self) -> Variant {
        match self {
            Variant::Nft => Variant::Legacy,
            Variant::Legacy => Variant::Nft,
        }
    }

    fn has_hint(self) -> bool {
        let is_hint = |chain: &str| HINTS.contains(&chain);
        match self {
            Variant::Nft => nft_has("mangle", is_hint),
            Variant::Legacy => xtables::chains(Family::V4, "mangle")
                .is_ok_and(|chains| chains.iter().any(|chain| is_hint(chain))),
        }
    }
}

/// Whether iptables' table in nf_tables has such a chain that a program has made.
fn nft_has(table: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
    const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let find = || {
        let is_wanted = |chain: &str| !BUILT_IN.contains(&chain) && is_wanted(chain);
        Nft::open()?.leftover_chains(&TableId::new(Family::V4, table), is_wanted)
    };
    find().is_ok_and(|found| !found.ops.is_empty())
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .any(|dir: std::path::PathBuf| Path::new(&dir).join(program).is_file())
}

/// The programs of one variant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Programs {
    variant: Variant,
}

/// Why the programs did not do what they were asked for.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is no such program.
    #[error(
        "{0} is not there: install iptables 1.8 or newer, or use mode nftables, which needs no program"
    )]
    Missing(String),
    /// It is of a release that does not do what is needed.
    #[error(
        "{program} is too old, it says `{said}`: --wait and --random-fully came with 1.6.2; install iptables 1.8 or \
         newer, or use mode nftables, which needs no program"
    )]
    TooOld {
        /// The program.
        program: String,
        /// What it said, asked for its version.
        said: String,
    },
    /// It cannot be run.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// Another one holds the lock for long.
    #[error(
        "{0}: another program has held the lock of iptables for {LOCK} s: end it (`fuser /run/xtables.lock` names it)"
    )]
    Locked(String),
    /// A chain of our name is one that these programs do not see: a base chain, say, which `nft` has made.
    #[error(
        "{program}: chain {chain} is another program's, which iptables cannot change: rename or delete it (`nft list \
         ruleset` shows it), or use mode nftables, which has a table of its own"
    )]
    Foreign {
        /// The program.
        program: String,
        /// The chain.
        chain: String,
    },
    /// It refused a line of the document.
    #[error("{program} refused line {line}, `{rule}`: {said}")]
    Line {
        /// The program.
        program: String,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        rule: String,
        /// What it said.
        said: String,
    },
    /// It failed in another way.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: String,
        /// What it said.
        said: String,
    },
}

impl Programs {
    pub(super) fn new(variant: Variant) -> Programs {
        Programs { variant }
    }

    pub(super) fn variant(self) -> Variant {
        self.variant
    }

    /// `ip6tables-nft-save` and so on.
    pub(super) fn name(self, family: Family, command: &str) -> String {
        let six = match family {
            Family::V4 => "",
            Family::V6 => "6",
        };
        format!("ip{six}tables-{}-{command}", self.variant.as_str())
    }

    /// Whether the programs do what is asked of them here. Those that do not say of which release they are pass.
    pub(super) fn check(self, family: Family) -> Result<(), ProgramError> {
        let (program, mut command) = self.command(family, "restore");
        let output = command.arg("--version").stdin(Stdio::null()).output();
        let output = finished(&program, output, None)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (said, complaint) = (text(&output.stdout), text(&output.stderr));
        match version(&said) {
            Some(version) if version < LEAST => Err(ProgramError::TooOld { program, said }),
            // Those that do not know the option complain, and go on to read a document: here an empty one.
            None if complaint.contains("unrecognized option") => Err(ProgramError::TooOld {
                program,
                said: complaint,
            }),
            _ => Ok(()),
        }
    }

    /// What all tables of a family hold.
    pub(super) fn save(self, family: Family) -> Result<String, ProgramError> {
        let (program, mut command) = self.command(family, "save");
        let output = command.output();
        let output = finished(&program, output, None)?;
        Ok(String::from_utf8(output.stdout)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Applies a document, and tells `started` the id of the process that does so.
    pub(super) fn restore(
        self,
        family: Family,
        document: &Script,
        started: impl FnOnce(u32),
    ) -> Result<(), ProgramError> {
        let (program, mut command) = self.command(family, "restore");
        command
            .args(["--noflush", &format!("--wait={LOCK}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let run = || {
            let mut child = command.spawn()?;
            started(child.id());
            if let Some(stdin) = child.stdin.take() {
                let mut stdin = BufWriter::with_capacity(PIPE, stdin);
                // Who refuses a line does not read on: what it says is worth more than that.
                let _ = write!(stdin, "{document}").and_then(|()| stdin.flush());
            }
            child.wait_with_output()
        };
        finished(&program, run(), Some(document)).map(|_| ())
    }

    fn command(self, family: Family, command: &str) -> (String, Command) {
        let program = self.name(family, command);
        let made = Command::new(&program);
        (program, made)
    }
}

fn finished(
    program: &str,
    output: io::Result<Output>,
    document: Option<&Script>,
) -> Result<Output, ProgramError> {
    let program = program.to_owned();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ProgramError::Missing(program));
        }
        Err(source) => return Err(ProgramError::Run { program, source }),
    };
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    if said.contains("xtables lock") {
        return Err(ProgramError::Locked(program));
    }
    let rule = line_number(&said).and_then(|line| {
        let document = document?.to_string();
        Some((line, document.lines().nth(line - 1)?.to_owned()))
    });
    Err(match rule {
        Some((line, rule)) => ProgramError::Line {
            program,
            line,
            rule,
            said,
        },
        None if said.is_empty() => ProgramError::Failed {
            said: output.status.to_string(),
            program,
        },
        None => ProgramError::Failed { program, said },
    })
}

/// The release in what a program says of itself: `iptables-restore v1.8.9 (legacy)`.
fn version(said: &str) -> Option<[u32; 3]> {
    let is_version = |word: &&str| word.starts_with('v');
    let version = said.split_whitespace().find(is_version)?;
    let mut parts = version[1..].split('.').map(|part| part.parse().ok());
    let mut next = || parts.next().unwrap_or(Some(0));
    Some([next()?, next()?, next()?])
}

/// The line that a program complains of: `line 12 failed`, `line: 12`.
fn line_number(said: &str) -> Option<usize> {
    let numbers = said.match_indices("line").filter_map(|(at, word)| {
        let rest = said[at + word.len()..].trim_start_matches([':', ' ']);
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok().filter(|line| *line > 0)
    });
    numbers.last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_older_or_newer_than_the_least_one() {
        let is_old = |said: &str| version(said).map(|version| version < LEAST);
        assert_eq!(is_old("iptables-restore v1.8.9 (legacy)"), Some(false));
        assert_eq!(
            is_old("iptables-nft-restore v1.10 (nf_tables)"),
            Some(false)
        );
        assert_eq!(is_old("iptables-restore v1.6.2"), Some(false));
        assert_eq!(is_old("iptables-restore v1.6.1"), Some(true));
        assert_eq!(is_old("iptables-restore v1.4.21"), Some(true));
        assert_eq!(is_old("another implementation"), None);
    }

    #[test]
    fn the_line_is_found_in_what_each_program_says() {
        for (said, line) in [
            ("iptables-restore: line 3 failed", Some(3)),
            (
                "Error occurred at line: 12 Try `iptables-restore -h'",
                Some(12),
            ),
            (
                "iptables-restore v1.8.9 (nf_tables): line 7: RULE_APPEND failed",
                Some(7),
            ),
            ("Permission denied (you must be root)", None),
        ] {
            assert_eq!(line_number(said), line, "{said}");
        }
    }
}
