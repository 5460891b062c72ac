//! What nf_tables does with a packet: its rules run one after another, as the kernel would, on what a [`View`] shows.
//!
//! Where the kernel draws a random number, each outcome is a [`Way`] of its own with its chance. What this program
//! cannot evaluate (a foreign rule with a match that it does not know) counts as not matching, and is told.

use std::net::IpAddr;

use hostnet::nft::{
    AnyTable, BaseChain, CmpOp, CtKey, Data, Datum, Expr, Header, Hook, Key, MetaKey, Name, Policy,
    Proto, Reg, Rule, Verdict,
};
use hostnet::nft::{CT_DNAT, CT_NEW, ChainKind};
use hostnet::vocab::{Family, IfName};

use crate::view::{Result, View};

/// A packet that opens a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its transport protocol.
    pub proto: Proto,
    /// Its source.
    pub source: IpAddr,
    /// Where it goes now.
    pub destination: IpAddr,
    /// At which port.
    pub port: u16,
    /// Where it was sent to, if that has been translated.
    pub original: Option<(IpAddr, u16)>,
    /// The device that it came in by; `None`: this node sends it.
    pub iif: Option<Device>,
    /// The device that it leaves by, once that is known.
    pub oif: Option<Device>,
}

/// A device by index and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The index.
    pub index: u32,
    /// The name.
    pub name: IfName,
}

/// A source port such as clients have; rules that ask for it are rare.
const SOURCE_PORT: u16 = 40_000;

impl Packet {
    /// The family.
    pub fn family(&self) -> Family {
        Family::of(self.destination)
    }

    /// Where it was sent to at first.
    pub fn first_destination(&self) -> (IpAddr, u16) {
        self.original.unwrap_or((self.destination, self.port))
    }

    /// The packet after its destination was translated.
    pub fn translated(&self, destination: IpAddr, port: Option<u16>) -> Packet {
        Packet {
            destination,
            port: port.unwrap_or(self.port),
            original: Some(self.first_destination()),
            ..self.clone()
        }
    }
}

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
        let (steps, missing, unsure) = (run.steps, run.missing, run.unsure);
        let way = Way {
            chance: choices.chance(),
            end,
            steps,
            missing,
            unsure,
        };
        let same = |known: &&mut Way| {
            (&known.end, &known.steps, &known.missing) == (&way.end, &way.steps, &way.missing)
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

/// The random numbers of one run: each is tried with each outcome, like the digits of a counter.
#[derive(Debug, Default)]
struct Choices {
    taken: Vec<(usize, Vec<f64>)>,
    at: usize,
}

impl Choices {
    fn restart(&mut self) {
        self.at = 0;
    }

    fn choose(&mut self, weights: impl FnOnce() -> Vec<f64>) -> usize {
        if self.at == self.taken.len() {
            self.taken.push((0, weights()));
        }
        self.at += 1;
        self.taken[self.at - 1].0
    }

    fn chance(&self) -> f64 {
        self.taken.iter().map(|(index, of)| of[*index]).product()
    }

    fn next(&mut self) -> bool {
        while let Some((index, of)) = self.taken.last_mut() {
            *index += 1;
            if *index < of.len() {
                return true;
            }
            self.taken.pop();
        }
        false
    }
}

/// What a chain or rule leads to.
enum Flow {
    Next,
    Accept,
    End(End),
}

struct Run<'a> {
    view: &'a mut dyn View,
    packet: Packet,
    choices: &'a mut Choices,
    steps: Vec<Step>,
    missing: Vec<Step>,
    unsure: Vec<Step>,
}

/// Where a rule is.
struct Place<'a> {
    table: &'a AnyTable,
    chain: &'a Name,
    depth: u8,
}

/// The registers of a rule. A random number stays open until it is asked for.
struct Registers {
    bytes: [u8; 64],
    random: Option<(usize, u32)>,
}

impl Registers {
    fn at(reg: Reg) -> usize {
        usize::from(reg.0) * 4
    }

    fn write(&mut self, reg: Reg, value: &[u8]) {
        let at = Registers::at(reg);
        let end = (at + value.len().next_multiple_of(4)).min(self.bytes.len());
        self.bytes[at.min(end)..end].fill(0);
        let len = value.len().min(end - at.min(end));
        self.bytes[at..at + len].copy_from_slice(&value[..len]);
        if self.random.is_some_and(|(random, _)| random == at) {
            self.random = None;
        }
    }

    fn read(&self, reg: Reg, len: usize) -> &[u8] {
        let at = Registers::at(reg);
        self.bytes.get(at..at + len).unwrap_or_default()
    }
}

/// A jump deeper than this the kernel refuses to load (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: u8 = 16;

impl Run<'_> {
    fn chains(&mut self, chains: &[BaseChain]) -> Result<End> {
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

    fn step_of_rule(&self, place: &Place<'_>, rule: &Rule) -> Step {
        Step {
            table: place.table.clone(),
            chain: place.chain.clone(),
            set: None,
            text: rule.show(self.packet.family()).to_string(),
            object: rule.comment.as_ref().map(|c| c.as_str().to_owned()),
        }
    }

    fn expr(
        &mut self,
        place: &Place<'_>,
        rule: &Rule,
        expr: &Expr,
        registers: &mut Registers,
    ) -> Result<ExprEnd> {
        let loaded = |registers: &mut Registers, dreg: Reg, value: Option<Vec<u8>>| match value {
            Some(value) => {
                registers.write(dreg, &value);
                ExprEnd::Next
            }
            None => ExprEnd::Unknown,
        };
        Ok(match expr {
            Expr::Payload {
                header,
                offset,
                len,
                dreg,
            } => loaded(registers, *dreg, self.payload(*header, *offset, *len)),
            Expr::Meta { key, dreg } => loaded(registers, *dreg, self.meta(*key)),
            Expr::Ct { key, dreg, .. } => loaded(registers, *dreg, self.ct(*key)),
            Expr::FibType { addr, dreg } => {
                let address = match addr.0 {
                    1 => self.packet.source,
                    _ => self.packet.destination,
                };
                let kind = self.view.address_type(address)?;
                loaded(registers, *dreg, Some(kind.to_ne_bytes().into()))
            }
            Expr::Random { modulus, dreg } => {
                registers.random = Some((Registers::at(*dreg), (*modulus).max(1)));
                ExprEnd::Next
            }
            Expr::Immediate { dreg, value } => loaded(registers, *dreg, Some(value.clone())),
            Expr::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => {
                let value = registers.read(*sreg, mask.len()).iter();
                let value = value.zip(mask).zip(xor).map(|((v, m), x)| v & m ^ x);
                loaded(registers, *dreg, Some(value.collect()))
            }
            Expr::Cmp { sreg, op, value } => self.cmp(registers, *sreg, *op, value),
            Expr::InSet { set, sreg, invert } => match self.find(place, set, registers, *sreg)? {
                Found::Unknown => ExprEnd::Unknown,
                Found::Not(_) if *invert => ExprEnd::Next,
                Found::Not(_) => ExprEnd::NoMatch,
                Found::Element(..) if *invert => ExprEnd::NoMatch,
                Found::Element(step, _) => {
                    self.steps.push(step);
                    ExprEnd::Next
                }
            },
            Expr::Map { set, sreg, dreg } => match self.find(place, set, registers, *sreg)? {
                Found::Unknown => ExprEnd::Unknown,
                Found::Not(step) => {
                    self.missing.push(step);
                    ExprEnd::NoMatch
                }
                Found::Element(step, data) => {
                    self.steps.push(step);
                    match data {
                        Some(Data::Value(value)) => {
                            loaded(registers, *dreg, Some(value.as_bytes().to_vec()))
                        }
                        _ => ExprEnd::NoMatch,
                    }
                }
            },
            Expr::VerdictMap { set, sreg } => match self.find(place, set, registers, *sreg)? {
                Found::Unknown => ExprEnd::Unknown,
                Found::Not(step) => {
                    self.missing.push(step);
                    ExprEnd::NoMatch
                }
                Found::Element(step, data) => {
                    self.steps.push(step);
                    match data {
                        Some(Data::Verdict(verdict)) => ExprEnd::Verdict(verdict),
                        _ => ExprEnd::NoMatch,
                    }
                }
            },
            Expr::Verdict(verdict) => {
                if matches!(verdict, Verdict::Drop) {
                    let step = self.step_of_rule(place, rule);
                    self.steps.push(step);
                }
                ExprEnd::Verdict(verdict.clone())
            }
            Expr::Dnat { addr, port, .. } => {
                let len = usize::from(self.packet.family().bits() / 8);
                let address = address(registers.read(*addr, len));
                let port = port.and_then(|port| registers.read(port, 2).try_into().ok());
                match address {
                    Some(address) => ExprEnd::End(End::Dnat(address, port.map(u16::from_be_bytes))),
                    None => ExprEnd::Unknown,
                }
            }
            Expr::Redirect { port, .. } => {
                let port = port.and_then(|port| registers.read(port, 2).try_into().ok());
                ExprEnd::End(End::Redirect(port.map(u16::from_be_bytes)))
            }
            Expr::Masquerade { .. } => {
                let step = self.step_of_rule(place, rule);
                self.steps.push(step);
                ExprEnd::End(End::Masquerade)
            }
            Expr::Reject(_) => {
                let step = self.step_of_rule(place, rule);
                self.steps.push(step);
                ExprEnd::End(End::Reject)
            }
            Expr::Counter | Expr::Dynset { .. } => ExprEnd::Next,
            Expr::Other { name, data } => {
                // A comment of iptables matches everything.
                let is_comment =
                    name == "match" && data.windows(8).any(|bytes| bytes == b"comment\0");
                if is_comment {
                    ExprEnd::Next
                } else {
                    ExprEnd::Unknown
                }
            }
        })
    }

    fn cmp(&mut self, registers: &Registers, sreg: Reg, op: CmpOp, value: &[u8]) -> ExprEnd {
        let at = Registers::at(sreg);
        let found = match registers.random {
            Some((random, modulus)) if random == at => {
                let wanted = value.try_into().map_or(u32::MAX, u32::from_ne_bytes);
                let share = 1.0 / f64::from(modulus);
                let is_equal = if wanted >= modulus {
                    false
                } else if modulus == 1 {
                    true
                } else {
                    self.choices.choose(|| vec![share, 1.0 - share]) == 0
                };
                if is_equal {
                    std::cmp::Ordering::Equal
                } else {
                    std::cmp::Ordering::Greater
                }
            }
            _ => registers.read(sreg, value.len()).cmp(value),
        };
        let holds = match op {
            CmpOp::EQ => found.is_eq(),
            CmpOp::NEQ => found.is_ne(),
            CmpOp(2) => found.is_lt(),
            CmpOp(3) => found.is_le(),
            CmpOp(4) => found.is_gt(),
            CmpOp(5) => found.is_ge(),
            _ => return ExprEnd::Unknown,
        };
        if holds {
            ExprEnd::Next
        } else {
            ExprEnd::NoMatch
        }
    }

    fn find(
        &mut self,
        place: &Place<'_>,
        set: &Name,
        registers: &mut Registers,
        sreg: Reg,
    ) -> Result<Found> {
        let Some(decl) = self.view.declaration(place.table, set)? else {
            return Ok(Found::Unknown);
        };
        let (at, width) = (Registers::at(sreg), decl.key.width());
        if let Some((random, modulus)) = registers.random
            && (at..at + width).contains(&random)
        {
            let share = 1.0 / f64::from(modulus);
            let number = self.choices.choose(|| vec![share; modulus as usize]);
            registers.random = None;
            let number = u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
            registers.bytes[random..random + 4].copy_from_slice(&number);
        }
        let key = Key::from_bytes(registers.read(sreg, width));
        let step = |text, object| Step {
            table: place.table.clone(),
            chain: place.chain.clone(),
            set: Some(set.clone()),
            text,
            object,
        };
        Ok(match self.view.element(place.table, &decl, &key)? {
            None => Found::Not(step(decl.key.show(&key).to_string(), None)),
            Some((key, element)) => {
                let object = element.comment.as_ref().map(|c| c.as_str().to_owned());
                let bare = hostnet::nft::Element {
                    comment: None,
                    data: element.data.clone(),
                };
                Found::Element(
                    step(decl.show(&key, &bare).to_string(), object),
                    element.data,
                )
            }
        })
    }

    fn payload(&self, header: Header, offset: u32, len: u32) -> Option<Vec<u8>> {
        let packet = &self.packet;
        let bytes = match (header, packet.source, packet.destination) {
            (Header::NETWORK, IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, packet.proto.0, 0, 0];
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            (Header::NETWORK, IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = vec![0x60, 0, 0, 0, 0, 0, packet.proto.0, 64];
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip
            }
            (Header::TRANSPORT, ..) => {
                let ports = [SOURCE_PORT.to_be_bytes(), packet.port.to_be_bytes()];
                ports.concat()
            }
            _ => return None,
        };
        let (from, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        bytes.get(from..from + len).map(<[u8]>::to_vec)
    }

    fn meta(&self, key: MetaKey) -> Option<Vec<u8>> {
        // `NFT_META_OIF`, `NFT_META_NFPROTO`.
        const OIF: MetaKey = MetaKey(5);
        const NFPROTO: MetaKey = MetaKey(15);
        let (iif, oif) = (&self.packet.iif, &self.packet.oif);
        let index = |device: &Option<Device>| device.as_ref().map_or(0, |device| device.index);
        let name = |device: &Option<Device>| {
            let name = device.as_ref().map_or("", |device| device.name.as_str());
            Key::from(Datum::from(name)).as_bytes().to_vec()
        };
        Some(match key {
            MetaKey::MARK => vec![0; 4],
            MetaKey::IIF => index(iif).to_ne_bytes().into(),
            OIF => index(oif).to_ne_bytes().into(),
            MetaKey::IIFNAME => name(iif),
            MetaKey::OIFNAME => name(oif),
            MetaKey::L4PROTO => vec![self.packet.proto.0],
            NFPROTO => vec![match self.packet.family() {
                Family::V4 => 2,
                Family::V6 => 10,
            }],
            _ => return None,
        })
    }

    fn ct(&self, key: CtKey) -> Option<Vec<u8>> {
        let (original, port) = self.packet.first_destination();
        Some(match key {
            CtKey::STATE => CT_NEW.to_ne_bytes().into(),
            CtKey::STATUS => {
                let is_translated = self.packet.original.is_some();
                let bits = if is_translated { CT_DNAT } else { 0 };
                bits.to_ne_bytes().into()
            }
            CtKey::PROTO_DST => port.to_be_bytes().into(),
            CtKey::SRC_IP | CtKey::SRC_IP6 => octets(self.packet.source),
            CtKey::DST_IP | CtKey::DST_IP6 => octets(original),
            _ => return None,
        })
    }
}

enum Found {
    Element(Step, Option<Data>),
    Not(Step),
    Unknown,
}

enum RuleEnd {
    Next,
    Return,
    Jump(Name, bool),
    Flow(Flow),
}

enum ExprEnd {
    Next,
    NoMatch,
    Unknown,
    Verdict(Verdict),
    End(End),
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}
