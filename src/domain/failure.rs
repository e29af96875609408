//! Failures that people are told of, passed up as [`anyhow::Error`] and put into words where they are told.

use std::error::Error;
use std::fmt;

use super::language::{Language, Localized, LocalizedText};

/// A failure with its text, and the error that it comes from.
#[derive(Debug)]
pub(crate) struct LocalizedError {
    text: LocalizedText,
    cause: Option<anyhow::Error>,
}

impl LocalizedError {
    /// A failure with an error that it comes from.
    pub(crate) fn because(text: LocalizedText, cause: impl Into<anyhow::Error>) -> anyhow::Error {
        Self { text, cause: Some(cause.into()) }.into()
    }
}

impl From<LocalizedText> for LocalizedError {
    fn from(text: LocalizedText) -> Self {
        Self { text, cause: None }
    }
}

impl Localized for LocalizedError {
    /// Without the cause, which has a text of its own.
    fn text(&self, language: Language) -> String {
        self.text.text(language)
    }
}

impl fmt::Display for LocalizedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl Error for LocalizedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(|cause| {
            let cause: &(dyn Error + 'static) = cause.as_ref();
            cause
        })
    }
}

/// An [`anyhow::Error`] that is a [`LocalizedError`]: `failure!("group.key", placeholder = value)`.
macro_rules! failure {
    ($($text:tt)*) => {
        ::anyhow::Error::new($crate::domain::failure::LocalizedError::from($crate::domain::language::localized!($($text)*)))
    };
}
pub(crate) use failure;

/// What [`anyhow::Context`] is for texts of one language.
pub(crate) trait OrFailure<T> {
    /// Puts a [`LocalizedError`] with this text before an error.
    fn or_failure(self, text: impl FnOnce() -> LocalizedText) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrFailure<T> for Result<T, E> {
    fn or_failure(self, text: impl FnOnce() -> LocalizedText) -> anyhow::Result<T> {
        self.map_err(|error| LocalizedError::because(text(), error))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::super::language::localized;
    use super::*;

    #[test]
    fn a_failure_keeps_its_cause_and_the_causes_type() {
        let denied = Err::<(), _>(io::Error::from(io::ErrorKind::PermissionDenied));
        let inner = denied.or_failure(|| localized!("config.no_file"));
        let outer = inner.or_failure(|| localized!("cli.no_such_order", order = "ORDER1")).unwrap_err();
        let failures: Vec<_> = outer.chain().filter_map(|cause| cause.downcast_ref::<LocalizedError>()).collect();
        assert_eq!(failures.len(), 2);
        assert!(failures[0].text(Language::Chinese).contains("ORDER1"));
        assert!(outer.to_string().starts_with("no_such_order: "), "{outer}");
        let root = outer.chain().last().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(root.kind(), io::ErrorKind::PermissionDenied);
    }
}
