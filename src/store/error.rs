//! Errors of the store, by what a caller can meet: opening a database, any operation, changing a balance, deciding about an order.
//!
//! `Display` is short English with a code in front. The texts for people are translated by [`Localized`].

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::schema_difference::SchemaDifference;
use crate::domain::decisions::Refused;
use crate::domain::language::{Language, Localized, text};
use crate::files;

/// How many objects of another schema an error names.
const DIFFERENCES_NAMED_MAX: usize = 5;

/// The failure of an engine, or of the system below it. A clone shares it: one failed commit fails every job of its batch.
#[derive(Clone, Debug)]
pub struct Failure(Arc<dyn Error + Send + Sync>);

impl Failure {
    pub(super) fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(cause.into().into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(error)
    }
}

/// Why an operation on an open store failed. Nothing of it was written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Too many jobs wait for the writer.
    #[error("overloaded: too many jobs wait to be written")]
    Overloaded,
    /// The store is shutting down, or its writer has died.
    #[error("closed: the store is closed")]
    Closed,
    /// The store was opened for reading only.
    #[error("read_only: the store was opened for reading only")]
    ReadOnly,
    /// A file of the database is not the one that was opened.
    #[error("files_changed: a file of the database was removed or replaced")]
    FilesChanged(#[source] FilesChanged),
    /// The database failed.
    #[error("database_failed: the database failed")]
    Failed(#[source] Failure),
}

impl StoreError {
    pub(crate) fn failed(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed(Failure::new(cause))
    }
}

impl Localized for StoreError {
    fn text(&self, language: Language) -> String {
        match self {
            Self::Overloaded => text!(language, "store.overloaded"),
            Self::Closed => text!(language, "store.closed"),
            Self::ReadOnly => text!(language, "store.read_only"),
            Self::FilesChanged(changed) => return changed.text(language),
            Self::Failed(cause) => text!(language, "store.failed", cause = cause),
        }
        .into_owned()
    }
}

/// How the files of an open database have changed under it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesChanged {
    /// The database, or a file beside it, was removed.
    #[error("{0} was removed")]
    Removed(PathBuf),
    /// Another file stands at the path.
    #[error("{0} is another file")]
    Replaced(PathBuf),
    /// The path cannot be examined.
    #[error("{path} cannot be seen: {cause}")]
    Hidden {
        /// The path.
        path: PathBuf,
        /// The system's error.
        cause: String,
    },
}

impl Localized for FilesChanged {
    fn text(&self, language: Language) -> String {
        match self {
            Self::Removed(path) => text!(language, "store.files_removed", path = path.display()),
            Self::Replaced(path) => text!(language, "store.files_replaced", path = path.display()),
            Self::Hidden { path, cause } => {
                text!(language, "store.files_hidden", path = path.display(), cause = cause)
            }
        }
        .into_owned()
    }
}

/// Why a database cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The file cannot be opened.
    #[error("cannot_open: cannot open {path}: {cause}")]
    CannotOpen {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: String,
        /// Whether permissions are the cause.
        denied: bool,
    },
    /// There is no database yet.
    #[error("missing: there is no database {0}")]
    Missing(PathBuf),
    /// Another program's database.
    #[error("foreign: {0} is another program's database")]
    Foreign(PathBuf),
    /// Written by a newer version of this program.
    #[error("newer: {path} has version {found}, and {known} is the newest known")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// Written by an older version of this program, and not brought up to date.
    #[error("older: {path} has version {found}, and {known} is needed")]
    Older {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that is needed.
        known: u32,
    },
    /// The schema of the database is not the one that this program makes.
    #[error("other_schema: {path} has another schema than this program makes")]
    OtherSchema {
        /// The file.
        path: PathBuf,
        /// The objects that are foreign, missing or changed.
        differences: Arc<[SchemaDifference]>,
    },
    /// Users beside the owner and the group can use a file of the database, and this user cannot keep them out.
    #[error("open_to_others: {path} can be used by others")]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The database failed while it was opened.
    #[error("database_failed: the database failed")]
    Failed(#[source] Failure),
}

impl OpenError {
    /// The file cannot be opened, in the system's own words.
    pub(super) fn cannot_open(path: &Path, error: &io::Error) -> Self {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        Self::CannotOpen { path: path.to_owned(), cause: error.to_string(), denied }
    }

    /// Whether permissions are the cause.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self, Self::CannotOpen { denied: true, .. } | Self::OpenToOthers { .. })
    }
}

impl Localized for OpenError {
    fn text(&self, language: Language) -> String {
        match self {
            Self::CannotOpen { path, cause, denied: true } => {
                text!(language, "store.may_not_open", path = path.display(), cause = cause)
            }
            Self::CannotOpen { path, cause, denied: false } => {
                text!(language, "store.cannot_open", path = path.display(), cause = cause)
            }
            Self::Missing(path) => text!(language, "store.missing", path = path.display()),
            Self::Foreign(path) => text!(language, "store.foreign", path = path.display()),
            Self::Newer { path, found, known } => {
                text!(language, "store.newer", path = path.display(), found = found, known = known)
            }
            Self::Older { path, found, known } => {
                text!(language, "store.older", path = path.display(), found = found, known = known)
            }
            Self::OtherSchema { path, differences } => return other_schema(language, path, differences),
            Self::OpenToOthers { path, mode } => {
                text!(language, "store.open_to_others", path = path.display(), mode = files::octal(*mode))
            }
            Self::Failed(cause) => text!(language, "store.failed", cause = cause),
        }
        .into_owned()
    }
}

/// Names the differences, and the next step. Where all of them can be removed, the SQL for that as well.
fn other_schema(language: Language, path: &Path, differences: &[SchemaDifference]) -> String {
    let named = differences.iter().take(DIFFERENCES_NAMED_MAX);
    let mut named = named.map(|difference| difference.text(language)).collect::<Vec<_>>().join("; ");
    let unnamed = differences.len().saturating_sub(DIFFERENCES_NAMED_MAX);
    if unnamed > 0 {
        named = format!("{named}; {}", text!(language, "audit.more", count = unnamed));
    }
    let told = text!(language, "store.other_schema", path = path.display(), differences = named);
    let removals: Option<Vec<_>> = differences.iter().map(|difference| difference.removal.as_deref()).collect();
    match removals.filter(|_| unnamed == 0) {
        Some(removals) => format!("{told} {}", text!(language, "store.other_schema_remove", sql = removals.join(" "))),
        None => told.into_owned(),
    }
}

/// Why a balance was not changed, or an order not created.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AccountError {
    /// There is no such user.
    #[error("no_such_user: there is no user {0}")]
    NoSuchUser(i64),
    /// The balance would fall below zero, or out of all bounds.
    #[error("balance_out_of_bounds: user {telegram_id} has {credits} credits")]
    OutOfBounds {
        /// The user.
        telegram_id: i64,
        /// Their credits.
        credits: i64,
    },
    /// A request with this key came before, and asked for something else.
    #[error("idempotency_key_reused: the key came with another request before")]
    KeyReused,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Localized for AccountError {
    fn text(&self, language: Language) -> String {
        match self {
            Self::NoSuchUser(telegram_id) => text!(language, "store.no_such_user", user = telegram_id),
            Self::OutOfBounds { telegram_id, credits } => {
                text!(language, "store.out_of_bounds", user = telegram_id, credits = credits)
            }
            Self::KeyReused => text!(language, "store.key_reused"),
            Self::Store(error) => return error.text(language),
        }
        .into_owned()
    }
}

/// Why a person's decision about an order was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DecisionError {
    /// There is no such order.
    #[error("no_such_order: there is no order {0}")]
    NoSuchOrder(String),
    /// The rules refuse it.
    #[error("decision_refused: order {order_no}: {refused:?}")]
    Refused {
        /// The order.
        order_no: String,
        /// The user who bought it.
        telegram_id: i64,
        /// Why.
        refused: Refused,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Localized for DecisionError {
    fn text(&self, language: Language) -> String {
        let (order_no, telegram_id, refused) = match self {
            Self::NoSuchOrder(order_no) => {
                return text!(language, "cli.no_such_order", order = order_no).into_owned();
            }
            Self::Store(error) => return error.text(language),
            Self::Refused { order_no, telegram_id, refused } => (order_no, telegram_id, refused),
        };
        match refused {
            Refused::WrongStatus(status) => {
                let status = text!(language, format!("status.{status}"));
                text!(language, "store.wrong_status", order = order_no, status = status)
            }
            Refused::Spent { balance } => {
                text!(language, "store.out_of_bounds", user = telegram_id, credits = balance)
            }
            Refused::TradeReused { trade_no, order_no } => {
                text!(language, "store.trade_reused", trade = trade_no, order = order_no)
            }
            Refused::ChoosePayment { trade_nos } => {
                text!(language, "store.choose_payment", order = order_no, trades = trade_nos.join(", "))
            }
            Refused::NotPaidAgain => text!(language, "store.not_paid_again", order = order_no),
        }
        .into_owned()
    }
}

/// An error of a job of the writer.
pub(super) trait WriteError: From<StoreError> + Send + 'static {
    /// Whether the database failed, as opposed to a refusal.
    fn is_failure(&self) -> bool;
}

impl WriteError for StoreError {
    fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl WriteError for AccountError {
    fn is_failure(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_failure())
    }
}

impl WriteError for DecisionError {
    fn is_failure(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_failure())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes are what a program or a search goes by; the configured language changes none of them.
    #[test]
    fn an_error_displays_a_code_and_english_and_is_told_in_any_language() {
        let failed = StoreError::failed(io::Error::other("disk is full"));
        assert_eq!(failed.to_string(), "database_failed: the database failed");
        assert_eq!(failed.source().unwrap().to_string(), "disk is full");
        for language in Language::ALL {
            assert!(failed.text(*language).contains("disk is full"));
        }
        let refused = Refused::WrongStatus(crate::domain::order::OrderStatus::Paid);
        let refused = DecisionError::Refused { order_no: "ORDER1".into(), telegram_id: 7, refused };
        assert!(refused.to_string().starts_with("decision_refused: order ORDER1"));
        assert_ne!(refused.text(Language::Chinese), refused.text(Language::English));
    }
}
