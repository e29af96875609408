//! Jobs of the writer: what is to be written, its result until the commit, and the reply to the one who waits.

use rusqlite::Connection;
use tokio::sync::oneshot;

#[cfg(test)]
use super::faults::settle;
use super::settle::Claimed;
#[cfg(not(test))]
use super::settle::settle;
use super::{Settlement, StoreError, write};

type Reply = oneshot::Sender<Result<Settlement, StoreError>>;

/// Something to write, and who waits for it.
pub(super) enum Job {
    /// A claim to settle by: most of them are, and they are written together.
    Settle(Box<Settling>),
    /// Anything else.
    Other(Box<dyn Step + Send>),
}

pub(super) struct Settling {
    claimed: Claimed,
    pub(super) result: Option<Result<Settlement, StoreError>>,
    reply: Reply,
}

impl Job {
    pub(super) fn settle(reply: Reply, claimed: Claimed) -> Self {
        Self::Settle(Box::new(Settling { claimed, result: None, reply }))
    }

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
        Self::Other(Box::new(Typed { work: Some(work), result: None, reply }))
    }

    /// Whether the database has failed the job, as opposed to the job being impossible.
    pub(super) fn has_failed(&self) -> bool {
        match self {
            Self::Settle(settling) => matches!(settling.result, Some(Err(StoreError::Failed(_)))),
            Self::Other(step) => step.has_failed(),
        }
    }

    /// Whether there is news of an order because of it.
    pub(super) fn makes_news(&self) -> bool {
        matches!(self, Self::Settle(settling) if matches!(settling.result, Some(Ok(Settlement { changed_order: true, .. }))))
    }

    pub(super) fn claimed(&self) -> Option<&Claimed> {
        if let Self::Settle(settling) = self { Some(&settling.claimed) } else { None }
    }

    pub(super) fn release(self, committed: &Result<(), StoreError>) {
        match self {
            Self::Settle(settling) => {
                let Settling { claimed, reply, result } = *settling;
                drop(claimed);
                // The caller may have stopped waiting. The commit stands all the same.
                let _ = reply.send(verdict(result, committed));
            }
            Self::Other(step) => step.release(committed),
        }
    }
}

impl Settling {
    pub(super) fn run(&mut self, db: &Connection) {
        let settled = in_savepoint(db, |db| settle(db, &[&self.claimed])?.pop().ok_or(StoreError::Closed));
        self.result = Some(settled);
    }
}

/// A job whose type only its maker knows.
pub(super) trait Step {
    /// Does the work and withholds its result: nobody may hear of it before the commit. `doubtful` says that the last batch
    /// met a failure.
    fn run(&mut self, db: &Connection, doubtful: bool);
    /// Whether the database has failed the job, as opposed to the job being impossible.
    fn has_failed(&self) -> bool;
    /// Answers, see [`verdict`].
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
        // The caller may have stopped waiting. The commit stands all the same.
        let _ = self.reply.send(verdict(self.result, committed));
    }
}

/// The job's own error, else that of the commit, else its result.
fn verdict<T>(result: Option<Result<T, StoreError>>, committed: &Result<(), StoreError>) -> Result<T, StoreError> {
    match (result, committed) {
        (Some(result), Ok(())) => result,
        (Some(result), Err(error)) => result.and(Err(error.clone())),
        // The job never ran, and its transaction has failed.
        (None, Err(error)) => Err(error.clone()),
        (None, Ok(())) => Err(StoreError::Closed),
    }
}

/// Runs `work` so that it happens wholly or not at all, whatever becomes of its neighbours in the same transaction.
pub(super) fn in_savepoint<T>(
    db: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
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
