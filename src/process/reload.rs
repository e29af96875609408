//! Having the service read its configuration again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use super::control::{Answer, LOOK_AGAIN_AFTER, Request, ask, has_gone};
use super::pid_file::{Found, Riddle, look};
use crate::domain::failure::OrFailure;
use crate::domain::language::localized;

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
    let deadline = Instant::now() + TIMEOUT;
    let mut is_asked_again = false;
    loop {
        let (record, process) = match look(pid_file)? {
            Found::Running(record, process) => (record, process),
            // A process that has just taken over, and has not written its name yet.
            Found::Unknown(Riddle::Empty | Riddle::NoSuchProcess(_)) if is_asked_again && Instant::now() < deadline => {
                continue;
            }
            Found::Unknown(riddle) => return Err(riddle.explain(pid_file)),
            Found::Nothing | Found::Left(_) | Found::LeftGarbage(_) => return Ok(Reloaded::NotRunning),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = match ask(&record, &process, left, Request::Reload) {
            Err(error) if has_gone(&error) && Instant::now() < deadline => Answer::HasLeft,
            answer => answer.or_failure(|| localized!("manager.no_answer", pid = record.pid))?,
        };
        match answer {
            // By then the other one has written its name.
            Answer::HasLeft if Instant::now() < deadline => {
                std::thread::sleep(LOOK_AGAIN_AFTER);
                is_asked_again = true;
            }
            Answer::Reloaded { after_restart } => return Ok(Reloaded::Done { pid: record.pid, after_restart }),
            Answer::Refused { cause, exit } => return Ok(Reloaded::Refused { cause, exit }),
            other => bail!("{other:?}"),
        }
    }
}
