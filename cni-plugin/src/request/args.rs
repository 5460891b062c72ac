//! `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`, which runtimes fill with the pod's name.

use std::ffi::OsStr;

use crate::error::{CniError, Code};

/// The arguments that are understood. Others are passed over, whatever `IgnoreUnknown` says: the
/// runtime gives every plugin of a list the same ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `IP`: the addresses asked for, separated by commas.
    pub ips: Vec<String>,
    /// `MAC`
    pub mac: Option<String>,
    /// `K8S_POD_NAMESPACE` and `K8S_POD_NAME`, joined by a slash.
    pub pod: Option<String>,
}

impl Args {
    /// Reads the variable.
    ///
    /// # Errors
    /// Code 4 for an argument that is no `KEY=VALUE`.
    pub fn parse(variable: Option<&OsStr>) -> Result<Args, CniError> {
        let text = variable.unwrap_or_default().to_string_lossy();
        let mut args = Args::default();
        let (mut namespace, mut name) = (None, None);
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let msg = format!("CNI_ARGS has {pair:?}: expected KEY=VALUE pairs, joined by ';'");
                return Err(CniError::new(Code::InvalidEnvironment, msg));
            };
            let given = Some(value).filter(|value| !value.is_empty());
            match key {
                "IP" => args.ips = value.split(',').map(|ip| ip.trim().to_owned()).collect(),
                "MAC" => args.mac = given.map(str::to_owned),
                "K8S_POD_NAMESPACE" => namespace = given.map(str::to_owned),
                "K8S_POD_NAME" => name = given.map(str::to_owned),
                _ => {}
            }
        }
        args.ips.retain(|ip| !ip.is_empty());
        args.pod = namespace
            .zip(name)
            .map(|(namespace, name)| format!("{namespace}/{name}"));
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_send() {
        let text =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;IP=10.0.0.9, fd00::9;MAC=";
        let args = Args::parse(Some(OsStr::new(text))).unwrap();
        assert_eq!(args.pod.as_deref(), Some("default/web"));
        assert_eq!(args.ips, ["10.0.0.9", "fd00::9"]);
        assert_eq!(args.mac, None);
        assert_eq!(Args::parse(None).unwrap(), Args::default());
    }

    #[test]
    fn what_is_no_pair_is_named() {
        let error = Args::parse(Some(OsStr::new("A=1;frob"))).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.msg.contains("\"frob\""), "{error}");
    }
}
