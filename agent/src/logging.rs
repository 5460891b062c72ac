//! Logs: one line per decision, on standard error, as text or as JSON.
//!
//! Text is `2026-11-22T21:28:00.123456Z  INFO flanneld::lease: message key=value`; JSON has the same parts as
//! top-level keys (`timestamp`, `level`, `target`, `message`, and the event's own fields).

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt::time::SystemTime};

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: RFC 3339 time, level, module, message, key=value.
    #[default]
    Text,
    /// For machines: one JSON object per line.
    Json,
}

/// The logging flags that every daemon has.
#[derive(Args, Clone, Debug, Default)]
pub struct LogArgs {
    /// Form of the log lines
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: Format,
    /// Verbosity, on klog's scale: 0-3 decisions, 4-5 also details (debug), 6 and above everything (trace)
    #[arg(short, long, default_value_t = 0, value_name = "LEVEL")]
    pub v: u8,
    /// Filter by module, instead of -v: e.g. `info,flanneld::lease=debug`
    #[arg(long, env = "TWILL_LOG", value_name = "FILTER")]
    pub log_filter: Option<String>,
}

/// A log filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--log-filter {filter:?}: {source}; want e.g. `info,flanneld::lease=debug`")]
pub struct FilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Makes this process log as `args` say. `modules` are the crates that `-v` speaks of; others log warnings only.
///
/// # Errors
/// A `--log-filter` that cannot be parsed.
///
/// # Panics
/// If called twice in one process.
pub fn init(args: &LogArgs, modules: &[&str]) -> Result<(), FilterError> {
    let directives = args
        .log_filter
        .clone()
        .unwrap_or_else(|| directives(args.v, modules));
    let filter = EnvFilter::builder()
        .parse(&directives)
        .map_err(|source| FilterError {
            filter: directives.clone(),
            source,
        })?;
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(SystemTime)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        Format::Text => base.init(),
        Format::Json => base
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .init(),
    }
    Ok(())
}

/// The filter for verbosity `v` on klog's scale.
fn directives(v: u8, modules: &[&str]) -> String {
    let level = match v {
        0..=3 => "info",
        4..=5 => "debug",
        _ => "trace",
    };
    // What ails a watch is told by `agent::watch`, in words for people.
    ["agent", "hostnet"]
        .iter()
        .chain(modules)
        .fold(String::from("warn,kube_runtime=error"), |filter, module| {
            filter + "," + module + "=" + level
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        log: LogArgs,
    }

    #[test]
    fn verbosity_follows_klog() {
        assert_eq!(
            directives(0, &["flanneld"]),
            "warn,kube_runtime=error,agent=info,hostnet=info,flanneld=info"
        );
        assert_eq!(
            directives(4, &["proxy"]),
            "warn,kube_runtime=error,agent=debug,hostnet=debug,proxy=debug"
        );
        assert_eq!(
            directives(9, &[]),
            "warn,kube_runtime=error,agent=trace,hostnet=trace"
        );
    }

    #[test]
    fn every_form_of_the_verbosity_flag_is_read() {
        for form in [
            &["x", "-v", "4"][..],
            &["x", "-v=4"],
            &["x", "--v=4"],
            &["x", "-v4"],
        ] {
            assert_eq!(Cli::try_parse_from(form).unwrap().log.v, 4, "{form:?}");
        }
    }

    #[test]
    fn a_wrong_filter_is_named() {
        let args = LogArgs {
            log_filter: Some("info,x=nonsense".into()),
            ..LogArgs::default()
        };
        let error = init(&args, &[]).unwrap_err().to_string();
        assert!(
            error.contains("--log-filter") && error.contains("nonsense"),
            "{error}"
        );
    }
}
