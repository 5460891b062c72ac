//! An IPAM plugin of somebody else's: run with our own request, as the specification's section 4
//! "Plugin Delegation" has it.

use std::ffi::OsStr;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hostnet::vocab::{Cidr, Family, Subnet};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{CniError, Code};
use crate::request::settings::ConfigRoute;
use crate::request::{RawRequest, Verb};
use crate::version::Version;

/// A program that gives addresses.
#[derive(Clone, Debug)]
pub struct ForeignIpam<'a> {
    name: &'a str,
    program: PathBuf,
    request: &'a RawRequest,
}

/// What it gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lease {
    /// Addresses with their subnets' prefix lengths, and the gateway in each.
    pub addresses: Vec<(Cidr, Option<IpAddr>)>,
    /// Routes.
    pub routes: Vec<ConfigRoute>,
    /// Name servers and so on, `null` if none.
    pub dns: Value,
}

impl<'a> ForeignIpam<'a> {
    /// Finds the program in `CNI_PATH`.
    pub fn find(name: &'a str, request: &'a RawRequest) -> Result<ForeignIpam<'a>, CniError> {
        let path = request.path.as_deref().unwrap_or(OsStr::new(""));
        let program = std::env::split_paths(path)
            .map(|dir| dir.join(name))
            .find(|program| program.is_file());
        match program {
            Some(program) => Ok(ForeignIpam {
                name,
                program,
                request,
            }),
            None => {
                let msg = format!(
                    "ipam.type is {name:?}: there is no such program in CNI_PATH {:?}",
                    path.to_string_lossy()
                );
                Err(CniError::new(Code::InvalidConfig, msg))
            }
        }
    }

    /// Asks for addresses.
    pub fn add(&self, version: Version) -> Result<Lease, CniError> {
        let output = self.run(Verb::Add)?;
        parse(&output, version).map_err(|why| {
            let msg = format!("ipam {}: the result of ADD cannot be understood", self.name);
            CniError {
                details: why,
                ..CniError::new(Code::Decode, msg)
            }
        })
    }

    /// Passes another verb on.
    pub fn forward(&self, verb: Verb) -> Result<(), CniError> {
        self.run(verb).map(drop)
    }

    /// Runs it with our standard input and environment, and gives its standard output.
    fn run(&self, verb: Verb) -> Result<Vec<u8>, CniError> {
        let failed = |error: std::io::Error| CniError {
            details: error.to_string(),
            ..CniError::new(Code::Io, format!("cannot run {}", self.program.display()))
        };
        let mut child = Command::new(&self.program)
            .env("CNI_COMMAND", verb.text())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails before it reads has closed the pipe.
            let _ = stdin.write_all(&self.request.config);
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(refusal(self.name, verb, &output.stdout, &output.stderr))
    }

    /// Where it was found.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

#[derive(Deserialize)]
struct ErrorJson {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

fn refusal(name: &str, verb: Verb, stdout: &[u8], stderr: &[u8]) -> CniError {
    let what = format!("ipam {name} {}", verb.text());
    match serde_json::from_slice::<ErrorJson>(stdout) {
        Ok(error) => CniError {
            details: error.details,
            ..CniError::new(
                Code::of_other(error.code),
                format!("{what}: {} (its code {})", error.msg, error.code),
            )
        },
        Err(_) => CniError {
            details: String::from_utf8_lossy(stderr).trim().to_owned(),
            ..CniError::new(Code::Io, format!("{what} failed without a CNI error"))
        },
    }
}

#[derive(Deserialize)]
struct IpJson {
    address: Cidr,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize)]
struct OldIpJson {
    ip: Cidr,
    #[serde(default)]
    gateway: Option<IpAddr>,
    #[serde(default)]
    routes: Vec<ConfigRoute>,
}

#[derive(Deserialize)]
struct ResultJson {
    #[serde(default)]
    ips: Option<Vec<IpJson>>,
    #[serde(default)]
    routes: Option<Vec<ConfigRoute>>,
    #[serde(default)]
    ip4: Option<OldIpJson>,
    #[serde(default)]
    ip6: Option<OldIpJson>,
    #[serde(default)]
    dns: Value,
}

fn parse(output: &[u8], version: Version) -> Result<Lease, String> {
    let result: ResultJson = serde_json::from_slice(output).map_err(|error| error.to_string())?;
    let mut lease = Lease {
        dns: result.dns,
        ..Lease::default()
    };
    if version < Version::V0_3_0 {
        for old in [result.ip4, result.ip6].into_iter().flatten() {
            lease.addresses.push((old.ip, old.gateway));
            lease.routes.extend(old.routes);
        }
    } else {
        let ips = result.ips.unwrap_or_default();
        lease.addresses = ips.into_iter().map(|ip| (ip.address, ip.gateway)).collect();
        lease.routes = result.routes.unwrap_or_default();
    }
    if lease.addresses.is_empty() {
        return Err("it has no address".to_owned());
    }
    Ok(lease)
}

/// The gateway of an address for which none was given, where the bridge shall be one: the first of
/// its subnet (the bridge plugin's rule).
pub fn usual_gateway(address: Cidr) -> Option<IpAddr> {
    address.subnet().gateway().map(Cidr::addr)
}

/// Whether there is a default route of a family among these.
pub fn has_default(routes: &[ConfigRoute], family: Family) -> bool {
    routes.iter().any(|route| route.dst == Subnet::any(family))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_either_shape() {
        let new = br#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1"},{"address":"fd00::5/64"}],
            "routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.0.0.2"]}}"#;
        let lease = parse(new, Version::V1_0_0).unwrap();
        assert_eq!(lease.addresses.len(), 2);
        assert_eq!(lease.addresses[1].1, None);
        assert_eq!(
            usual_gateway(lease.addresses[1].0).unwrap().to_string(),
            "fd00::1"
        );
        assert!(has_default(&lease.routes, Family::V4) && !has_default(&lease.routes, Family::V6));
        assert_eq!(lease.dns["nameservers"][0], "10.0.0.2");
        let old = br#"{"ip4":{"ip":"10.0.0.5/24","routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.9"}]},"dns":{}}"#;
        let lease = parse(old, Version::V0_2_0).unwrap();
        assert_eq!((lease.addresses.len(), lease.routes.len()), (1, 1));
        parse(b"{}", Version::V1_0_0).unwrap_err();
        parse(b"frob", Version::V1_0_0).unwrap_err();
    }

    #[test]
    fn its_errors_are_passed_on_with_its_name() {
        let told = br#"{"code":11,"msg":"later","details":"busy"}"#;
        let error = refusal("x", Verb::Add, told, b"");
        assert_eq!(
            (error.code, error.msg.as_str()),
            (Code::TryAgain, "ipam x ADD: later (its code 11)")
        );
        assert_eq!(error.details, "busy");
        let error = refusal("x", Verb::Del, b"", b"panic\n");
        assert_eq!((error.code, error.details.as_str()), (Code::Io, "panic"));
    }
}
