//! Owns the reading of a configuration document: field by field, collecting every fault on the way.
//!
//! A field that is taken is gone from its mapping, so what is left at the end is unknown.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A field whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value}: {reason}")]
pub struct Fault {
    /// The field, as a path from the document's root, or the flag with its dashes.
    pub field: String,
    /// Its value, as JSON.
    pub value: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl Fault {
    /// A fault.
    pub(super) fn new(field: impl Display, value: impl Display, reason: impl Display) -> Self {
        Self {
            field: field.to_string(),
            value: value.to_string(),
            reason: reason.to_string(),
        }
    }
}

/// A mapping that is being read, and the faults that were found in it and in those below it.
#[derive(Debug)]
pub(super) struct Reader {
    path: String,
    fields: Map<String, Value>,
    faults: Vec<Fault>,
    unknown: Vec<String>,
}

impl Reader {
    /// Reads a document's root.
    pub(super) fn new(fields: Map<String, Value>) -> Self {
        Self {
            path: String::new(),
            fields,
            faults: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Takes a field. `None`: absent or null (the same in Kubernetes' APIs), or at fault.
    pub(super) fn take<T: DeserializeOwned>(&mut self, name: &str, wanted: &str) -> Option<T> {
        let value = self.fields.remove(name).filter(|value| !value.is_null())?;
        match serde_json::from_value(value.clone()) {
            Ok(taken) => Some(taken),
            Err(_) => {
                self.fault(name, &value, format_args!("want {wanted}"));
                None
            }
        }
    }

    /// Takes a text field and understands it. An empty text is as good as none.
    pub(super) fn parse<T, E: Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text: String = self
            .take(name, "a text")
            .filter(|text: &String| !text.is_empty())?;
        match parse(&text) {
            Ok(parsed) => Some(parsed),
            Err(reason) => {
                self.fault(name, format_args!("{text:?}"), reason);
                None
            }
        }
    }

    /// Reads a mapping below this one.
    pub(super) fn section<T>(&mut self, name: &str, read: impl FnOnce(&mut Reader) -> T) -> T {
        let fields = self.take(name, "a mapping").unwrap_or_default();
        let path = self.at(name);
        let mut section = Self {
            path,
            fields,
            faults: Vec::new(),
            unknown: Vec::new(),
        };
        let result = read(&mut section);
        let (faults, unknown) = section.finish();
        self.faults.extend(faults);
        self.unknown.extend(unknown);
        result
    }

    /// Passes over fields; says which of them were there.
    pub(super) fn skip(&mut self, names: &[&str]) -> Vec<String> {
        let mut there = Vec::new();
        for name in names {
            if self
                .fields
                .remove(*name)
                .is_some_and(|value| !is_empty(&value))
            {
                there.push(self.at(name));
            }
        }
        there
    }

    /// Notes a fault of a field.
    pub(super) fn fault(&mut self, name: &str, value: impl Display, reason: impl Display) {
        self.faults.push(Fault::new(self.at(name), value, reason));
    }

    /// The faults, and the fields that nobody took.
    pub(super) fn finish(mut self) -> (Vec<Fault>, Vec<String>) {
        let left: Vec<_> = self.fields.keys().map(|name| self.at(name)).collect();
        self.unknown.extend(left);
        (self.faults, self.unknown)
    }

    fn at(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}

/// Go writes fields that were never set as empty values.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(true) => false,
    }
}
