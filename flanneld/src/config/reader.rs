//! Reading a JSON object key by key, so that all that is wrong with it is told at once, and what
//! nobody has read is named.

use std::fmt;

use serde_json::{Map, Value};

/// What is wrong with one key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Its value.
    #[error("{key}: {value} is not allowed: {expected}")]
    Value {
        /// The key with those that it is in: `Backend.Port`.
        key: String,
        /// The value as JSON, cut.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// It is not there.
    #[error("{key} is missing: {expected}")]
    Missing {
        /// The key.
        key: String,
        /// What is allowed.
        expected: String,
    },
}

/// An object that is being read. Keys are found in any case, as Go reads them for flannel.
pub(super) struct Reader<'a> {
    path: &'static str,
    map: Map<String, Value>,
    /// What is wrong so far.
    pub(super) errors: &'a mut Vec<KeyError>,
    /// What is worth a line so far.
    pub(super) warnings: &'a mut Vec<String>,
}

impl<'a> Reader<'a> {
    /// Reads an object whose keys are shown behind `path`.
    pub(super) fn new(
        path: &'static str,
        map: Map<String, Value>,
        errors: &'a mut Vec<KeyError>,
        warnings: &'a mut Vec<String>,
    ) -> Reader<'a> {
        Reader {
            path,
            map,
            errors,
            warnings,
        }
    }

    /// Takes a value out. `null` is as nothing.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        let written = if self.map.contains_key(key) {
            key.to_owned()
        } else {
            self.map
                .keys()
                .find(|written| written.eq_ignore_ascii_case(key))?
                .clone()
        };
        self.map.remove(&written).filter(|value| !value.is_null())
    }

    /// Notes that a value is wrong.
    pub(super) fn refuse(
        &mut self,
        key: &str,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) {
        const MAX: usize = 128;
        self.errors.push(KeyError::Value {
            key: format!("{}{key}", self.path),
            value: value.to_string().chars().take(MAX).collect(),
            expected: expected.into(),
        });
    }

    /// Notes that a key must be there.
    pub(super) fn missing(&mut self, key: &str, expected: impl Into<String>) {
        self.errors.push(KeyError::Missing {
            key: format!("{}{key}", self.path),
            expected: expected.into(),
        });
    }

    /// A value that `convert` makes out of the JSON, if it is there and right.
    pub(super) fn get<T>(
        &mut self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let converted = convert(&value);
        if converted.is_none() {
            self.refuse(key, value, format!("expected {expected}"));
        }
        converted
    }

    /// true or false.
    pub(super) fn bool(&mut self, key: &str) -> Option<bool> {
        self.get(key, "true or false", Value::as_bool)
    }

    /// A whole number in a range.
    pub(super) fn number(
        &mut self,
        key: &str,
        allowed: std::ops::RangeInclusive<u32>,
    ) -> Option<u32> {
        let expected = format!("a number from {} to {}", allowed.start(), allowed.end());
        self.get(key, &expected, |value| {
            let number = u32::try_from(value.as_u64()?).ok()?;
            allowed.contains(&number).then_some(number)
        })
    }

    /// A text.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.get(key, "a text", |value| value.as_str().map(str::to_owned))
    }

    /// Ends the reading: what is left is named in a warning.
    pub(super) fn finish(self) {
        for key in self.map.keys() {
            let path = self.path;
            self.warnings
                .push(format!("unknown key {path}{key} has no effect"));
        }
    }
}
