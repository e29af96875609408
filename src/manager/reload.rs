//! Having the service read its configuration again.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::control::{Answer, Connection, Request};
use super::pid_file::{Found, look};
use super::start::unknown;

/// How long a reload may take; opening the log file anew waits for what is queued.
const TIMEOUT: Duration = Duration::from_secs(15);

/// How a reload ended.
pub(crate) enum Reloaded {
    /// The configuration is in force, but for these keys: they take a restart.
    Done {
        pid: u32,
        after_restart: Vec<String>,
    },
    /// Everything is as it was.
    Refused {
        cause: String,
        exit: u8,
    },
    NotRunning,
}

pub(crate) fn reload(pid_file: &Path) -> anyhow::Result<Reloaded> {
    let record = match look(pid_file)? {
        Found::Running(record, _) => record,
        Found::Unknown(riddle) => return Err(unknown(pid_file, &riddle)),
        Found::Nothing | Found::Left(_) | Found::LeftGarbage(_) => return Ok(Reloaded::NotRunning),
    };
    let answer = Connection::open(&record, TIMEOUT).and_then(|mut service| service.ask(Request::Reload));
    match answer.with_context(|| rust_i18n::t!("manager.no_answer", pid = record.pid).into_owned())? {
        Answer::Reloaded { after_restart } => Ok(Reloaded::Done { pid: record.pid, after_restart }),
        Answer::Refused { cause, exit } => Ok(Reloaded::Refused { cause, exit }),
        other => anyhow::bail!("{other:?}"),
    }
}
