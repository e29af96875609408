//! When the write-ahead log is copied into the database: between two batches, when everybody has their answers.

use std::cell::Cell;

use rusqlite::Connection;
use rusqlite::hooks::Wal;

/// How many pages the log has until it is copied where nobody waits. Less is hardly worth the disk's attention.
const WORTH_COPYING: usize = 1024;
/// How many pages it has until it is copied whoever waits: the longer it is, the longer that takes.
const PAGES_MAX: usize = 4096;

thread_local! {
    /// How many pages the log had after this thread's last commit, and how many when it was last copied.
    static LOG_PAGES: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Has a connection note how long the log is. It copies nothing by itself any more, as it would before it says that it has committed.
pub(super) fn watch_log(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.wal_hook(Some(|_: &mut Wal, pages: i32| {
        let pages = usize::try_from(pages).unwrap_or(0);
        let (_, copied) = LOG_PAGES.get();
        // It begins at its start again when all of it is copied and read.
        LOG_PAGES.set((pages, if pages < copied { 0 } else { copied }));
        Ok(())
    }))
}

/// Copies the log after a commit of this thread's where it is time to. What somebody reads for long, as an audit does, stays in it,
/// and to find that out takes the longer the more there is: so not with each commit.
pub(super) fn after_commit(db: &Connection, somebody_waits: bool) {
    let most = if somebody_waits { PAGES_MAX } else { WORTH_COPYING };
    let (pages, copied) = LOG_PAGES.get();
    if pages - copied >= most {
        copy_log(db);
    }
}

/// Copies what nobody reads from the log any more. PASSIVE never waits for readers, and never makes a writer wait.
pub(super) fn copy_log(db: &Connection) {
    let (pages, _) = LOG_PAGES.get();
    LOG_PAGES.set((pages, pages));
    let copied =
        db.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)").and_then(|mut copy| copy.query_row([], |_| Ok(())));
    if let Err(error) = copied {
        log::debug!(target: "webhookctl::store", "{error}");
    }
}
