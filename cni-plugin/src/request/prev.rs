//! `prevResult`: what the plugins before this one in its list made. It is passed on as it came,
//! with what we make behind it (CNI specification, section 2 "Lifecycle & Ordering").

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::error::CniError;

/// A result of versions from 0.3.0 on: lists, whatever is in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PrevResult {
    /// The links.
    pub interfaces: Vec<Value>,
    /// The addresses, which refer to links by their place.
    pub ips: Vec<Value>,
    /// The routes.
    pub routes: Vec<Value>,
    /// Name servers and so on, `null` if there are none.
    pub dns: Value,
}

/// Reads `prevResult`; `None` if there is none.
pub(super) fn read(document: &Fields<'_>) -> Result<Option<PrevResult>, CniError> {
    let key = "prevResult";
    let object: Option<Map<String, Value>> =
        document.get(key, "the result of the plugins before this one")?;
    let Some(object) = object else {
        return Ok(None);
    };
    let fields = Fields::at(key, &object);
    let list = |key| -> Result<Vec<Value>, CniError> {
        let list: Vec<Value> = fields.get(key, "a list of objects")?.unwrap_or_default();
        match list.iter().find(|item| !item.is_object()) {
            Some(item) => Err(fields.wrong(key, item, "a list of objects")),
            None => Ok(list),
        }
    };
    Ok(Some(PrevResult {
        interfaces: list("interfaces")?,
        ips: list("ips")?,
        routes: list("routes")?,
        dns: fields.value("dns").cloned().unwrap_or(Value::Null),
    }))
}
