//! Whether the service runs, and how it is.

use std::path::Path;

use super::health::{self, Health};
use super::pid_file::{Found, Record, look};
use super::pidfd::Vitals;
use crate::domain::language::LocalizedText;

/// What a look at the service found.
pub(crate) enum Status {
    Stopped,
    /// Its pid file tells of a process that is no more.
    Dead(Record),
    /// Nobody holds the pid file, and the text in it is not ours.
    Garbage(String),
    /// Somebody holds the pid file, and it does not tell who.
    Unknown(LocalizedText),
    Running {
        record: Record,
        vitals: Option<Vitals>,
        health: Health,
    },
}

/// Looks, and asks the service how it is.
pub(crate) async fn status(pid_file: &Path) -> anyhow::Result<Status> {
    let (record, process) = match look(pid_file)? {
        Found::Nothing => return Ok(Status::Stopped),
        Found::Left(record) => return Ok(Status::Dead(record)),
        Found::LeftGarbage(text) => return Ok(Status::Garbage(text)),
        Found::Unknown(riddle) => return Ok(Status::Unknown(riddle.explanation(pid_file))),
        Found::Running(record, process) => (record, process),
    };
    let health = match record.listen {
        Some(address) => health::check(address).await,
        None => Health::NoAnswer,
    };
    Ok(Status::Running { record, vitals: process.vitals().ok(), health })
}
