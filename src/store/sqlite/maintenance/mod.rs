//! Work on the files of a database: a look that changes nothing, copies, and putting a copy in the place of the database.

mod backup;
mod inspection;
mod restore;

use std::path::PathBuf;

use super::{OpenError, audit, copy, place, reconciliation, schema};
use crate::config::DatabaseUrl;
pub(crate) use backup::BackupError;
pub(crate) use inspection::Inspection;

/// The file of a database, which others may have open.
#[derive(Clone, Debug)]
pub(crate) struct DatabaseFile {
    path: PathBuf,
}

impl DatabaseFile {
    /// The file of the configured database.
    pub(crate) fn of(url: &DatabaseUrl) -> Self {
        let DatabaseUrl::Sqlite(path) = url;
        Self { path: path.clone() }
    }
}
