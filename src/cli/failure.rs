//! Exit codes, and how a failure is told: once, on standard error.

use std::io::{self, Write};
use std::process::ExitCode;

use rust_i18n::t;

use crate::config::ConfigError;
use crate::logging::Escaping;
use crate::store::StoreError;

/// How a command ends; the numbers are part of the public contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NoPermission = 4,
    BadConfiguration = 6,
    Found = 10,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command line that parses and makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct UsageError(String);

/// A [`UsageError`] with this text.
pub(super) fn usage(text: impl Into<String>) -> anyhow::Error {
    UsageError(text.into()).into()
}

/// Tells what went wrong, and with which code to end.
pub(super) fn report(error: &anyhow::Error) -> Exit {
    if is_broken_pipe(error) {
        // Whoever read our output has seen enough.
        return Exit::Done;
    }
    eprint(&t!("cli.error", cause = format!("{error:#}")));
    exit_of(error)
}

/// Writes a line to standard error. What a file or a peer put into it cannot move the terminal's cursor.
pub(super) fn eprint(text: &str) {
    let mut safe = String::with_capacity(text.len() + 1);
    for line in text.lines() {
        use std::fmt::Write;
        let _ = Escaping(&mut safe).write_str(line);
        safe.push('\n');
    }
    // There is nobody left to tell when this fails.
    let _ = io::stderr().write_all(safe.as_bytes());
}

/// The code that an error ends the process with.
pub(super) fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if cause.is::<ConfigError>() {
            return Exit::BadConfiguration;
        }
        if cause.is::<UsageError>() {
            return Exit::Usage;
        }
        let denied = match (cause.downcast_ref::<StoreError>(), cause.downcast_ref::<io::Error>()) {
            (Some(StoreError::CannotOpen { denied, .. }), _) => *denied,
            (_, Some(error)) => error.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        };
        if denied {
            return Exit::NoPermission;
        }
    }
    Exit::Failed
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors.into_iter().any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
