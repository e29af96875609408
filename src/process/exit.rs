//! Exit codes, and the text of a failure on standard error.

use std::io::{self, Write};
use std::process::ExitCode;

use super::start::NotStarted;
use crate::config::ConfigError;
use crate::domain::language::{Language, Localized, LocalizedText};
use crate::logging::escaped;
use crate::store::OpenError;

/// How a command ends; the codes are part of the public contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    NoPermission,
    BadConfiguration,
    Found,
    /// `status`: the service died and left its pid file.
    Dead,
    /// `status`: the service is stopped.
    Stopped,
    /// `status`: the service runs and does not answer.
    NotAnswering,
}

impl Exit {
    /// How another process of ours failed that told this code.
    pub(crate) fn of_code(code: u8) -> Self {
        let told = [Self::NoPermission, Self::BadConfiguration].into_iter().find(|exit| exit.code() == code);
        told.unwrap_or(Self::Failed)
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed | Self::Dead => 1,
            Self::Usage => 2,
            Self::Stopped => 3,
            Self::NoPermission | Self::NotAnswering => 4,
            Self::BadConfiguration => 6,
            Self::Found => 10,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A command line that parses and makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(LocalizedText);

impl Localized for UsageError {
    fn text(&self, language: Language) -> String {
        self.0.text(language)
    }
}

/// A [`UsageError`] with this text.
pub(crate) fn usage(text: LocalizedText) -> anyhow::Error {
    UsageError(text).into()
}

/// Writes a line to standard error. What a file or a peer put into it cannot move the terminal's cursor.
pub(crate) fn eprint(text: &str) {
    let safe: String = text.lines().map(|line| escaped(line) + "\n").collect();
    // There is nobody left to tell when this fails.
    let _ = io::stderr().write_all(safe.as_bytes());
}

/// The code that an error ends the process with.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if cause.is::<ConfigError>() {
            return Exit::BadConfiguration;
        }
        if let Some(not_started) = cause.downcast_ref::<NotStarted>() {
            return Exit::of_code(not_started.exit);
        }
        if cause.is::<UsageError>() {
            return Exit::Usage;
        }
        let denied = match (cause.downcast_ref::<OpenError>(), cause.downcast_ref::<io::Error>()) {
            (Some(error), _) => error.is_denied(),
            (_, Some(error)) => error.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        };
        if denied {
            return Exit::NoPermission;
        }
    }
    Exit::Failed
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_code() {
        let cannot_open = |denied| OpenError::CannotOpen { path: "x".into(), cause: "y".into(), denied };
        let bad_configuration = ConfigError { file: None, findings: Vec::new() };
        for (error, exit) in [
            (anyhow::anyhow!("anything"), Exit::Failed),
            (usage(LocalizedText::verbatim("x", "x")), Exit::Usage),
            (bad_configuration.into(), Exit::BadConfiguration),
            (cannot_open(true).into(), Exit::NoPermission),
            (cannot_open(false).into(), Exit::Failed),
            (OpenError::OpenToOthers { path: "x".into(), mode: 0o644 }.into(), Exit::NoPermission),
            (OpenError::OtherSchema { path: "x".into(), differences: [].into() }.into(), Exit::Failed),
            (io::Error::from(io::ErrorKind::PermissionDenied).into(), Exit::NoPermission),
            (io::Error::from(io::ErrorKind::AddrInUse).into(), Exit::Failed),
        ] {
            let text = error.to_string();
            assert_eq!(exit_of(&Err::<(), _>(error).context("while testing").unwrap_err()), exit, "{text}");
        }
    }
}
