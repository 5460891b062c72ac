//! `resolv.conf`, whose contents the result of ADD tells the runtime (host-local's
//! `resolvConf`; resolv.conf(5)).

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{CniError, Code};

/// Reads a file as the `dns` object of a result.
///
/// # Errors
/// Code 7 when it cannot be read, naming it.
pub fn read(path: &Path) -> Result<Value, CniError> {
    let text = std::fs::read_to_string(path).map_err(|error| CniError {
        details: error.to_string(),
        ..CniError::new(
            Code::InvalidConfig,
            format!("ipam.resolvConf is {path:?}: expected a file that can be read"),
        )
    })?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Value {
    let (mut nameservers, mut search, mut options) = (Vec::new(), Vec::new(), Vec::new());
    let mut domain = None;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => nameservers.extend(words.next()),
            Some("domain") => domain = words.next().or(domain),
            // Of several the last counts.
            Some("search") => search = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    let mut dns = Map::new();
    for (key, list) in [
        ("nameservers", nameservers),
        ("search", search),
        ("options", options),
    ] {
        if !list.is_empty() {
            dns.insert(key.to_owned(), json!(list));
        }
    }
    if let Some(domain) = domain {
        dns.insert("domain".to_owned(), json!(domain));
    }
    Value::Object(dns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_file() {
        let text = "# made by hand\nnameserver 10.0.0.2\nnameserver fd00::2\ndomain example.org\n\
                    search a.example b.example\nsearch c.example\noptions ndots:5 rotate\n;x\nfoo bar\n";
        assert_eq!(
            parse(text),
            json!({
                "nameservers": ["10.0.0.2", "fd00::2"],
                "domain": "example.org",
                "search": ["c.example"],
                "options": ["ndots:5", "rotate"],
            })
        );
        assert_eq!(parse(""), json!({}));
    }
}
