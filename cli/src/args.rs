//! The command line, and what each command does.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use hostnet::nft::Proto;
use hostnet::vocab::{Family, names};
use k8s_openapi::api::core::v1::Node;
use serde::Serialize;

use crate::begin;
use crate::doctor::claims::Claims;
use crate::doctor::rounds::rounds;
use crate::doctor::{Finding, Findings, OfNode, OfNodes, Severity, examine_all};
use crate::dump::{self, ByDumps, Dump, Written};
use crate::far::{self, Files};
use crate::fix::Fix;
use crate::kernel::Kernel;
use crate::matrix::{self, Matrix};
use crate::objects::{ApiServer, Cluster, Wanted};
use crate::onward::{self, ByCommand, FromHere, Place};
use crate::pods::{PodTable, pods};
use crate::remote::Remote;
use crate::report::{Arrival, Trace};
use crate::saved;
use crate::status::{NodeStatus, StatusTable, status};
use crate::target::{From, To};
use crate::top::{Order, UseTable, top};
use crate::trace::{Question, networks, trace};
use crate::view::View as _;

/// Explains what the kernel of this node does with packets.
///
/// Run it as root on a node. It needs no daemon and no API server there, and changes nothing but by `doctor --fix`. Where
/// kubectl is, it asks the daemons of the nodes, without root: `status`, `probe`, `doctor --all`, `support-dump`,
/// `pods --at NODE`, and `trace` from a pod, a node, or with `--at NODE`. Where an API server is known, as kubectl knows
/// it, each place is compared with the object that it comes from.
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
    /// Where the daemons keep their last good state
    #[arg(long, global = true, value_name = "DIR", default_value = names::STATE_DIR)]
    pub snapshot_dir: PathBuf,
    /// How to reach the API server, if not as kubectl does; names and objects come from it
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Do not ask the API server: names come from the kernel alone
    #[arg(long, global = true, conflicts_with_all = ["kubeconfig", "context"])]
    pub offline: bool,
    /// A command that fetches {url} on {node} (or {address}), to ask other nodes in place of `pods/portforward`: `ssh {node} curl -sf {url}`
    #[arg(long, global = true, value_name = "COMMAND", env = "TWILL_REACH")]
    pub reach: Option<String>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    #[command(subcommand)]
    command: Command,
}

/// The name of the file by which kubectl knows a plugin.
const PLUGIN: &str = "kubectl-twill";

impl Args {
    /// What this process was given, under the name that it was called by: also as a plugin of kubectl's.
    pub fn of_process() -> Args {
        let name = std::env::args_os().next().map(PathBuf::from);
        let is_plugin = name.is_some_and(|name| name.file_stem() == Some(PLUGIN.as_ref()));
        let command = match is_plugin {
            true => Args::command().bin_name("kubectl twill"),
            false => Args::command(),
        };
        Args::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
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
    Probe(ProbeArgs),
    Top(TopArgs),
    Status(StatusArgs),
    Doctor(DoctorArgs),
    SupportDump(SupportDumpArgs),
    Completion(CompletionArgs),
    Man(ManArgs),
}

/// Prints what makes a shell complete this command's words
///
/// For bash: `source <(twill completion bash)`
#[derive(Debug, clap::Args)]
struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Writes the manual pages
#[derive(Debug, clap::Args)]
struct ManArgs {
    /// The folder to write them into, such as /usr/local/share/man/man1
    dir: PathBuf,
}

/// Sends real packets from every node to every other, through the tunnel and beside it
///
/// Small packets and such of full size to each node that flanneld has a route to, and a TCP connection to a Service.
/// Each node's flanneld sends its own, asked as for `trace`; this node's are sent directly. It prints a matrix of the
/// times, and of what is lost the usual reason and the remedy, with what `doctor` finds on both nodes. Where Nodes are
/// not seen, and with `--here`, this node alone sends. The exit status is 1 if anything is lost, or not seen.
#[derive(Debug, clap::Args)]
struct ProbeArgs {
    /// How many packets of either size each node is sent
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=i64::from(far::Probe::MOST)))]
    count: u16,
    /// A TCP port of a Service to connect to; that of `kubernetes` if Nodes are seen
    #[arg(long, value_name = "ADDRESS:PORT")]
    service: Option<SocketAddr>,
    /// Send from this node alone
    #[arg(long)]
    here: bool,
}

/// Shows which Services are used: connections and bytes for each endpoint, by this node's table of connections
///
/// On a terminal it is shown anew every two seconds until interrupted; in a pipe, once.
#[derive(Debug, clap::Args)]
struct TopArgs {
    /// What to sort by
    #[arg(long, value_enum, default_value_t = Order::Bytes)]
    sort: Order,
    /// Show it once, on a terminal too
    #[arg(long)]
    once: bool,
}

/// How often `top` shows anew.
const REFRESH: Duration = Duration::from_secs(2);

/// How long `status --wait` waits before it asks again.
const AGAIN: Duration = Duration::from_millis(500);

/// Shows all nodes on one screen: subnets, backends, what is programmed, repairs, and what is wrong
///
/// The daemons of this node are asked directly, those of others by the command of `--reach`. The exit status is 1 if a
/// node is not well, or not seen.
#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// Wait until all nodes are well, for at most so many seconds
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

/// Looks for what is wrong on this node, or on all, whoever sends packets
///
/// Each finding has a severity, the evidence and the remedy. Nothing is changed but with `--fix`. The exit status is 1 if
/// there is (or, after `--fix`, is still) a finding of severity `error`, or with `--all` a node that is not seen. Of other
/// nodes their flanneld tells, which sees neither the processes of its host nor, in a pod, twill-cni. Where the API server
/// is known, nodes are also compared with their objects, and these with each other.
#[derive(Debug, clap::Args)]
struct DoctorArgs {
    /// Where the container runtime looks for CNI configurations
    #[arg(long, value_name = "DIR", default_value = names::CNI_CONF_DIR)]
    cni_conf_dir: PathBuf,
    /// Where the container runtime looks for CNI plugins
    #[arg(long, value_name = "DIR", default_value = names::CNI_BIN_DIR)]
    cni_bin_dir: PathBuf,
    /// Do what the daemons would do: switches, devices that are down, the bridge's address
    #[arg(long, conflicts_with = "all")]
    fix: bool,
    /// All nodes, each asked as for `trace`
    #[arg(long)]
    all: bool,
}

/// Writes all that can be known of this node and its cluster into one archive, for somebody who cannot be here
///
/// In it: the kernel's state that packets meet, the insides of pods as far as packets meet them, what twill-cni, flanneld
/// and twill-proxy keep on disk, and of all nodes, where they can be reached, the daemons' metrics, health and logs. Of
/// Services, EndpointSlices, Nodes, Leases of subnets, ServiceCIDRs and Pods only the fields by which packets go: no
/// Secret or ConfigMap, no environment, argument or volume of a pod. What cannot be seen is named in it.
///
/// `twill trace --from-dump FILE` follows packets in it; `twill-proxy render --objects FILE --node NAME` prints the rules
/// that its objects make.
#[derive(Debug, clap::Args)]
struct SupportDumpArgs {
    /// The archive
    #[arg(value_name = "FILE", default_value = "twill-support-dump.tar.gz")]
    file: PathBuf,
    /// Where the container runtime looks for CNI configurations
    #[arg(long, value_name = "DIR", default_value = names::CNI_CONF_DIR)]
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
    /// Those of another node, by its flanneld
    #[arg(long, value_name = "NODE")]
    at: Option<String>,
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
///   twill trace outside svc/default/web --at node-2   it comes in there, and so it is followed there
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
    /// The node at which the way begins, if FROM does not say it and it is not this one
    #[arg(long, value_name = "NODE")]
    at: Option<String>,
    /// Follow it in what `twill support-dump` wrote on a node, not in this machine's kernel; once more for each further node. Routes
    /// are those of the main table: what a rule of `ip rule` leads elsewhere is not followed
    #[arg(long, value_name = "FILE")]
    from_dump: Vec<PathBuf>,
}

/// Runs the command; what it prints goes into `out`. Returns the exit status.
///
/// # Errors
/// The question cannot be answered.
pub fn run(args: &Args, out: &mut String) -> anyhow::Result<u8> {
    // These need no kernel.
    match &args.command {
        Command::Completion(how) => {
            let mut script = Vec::new();
            clap_complete::generate(how.shell, &mut Args::command(), "twill", &mut script);
            *out += &String::from_utf8(script)?;
            return Ok(0);
        }
        Command::Man(how) => {
            clap_mangen::generate_to(Args::command(), &how.dir)
                .with_context(|| format!("cannot write to {}", how.dir.display()))?;
            return Ok(0);
        }
        Command::Trace(how) if !how.from_dump.is_empty() => {
            let dumps: anyhow::Result<_> =
                how.from_dump.iter().map(|path| Dump::read(path)).collect();
            return trace_in(dumps?, how, args.output, out);
        }
        _ => {}
    }
    let mut kernel = here(args)?;
    match &args.command {
        Command::Completion(_) | Command::Man(_) => Ok(0),
        Command::SupportDump(how) => {
            let server = server(args)?;
            let reach = reach(args, server.clone(), &mut kernel)?;
            let (archive, missing) = dump::take(dump::From {
                networks: networks(&args.subnet_file)?,
                view: &mut kernel,
                server: server.as_ref(),
                reach: &reach,
                files: dump::files_of(&args.subnet_file, &how.cni_conf_dir, &args.snapshot_dir),
            })?;
            archive.write(&how.file)?;
            let written = Written::of(&how.file, &archive, missing);
            *out += &args.output.show(&written, &written)?;
            Ok(0)
        }
        Command::Trace(how) => {
            let question = how.question();
            let networks = networks(&args.subnet_file)?;
            let server = server(args)?;
            let mut cluster = cluster(server.as_ref());
            let reach = reach(args, server, &mut kernel)?;
            let start = match &how.at {
                Some(node) => begin::of_node(node, &mut cluster, &reach)?,
                None => begin::place(&question, &mut kernel, &networks, &mut cluster, &reach)?,
            };
            let near = match start {
                None => trace(&mut kernel, &mut cluster, &networks, &question)?,
                Some(place) => {
                    let mut remote = Remote::new(place, &reach);
                    let networks = remote.networks()?;
                    let question = Question {
                        sees_pods: false,
                        ..question.clone()
                    };
                    trace(&mut remote, &mut cluster, &networks, &question)?
                }
            };
            let trace = match &reach.others {
                Some(_) => onward::follow(&reach, question.proto, near),
                None => near,
            };
            told(&trace, args.output, out)
        }
        Command::Probe(how) => send(args, how, &mut kernel, out),
        Command::Top(how) => {
            let is_live =
                args.output == Output::Text && !how.once && std::io::stdout().is_terminal();
            if is_live {
                return live(&mut kernel, how.sort);
            }
            let uses = top(&mut kernel, how.sort)?;
            *out += &args.output.show(&uses, &UseTable(&uses))?;
            Ok(0)
        }
        Command::Status(how) => {
            let server = server(args)?;
            let mut cluster = cluster(server.as_ref());
            let reach = reach(args, server, &mut kernel)?;
            let here = reach.here();
            let started = Instant::now();
            loop {
                let nodes = status(&mut cluster, here, &reach);
                let is_well = nodes.iter().all(NodeStatus::is_well);
                if !is_well
                    && how
                        .wait
                        .is_some_and(|limit| started.elapsed().as_secs() < limit)
                {
                    pause(AGAIN);
                    continue;
                }
                *out += &args.output.show(&nodes, &StatusTable(&nodes))?;
                not_seen(args, &cluster, out);
                return Ok(u8::from(!is_well));
            }
        }
        Command::Doctor(how) if how.all => {
            let server = server(args)?;
            let mut cluster = cluster(server.as_ref());
            let reach = reach(args, server, &mut kernel)?;
            let claims = Claims::of(&mut cluster);
            let mut places = claims.places();
            if places.is_empty() {
                places.push(Place::nameless(reach.here()));
            }
            let files = args.files(&how.cni_conf_dir, &how.cni_bin_dir);
            let answers = rounds(&places, &claims, &reach, &files, &mut kernel);
            let nodes = places.iter().map(ToString::to_string).zip(answers);
            let nodes: Vec<OfNode> = nodes.map(|(name, told)| OfNode::new(name, told)).collect();
            *out += &args.output.show(&nodes, &OfNodes(&nodes))?;
            not_seen(args, &cluster, out);
            Ok(u8::from(!nodes.iter().all(OfNode::is_well)))
        }
        Command::Doctor(how) => {
            let server = server(args)?;
            let mut cluster = cluster(server.as_ref());
            let claims = Claims::of(&mut cluster);
            let at = claims.at(&reach(args, None, &mut kernel)?.own);
            let files = args.files(&how.cni_conf_dir, &how.cni_bin_dir);
            let look = |kernel: &mut Kernel| -> anyhow::Result<Vec<Finding>> {
                let claim = at.and_then(|place| claims.of_node(place));
                let mut findings = examine_all(kernel, &files, claim)?;
                findings.extend(at.into_iter().flat_map(|place| claims.conflicts_of(place)));
                findings.sort();
                Ok(findings)
            };
            let mut findings = look(&mut kernel)?;
            let fixes: Vec<Fix> = findings.iter().filter_map(|f| f.fix.clone()).collect();
            if how.fix && !fixes.is_empty() {
                for fix in fixes {
                    fix.apply().with_context(|| fix.to_string())?;
                    if args.output == Output::Text {
                        *out += &format!("done: {fix}\n");
                    }
                }
                // What is left, by a look that remembers nothing.
                kernel = here(args)?;
                findings = look(&mut kernel)?;
            }
            *out += &args.output.show(&findings, &Findings(&findings))?;
            not_seen(args, &cluster, out);
            let is_ill = findings.iter().any(|f| f.severity == Severity::Error);
            Ok(u8::from(is_ill))
        }
        Command::Pods(how) => {
            let which = how.which.as_deref();
            let pods = match &how.at {
                None => pods(&mut kernel, which)?,
                Some(node) => {
                    let server = server(args)?;
                    let mut cluster = cluster(server.as_ref());
                    let reach = reach(args, server, &mut kernel)?;
                    match begin::of_node(node, &mut cluster, &reach)? {
                        None => pods(&mut kernel, which)?,
                        Some(place) => pods(&mut Remote::new(place, &reach), which)?,
                    }
                }
            };
            *out += &args.output.show(&pods, &PodTable(&pods))?;
            Ok(0)
        }
    }
}

/// What objects could not tell, for people.
fn not_seen(args: &Args, cluster: &Cluster, out: &mut String) {
    if args.output == Output::Text {
        for note in cluster.notes() {
            *out += &format!("not seen: {note}\n");
        }
    }
}

impl Args {
    /// Where this node has what is not in its kernel.
    fn files(&self, cni_conf_dir: &Path, cni_bin_dir: &Path) -> Files {
        Files {
            records: self.records.clone(),
            subnet_file: self.subnet_file.clone(),
            cni_conf_dir: cni_conf_dir.to_owned(),
            cni_bin_dir: cni_bin_dir.to_owned(),
        }
    }
}

/// Sends packets, from all nodes if they are seen.
fn send(args: &Args, how: &ProbeArgs, kernel: &mut Kernel, out: &mut String) -> anyhow::Result<u8> {
    let mut asked = far::Probe {
        count: how.count,
        service: how.service,
    };
    let server = server(args)?.filter(|_| !how.here);
    let mut cluster = cluster(server.as_ref());
    let Some(nodes) = cluster.list::<Node>(None, None) else {
        let report = asked.send(kernel)?;
        *out += &args.output.show(&report, &report)?;
        not_seen(args, &cluster, out);
        return Ok(u8::from(!report.is_well()));
    };
    let members = matrix::members(&nodes);
    asked.service = asked
        .service
        .or_else(|| matrix::service_of_all(&mut cluster));
    let reach = reach(args, server, kernel)?;
    let places: Vec<_> = members.iter().map(|member| member.place.clone()).collect();
    let answers = onward::everywhere(
        &places,
        &reach,
        |_| asked.target(),
        || asked.send(kernel).map_err(|error| format!("{error:#}")),
    );
    let mut matrix = Matrix::of(&members, answers);
    if let Some(service) = how.service.filter(|_| !matrix.is_of_services()) {
        anyhow::bail!("--service {service}: on no node a rule of twill-proxy leads there");
    }
    let in_trouble = matrix.in_trouble();
    let places: Vec<_> = places
        .into_iter()
        .filter(|place| in_trouble.contains(&place.to_string().as_str()))
        .collect();
    let claims = match places.is_empty() {
        true => Claims::default(),
        false => Claims::by(&nodes, &mut cluster),
    };
    let files = args.files(names::CNI_CONF_DIR.as_ref(), names::CNI_BIN_DIR.as_ref());
    let told = rounds(&places, &claims, &reach, &files, kernel);
    let told = places.iter().map(ToString::to_string).zip(told);
    // What is not seen there is told by its row.
    matrix.findings = told
        .filter_map(|(node, found)| Some((node, found.ok()?)))
        .collect();
    *out += &args.output.show(&matrix, &matrix)?;
    not_seen(args, &cluster, out);
    Ok(u8::from(!matrix.is_well()))
}

/// The API server, if one is known.
fn server(args: &Args) -> anyhow::Result<Option<ApiServer>> {
    if args.offline {
        return Ok(None);
    }
    ApiServer::find(&Wanted {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
    })
}

fn told(trace: &Trace, output: Output, out: &mut String) -> anyhow::Result<u8> {
    *out += &output.show(trace, trace)?;
    Ok(u8::from(trace.arrives != Arrival::Yes))
}

/// Follows a packet from the node of the first dump.
fn trace_in(
    dumps: Vec<Dump>,
    how: &TraceArgs,
    output: Output,
    out: &mut String,
) -> anyhow::Result<u8> {
    let question = how.question();
    let near = match dumps.first() {
        Some(dump) => trace(
            &mut dump.view(),
            &mut dump.cluster(),
            &dump.about.networks,
            &question,
        )?,
        None => return Ok(2),
    };
    let is_alone = dumps.len() == 1;
    let trace = match is_alone {
        true => near,
        false => onward::follow(&ByDumps(dumps), question.proto, near),
    };
    told(&trace, output, out)
}

/// The kernel's state of this namespace.
fn here(args: &Args) -> anyhow::Result<Kernel> {
    let kernel = Kernel::here(&args.records)?;
    Ok(kernel.services(&args.snapshot_dir.join(saved::FILE)))
}

fn cluster(server: Option<&ApiServer>) -> Cluster {
    server.cloned().map_or_else(Cluster::default, Cluster::of)
}

/// Shows the table of `top` until somebody ends it.
fn live(kernel: &mut Kernel, order: Order) -> anyhow::Result<u8> {
    loop {
        let uses = top(kernel, order)?;
        // Home, and the rest of the screen empty.
        let screen = format!("\x1b[H\x1b[J{}", UseTable(&uses));
        std::io::stdout().write_all(screen.as_bytes())?;
        pause(REFRESH);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a person's screen goes by the clock, and daemons elsewhere send no events"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// How daemons are asked: those of this node directly, others by the command that was given, or through the API server.
fn reach(args: &Args, server: Option<ApiServer>, kernel: &mut Kernel) -> anyhow::Result<FromHere> {
    let own = kernel.addrs()?.into_iter().map(|addr| addr.cidr.addr());
    let by_command = args.reach.clone().map(ByCommand);
    Ok(FromHere {
        own: own.filter(|address| !address.is_loopback()).collect(),
        others: match (by_command, server) {
            (Some(command), _) => Some(Box::new(command)),
            (None, Some(server)) => Some(Box::new(server)),
            (None, None) => None,
        },
    })
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
            sees_pods: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound_and_pages_and_completion_know_every_command() {
        Args::command().debug_assert();
        let dir = tempfile::tempdir().unwrap();
        let mut script = String::new();
        for line in [
            "twill completion bash",
            &format!("twill man {}", dir.path().display()),
        ] {
            let args = Args::parse_from(line.split(' '));
            assert_eq!(run(&args, &mut script).unwrap(), 0);
        }
        for command in Args::command().get_subcommands() {
            let name = command.get_name();
            assert!(
                script.contains(&format!(
                    "twill__subcmd__{}",
                    name.replace('-', "__subcmd__")
                )),
                "{name}: {script}"
            );
            let page = dir.path().join(format!("twill-{name}.1"));
            let page = std::fs::read_to_string(page).unwrap();
            assert!(page.contains(".SH DESCRIPTION"), "{page}");
        }
        let page = std::fs::read_to_string(dir.path().join("twill-trace.1")).unwrap();
        assert!(page.contains("svc/default/web"), "{page}");
    }
}
