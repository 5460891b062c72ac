//! Owns the form of a rule: typed, and written as `iptables-save` writes it, so that what is wanted and what the
//! kernel holds can be compared as they stand.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;

use hostnet::vocab::{Family, Subnet};

use super::names::Chain;
use crate::plan::Protocol;

/// A rule of some chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    source: Option<Is<Subnet>>,
    destination: Option<Is<Subnet>>,
    input: Option<Is<Box<str>>>,
    protocol: Option<Protocol>,
    /// In the order in which they are asked.
    matches: Vec<Match>,
    target: Option<Target>,
}

/// A condition, or its contrary.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Is<T> {
    Yes(T),
    Not(T),
}

/// A condition of an extension.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Match {
    Comment(String),
    /// The destination port, of the rule's protocol.
    Port(Protocol, u16),
    DestinationIsLocal,
    SourceIsLocal,
    State(&'static str),
    NotState(&'static str),
    Mark(u32),
    NotMark(u32),
    /// One in so many packets.
    Random(u32),
    /// The source was put on this list less than so long ago.
    Remembered(Family, Chain, NonZeroU32),
    /// Puts the source on this list.
    Remember(Family, Chain),
    /// Is counted by the kernel's counter of this name.
    Counted(&'static str),
}

/// What becomes of a packet that meets all conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Jump(Chain),
    Return,
    Accept,
    Drop,
    Reject(Family),
    Dnat(SocketAddr),
    Masquerade,
    /// Sets these bits of the packet mark.
    SetMark(u32),
    /// Turns these bits of the packet mark over.
    FlipMark(u32),
}

impl Rule {
    pub(super) fn new() -> Rule {
        Rule::default()
    }

    pub(super) fn source(mut self, network: Subnet) -> Rule {
        self.source = Some(Is::Yes(network));
        self
    }

    pub(super) fn not_source(mut self, network: Subnet) -> Rule {
        self.source = Some(Is::Not(network));
        self
    }

    pub(super) fn destination(mut self, network: Subnet) -> Rule {
        self.destination = Some(Is::Yes(network));
        self
    }

    pub(super) fn not_destination(mut self, network: Subnet) -> Rule {
        self.destination = Some(Is::Not(network));
        self
    }

    /// Came in by the interface of this name, or one whose name begins so where it ends in `*`.
    pub(super) fn input(mut self, name: &str) -> Rule {
        self.input = Some(Is::Yes(interface(name)));
        self
    }

    pub(super) fn not_input(mut self, name: &str) -> Rule {
        self.input = Some(Is::Not(interface(name)));
        self
    }

    pub(super) fn comment(self, text: impl Into<String>) -> Rule {
        self.matching(Match::Comment(text.into()))
    }

    /// Goes to this port.
    pub(super) fn port(mut self, protocol: Protocol, port: u16) -> Rule {
        self.protocol = Some(protocol);
        self.matching(Match::Port(protocol, port))
    }

    /// Is of this protocol, whatever the port. The extension is named too, as kube-proxy does.
    pub(super) fn protocol(mut self, protocol: Protocol) -> Rule {
        self.protocol = Some(protocol);
        self.matching(Match::Port(protocol, 0))
    }

    pub(super) fn destination_is_local(self) -> Rule {
        self.matching(Match::DestinationIsLocal)
    }

    pub(super) fn source_is_local(self) -> Rule {
        self.matching(Match::SourceIsLocal)
    }

    pub(super) fn state(self, states: &'static str) -> Rule {
        self.matching(Match::State(states))
    }

    pub(super) fn not_state(self, states: &'static str) -> Rule {
        self.matching(Match::NotState(states))
    }

    pub(super) fn mark(self, bits: u32) -> Rule {
        self.matching(Match::Mark(bits))
    }

    pub(super) fn not_mark(self, bits: u32) -> Rule {
        self.matching(Match::NotMark(bits))
    }

    pub(super) fn one_in(self, count: u32) -> Rule {
        self.matching(Match::Random(count))
    }

    pub(super) fn remembered(self, family: Family, list: Chain, seconds: NonZeroU32) -> Rule {
        self.matching(Match::Remembered(family, list, seconds))
    }

    pub(super) fn remember(self, family: Family, list: Chain) -> Rule {
        self.matching(Match::Remember(family, list))
    }

    pub(super) fn counted(self, counter: &'static str) -> Rule {
        self.matching(Match::Counted(counter))
    }

    pub(super) fn jump(self, chain: impl Into<Chain>) -> Rule {
        self.target(Target::Jump(chain.into()))
    }

    pub(super) fn target(mut self, target: Target) -> Rule {
        self.target = Some(target);
        self
    }

    fn matching(mut self, what: Match) -> Rule {
        self.matches.push(what);
        self
    }
}

fn interface(name: &str) -> Box<str> {
    match name.strip_suffix('*') {
        Some(prefix) => format!("{prefix}+").into(),
        None => name.into(),
    }
}

impl<T> Is<T> {
    fn write(&self, f: &mut fmt::Formatter<'_>, option: &str) -> fmt::Result
    where
        T: fmt::Display,
    {
        match self {
            Is::Yes(value) => write!(f, " {option} {value}"),
            Is::Not(value) => write!(f, " ! {option} {value}"),
        }
    }
}

/// Without the chain, and with a space in front of each part: ` -d 10.96.0.1/32 -p tcp … -j KUBE-SVC-…`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (network, option) in [(&self.source, "-s"), (&self.destination, "-d")] {
            match network {
                // From anywhere: that is no condition, and is not saved.
                Some(Is::Yes(network)) if network.prefix() == 0 => {}
                Some(network) => network.write(f, option)?,
                None => {}
            }
        }
        if let Some(input) = &self.input {
            input.write(f, "-i")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, " -p {protocol}")?;
        }
        for part in &self.matches {
            write!(f, " -m {part}")?;
        }
        match &self.target {
            Some(target) => write!(f, " -j {target}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Comment(text) => write!(f, "comment --comment {}", Quoted(text)),
            Match::Port(protocol, 0) => write!(f, "{protocol}"),
            Match::Port(protocol, port) => write!(f, "{protocol} --dport {port}"),
            Match::DestinationIsLocal => f.write_str("addrtype --dst-type LOCAL"),
            Match::SourceIsLocal => f.write_str("addrtype --src-type LOCAL"),
            Match::State(states) => write!(f, "conntrack --ctstate {states}"),
            Match::NotState(states) => write!(f, "conntrack ! --ctstate {states}"),
            Match::Mark(bits) => write!(f, "mark --mark {bits:#x}/{bits:#x}"),
            Match::NotMark(bits) => write!(f, "mark ! --mark {bits:#x}/{bits:#x}"),
            Match::Random(count) => {
                let probability = probability(*count);
                write!(f, "statistic --mode random --probability {probability:.11}")
            }
            Match::Remembered(family, list, seconds) => write!(
                f,
                "recent --rcheck --seconds {seconds} --reap --name {list} --mask {} --rsource",
                mask(*family)
            ),
            // It is saved with two spaces.
            Match::Counted(counter) => write!(f, "nfacct --nfacct-name  {counter}"),
            Match::Remember(family, list) => write!(
                f,
                "recent --set --name {list} --mask {} --rsource",
                mask(*family)
            ),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Jump(chain) => f.write_str(chain),
            Target::Return => f.write_str("RETURN"),
            Target::Accept => f.write_str("ACCEPT"),
            Target::Drop => f.write_str("DROP"),
            Target::Reject(Family::V4) => f.write_str("REJECT --reject-with icmp-port-unreachable"),
            Target::Reject(Family::V6) => {
                f.write_str("REJECT --reject-with icmp6-port-unreachable")
            }
            Target::Dnat(to) => write!(f, "DNAT --to-destination {to}"),
            Target::Masquerade => f.write_str("MASQUERADE --random-fully"),
            Target::SetMark(bits) => write!(f, "MARK --set-xmark {bits:#x}/{bits:#x}"),
            Target::FlipMark(bits) => write!(f, "MARK --set-xmark {bits:#x}/0x0"),
        }
    }
}

/// The kernel keeps probabilities in parts of 2³¹; kube-proxy gives ten digits of them.
fn probability(count: u32) -> f64 {
    const PARTS: f64 = (1_u32 << 31) as f64;
    const DIGITS: f64 = 1e10;
    let given = (DIGITS / f64::from(count)).round() / DIGITS;
    (given * PARTS).round() / PARTS
}

fn mask(family: Family) -> &'static str {
    match family {
        Family::V4 => "255.255.255.255",
        Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    }
}

/// A text as `iptables-save` quotes it: unless it is one plain word.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if !self.0.is_empty() && self.0.chars().all(is_plain) {
            return f.write_str(self.0);
        }
        f.write_str("\"")?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\' | '\'') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_stands_in_the_order_of_iptables_save() {
        let rule = Rule::new()
            .comment("default/web cluster IP")
            .port(Protocol::Tcp, 80)
            .destination("10.96.0.1/32".parse().unwrap())
            .not_source("10.244.0.0/16".parse().unwrap())
            .jump("KUBE-MARK-MASQ");
        assert_eq!(
            rule.to_string(),
            " ! -s 10.244.0.0/16 -d 10.96.0.1/32 -p tcp -m comment --comment \"default/web cluster IP\" \
             -m tcp --dport 80 -j KUBE-MARK-MASQ"
        );
        let anywhere = Rule::new().source("0.0.0.0/0".parse().unwrap());
        assert_eq!(anywhere.jump("X").to_string(), " -j X");
        let nowhere = Rule::new().not_source("0.0.0.0/0".parse().unwrap());
        assert_eq!(nowhere.jump("X").to_string(), " ! -s 0.0.0.0/0 -j X");
        assert_eq!(Rule::new().not_input("cn*").to_string(), " ! -i cn+");
    }

    #[test]
    fn probabilities_are_what_the_kernel_keeps() {
        let of = |count| {
            let rule = Rule::new().one_in(count).to_string();
            rule.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(of(2), "0.50000000000");
        assert_eq!(of(3), "0.33333333349");
        assert_eq!(of(7), "0.14285714272");
    }

    #[test]
    fn a_comment_of_one_word_has_no_quotes() {
        let of = |text: &str| Rule::new().comment(text).to_string();
        assert_eq!(of("word"), " -m comment --comment word");
        assert_eq!(of("a/b"), " -m comment --comment \"a/b\"");
        assert_eq!(of("it's"), " -m comment --comment \"it\\'s\"");
    }
}
