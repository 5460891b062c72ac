//! twill-proxy: flags, log, runtime; all else is in the library.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use hostnet::vocab::Family;
use proxy::config::{Args, Config, Mode, snapshot_file};
use proxy::daemon;
use proxy::iptables::route_localnet;
use proxy::render::{RenderArgs, render};
use proxy::snapshot;
use proxy::succession::{Only, cleanup};
use tokio::runtime::Builder;

/// Turns Services and EndpointSlices into NAT in the kernel, in place of kube-proxy.
///
/// What the file of --config says goes before flags, except --hostname-override; flags go before defaults.
#[derive(Debug, Parser)]
#[command(name = "twill-proxy", version = agent::metrics::VERSION, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    Render(Box<RenderArgs>),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Command::Render(args)) => print(args),
        None => run(&cli.args).map(|()| ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("twill-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what was asked for.
fn print(args: &RenderArgs) -> anyhow::Result<ExitCode> {
    let rendered = render(args)?;
    for note in &rendered.notes {
        eprintln!("twill-proxy: {note}");
    }
    std::io::stdout().write_all(rendered.text.as_bytes())?;
    Ok(ExitCode::from(u8::from(rendered.differs)))
}

fn run(args: &Args) -> anyhow::Result<()> {
    // What is saved, and what iptables takes and gives, is large, and soon done with.
    hostnet::memory::map_large_blocks();
    if args.cleanup {
        agent::logging::init(&args.log, &["proxy"])?;
        let mode = (args.proxy_mode.as_deref())
            .map(|mode| Only::from_str(mode, false))
            .transpose()
            .map_err(|_| anyhow::anyhow!("--proxy-mode: want nftables or iptables"))?;
        let removed = cleanup(mode)?;
        let named = args.proxy_mode.as_deref();
        let named = named.unwrap_or("all, and kube-proxy's");
        tracing::info!(removed, mode = named, "removed rules");
        let file = snapshot_file(args.snapshot_dir.clone());
        let of = || format!("cannot remove {}", file.display());
        if mode.is_none() && snapshot::remove(&file).with_context(of)? {
            tracing::info!(file = %file.display(), "removed the last good state");
        }
        return Ok(());
    }
    let config = Config::load(args)?;
    if let Some(path) = &args.write_config_to {
        let yaml = serde_saphyr::to_string(&config.document()).context("--write-config-to")?;
        return hostnet::atomic_file::replace(path, yaml.as_bytes(), 0o644)
            .with_context(|| format!("--write-config-to {}", path.display()));
    }
    agent::logging::init(&config.log, &["proxy"])?;
    if let Some(warning) = hostnet::kernel::too_old(&hostnet::kernel::release()) {
        tracing::warn!("{warning}");
    }
    if args.init_only {
        config.tell();
        if let Mode::Iptables { options, .. } = &config.mode {
            route_localnet(
                options,
                config.settings.node_port_addresses.scope(Family::V4),
            )
            .context("node ports at 127.0.0.1")?;
        }
        return Ok(());
    }
    // This thread reads what the API server tells and programs the kernel: one that woke another for each message would
    // cost more than both. While the kernel works it blocks, and a second one answers at the ports.
    let answers = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime that answers")?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let stop = agent::shutdown::on_signal().context("cannot handle signals")?;
        Ok(daemon::run(args, config, answers.handle(), stop).await?)
    });
    answers.shutdown_background();
    result
}
