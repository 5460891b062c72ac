//! What nf_tables does with a packet: its rules run one after another, as the kernel would, on what a [`View`] shows.
//!
//! ```text
//!  packet     the packet, and what registers load of it
//!  choices    random numbers: each outcome in turn, with its chance
//!  run        chains and rules
//!  expr       one expression on the registers
//!  kube       names and comments of kube-proxy's iptables chains
//!  xt         what iptables-nft writes as matches and targets of xtables
//! ```
//!
//! Where the kernel draws a random number, each outcome is a [`Way`] of its own with its chance. What this program
//! cannot evaluate (a foreign rule with a match that it does not know) counts as not matching, and is told.

mod choices;
mod expr;
pub mod kube;
mod packet;
mod run;
mod xt;

use std::net::IpAddr;

use hostnet::nft::{AnyTable, BaseChain, Hook, Name};

pub use packet::{Device, Packet};

use crate::view::{Result, View};
use choices::Choices;
use run::Run;

/// What becomes of a packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It goes on.
    Pass,
    /// It goes on to another destination.
    Dnat(IpAddr, Option<u16>),
    /// It goes on with this node's address as its source.
    Masquerade,
    /// It goes on to this node.
    Redirect(Option<u16>),
    /// It is dropped in silence.
    Drop,
    /// It is refused with an answer.
    Reject,
}

/// Something that had a say: an element that was found, or a rule that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The table.
    pub table: AnyTable,
    /// The chain whose rule it was.
    pub chain: Name,
    /// The set or map of the element.
    pub set: Option<Name>,
    /// The element or rule as nft writes it.
    pub text: String,
    /// The object that it comes from, by the comment.
    pub object: Option<String>,
}

/// One way through the rules of a hook.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    /// How likely it is, above 0 and at most 1.
    pub chance: f64,
    /// Where it ends.
    pub end: End,
    /// The packet's mark then.
    pub mark: u32,
    /// What had a say, in order.
    pub steps: Vec<Step>,
    /// Maps in which a value was looked for and not found, each with the key.
    pub missing: Vec<Step>,
    /// Foreign rules that may decide otherwise, but cannot be evaluated here.
    pub unsure: Vec<Step>,
}

/// More endpoints than a person reads.
const WAYS_MAX: usize = 2_000;

/// All ways of a packet through the rules of a hook, the likelier first.
///
/// # Errors
/// The kernel could not be read.
pub fn hook(view: &mut dyn View, packet: &Packet, at: Hook) -> Result<Vec<Way>> {
    let mut chains: Vec<BaseChain> = view.base_chains()?;
    let family = packet.family();
    chains.retain(|chain| {
        chain.base.hook == at && chain.table.family.is_none_or(|own| own == family)
    });
    chains.sort_by_key(|chain| chain.base.priority);
    let mut choices = Choices::default();
    let mut ways: Vec<Way> = Vec::new();
    loop {
        choices.restart();
        let mut run = Run {
            view: &mut *view,
            packet: packet.clone(),
            choices: &mut choices,
            steps: Vec::new(),
            missing: Vec::new(),
            unsure: Vec::new(),
        };
        let end = run.chains(&chains)?;
        let mark = run.packet.mark;
        let (steps, missing, unsure) = (run.steps, run.missing, run.unsure);
        let way = Way {
            chance: choices.chance(),
            end,
            mark,
            steps,
            missing,
            unsure,
        };
        let same = |known: &&mut Way| {
            (&known.end, &known.mark, &known.steps, &known.missing)
                == (&way.end, &way.mark, &way.steps, &way.missing)
        };
        match ways.iter_mut().find(same) {
            Some(known) => known.chance += way.chance,
            None => ways.push(way),
        }
        if ways.len() >= WAYS_MAX || !choices.next() {
            break;
        }
    }
    ways.sort_by(|a, b| b.chance.total_cmp(&a.chance));
    Ok(ways)
}
