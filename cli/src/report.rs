//! What a trace tells, as data for programs and as a tree for people.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A packet's way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// Who sends it.
    pub from: String,
    /// Where it was sent to.
    pub to: String,
    /// Whether it gets there.
    pub arrives: Arrival,
    /// Its way.
    pub hops: Vec<Hop>,
    /// What could not be seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Whether a packet gets where it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Arrival {
    /// As far as this node can see.
    Yes,
    /// To some of the endpoints it does, to others not.
    Sometimes,
    /// It does not.
    No,
}

/// A place on the way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// What kind of place: `pod`, `dnat`, `endpoint`, `forward`, `route`, `neighbour`, `fdb`, `port`, and so on.
    pub stage: Cow<'static, str>,
    /// What is there, as the kernel's tools write it.
    pub text: String,
    /// The object that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// How likely a packet takes this way, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// What is wrong here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// How the kernel's state here is another than the objects say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differs: Vec<Fault>,
    /// What may be wrong, and cannot be told for certain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Where the way goes on that this node does not see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onward: Option<Onward>,
    /// The way from here, where it parts or goes on at another node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Hop>,
}

/// A packet that leaves for another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Onward {
    /// The node's address.
    pub node: IpAddr,
    /// The packet's source when it comes in there.
    pub from: IpAddr,
    /// Where it goes.
    pub to: SocketAddr,
}

/// Why a packet goes no further, and what helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl Hop {
    /// A place where all is well.
    pub fn new(stage: &'static str, text: impl Into<String>) -> Hop {
        Hop {
            stage: stage.into(),
            text: text.into(),
            ..Hop::default()
        }
    }

    /// With the object that it comes from.
    pub fn of(self, object: Option<impl Into<String>>) -> Hop {
        Hop {
            object: object.map(Into::into),
            ..self
        }
    }

    /// A place that the packet does not pass.
    pub fn fault(self, cause: impl Into<String>, remedy: impl Into<String>) -> Hop {
        Hop {
            fault: Some(Fault {
                cause: cause.into(),
                remedy: remedy.into(),
            }),
            ..self
        }
    }

    /// A place where the kernel has something else than the objects say.
    pub fn differs(mut self, cause: impl Into<String>, remedy: impl Into<String>) -> Hop {
        self.differs.push(Fault {
            cause: cause.into(),
            remedy: remedy.into(),
        });
        self
    }

    /// Whether the packet passes here and on every way from here; `Sometimes` if on some.
    fn arrival(&self) -> Arrival {
        match self.fault {
            Some(_) => Arrival::No,
            None => along(&self.then),
        }
    }

    /// This place and all behind it.
    pub fn all(&self) -> Vec<&Hop> {
        let mut all = vec![self];
        all.extend(self.then.iter().flat_map(Hop::all));
        all
    }
}

/// Whether a packet passes these: places follow one another, but those that have a chance are alternatives.
fn along(hops: &[Hop]) -> Arrival {
    let (choices, line): (Vec<&Hop>, Vec<&Hop>) = hops.iter().partition(|hop| hop.chance.is_some());
    if line.iter().any(|hop| hop.arrival() == Arrival::No) {
        return Arrival::No;
    }
    let some = line.iter().any(|hop| hop.arrival() == Arrival::Sometimes);
    let arrivals: Vec<Arrival> = choices.iter().map(|hop| hop.arrival()).collect();
    let all_of = |wanted| !arrivals.is_empty() && arrivals.iter().all(|a| *a == wanted);
    if all_of(Arrival::No) {
        Arrival::No
    } else if some || !(arrivals.is_empty() || all_of(Arrival::Yes)) {
        Arrival::Sometimes
    } else {
        Arrival::Yes
    }
}

impl Trace {
    /// Puts the way together, and says whether it leads there.
    pub fn new(from: String, to: String, hops: Vec<Hop>) -> Trace {
        Trace {
            from,
            to,
            arrives: along(&hops),
            hops,
            notes: Vec::new(),
        }
    }

    /// Sees anew whether it leads there, after places were put in.
    pub fn weighed(self) -> Trace {
        Trace {
            arrives: along(&self.hops),
            ..self
        }
    }

    /// All that is wrong on the way, with the place.
    pub fn faults(&self) -> Vec<(&str, &Fault)> {
        let hops = self.hops.iter().flat_map(Hop::all);
        hops.filter_map(|hop| Some((&*hop.stage, hop.fault.as_ref()?)))
            .collect()
    }

    /// All places where the kernel has something else than the objects say.
    pub fn differences(&self) -> Vec<(&str, &Fault)> {
        let hops = self.hops.iter().flat_map(Hop::all);
        hops.flat_map(|hop| hop.differs.iter().map(|differs| (&*hop.stage, differs)))
            .collect()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} → {}", self.from, self.to)?;
        branch(f, &self.hops, "")?;
        let said = match self.arrives {
            Arrival::Yes => "it arrives, as far as this node can see".to_owned(),
            Arrival::Sometimes => "it arrives at some of the endpoints only".to_owned(),
            Arrival::No => "it does not arrive".to_owned(),
        };
        writeln!(f, "{said}")?;
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "not seen: {note}"))
    }
}

fn branch(f: &mut fmt::Formatter<'_>, hops: &[Hop], indent: &str) -> fmt::Result {
    for (i, hop) in hops.iter().enumerate() {
        let is_last = i + 1 == hops.len();
        let (here, below) = if is_last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        write!(f, "{indent}{here}{:<11} {}", hop.stage, hop.text)?;
        if let Some(chance) = hop.chance.filter(|chance| *chance < 0.999_999) {
            write!(f, ", chance {:.1} %", chance * 100.0)?;
        }
        if let Some(object) = &hop.object {
            write!(f, "   [{object}]")?;
        }
        writeln!(f)?;
        let pad = if hop.then.is_empty() { "   " } else { "│  " };
        let indent = format!("{indent}{below}");
        if let Some(fault) = &hop.fault {
            writeln!(f, "{indent}{pad}✗ {}", fault.cause)?;
            writeln!(f, "{indent}{pad}  remedy: {}", fault.remedy)?;
        }
        for differs in &hop.differs {
            writeln!(f, "{indent}{pad}≠ {}", differs.cause)?;
            writeln!(f, "{indent}{pad}  remedy: {}", differs.remedy)?;
        }
        for warning in &hop.warnings {
            writeln!(f, "{indent}{pad}! {warning}")?;
        }
        branch(f, &hop.then, &indent)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(chance: f64, is_well: bool) -> Hop {
        let hop = Hop {
            chance: Some(chance),
            ..Hop::new("endpoint", "10.244.3.81:8080")
        };
        let route = Hop::new("route", "10.244.3.0/24");
        let route = if is_well {
            route
        } else {
            route.fault("no route", "restart flanneld")
        };
        Hop {
            then: vec![route],
            ..hop
        }
    }

    #[test]
    fn a_way_leads_there_if_each_place_is_passed_and_one_alternative() {
        let arrives = |hops: Vec<Hop>| Trace::new("a".into(), "b".into(), hops).arrives;
        let start = || Hop::new("pod", "x");
        assert_eq!(arrives(vec![start()]), Arrival::Yes);
        assert_eq!(arrives(vec![start().fault("c", "r")]), Arrival::No);
        let two = |a, b| vec![start(), endpoint(0.5, a), endpoint(0.5, b)];
        assert_eq!(arrives(two(true, true)), Arrival::Yes);
        assert_eq!(arrives(two(true, false)), Arrival::Sometimes);
        assert_eq!(arrives(two(false, false)), Arrival::No);
    }

    #[test]
    fn a_person_reads_a_tree() {
        let hops = vec![
            Hop::new("dnat", "vips").of(Some("default/web")),
            endpoint(0.5, true),
            endpoint(0.5, false),
        ];
        let trace = Trace::new("outside".into(), "svc/default/web".into(), hops);
        assert_eq!(
            trace.to_string(),
            "\
outside → svc/default/web
├─ dnat        vips   [default/web]
├─ endpoint    10.244.3.81:8080, chance 50.0 %
│  └─ route       10.244.3.0/24
└─ endpoint    10.244.3.81:8080, chance 50.0 %
   └─ route       10.244.3.0/24
         ✗ no route
           remedy: restart flanneld
it arrives at some of the endpoints only
"
        );
        assert_eq!(trace.faults().len(), 1);
    }
}
