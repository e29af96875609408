//! Stopping the service.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rust_i18n::t;

use super::pid_file::{Found, Record, look};
use super::start::unknown;

/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How a stop ended.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// Nobody ran; what the pid file had left in it, for a person to know.
    WasNotRunning(Leftover),
    /// It has finished what was under way.
    Finished(Record),
    /// It did not end in time and was killed.
    Killed(Record),
    /// It did not end in time and was left alone.
    StillRunning(Record),
}

/// What a pid file had in it that nobody holds.
#[derive(Debug)]
pub(crate) enum Leftover {
    Nothing,
    /// Of a service that died.
    Record(Record),
    Garbage(String),
}

/// Asks the service to end and waits for that, at most `timeout`; then kills it, unless it is to be left alone. `before_kill`
/// is told first.
pub(crate) fn stop(
    pid_file: &Path,
    timeout: Duration,
    force: bool,
    before_kill: impl FnOnce(u32),
) -> anyhow::Result<Stopped> {
    let (record, process) = match look(pid_file)? {
        Found::Nothing => return Ok(Stopped::WasNotRunning(Leftover::Nothing)),
        Found::Left(record) => return Ok(Stopped::WasNotRunning(Leftover::Record(record))),
        Found::LeftGarbage(text) => return Ok(Stopped::WasNotRunning(Leftover::Garbage(text))),
        Found::Unknown(riddle) => return Err(unknown(pid_file, &riddle)),
        Found::Running(record, process) => (record, process),
    };
    process.terminate().with_context(|| t!("manager.not_allowed", pid = record.pid).into_owned())?;
    if process.wait(timeout)? {
        return Ok(Stopped::Finished(record));
    }
    if !force {
        return Ok(Stopped::StillRunning(record));
    }
    before_kill(record.pid);
    process.kill()?;
    Ok(if process.wait(KILL_TIMEOUT)? { Stopped::Killed(record) } else { Stopped::StillRunning(record) })
}
