//! When the write-ahead log is copied into the database: between two batches, when everybody has their answers.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::hooks::Wal;

/// How many pages the log has until it is copied where nobody waits. Less is hardly worth the disk's attention.
const WORTH_COPYING: usize = 1024;
/// How many pages it has until it is copied although somebody waits: the longer it is, the longer that takes.
const PAGES_MAX: usize = 4096;
/// It may become longer so that the time between two copies is at least so many times what a copy takes: with many buyers, each
/// payment is on another page, and a longer log has fewer of them to copy for each payment.
const REST: u32 = 7;
/// How long it may become for that, however slow the disk is: a start after a crash reads all of it.
const PAGES_LIMIT: usize = 3 * PAGES_MAX;

thread_local! {
    /// The log as this thread's connection has left it.
    static LOG: Cell<Log> = const { Cell::new(Log { pages: 0, copied: 0, rests_until: None }) };
}

#[derive(Clone, Copy, Debug)]
struct Log {
    /// How many pages it had after the last commit, and how many when it was last copied.
    pages: usize,
    copied: usize,
    /// Until when it may grow after that.
    rests_until: Option<Instant>,
}

impl Log {
    /// What it is when all of it has been copied.
    fn copied(pages: usize, took: Duration, now: Instant) -> Self {
        Self { pages, copied: pages, rests_until: Some(now + took * REST) }
    }

    fn is_to_be_copied(&self, somebody_waits: bool, now: Instant) -> bool {
        let pages = self.pages - self.copied;
        if !somebody_waits {
            return pages >= WORTH_COPYING;
        }
        pages >= PAGES_LIMIT || pages >= PAGES_MAX && self.rests_until.is_none_or(|end| now >= end)
    }
}

/// Has a connection note how long the log is. It copies nothing by itself any more, as it would before it says that it has committed.
pub(super) fn watch_log(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.wal_hook(Some(|_: &mut Wal, pages: i32| {
        let pages = usize::try_from(pages).unwrap_or(0);
        let log = LOG.get();
        // It begins at its start again when all of it is copied and read.
        LOG.set(Log { pages, copied: if pages < log.copied { 0 } else { log.copied }, ..log });
        Ok(())
    }))
}

/// Copies the log after a commit of this thread's where it is time to. What somebody reads for long, as an audit does, stays in it,
/// and to find that out takes the longer the more there is: so not with each commit.
pub(super) fn after_commit(db: &Connection, somebody_waits: bool) {
    if LOG.get().is_to_be_copied(somebody_waits, Instant::now()) {
        copy_log(db);
    }
}

/// Copies what nobody reads from the log any more. PASSIVE never waits for readers, and never makes a writer wait.
pub(super) fn copy_log(db: &Connection) {
    let started = Instant::now();
    let copied =
        db.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)").and_then(|mut copy| copy.query_row([], |_| Ok(())));
    if let Err(error) = copied {
        log::debug!(target: "webhookctl::store", "{error}");
    }
    LOG.set(Log::copied(LOG.get().pages, started.elapsed(), Instant::now()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_copied_when_that_is_worth_while_and_takes_a_small_part_of_the_time() {
        const MS: Duration = Duration::from_millis(1);
        let copied_at = Instant::now();
        let is_due = |pages: usize, somebody_waits, rested| {
            let log = Log { pages: 5000 + pages, ..Log::copied(5000, 10 * MS, copied_at) };
            log.is_to_be_copied(somebody_waits, copied_at + rested)
        };
        assert!(!is_due(1023, false, 1000 * MS) && is_due(1024, false, MS), "nobody waits");
        assert!(!is_due(4095, true, 1000 * MS) && is_due(4096, true, 70 * MS));
        assert!(!is_due(4096, true, 69 * MS) && !is_due(3 * 4096 - 1, true, 69 * MS) && is_due(3 * 4096, true, MS));
    }
}
