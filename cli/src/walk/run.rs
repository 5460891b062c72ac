//! Chains and rules, one after another.

use hostnet::nft::{AnyTable, BaseChain, ChainKind, Expr, Name, Policy, Rule, Verdict};

use super::choices::Choices;
use super::expr::{ExprEnd, Registers};
use super::{End, Packet, Step, kube};
use crate::view::{Result, View};

/// What a chain or rule leads to.
enum Flow {
    Next,
    Accept,
    End(End),
}

/// One way through the chains of a hook, as far as it has come.
pub(super) struct Run<'a> {
    pub(super) view: &'a mut dyn View,
    pub(super) packet: Packet,
    pub(super) choices: &'a mut Choices,
    pub(super) steps: Vec<Step>,
    pub(super) missing: Vec<Step>,
    pub(super) unsure: Vec<Step>,
}

/// Where a rule is.
pub(super) struct Place<'a> {
    pub(super) table: &'a AnyTable,
    pub(super) chain: &'a Name,
    depth: u8,
}

/// A jump deeper than this the kernel refuses to load (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: u8 = 16;

impl Run<'_> {
    /// Base chains in the order of their priorities.
    pub(super) fn chains(&mut self, chains: &[BaseChain]) -> Result<End> {
        let mut end = End::Pass;
        for chain in chains {
            let is_nat = chain.base.kind == ChainKind::Nat;
            // The first translation holds, and later chains of the kind are not asked.
            if is_nat && end != End::Pass {
                continue;
            }
            let place = Place {
                table: &chain.table,
                chain: &chain.name,
                depth: 0,
            };
            match self.chain(&place)? {
                Flow::End(new @ (End::Drop | End::Reject)) => return Ok(new),
                Flow::End(new) => {
                    if let End::Dnat(address, port) = &new {
                        self.packet = self.packet.translated(*address, *port);
                    }
                    end = new;
                }
                Flow::Next if chain.base.policy == Policy::Drop => {
                    self.steps.push(Step {
                        table: chain.table.clone(),
                        chain: chain.name.clone(),
                        set: None,
                        text: "policy drop".to_owned(),
                        object: None,
                    });
                    return Ok(End::Drop);
                }
                Flow::Next | Flow::Accept => {}
            }
        }
        Ok(end)
    }

    fn chain(&mut self, place: &Place<'_>) -> Result<Flow> {
        let rules = self.view.rules(place.table, place.chain)?;
        for rule in rules.iter() {
            match self.rule(place, rule)? {
                RuleEnd::Next => {}
                RuleEnd::Return => return Ok(Flow::Next),
                RuleEnd::Flow(flow) => return Ok(flow),
                RuleEnd::Jump(chain, returns) => {
                    let inner = Place {
                        chain: &chain,
                        depth: place.depth + 1,
                        ..*place
                    };
                    if inner.depth > DEPTH_MAX {
                        return Ok(Flow::Next);
                    }
                    match self.chain(&inner)? {
                        Flow::Next if returns => {}
                        flow => return Ok(flow),
                    }
                }
            }
        }
        Ok(Flow::Next)
    }

    fn rule(&mut self, place: &Place<'_>, rule: &Rule) -> Result<RuleEnd> {
        let mut registers = Registers {
            bytes: [0; 64],
            random: None,
        };
        for expr in &rule.exprs {
            match self.expr(place, rule, expr, &mut registers)? {
                ExprEnd::Next => {}
                ExprEnd::NoMatch => return Ok(RuleEnd::Next),
                ExprEnd::Unknown => {
                    let drops = |expr: &Expr| {
                        matches!(expr, Expr::Verdict(Verdict::Drop) | Expr::Reject(_))
                    };
                    if rule.exprs.iter().any(drops) {
                        let step = self.step_of_rule(place, rule);
                        self.unsure.push(step);
                    }
                    return Ok(RuleEnd::Next);
                }
                ExprEnd::Verdict(verdict) => {
                    return Ok(match verdict {
                        Verdict::Accept => RuleEnd::Flow(Flow::Accept),
                        Verdict::Drop => RuleEnd::Flow(Flow::End(End::Drop)),
                        Verdict::Return => RuleEnd::Return,
                        Verdict::Jump(chain) => RuleEnd::Jump(chain, true),
                        Verdict::Goto(chain) => RuleEnd::Jump(chain, false),
                    });
                }
                ExprEnd::End(end) => return Ok(RuleEnd::Flow(Flow::End(end))),
            }
        }
        Ok(RuleEnd::Next)
    }

    pub(super) fn step_of_rule(&self, place: &Place<'_>, rule: &Rule) -> Step {
        let comment = rule.comment.as_ref().map(|c| c.as_str().to_owned());
        let object = comment.or_else(|| kube::comment(rule));
        // What iptables adds to each rule says nothing.
        let is_idle = |expr: &Expr| {
            matches!(expr, Expr::Counter) || expr.xt().is_some_and(|xt| xt.name == "comment")
        };
        let mut said = rule.clone();
        if rule.exprs.iter().any(|expr| expr.xt().is_some()) {
            said.exprs.retain(|expr| !is_idle(expr));
        }
        Step {
            table: place.table.clone(),
            chain: place.chain.clone(),
            set: None,
            text: said.show(self.packet.family()).to_string(),
            object,
        }
    }
}

enum RuleEnd {
    Next,
    Return,
    Jump(Name, bool),
    Flow(Flow),
}
