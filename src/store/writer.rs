//! The writer: takes what has queued up, gives each job a savepoint of its own, commits them together, then answers each.

use std::time::Duration;

use rusqlite::Connection;
use rust_i18n::t;
use tokio::sync::{oneshot, watch};

use super::queue::{Batch, Next, Queue};
use super::{Grant, Rejection, Settle, Settlement, StoreError, write};
use crate::order::{NewOrder, Order, User};

/// How long the database is left free for another process; longer than that takes to try again.
const ROOM: Duration = Duration::from_millis(2);
/// How long nothing must come before the write-ahead log is copied into the database.
const IDLE_BEFORE_CHECKPOINT: Duration = Duration::from_secs(1);

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write, and who waits for it.
pub(super) enum Job {
    Settle(Box<Settle>, Reply<Settlement>),
    CreateOrder(Box<NewOrder>, Reply<Order>),
    Grant(Grant, Reply<User>),
    Probe(Reply<()>),
}

/// A job's result, which nobody may hear of before the commit.
enum Answer {
    Settle(Withheld<Settlement>),
    CreateOrder(Withheld<Order>),
    Grant(Withheld<User>),
    Probe(Withheld<()>),
}

struct Withheld<T> {
    result: Result<T, StoreError>,
    reply: Reply<T>,
}

impl<T> Withheld<T> {
    /// Answers with the job's own error, else with that of the commit, else with the result.
    fn release(self, committed: &Result<(), StoreError>) {
        let result = self.result.and_then(|value| committed.clone().map(|()| value));
        // Whoever asked may have stopped waiting; what is written stays written.
        let _ = self.reply.send(result);
    }
}

impl Answer {
    /// Whether the database has failed the job, as opposed to the job being impossible.
    fn has_failed(&self) -> bool {
        fn failed<T>(withheld: &Withheld<T>) -> bool {
            matches!(withheld.result, Err(StoreError::Failed(_)))
        }
        match self {
            Self::Settle(withheld) => failed(withheld),
            Self::CreateOrder(withheld) => failed(withheld),
            Self::Grant(withheld) => failed(withheld),
            Self::Probe(withheld) => failed(withheld),
        }
    }

    fn release(self, committed: &Result<(), StoreError>) {
        match self {
            Self::Settle(withheld) => withheld.release(committed),
            Self::CreateOrder(withheld) => withheld.release(committed),
            Self::Grant(withheld) => withheld.release(committed),
            Self::Probe(withheld) => withheld.release(committed),
        }
    }
}

impl Job {
    /// `doubtful` says that the last batch met a failure.
    fn run(self, db: &Connection, doubtful: bool) -> Answer {
        match self {
            Self::Settle(settle, reply) => {
                let result = in_savepoint(db, |db| write::settle(db, &settle));
                Answer::Settle(Withheld { result, reply })
            }
            Self::CreateOrder(order, reply) => {
                let result = in_savepoint(db, |db| write::create_order(db, *order));
                Answer::CreateOrder(Withheld { result, reply })
            }
            Self::Grant(grant, reply) => {
                let result = in_savepoint(db, |db| write::grant(db, &grant));
                Answer::Grant(Withheld { result, reply })
            }
            Self::Probe(reply) => {
                let result = if doubtful { in_savepoint(db, write::heartbeat) } else { Ok(()) };
                Answer::Probe(Withheld { result, reply })
            }
        }
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
pub(super) fn run(db: Connection, queue: &Queue, alive: watch::Sender<()>) {
    let _alive = alive;
    let _close = CloseQueue(queue);
    let mut writer = Writer { db, doubtful: false };
    let mut written_since_checkpoint = false;
    loop {
        let patience = written_since_checkpoint.then_some(IDLE_BEFORE_CHECKPOINT);
        match queue.next(patience) {
            Next::Batch(batch) => {
                writer.commit(batch);
                written_since_checkpoint = true;
                if queue.makes_room() {
                    std::thread::sleep(ROOM);
                }
            }
            Next::Idle => {
                writer.checkpoint();
                written_since_checkpoint = false;
            }
            Next::Closed => break,
        }
    }
    // The last connection to close copies the write-ahead log into the database and removes it.
    if let Err((_, error)) = writer.db.close() {
        log::warn!(target: "webhookctl::store", "{error}");
    }
}

struct Writer {
    db: Connection,
    /// The last batch met a failure: until one does not, a probe has to write something to be believed.
    doubtful: bool,
}

impl Writer {
    /// PASSIVE never waits for readers and never makes a writer wait.
    fn checkpoint(&self) {
        if let Err(error) = self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            log::debug!(target: "webhookctl::store", "{error}");
        }
    }

    fn commit(&mut self, batch: Batch) {
        let mut answers = Vec::with_capacity(batch.jobs.len());
        let mut jobs = batch.jobs.into_iter();
        let committed = self.try_commit(&mut jobs, &mut answers, &batch.rejections);
        if committed.is_err() && !self.db.is_autocommit() {
            // Fails only where the transaction is gone already.
            let _ = self.db.execute_batch("ROLLBACK");
        }
        self.doubtful = committed.is_err() || answers.iter().any(Answer::has_failed);
        let lost_rejections = *committed.as_ref().unwrap_or(&batch.rejections.len());
        let committed = committed.map(drop);
        for answer in answers {
            answer.release(&committed);
        }
        if let Err(error) = committed {
            for job in jobs {
                job.refuse(&error);
            }
        }
        if lost_rejections > 0 {
            log::warn!(target: "webhookctl::store", "{}", t!("log.rejections_dropped", count = lost_rejections));
        }
    }

    /// One transaction for the whole batch; how many rejections could not be kept. On an error nothing of it is written, and
    /// `jobs` holds those that never ran.
    fn try_commit(
        &self,
        jobs: &mut impl Iterator<Item = Job>,
        answers: &mut Vec<Answer>,
        rejections: &[Rejection],
    ) -> Result<usize, StoreError> {
        let db = &self.db;
        begin(db)?;
        for job in jobs {
            answers.push(job.run(db, self.doubtful));
            // A full disk and some other failures end the whole transaction, not only the savepoint.
            if db.is_autocommit() {
                return Err(StoreError::Failed("the transaction was rolled back".into()));
            }
        }
        // A rejection that cannot be kept must not take a settlement with it.
        let kept = rejections.is_empty() || in_savepoint(db, |db| write::rejections(db, rejections)).is_ok();
        db.prepare_cached("COMMIT")?.execute([])?;
        Ok(if kept { 0 } else { rejections.len() })
    }
}

impl Job {
    fn refuse(self, error: &StoreError) {
        fn send<T>(reply: Reply<T>, error: &StoreError) {
            let _ = reply.send(Err(error.clone()));
        }
        match self {
            Self::Settle(_, reply) => send(reply, error),
            Self::CreateOrder(_, reply) => send(reply, error),
            Self::Grant(_, reply) => send(reply, error),
            Self::Probe(reply) => send(reply, error),
        }
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
    if result.is_err() && !db.is_autocommit() && db.execute_batch("ROLLBACK TO job; RELEASE job").is_err() {
        // Half a job must not be committed with its neighbours: give up the whole transaction.
        let _ = db.execute_batch("ROLLBACK");
    }
    result
}
