//! Stopping the service.

use std::path::Path;
use std::time::{Duration, Instant};

use super::control::{Answer, Request, ask};
use super::pid_file::{Found, Record, Riddle, look};
use super::pidfd::Process;
use crate::domain::failure::OrFailure;
use crate::domain::language::localized;

/// How long it may take to answer: one that hangs is to be ended all the same.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a process that has just taken over has at least.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(5);
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
    let mut seat = None;
    let mut stopped = None;
    loop {
        let (record, process) = match look(pid_file)? {
            // One that somebody has started since is not ours to stop.
            Found::Running(record, process) if seat.as_ref().is_none_or(|seat| *seat == record.seat) => {
                (record, process)
            }
            // A restart was under way: another process has the lock now, and has not written its name yet, or is about to end.
            Found::Unknown(Riddle::NoSuchProcess(_) | Riddle::Empty)
                if stopped.is_some() && Instant::now() < deadline =>
            {
                continue;
            }
            Found::Unknown(riddle) if stopped.is_none() => return Err(riddle.explain(pid_file)),
            found => return Ok(stopped.unwrap_or_else(|| was_not_running(found))),
        };
        end(&record, &process)?;
        // Who has taken over has had no time yet.
        let grace = if stopped.is_some() { SUCCESSOR_TIMEOUT } else { Duration::ZERO };
        let left = deadline.saturating_duration_since(Instant::now()).max(grace);
        seat = Some(record.seat.clone());
        stopped = if process.wait(left)? {
            Some(Stopped::Finished(record))
        } else if !force {
            return Ok(Stopped::StillRunning(record));
        } else {
            before_kill(record.pid);
            process.kill().or_failure(|| localized!("manager.not_allowed", pid = record.pid))?;
            if !process.wait(KILL_TIMEOUT)? {
                return Ok(Stopped::StillRunning(record));
            }
            Some(Stopped::Killed(record))
        };
    }
}

fn was_not_running(found: Found) -> Stopped {
    Stopped::WasNotRunning(match found {
        Found::Left(record) => Leftover::Record(record),
        Found::LeftGarbage(text) => Leftover::Garbage(text),
        _ => Leftover::Nothing,
    })
}

/// Has it end by SIGTERM, once: a second one would be taken for impatience, and cut what is under way. So it is asked to send
/// the signal to itself, if nobody has yet; one that does not answer gets it from here.
fn end(service: &Record, process: &Process) -> anyhow::Result<()> {
    if !matches!(ask(service, process, ANSWER_TIMEOUT, Request::End), Ok(Answer::Ending)) {
        process.terminate().or_failure(|| localized!("manager.not_allowed", pid = service.pid))?;
    }
    Ok(())
}
