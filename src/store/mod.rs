//! Orders, credits and receipts, kept durably.
//!
//! [`Store`] is the facade: its methods are async and speak of orders, claims and users. An engine below it loads, locks and writes;
//! the rules of what may be written are pure functions in [`crate::domain`], which all engines share. Nothing is answered before its
//! commit is on disk. Times and numbers come from the caller.

/// Calls the engine that a store has: each engine has a method of the same name.
macro_rules! on_engine {
    ($store:expr, $engine:ident => $call:expr) => {
        match &$store.engine {
            $crate::store::Engine::Sqlite($engine) => $call,
        }
    };
}

mod accounts;
pub(crate) mod audit;
mod decisions;
mod error;
#[cfg(any(test, feature = "benching"))]
pub(crate) mod fixtures;
mod memory;
mod orders;
mod outbox;
mod reconciliation;
mod schema_difference;
mod settlements;
pub(crate) mod sqlite;
mod story;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{Config, DatabaseUrl};
use crate::domain::clock::Timestamp;
pub use accounts::Grant;
pub(crate) use accounts::{Booked, Idempotency, LedgerEntry, Spend};
use audit::Audit;
pub(crate) use decisions::{ByHand, Refund};
pub use error::{AccountError, Failure, FilesChanged, StoreError};
pub(crate) use error::{DecisionError, OpenError};
pub(crate) use memory::{Trouble, TroubleKind};
pub use orders::OrderFilter;
pub(crate) use orders::{Created, Creation};
pub(crate) use outbox::{Attempt, Channel, Delivery, DeliveryFilter, DeliveryState, News};
pub(crate) use reconciliation::{Answered, Cause, Question};
pub(crate) use schema_difference::{Deviation, SchemaDifference};
pub(crate) use settlements::{Credited, Receipt, Rejection, Settle, Settlement};
use sqlite::Sqlite;
pub(crate) use story::{KeptAnswer, KeptReceipt, Story};

/// How a store is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// For reading. The database must be there and up to date, and nothing of it is changed.
    ReadOnly,
    /// For reading and writing. The database must be there and up to date: an older service may be running on it.
    Existing,
    /// For reading and writing. The database is created where there is none, and its schema is brought up to date.
    Create,
}

/// The store, open. A clone shares it.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
    /// Whether new outbox entries also create bot events.
    tells_bot: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Engine {
    Sqlite(Arc<Sqlite>),
}

impl Store {
    /// Opens the configured database.
    pub(crate) async fn open(config: &Config, opening: Opening) -> Result<Self, OpenError> {
        Self::open_at(&config.database.url, opening, config.events.is_some()).await
    }

    /// Opens a database; `tells_bot` says whether new outbox entries also create bot events.
    pub(crate) async fn open_at(url: &DatabaseUrl, opening: Opening, tells_bot: bool) -> Result<Self, OpenError> {
        let engine = match url {
            DatabaseUrl::Sqlite(path) => Engine::Sqlite(Arc::new(Sqlite::open(path.clone(), opening).await?)),
        };
        Ok(Self { engine, tells_bot: Arc::new(tells_bot.into()) })
    }

    /// Proves the books of a database, reading only. `progress` is told now and then how many of all orders were looked at.
    pub(crate) async fn audit(
        url: &DatabaseUrl,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Audit, OpenError> {
        match url {
            DatabaseUrl::Sqlite(path) => sqlite::audit(path.clone(), progress).await,
        }
    }

    /// Follows a new configuration: whether new outbox entries also create bot events from now on.
    pub(crate) fn tell_bot(&self, yes: bool) {
        self.tells_bot.store(yes, Ordering::Relaxed);
    }

    fn tells_bot(&self) -> bool {
        self.tells_bot.load(Ordering::Relaxed)
    }

    /// Goes through the writer and back, as a settlement would.
    pub async fn probe(&self) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.probe().await)
    }

    /// The wall clock was set back by so many milliseconds and says `now`: nothing is due later for that.
    pub(crate) async fn clock_was_set_back(&self, by_ms: i64, now: Timestamp) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.clock_was_set_back(by_ms, now).await)
    }

    /// From now on, or no longer, leaves the database free for a moment after each commit, so that another process which has as
    /// much to write gets its turn: SQLite has no queue for those who wait.
    pub(crate) fn make_room(&self, yes: bool) {
        on_engine!(self, engine => engine.make_room(yes));
    }

    /// Comes back when the writer has ended; before [`Store::close`], that is a fault.
    pub async fn writer_ended(&self) {
        on_engine!(self, engine => engine.writer_ended().await);
    }

    /// Finishes the queued jobs and closes the database.
    pub async fn close(self) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.close().await)
    }

    /// The version of the database engine.
    pub fn engine_version() -> &'static str {
        sqlite::version()
    }
}
