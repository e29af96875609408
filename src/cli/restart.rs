//! `restart`: a new process in the place of the one that runs.

use std::path::Path;
use std::time::Duration;

use super::start::{self, Arguments};
use crate::config::Loaded;
use crate::domain::failure::{LocalizedError, failure};
use crate::domain::language::localized;
use crate::process::control::{Answer, Request, ask};
use crate::process::exit::Exit;
use crate::process::pid_file::{Found, Record, look};
use crate::process::start::Started;
use crate::process::systemd;

/// How long the service may take to say that it goes on.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn run(arguments: &Arguments, loaded: &Loaded) -> anyhow::Result<Exit> {
    let pid_file = &loaded.config.service.pid_file;
    let (old, process) = match look(pid_file)? {
        Found::Running(old, process) => (old, process),
        // One that has died: systemd is about to start it again, and a daemon of ours would be in its way.
        Found::Left(Record { unit: Some(unit), .. }) if systemd::runs() => return Err(owned_by_systemd(&unit)),
        _ => match start::begin(arguments, loaded)? {
            // It was there, and only its pid file did not tell for a moment.
            Started::Already { .. } => match look(pid_file)? {
                Found::Running(old, process) => (old, process),
                _ => return Err(failure!("manager.gone_meanwhile")),
            },
            started @ Started::Ready { .. } => return start::tell(started, loaded.config.language),
        },
    };
    if let Some(unit) = old.unit {
        return Err(owned_by_systemd(&unit));
    }
    start::prepare(loaded)?;
    let restarted = start::plan(arguments, loaded).take_over(&process).map_err(|error| match who_answers(pid_file) {
        Some(pid) => LocalizedError::because(localized!("manager.old_goes_on", pid = pid), error),
        None => error,
    });
    start::tell(restarted?, loaded.config.language)
}

fn owned_by_systemd(unit: &str) -> anyhow::Error {
    failure!("manager.owned_by_systemd", unit = unit, verb = "restart")
}

/// The service that runs, and is not about to end: perhaps not the one that was there before, as another restart may have been
/// quicker.
fn who_answers(pid_file: &Path) -> Option<u32> {
    let Ok(Found::Running(record, process)) = look(pid_file) else { return None };
    let answer = ask(&record, &process, ANSWER_TIMEOUT, Request::Wait);
    matches!(answer, Ok(Answer::Ready { .. })).then_some(record.pid)
}
