//! Reading keys of a JSON object so that a wrong one is named with its path and its value.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{CniError, Code};

/// A JSON object at a path such as `delegate`; empty for the document.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    path: String,
    object: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The document itself.
    pub(super) fn document(object: &'a Map<String, Value>) -> Fields<'a> {
        Fields::at("", object)
    }

    /// An object at a path.
    pub(super) fn at(path: &str, object: &'a Map<String, Value>) -> Fields<'a> {
        Fields {
            path: path.to_owned(),
            object: Some(object),
        }
    }

    /// An object inside; a missing one, or `null`, has no keys.
    pub(super) fn object(&self, key: &str) -> Result<Fields<'a>, CniError> {
        let object = match self.value(key) {
            None => None,
            Some(Value::Object(object)) => Some(object),
            Some(other) => return Err(self.wrong(key, other, "an object")),
        };
        Ok(Fields {
            path: self.name(key),
            object,
        })
    }

    /// A value, `None` if missing or `null`. The key may be written in other case, as for any program that reads JSON
    /// with Go's `encoding/json`: containerd's own list of host ports has `HostPort`, its bandwidth `IngressRate`.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        let object = self.object?;
        let in_other_case = || {
            let mut entries = object.iter();
            entries.find_map(|(name, value)| name.eq_ignore_ascii_case(key).then_some(value))
        };
        object
            .get(key)
            .or_else(in_other_case)
            .filter(|value| !value.is_null())
    }

    /// Whether any of the keys has a value.
    pub(super) fn has_any(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.value(key).is_some())
    }

    /// A value of a type; `expected` says what is allowed.
    pub(super) fn get<T: DeserializeOwned>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, CniError> {
        self.value(key)
            .map(|value| T::deserialize(value).map_err(|_| self.wrong(key, value, expected)))
            .transpose()
    }

    /// A switch; off if missing.
    pub(super) fn flag(&self, key: &str) -> Result<bool, CniError> {
        Ok(self.get(key, "true or false")?.unwrap_or(false))
    }

    /// A text that is parsed; missing if empty.
    pub(super) fn parsed<T: std::str::FromStr>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<Option<T>, CniError> {
        let text: Option<String> = self.get(key, expected)?;
        text.filter(|text| !text.is_empty())
            .map(|text| {
                text.parse()
                    .map_err(|_| self.wrong(key, &Value::String(text), expected))
            })
            .transpose()
    }

    /// The error for a value that is not allowed.
    pub(super) fn wrong(&self, key: &str, value: &Value, expected: &str) -> CniError {
        Fields::wrong_at(&self.name(key), value, expected)
    }

    /// The error for a value at a path that is not allowed.
    pub(super) fn wrong_at(path: &str, value: &Value, expected: &str) -> CniError {
        let msg = format!("{path} is {value}: expected {expected}");
        CniError::new(Code::InvalidConfig, msg)
    }

    /// The error for a key that has to be there.
    pub(super) fn missing(&self, key: &str, expected: &str) -> CniError {
        let msg = format!("{} is missing: expected {expected}", self.name(key));
        CniError::new(Code::InvalidConfig, msg)
    }

    /// The error for a key whose function is not there.
    pub(super) fn unsupported(&self, key: &str, value: &Value) -> CniError {
        let msg = format!("{} is {value}: this is not supported", self.name(key));
        CniError::new(Code::UnsupportedField, msg)
    }

    /// The key with its path.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}
