//! Stopping the service.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rust_i18n::t;

use super::control::{Answer, Connection, Request};
use super::pid_file::{Found, Record, look};
use super::start::unknown;

/// How long it may take to tell whether it is ending: one that hangs is to be ended all the same.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
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
    before_kill: impl Fn(u32),
) -> anyhow::Result<Stopped> {
    let deadline = Instant::now() + timeout;
    let mut stopped = None;
    loop {
        let (record, process) = match look(pid_file)? {
            Found::Running(record, process) => (record, process),
            // One that takes over from what has just ended, and has not written its name yet.
            Found::Unknown(_) if stopped.is_some() && Instant::now() < deadline => continue,
            Found::Unknown(riddle) => return Err(unknown(pid_file, &riddle)),
            Found::Nothing => return Ok(stopped.unwrap_or(Stopped::WasNotRunning(Leftover::Nothing))),
            Found::Left(record) => return Ok(stopped.unwrap_or(Stopped::WasNotRunning(Leftover::Record(record)))),
            Found::LeftGarbage(text) => return Ok(stopped.unwrap_or(Stopped::WasNotRunning(Leftover::Garbage(text)))),
        };
        // A second signal would be taken for impatience.
        if !is_ending(&record) {
            process.terminate().with_context(|| t!("manager.not_allowed", pid = record.pid).into_owned())?;
        }
        stopped = if process.wait(deadline.saturating_duration_since(Instant::now()))? {
            Some(Stopped::Finished(record))
        } else if !force {
            return Ok(Stopped::StillRunning(record));
        } else {
            before_kill(record.pid);
            process.kill().with_context(|| t!("manager.not_allowed", pid = record.pid).into_owned())?;
            if !process.wait(KILL_TIMEOUT)? {
                return Ok(Stopped::StillRunning(record));
            }
            Some(Stopped::Killed(record))
        };
        // A restart may have been under way: then there is another one by now.
    }
}

/// Whether it says that it has been told already.
fn is_ending(service: &Record) -> bool {
    let answer = Connection::open(service, ANSWER_TIMEOUT).and_then(|mut service| service.ask(Request::IsEnding));
    matches!(answer, Ok(Answer::Ending(true)))
}
