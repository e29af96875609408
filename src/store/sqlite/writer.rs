//! The writer: takes what has queued up, settles the claims together and gives each other job a savepoint of its own, commits, then
//! answers each.

use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::watch;

use super::database::Database;
use super::job::{Job, WriterState, in_savepoint};
use super::queue::{Batch, Next, Queue};
use super::steps::Steps;
use super::{Rejection, StoreError, checkpoint, write};
use crate::logging::log_text;

/// How long the database is left free for another process; longer than that takes to try again.
const ROOM: Duration = Duration::from_millis(2);
/// How long nothing must come before the files are looked after.
const IDLE_BEFORE_LOOK: Duration = Duration::from_secs(1);

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
pub(super) fn run(
    database: Database,
    queue: &Queue,
    steps: Steps,
    outbox_growth: watch::Sender<()>,
    alive: watch::Sender<()>,
) {
    let _alive = alive;
    let _close = CloseQueue(queue);
    let mut writer = Writer { database, steps, outbox_growth, doubtful: false };
    let mut written_since_checkpoint = false;
    loop {
        match queue.next(Some(IDLE_BEFORE_LOOK)) {
            Next::Batch(batch) => {
                writer.commit(batch);
                writer.copy_log(queue.has_jobs());
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
    steps: Steps,
    outbox_growth: watch::Sender<()>,
    /// The last batch met a failure: until one does not, a probe has to write something to be believed.
    doubtful: bool,
}

impl Writer {
    /// Puts files right that were removed while nothing was written, and copies the write-ahead log into the
    /// database.
    fn look_after_files(&mut self, needs_checkpoint: bool) {
        // Told in the log.
        let Ok(db) = self.database.in_place() else { return };
        if needs_checkpoint {
            checkpoint::copy_log(db);
        }
    }

    fn copy_log(&self, somebody_waits: bool) {
        if let Some(db) = self.database.connection() {
            checkpoint::after_commit(db, somebody_waits);
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
        self.doubtful = committed.is_err() || jobs.iter().any(Job::has_failed);
        let lost_rejections = *committed.as_ref().unwrap_or(&batch.rejections.len());
        // What others cannot find is not answered for, even if it is there when the files have been put right.
        let committed = committed.and_then(|_| self.database.is_in_place());
        let makes_news = committed.is_ok() && jobs.iter().any(Job::makes_news);
        for job in jobs {
            job.release(&committed);
        }
        if makes_news {
            self.outbox_growth.send_replace(());
        }
        if lost_rejections > 0 {
            log::warn!(target: "webhookctl::store", "{}", log_text!("log.rejections_dropped", count = lost_rejections));
        }
    }

    /// One transaction for the whole batch; how many rejections could not be kept. On an error nothing of it is written.
    fn try_commit(&mut self, jobs: &mut [Job], rejections: &[Rejection]) -> Result<usize, StoreError> {
        let writer = WriterState { steps: &self.steps, doubtful: self.doubtful };
        let db = self.database.in_place()?;
        begin(db)?;
        settle_together(db, &self.steps, jobs)?;
        for job in jobs {
            match job {
                Job::Settle(settling) if settling.result.is_none() => settling.run(db, &self.steps),
                Job::Settle(_) => {}
                Job::Other(step) => step.run(db, writer),
            }
            // A full disk and some other failures end the whole transaction, not only the savepoint.
            if db.is_autocommit() {
                return Err(StoreError::failed("the transaction was rolled back"));
            }
        }
        // A rejection that cannot be kept must not take a settlement with it.
        let kept =
            rejections.is_empty() || in_savepoint(db, &self.steps, |db| write::rejections(db, rejections)).is_ok();
        (self.steps.commit)(db)?;
        Ok(if kept { 0 } else { rejections.len() })
    }
}

/// Settles all claims of a batch as one. Where that fails, nothing of it is written, and each has to be settled by itself: only what
/// fails alone has failed.
fn settle_together(db: &Connection, steps: &Steps, jobs: &mut [Job]) -> Result<(), StoreError> {
    let claims: Vec<_> = jobs.iter().filter_map(Job::claimed).collect();
    if claims.is_empty() {
        return Ok(());
    }
    let Ok(settled) = (steps.settle)(db, &claims) else { return begin(db) };
    let settlings =
        jobs.iter_mut().filter_map(|job| if let Job::Settle(settling) = job { Some(settling) } else { None });
    for (settling, settlement) in settlings.zip(settled) {
        settling.result = Some(Ok(settlement));
    }
    Ok(())
}

/// Always IMMEDIATE: a transaction that reads first and writes then can fail where it could have waited.
fn begin(db: &Connection) -> Result<(), StoreError> {
    if !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}
