//! A copy of an open database, page by page.

use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::ffi::{Error as EngineError, SQLITE_BUSY};
use rusqlite::{Connection, Error};

/// How far a copy has come, in pages.
pub(super) struct Progress {
    pub(super) done: u64,
    pub(super) all: u64,
}

/// Copies `source` to the file `target`, so many pages a step; an error of `after_step` ends the copy. The caller throws away a copy
/// that fails: it has no journal.
pub(super) fn copy<E: From<Error>>(
    source: &Connection,
    target: &Path,
    pages_per_step: i32,
    mut after_step: impl FnMut(Progress) -> Result<(), E>,
) -> Result<(), E> {
    let mut target = Connection::open(target)?;
    target.pragma_update(None, "journal_mode", "OFF")?;
    target.pragma_update(None, "synchronous", "OFF")?;
    let backup = Backup::new(source, &mut target)?;
    loop {
        match backup.step(pages_per_step)? {
            StepResult::Done => break,
            StepResult::More => {
                let pages = backup.progress();
                let count = |pages: i32| u64::try_from(pages).unwrap_or_default();
                after_step(Progress { done: count(pages.pagecount - pages.remaining), all: count(pages.pagecount) })?;
            }
            _ => return Err(Error::SqliteFailure(EngineError::new(SQLITE_BUSY), None).into()),
        }
    }
    drop(backup);
    target.close().map_err(|(_, error)| error.into())
}
