//! Reading keys of a JSON object so that a wrong one is named with its path and its value.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{CniError, Code};

/// A JSON object at a path such as `delegate`; empty for the document.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    path: &'a str,
    object: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    /// The document itself.
    pub(super) fn document(object: &'a Map<String, Value>) -> Fields<'a> {
        Fields {
            path: "",
            object: Some(object),
        }
    }

    /// An object inside; a missing one, or `null`, has no keys.
    pub(super) fn object(&self, key: &'a str) -> Result<Fields<'a>, CniError> {
        match self.value(key) {
            None => Ok(Fields {
                path: key,
                object: None,
            }),
            Some(Value::Object(object)) => Ok(Fields {
                path: key,
                object: Some(object),
            }),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// A value, `None` if missing or `null`.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.object?.get(key).filter(|value| !value.is_null())
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

    /// The error for a value that is not allowed.
    pub(super) fn wrong(&self, key: &str, value: &Value, expected: &str) -> CniError {
        let msg = format!("{} is {value}: expected {expected}", self.name(key));
        CniError::new(Code::InvalidConfig, msg)
    }

    /// The error for a key whose function is not there.
    pub(super) fn unsupported(&self, key: &str, value: &Value) -> CniError {
        let msg = format!("{} is {value}: this is not supported", self.name(key));
        CniError::new(Code::UnsupportedField, msg)
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}
