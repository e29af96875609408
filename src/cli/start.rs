//! `start`: the service in the background.

use std::time::Duration;

use super::output;
use crate::config::{Essentials, Loaded, ensure_rereadable};
use crate::domain::failure::LocalizedError;
use crate::domain::language::{Language, localized, text};
use crate::process::exit::{Exit, eprint};
use crate::process::port;
use crate::process::start::{Start, Started};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// How long it may take, in seconds [default: `start_timeout_s` of the configuration]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(super) timeout: Option<Duration>,
}

pub(super) fn run(arguments: &Arguments, loaded: &Loaded) -> anyhow::Result<Exit> {
    tell(begin(arguments, loaded)?, loaded.config.language)
}

/// Starts the service unless it runs.
pub(super) fn begin(arguments: &Arguments, loaded: &Loaded) -> anyhow::Result<Started> {
    prepare(loaded)?;
    plan(arguments, loaded).start()
}

pub(super) fn tell(started: Started, language: Language) -> anyhow::Result<Exit> {
    output::line(&match started {
        Started::Ready { pid, listen, replaced, noise } => {
            eprint(noise.trim_end());
            if let Some(old) = replaced {
                text!(language, "manager.restarted", old = old, pid = pid, address = listen)
            } else {
                text!(language, "manager.started", pid = pid, address = listen)
            }
        }
        Started::Already { pid, listen } => text!(language, "manager.started_already", pid = pid, address = listen),
    })?;
    Ok(Exit::Done)
}

/// What has to be right before a service is started, and is worth saying.
pub(super) fn prepare(loaded: &Loaded) -> anyhow::Result<()> {
    let language = loaded.config.language;
    ensure_rereadable(loaded.source.file.as_deref())?;
    for warning in &loaded.warnings {
        eprint(&text!(language, "log.config_warning", finding = warning));
    }
    Ok(())
}

pub(super) fn plan<'a>(arguments: &Arguments, loaded: &'a Loaded) -> Start<'a> {
    let config = &loaded.config;
    Start {
        config_file: loaded.source.file.as_deref(),
        pid_file: &config.service.pid_file,
        log_file: &config.log.file,
        timeout: arguments.timeout.unwrap_or(Duration::from_secs(config.service.start_timeout_s.into())),
    }
}

/// A time span as options take it: seconds, with a fraction if need be.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, LocalizedError> {
    let seconds: Option<f64> = text.parse().ok();
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.filter(|duration| *duration <= SECONDS_MAX).ok_or_else(|| localized!("cli.bad_seconds").into())
}

/// A day: nothing takes longer, and no clock is out of its range.
const SECONDS_MAX: Duration = Duration::from_hours(24);

/// Somebody may listen where the configured service would, whatever the pid file says; told where it says that nobody runs.
pub(super) fn listener_beside(essentials: &Essentials) -> Option<String> {
    let language = essentials.language;
    let address = essentials.listen?;
    let port::Holder { pid, command } = port::holder(address)?;
    Some(text!(language, "manager.listening", pid = pid, command = command, address = address).into())
}
