//! `flanneld`: reads flags and net-conf.json, and runs until told to stop; or cleans up.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use flanneld::{
    cleanup::cleanup,
    config::{
        Config, Flags,
        flags::{self, Command},
    },
    run::run,
};

fn main() -> ExitCode {
    let flags = Flags::parse_from(flags::normalize(std::env::args_os()));
    if let Err(error) = agent::logging::init(&flags.log, &["flanneld"]) {
        eprintln!("flanneld: {error}");
        return ExitCode::FAILURE;
    }
    match start(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", agent::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start(flags: &Flags) -> anyhow::Result<()> {
    if let Some(Command::Cleanup(how)) = &flags.command {
        return Ok(cleanup(flags, how)?);
    }
    let (config, warnings) = Config::load(flags)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = hostnet::kernel::too_old(&hostnet::kernel::release()) {
        tracing::warn!("{warning}");
    }
    let (node, backend) = (&config.node_name, config.net.backend.name());
    tracing::info!(
        version = agent::metrics::VERSION,
        node,
        backend,
        "flanneld starts"
    );
    // One thread does all: the work comes in short pieces, and each thread more would cost memory on every node.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { run(config, agent::shutdown::on_signal()?).await })
}
