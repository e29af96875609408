//! The writer: takes what has queued up, gives each job a savepoint of its own, commits them together, then answers each.

use std::time::Duration;

use rusqlite::Connection;
use rust_i18n::t;
use tokio::sync::{oneshot, watch};

use super::database::Database;
use super::queue::{Batch, Next, Queue};
use super::{Rejection, StoreError, write};

/// How long the database is left free for another process; longer than that takes to try again.
const ROOM: Duration = Duration::from_millis(2);
/// How long nothing must come before the files are looked after.
const IDLE_BEFORE_LOOK: Duration = Duration::from_secs(1);

/// Something to write, and who waits for it.
pub(super) struct Job(Box<dyn Step + Send>);

impl Job {
    /// What `work` writes, wholly or not at all, for whoever holds the other end of `reply`.
    pub(super) fn new<T: Send + 'static>(
        reply: oneshot::Sender<Result<T, StoreError>>,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Self {
        Self::step(reply, |db, _| in_savepoint(db, work))
    }

    /// Goes through the writer and back; writes something only if it is in doubt whether anything can be written.
    pub(super) fn probe(reply: oneshot::Sender<Result<(), StoreError>>) -> Self {
        Self::step(reply, |db, doubtful| if doubtful { in_savepoint(db, write::heartbeat) } else { Ok(()) })
    }

    fn step<T: Send + 'static>(
        reply: oneshot::Sender<Result<T, StoreError>>,
        work: impl FnOnce(&Connection, bool) -> Result<T, StoreError> + Send + 'static,
    ) -> Self {
        Self(Box::new(Typed { work: Some(work), result: None, reply }))
    }
}

/// A job whose type only its maker knows.
trait Step {
    /// Does the work and withholds its result: nobody may hear of it before the commit. `doubtful` says that the last batch
    /// met a failure.
    fn run(&mut self, db: &Connection, doubtful: bool);
    /// Whether the database has failed the job, as opposed to the job being impossible.
    fn has_failed(&self) -> bool;
    /// Answers with the job's own error, else with that of the commit, else with the result.
    fn release(self: Box<Self>, committed: &Result<(), StoreError>);
}

struct Typed<T, F> {
    work: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F: FnOnce(&Connection, bool) -> Result<T, StoreError>> Step for Typed<T, F> {
    fn run(&mut self, db: &Connection, doubtful: bool) {
        self.result = self.work.take().map(|work| work(db, doubtful));
    }

    fn has_failed(&self) -> bool {
        matches!(self.result, Some(Err(StoreError::Failed(_))))
    }

    fn release(self: Box<Self>, committed: &Result<(), StoreError>) {
        // A job that never ran has no result, and its transaction has failed.
        let result = self.result.unwrap_or(Err(StoreError::Closed));
        let result = match committed {
            Ok(()) => result,
            Err(error) if self.work.is_some() => Err(error.clone()),
            Err(error) => result.and(Err(error.clone())),
        };
        // Whoever asked may have stopped waiting; what is written stays written.
        let _ = self.reply.send(result);
    }
}

/// Closes the queue when the writer ends, even by a panic: nobody may wait for a writer that is gone.
struct CloseQueue<'a>(&'a Queue);

impl Drop for CloseQueue<'_> {
    fn drop(&mut self) {
        self.0.close();
        while let Next::Batch(unanswered) = self.0.next(None) {
            drop(unanswered);
        }
    }
}

/// Writes until the queue is closed and empty. `alive` is dropped at the end, however it comes.
pub(super) fn run(database: Database, queue: &Queue, alive: watch::Sender<()>) {
    let _alive = alive;
    let _close = CloseQueue(queue);
    let mut writer = Writer { database, doubtful: false };
    let mut written_since_checkpoint = false;
    loop {
        match queue.next(Some(IDLE_BEFORE_LOOK)) {
            Next::Batch(batch) => {
                writer.commit(batch);
                written_since_checkpoint = true;
                if queue.makes_room() {
                    std::thread::sleep(ROOM);
                }
            }
            Next::Idle => {
                writer.look_after_files(std::mem::take(&mut written_since_checkpoint));
            }
            Next::Closed => break,
        }
    }
    writer.database.close();
}

struct Writer {
    database: Database,
    /// The last batch met a failure: until one does not, a probe has to write something to be believed.
    doubtful: bool,
}

impl Writer {
    /// Puts files right that were removed while nothing was written, and copies the write-ahead log into the database. PASSIVE never
    /// waits for readers and never makes a writer wait.
    fn look_after_files(&mut self, needs_checkpoint: bool) {
        // Told in the log.
        let Ok(db) = self.database.in_place() else { return };
        if needs_checkpoint && let Err(error) = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            log::debug!(target: "webhookctl::store", "{error}");
        }
    }

    fn commit(&mut self, batch: Batch) {
        let mut jobs = batch.jobs;
        let committed = self.try_commit(&mut jobs, &batch.rejections);
        if let Some(db) = self.database.connection()
            && committed.is_err()
            && !db.is_autocommit()
        {
            // Fails only where the transaction is gone already.
            let _ = db.execute_batch("ROLLBACK");
        }
        self.doubtful = committed.is_err() || jobs.iter().any(|job| job.0.has_failed());
        let lost_rejections = *committed.as_ref().unwrap_or(&batch.rejections.len());
        // What others cannot find is not answered for, even if it is there when the files have been put right.
        let committed = committed.and_then(|_| self.database.is_in_place());
        for job in jobs {
            job.0.release(&committed);
        }
        if lost_rejections > 0 {
            log::warn!(target: "webhookctl::store", "{}", t!("log.rejections_dropped", count = lost_rejections));
        }
    }

    /// One transaction for the whole batch; how many rejections could not be kept. On an error nothing of it is written.
    fn try_commit(&mut self, jobs: &mut [Job], rejections: &[Rejection]) -> Result<usize, StoreError> {
        let doubtful = self.doubtful;
        let db = self.database.in_place()?;
        begin(db)?;
        for job in jobs {
            job.0.run(db, doubtful);
            // A full disk and some other failures end the whole transaction, not only the savepoint.
            if db.is_autocommit() {
                return Err(StoreError::Failed("the transaction was rolled back".into()));
            }
        }
        // A rejection that cannot be kept must not take a settlement with it.
        let kept = rejections.is_empty() || in_savepoint(db, |db| write::rejections(db, rejections)).is_ok();
        let committed = db.prepare_cached("COMMIT")?.execute([]);
        #[cfg(test)]
        let committed = super::faults::committed(committed);
        committed?;
        Ok(if kept { 0 } else { rejections.len() })
    }
}

/// Always IMMEDIATE: a transaction that reads first and writes then can fail where it could have waited.
fn begin(db: &Connection) -> Result<(), StoreError> {
    if !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

/// Runs `work` so that it happens wholly or not at all, whatever becomes of its neighbours in the same transaction.
fn in_savepoint<T>(db: &Connection, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
    db.prepare_cached("SAVEPOINT job")?.execute([])?;
    let result = work(db).and_then(|value| {
        db.prepare_cached("RELEASE job")?.execute([])?;
        Ok(value)
    });
    #[cfg(test)]
    if super::faults::keeps_half() {
        return result;
    }
    if result.is_err() && !db.is_autocommit() && db.execute_batch("ROLLBACK TO job; RELEASE job").is_err() {
        // Half a job must not be committed with its neighbours: give up the whole transaction.
        let _ = db.execute_batch("ROLLBACK");
    }
    result
}
