//! The command line, and what each command does.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use hostnet::nft::Proto;
use hostnet::vocab::{Family, SubnetEnv, names};
use serde::Serialize;

use crate::doctor::{Findings, Host, Severity, examine};
use crate::kernel::Kernel;
use crate::objects::{ApiServer, Cluster, Wanted};
use crate::pods::{PodTable, pods};
use crate::report::Arrival;
use crate::target::{From, To};
use crate::trace::{PodNetwork, Question, trace};

/// Explains what the kernel of this node does with packets.
///
/// Run it as root on a node. It needs no daemon and no API server, and changes nothing. Where an API server is known, as
/// kubectl knows it, each place is compared with the object that it comes from.
///
/// Exit status: 0 all is well; 1 the packet cannot arrive, or something is wrong; 2 the question could not be
/// answered.
#[derive(Debug, Parser)]
#[command(name = "twill", version)]
pub struct Args {
    /// Where twill-cni keeps its records
    #[arg(long, global = true, value_name = "DIR", default_value = names::ATTACHMENTS_DIR)]
    pub records: PathBuf,
    /// Where flanneld tells of the pods' network
    #[arg(long, global = true, value_name = "FILE", default_value = names::SUBNET_ENV)]
    pub subnet_file: PathBuf,
    /// How to reach the API server, if not as kubectl does; names and objects come from it
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Do not ask the API server: names come from the kernel alone
    #[arg(long, global = true, conflicts_with_all = ["kubeconfig", "context"])]
    pub offline: bool,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    #[command(subcommand)]
    command: Command,
}

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
    /// For programs, in YAML
    Yaml,
}

#[derive(Debug, Subcommand)]
enum Command {
    Trace(TraceArgs),
    Pods(PodsArgs),
    Doctor(DoctorArgs),
}

/// Looks for what is wrong on this node, whoever sends packets
///
/// Each finding has a severity, the evidence and the remedy. Nothing is changed. The exit status is 1 if there is a
/// finding of severity `error`.
#[derive(Debug, clap::Args)]
struct DoctorArgs {
    /// Where the container runtime looks for CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
}

/// Lists the pods of this node: address, veth, bridge port, host ports, what they have sent and received
///
/// Examples:
///   twill pods                    all
///   twill pods veth0798d21982b    whose veth is this?
///   twill pods default/web-1      which veth has it?
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct PodsArgs {
    /// Only this: NAMESPACE/NAME, NAME, an address, a veth, or the beginning of a container's id
    which: Option<String>,
}

/// Follows a packet through this node, and says where it stops and why
///
/// Each line is a place that the packet meets: the elements and rules of nf_tables (also of others' tables), each
/// endpoint with its chance, whether the source is masqueraded and by what, the route, the neighbour, the forwarding
/// entry, the bridge's port and the pod behind it. A place that it does not pass is marked with ✗, the cause and the
/// remedy; one where the kernel has something else than the objects say with ≠.
///
/// Examples:
///   twill trace outside svc/default/web            a client somewhere, to the node port
///   twill trace pod/default/client svc/default/web:http
///   twill trace node 10.96.0.10:53 --udp
///   twill trace 192.0.2.7 10.106.183.112:4000      a client of which the address matters
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct TraceArgs {
    /// Who sends: `outside`, `node`, `node/NAME`, `pod/NAMESPACE/NAME` or an address
    from: From,
    /// Where to: `svc/NAMESPACE/NAME[:PORT]`, `pod/NAMESPACE/NAME:PORT`, `node/NAME:PORT` or `ADDRESS:PORT`
    to: To,
    /// UDP in place of TCP
    #[arg(long, conflicts_with = "sctp")]
    udp: bool,
    /// SCTP in place of TCP
    #[arg(long)]
    sctp: bool,
    /// IPv6, where names leave it open
    #[arg(short = '6')]
    v6: bool,
}

/// Runs the command; what it prints goes into `out`. Returns the exit status.
///
/// # Errors
/// The question cannot be answered.
pub fn run(args: &Args, out: &mut String) -> anyhow::Result<u8> {
    let mut kernel = Kernel::here(&args.records)?;
    match &args.command {
        Command::Trace(how) => {
            let question = how.question();
            let networks = networks(args)?;
            let trace = trace(&mut kernel, &mut cluster(args)?, &networks, &question)?;
            *out += &args.output.show(&trace, &trace)?;
            Ok(u8::from(trace.arrives != Arrival::Yes))
        }
        Command::Doctor(how) => {
            let host = Host::observe(&how.cni_conf_dir);
            let findings = examine(&mut kernel, &networks(args)?, &host)?;
            *out += &args.output.show(&findings, &Findings(&findings))?;
            let is_ill = findings.iter().any(|f| f.severity == Severity::Error);
            Ok(u8::from(is_ill))
        }
        Command::Pods(how) => {
            let pods = pods(&mut kernel, how.which.as_deref())?;
            *out += &args.output.show(&pods, &PodTable(&pods))?;
            Ok(0)
        }
    }
}

/// The objects of the cluster, if an API server is known.
fn cluster(args: &Args) -> anyhow::Result<Cluster> {
    if args.offline {
        return Ok(Cluster::default());
    }
    let wanted = Wanted {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
    };
    Ok(ApiServer::find(&wanted)?.map_or_else(Cluster::default, Cluster::of))
}

impl Output {
    fn show(self, data: &impl Serialize, text: &impl fmt::Display) -> anyhow::Result<String> {
        Ok(match self {
            Output::Text => text.to_string(),
            Output::Json => serde_json::to_string_pretty(data)? + "\n",
            Output::Yaml => serde_saphyr::to_string(data)?,
        })
    }
}

impl TraceArgs {
    fn question(&self) -> Question {
        let proto = match (self.udp, self.sctp) {
            (true, _) => Proto::UDP,
            (_, true) => Proto::SCTP,
            _ => Proto::TCP,
        };
        let of = |address: IpAddr| Family::of(address);
        let family = match (&self.to, &self.from) {
            (To::Address(address, _), _) | (_, From::Address(address)) => of(*address),
            _ if self.v6 => Family::V6,
            _ => Family::V4,
        };
        Question {
            from: self.from.clone(),
            to: self.to.clone(),
            proto,
            family,
        }
    }
}

/// The pods' networks; none where flanneld has not run.
fn networks(args: &Args) -> anyhow::Result<Vec<PodNetwork>> {
    let path = &args.subnet_file;
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let env: SubnetEnv = text.parse().with_context(|| path.display().to_string())?;
    Ok(PodNetwork::of(&env))
}
