//! The embedded engine: one writer thread that commits the queued jobs together, and connections of their own for reading. The only
//! place that names rusqlite. Other processes may write to the same database at the same time.

mod accounts;
mod audit;
#[cfg(feature = "benching")]
pub(crate) mod bench;
mod catalog;
mod checkpoint;
mod copy;
mod database;
mod decisions;
#[cfg(test)]
pub(crate) mod faults;
mod insert;
mod job;
mod ledger;
pub(crate) mod maintenance;
mod memory;
mod outbox;
mod place;
mod queue;
mod read;
mod readers;
mod reconciliation;
mod schema;
mod settle;
mod steps;
mod story;
mod write;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use super::audit::Audit;
use super::error::{AccountError, DecisionError, Failure, OpenError, StoreError, WriteError};
use super::{Created, Creation, Opening, OrderFilter, Rejection, Settle, Settlement};
use crate::domain::clock::Timestamp;
use crate::domain::order::{Order, PayPage};
use crate::sync::lock;
use database::Database;
use job::Job;
use place::Place;
use queue::{PushError, Queue};
use readers::Readers;
use schema::SchemaRule;
use settle::Claimed;
use steps::Steps;

/// Jobs that wait for the writer before more are refused.
const QUEUE_MAX: usize = 2048;

/// An open SQLite database.
pub(super) struct Sqlite {
    /// Missing where the database was opened for reading only.
    writer: Option<WriterHandle>,
    readers: Arc<Readers>,
    outbox_growth: watch::Sender<()>,
}

/// The writer thread, and the way to it.
struct WriterHandle {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
    alive: watch::Receiver<()>,
}

impl Sqlite {
    pub(super) async fn open(path: PathBuf, opening: Opening) -> Result<Self, OpenError> {
        blocking(move || match opening {
            Opening::Create => Self::start(schema::open(&path, SchemaRule::Exact)?, QUEUE_MAX, Steps::default()),
            Opening::Existing => Self::start(schema::open_existing(&path)?, QUEUE_MAX, Steps::default()),
            Opening::ReadOnly => {
                let readers = Arc::new(Readers::alone(path.clone(), schema::open_read_only(&path)?));
                Ok(Self { writer: None, readers, outbox_growth: watch::Sender::new(()) })
            }
        })
        .await
    }

    /// Starts the writer on a database that is open.
    fn start((connection, place): (Connection, Place), queue_max: usize, steps: Steps) -> Result<Self, OpenError> {
        let readers = Arc::new(Readers::beside_writer(place.clone()));
        let database = Database::new(connection, place, Arc::clone(&readers));
        let queue = Arc::new(Queue::new(queue_max));
        let (alive_sender, alive) = watch::channel(());
        let outbox_growth = watch::Sender::new(());
        let (writer_queue, growth) = (Arc::clone(&queue), outbox_growth.clone());
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer::run(database, &writer_queue, steps, growth, alive_sender))
            .map_err(|error| OpenError::Failed(error.into()))?;
        let writer = WriterHandle { queue, thread: Mutex::new(Some(thread)), alive };
        Ok(Self { writer: Some(writer), readers, outbox_growth })
    }

    pub(super) async fn settle(&self, settle: Arc<Settle>, tells_bot: bool) -> Result<Settlement, StoreError> {
        self.job(|reply| Job::settle(reply, Claimed { settle, tells_bot })).await
    }

    pub(super) fn reject(&self, rejection: Rejection) {
        if let Some(writer) = &self.writer {
            writer.queue.push_rejection(rejection);
        }
    }

    pub(super) async fn create_order(&self, creation: Creation) -> Result<Created, AccountError> {
        self.write(move |db| write::create_order(db, creation)).await
    }

    pub(super) async fn set_pay_page(&self, order_no: String, page: PayPage) -> Result<(), StoreError> {
        self.write(move |db| write::set_pay_page(db, &order_no, &page)).await
    }

    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        self.job(Job::probe).await
    }

    pub(super) async fn order(&self, order_no: String) -> Result<Option<Order>, StoreError> {
        self.read(move |db| read::order(db, &order_no)).await
    }

    pub(super) async fn orders(&self, filter: OrderFilter) -> Result<Vec<Order>, StoreError> {
        self.read(move |db| read::orders(db, &filter)).await
    }

    pub(super) async fn clock_was_set_back(&self, by_ms: i64, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| write::bring_forward(db, by_ms, now)).await
    }

    pub(super) fn make_room(&self, yes: bool) {
        if let Some(writer) = &self.writer {
            writer.queue.make_room(yes);
        }
    }

    pub(super) async fn writer_ended(&self) {
        match &self.writer {
            Some(writer) => {
                let mut alive = writer.alive.clone();
                while alive.changed().await.is_ok() {}
            }
            None => std::future::pending().await,
        }
    }

    pub(super) async fn close(&self) -> Result<(), StoreError> {
        let Some(writer) = &self.writer else { return Ok(()) };
        writer.queue.close();
        let thread = lock(&writer.thread).take();
        if let Some(thread) = thread {
            blocking(move || thread.join().map_err(|_| StoreError::Closed)).await?;
        }
        Ok(())
    }

    fn outbox_grew(&self) {
        self.outbox_growth.send_replace(());
    }

    /// Does `work` in a savepoint of the writer's next transaction.
    async fn write<T: Send + 'static, E: WriteError>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        self.job(|reply| Job::new(reply, work)).await
    }

    async fn job<T, E: WriteError>(&self, job: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Job) -> Result<T, E> {
        let (reply, answer) = oneshot::channel();
        let writer = self.writer.as_ref().ok_or(StoreError::ReadOnly)?;
        writer.queue.push(job(reply)).map_err(|error| match error {
            PushError::Full => StoreError::Overloaded,
            PushError::Closed => StoreError::Closed,
        })?;
        answer.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permits = Arc::clone(&self.readers.permits);
        let permit = permits.acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let readers = Arc::clone(&self.readers);
        blocking(move || {
            // Held by the query and not by the task that waits for it, which may have given up.
            let _permit = permit;
            readers.read(query)
        })
        .await
    }
}

impl Drop for WriterHandle {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(error)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<rusqlite::Error> for AccountError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<rusqlite::Error> for DecisionError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::from(error).into()
    }
}

/// An error of work on a thread for blocking work that says that the thread was ended.
trait Interruptible {
    fn interrupted() -> Self;
}

impl Interruptible for StoreError {
    fn interrupted() -> Self {
        Self::Closed
    }
}

impl Interruptible for OpenError {
    fn interrupted() -> Self {
        Self::Failed(Failure::new(StoreError::Closed))
    }
}

async fn blocking<T: Send + 'static, E: Interruptible + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(E::interrupted()))
}

/// Proves the books of a database.
pub(super) async fn audit(path: PathBuf, progress: impl FnMut(u64, u64) + Send + 'static) -> Result<Audit, OpenError> {
    blocking(move || audit::audit(&path, progress)).await
}

/// The version of SQLite.
pub(super) fn version() -> &'static str {
    rusqlite::version()
}

#[cfg(test)]
mod tests;
