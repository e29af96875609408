//! The steps of the writer as a value: the program's own, or wrong ones that a test puts in their place.

use std::sync::Arc;

use rusqlite::Connection;

use super::settle::{Claimed, settle};
use super::{Settlement, StoreError};

type SettleStep = dyn Fn(&Connection, &[&Claimed]) -> Result<Vec<Settlement>, StoreError> + Send + Sync;

#[derive(Clone)]
pub(super) struct Steps {
    /// Settles the claims of a batch.
    pub(super) settle: Arc<SettleStep>,
    /// Undoes a job that failed, in its savepoint.
    pub(super) undo: fn(&Connection),
    /// Commits the batch.
    pub(super) commit: fn(&Connection) -> rusqlite::Result<()>,
}

impl Default for Steps {
    fn default() -> Self {
        Self { settle: Arc::new(settle), undo, commit }
    }
}

fn undo(db: &Connection) {
    if !db.is_autocommit() && db.execute_batch("ROLLBACK TO job; RELEASE job").is_err() {
        // Half a job must not be committed with its neighbours: give up the whole transaction.
        let _ = db.execute_batch("ROLLBACK");
    }
}

fn commit(db: &Connection) -> rusqlite::Result<()> {
    db.prepare_cached("COMMIT")?.execute([]).map(drop)
}
