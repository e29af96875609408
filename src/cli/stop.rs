//! `stop`: the end of the service, a gentle one if it can be.

use std::time::Duration;

use super::output;
use super::start::{listener_beside, parse_seconds};
use crate::config::Essentials;
use crate::domain::failure::failure;
use crate::domain::language::text;
use crate::process::exit::{Exit, eprint};
use crate::process::stop::{Leftover, Stopped, stop};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// How long it may take until it is killed, in seconds [default: `stop_timeout_s` of the configuration]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
    /// Do not kill it when it takes longer; exit with 1
    #[arg(long)]
    no_force: bool,
}

pub(super) fn run(arguments: &Arguments, essentials: &Essentials) -> anyhow::Result<Exit> {
    let language = essentials.language;
    let timeout = arguments.timeout.unwrap_or(Duration::from_secs(essentials.stop_timeout_s.into()));
    let seconds = timeout.as_secs_f32();
    let before_kill = |pid: u32| eprint(&text!(language, "manager.killing", pid = pid, seconds = seconds));
    match stop(&essentials.pid_file, timeout, !arguments.no_force, before_kill)? {
        Stopped::WasNotRunning(leftover) => {
            match leftover {
                Leftover::Nothing => {}
                Leftover::Record(record) => eprint(&text!(language, "manager.left", pid = record.pid)),
                Leftover::Garbage(text) => {
                    eprint(&text!(language, "manager.left_garbage", path = essentials.pid_file.display(), text = text));
                }
            }
            output::line(&text!(language, "manager.not_running"))?;
            if let Some(text) = listener_beside(essentials) {
                eprint(&text);
            }
        }
        Stopped::Finished(record) => {
            output::line(&text!(language, "manager.stopped", pid = record.pid))?;
            if let Some(unit) = record.unit {
                eprint(&text!(language, "manager.stopped_under_systemd", unit = unit));
            }
        }
        Stopped::Killed(record) => output::line(&text!(language, "manager.killed", pid = record.pid))?,
        Stopped::StillRunning(record) => {
            return Err(failure!("manager.still_running", pid = record.pid, seconds = seconds));
        }
    }
    Ok(Exit::Done)
}
