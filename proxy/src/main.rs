//! twill-proxy: flags, log, runtime; all else is in the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use proxy::backend::Backend;
use proxy::config::{Args, Config};
use proxy::daemon;
use proxy::nft::NftBackend;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twill-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.cleanup {
        agent::logging::init(&args.log, &["proxy"])?;
        let removed = NftBackend::open()?
            .cleanup()
            .context("rules could not be removed")?;
        tracing::info!(tables = removed.ops, "removed all rules of ours");
        return Ok(());
    }
    let config = Config::load(args)?;
    if let Some(path) = &args.write_config_to {
        let yaml = serde_saphyr::to_string(&config.document()).context("--write-config-to")?;
        return hostnet::atomic_file::replace(path, yaml.as_bytes(), 0o644)
            .with_context(|| format!("--write-config-to {}", path.display()));
    }
    agent::logging::init(&config.log, &["proxy"])?;
    if args.init_only {
        config.tell();
        return Ok(());
    }
    // This thread runs the loop, which blocks while the kernel works; one more does all else.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let stop = agent::shutdown::on_signal().context("cannot handle signals")?;
            Ok(daemon::run(args, config, stop).await?)
        })
}
