//! Jobs of the writer: what is to be written, its result until the commit, and the reply to the one who waits.

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::settle::Claimed;
use super::steps::Steps;
use super::{Settlement, StoreError, WriteError, write};

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

    /// Does `work` wholly or not at all, for the holder of the other end of `reply`.
    pub(super) fn new<T: Send + 'static, E: WriteError>(
        reply: oneshot::Sender<Result<T, E>>,
        work: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Self {
        Self::step(reply, |db, writer| in_savepoint(db, writer.steps, work))
    }

    /// Goes through the writer and back; writes something only if it is in doubt whether anything can be written.
    pub(super) fn probe(reply: oneshot::Sender<Result<(), StoreError>>) -> Self {
        Self::step(
            reply,
            |db, writer| {
                if writer.doubtful { in_savepoint(db, writer.steps, write::heartbeat) } else { Ok(()) }
            },
        )
    }

    fn step<T: Send + 'static, E: WriteError>(
        reply: oneshot::Sender<Result<T, E>>,
        work: impl FnOnce(&Connection, WriterState) -> Result<T, E> + Send + 'static,
    ) -> Self {
        Self::Other(Box::new(Typed { work: Some(work), result: None, reply }))
    }

    /// Whether the database has failed the job, as opposed to the job being impossible.
    pub(super) fn has_failed(&self) -> bool {
        match self {
            Self::Settle(settling) => has_failed(settling.result.as_ref()),
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

/// The state of the writer that a job may depend on.
#[derive(Clone, Copy)]
pub(super) struct WriterState<'a> {
    pub(super) steps: &'a Steps,
    /// The last batch met a failure.
    pub(super) doubtful: bool,
}

impl Settling {
    pub(super) fn run(&mut self, db: &Connection, steps: &Steps) {
        let settle = |db: &Connection| (steps.settle)(db, &[&self.claimed])?.pop().ok_or(StoreError::Closed);
        let settled = in_savepoint(db, steps, settle);
        self.result = Some(settled);
    }
}

/// A job whose type only its maker knows.
pub(super) trait Step {
    /// Does the work and withholds its result: nobody may hear of it before the commit.
    fn run(&mut self, db: &Connection, writer: WriterState);
    /// Whether the database has failed the job, as opposed to the job being impossible.
    fn has_failed(&self) -> bool;
    /// Answers, see [`verdict`].
    fn release(self: Box<Self>, committed: &Result<(), StoreError>);
}

struct Typed<T, E, F> {
    work: Option<F>,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<T, E: WriteError, F: FnOnce(&Connection, WriterState) -> Result<T, E>> Step for Typed<T, E, F> {
    fn run(&mut self, db: &Connection, writer: WriterState) {
        self.result = self.work.take().map(|work| work(db, writer));
    }

    fn has_failed(&self) -> bool {
        has_failed(self.result.as_ref())
    }

    fn release(self: Box<Self>, committed: &Result<(), StoreError>) {
        // The caller may have stopped waiting. The commit stands all the same.
        let _ = self.reply.send(verdict(self.result, committed));
    }
}

fn has_failed<T, E: WriteError>(result: Option<&Result<T, E>>) -> bool {
    matches!(result, Some(Err(error)) if error.is_failure())
}

/// The job's own error, else that of the commit, else its result.
fn verdict<T, E: WriteError>(result: Option<Result<T, E>>, committed: &Result<(), StoreError>) -> Result<T, E> {
    match (result, committed) {
        (Some(result), Ok(())) => result,
        (Some(result), Err(error)) => result.and(Err(error.clone().into())),
        // The job never ran, and its transaction has failed.
        (None, Err(error)) => Err(error.clone().into()),
        (None, Ok(())) => Err(StoreError::Closed.into()),
    }
}

/// Runs `work` so that it happens wholly or not at all, whatever becomes of its neighbours in the same transaction.
pub(super) fn in_savepoint<T, E: WriteError>(
    db: &Connection,
    steps: &Steps,
    work: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    execute(db, "SAVEPOINT job")?;
    let result = work(db).and_then(|value| {
        execute(db, "RELEASE job")?;
        Ok(value)
    });
    if result.is_err() {
        (steps.undo)(db);
    }
    result
}

fn execute(db: &Connection, sql: &str) -> Result<(), StoreError> {
    db.prepare_cached(sql)?.execute([])?;
    Ok(())
}
