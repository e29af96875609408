//! Orders, credits and what gateways said, kept durably: the only place that knows SQL.
//!
//! The methods are async and speak of orders, claims and users. How it is done stays in here: one writer thread that commits
//! what has queued up together, and connections of their own for reading. Nothing is answered before its commit is on disk.
//! Times and numbers come from the caller; other processes may write to the same database at the same time.

mod accounts;
mod audit;
mod backup;
#[cfg(feature = "benching")]
mod bench;
mod catalog;
mod checkpoint;
mod database;
#[cfg(test)]
pub(crate) mod faults;
#[cfg(any(test, feature = "benching"))]
pub(crate) mod fixtures;
mod insert;
mod inspection;
mod job;
mod ledger;
mod memory;
mod outbox;
mod place;
mod queue;
mod read;
mod readers;
mod reconciliation;
mod refunds;
mod schema;
mod settle;
mod story;
mod write;
mod writer;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::Connection;
use rust_i18n::t;
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::config::DatabaseUrl;
use crate::domain::clock::Timestamp;
use crate::domain::language::Language;
use crate::domain::money::Amount;
use crate::domain::order::{NewOrder, Order, OrderStatus, PayPage, SettledBy, User};
use crate::domain::settlement::{Claim, Outcome, Policy};
use crate::files;
pub(crate) use accounts::{Booked, Idempotency, Spend};
pub(crate) use audit::{Audit, Finding as AuditFinding};
pub(crate) use backup::BackupError;
#[cfg(feature = "benching")]
pub(crate) use bench::Bench;
pub use catalog::{Deviation, SchemaDifference};
use database::Database;
pub(crate) use inspection::Inspection;
use job::Job;
pub(crate) use memory::Trouble;
pub(crate) use outbox::{Attempt, Channel, Delivery, DeliveryFilter, DeliveryState, News};
use place::Place;
use queue::{PushError, Queue};
use readers::Readers;
pub(crate) use reconciliation::{Answered, Cause, Question};
pub(crate) use refunds::{ByHand, PaymentOfDecision, Refund, RefundState};
use settle::Claimed;
pub(crate) use story::{KeptAnswer, KeptReceipt, Story};

/// How many jobs wait for the writer before more are refused.
const QUEUE_MAX: usize = 2048;

/// How many objects of another schema an error names.
const DIFFERENCES_NAMED_MAX: usize = 5;

/// Why the store did not do what it was asked for. What failed has changed nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Too many jobs are waiting for the writer.
    Overloaded,
    /// The store is shutting down, or its writer has died.
    Closed,
    /// The database cannot be opened.
    CannotOpen {
        /// Its file.
        path: PathBuf,
        /// What the system says.
        cause: String,
        /// Whether permissions are the cause.
        denied: bool,
    },
    /// There is no database yet.
    Missing(PathBuf),
    /// Another program's database.
    Foreign(PathBuf),
    /// Written by a newer version of this program.
    Newer {
        /// Its file.
        path: PathBuf,
        /// The version that it has.
        found: u32,
        /// The newest version that this program knows.
        known: u32,
    },
    /// Written by an older version of this program, and not brought up to date.
    Older {
        /// Its file.
        path: PathBuf,
        /// The version that it has.
        found: u32,
        /// The version that is needed.
        known: u32,
    },
    /// The schema of the database is not the one that this program makes.
    OtherSchema {
        /// Its file.
        path: PathBuf,
        /// The objects that are foreign, missing or changed.
        differences: Arc<[SchemaDifference]>,
    },
    /// Users beside the owner and the group can use a file of the database, and this user cannot keep them out.
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is no such user.
    NoSuchUser(i64),
    /// The balance would fall below zero, or out of all bounds.
    OutOfBounds {
        /// The user.
        telegram_id: i64,
        /// Their credits.
        credits: i64,
    },
    /// There is no such order.
    NoSuchOrder(String),
    /// The order has come too far for it, or not far enough.
    WrongStatus {
        /// The order.
        order_no: String,
        /// How far it has come.
        status: OrderStatus,
    },
    /// The payment has settled another order.
    TradeReused {
        /// The payment.
        trade_no: String,
        /// The order that it settled.
        order_no: String,
    },
    /// Proved payments wait, and the person has to name the one that the order is settled for.
    ChoosePayment {
        /// The order.
        order_no: String,
        /// The payments.
        trade_nos: Vec<String>,
    },
    /// The order was not paid more than once, or that is acknowledged already.
    NotPaidAgain(String),
    /// A request with this key came before, and asked for something else.
    KeyReused,
    /// The database failed.
    Failed(Arc<str>),
}

impl StoreError {
    /// The database cannot be opened, in the system's own words.
    fn cannot_open(path: &Path, error: &io::Error) -> Self {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        Self::CannotOpen { path: path.to_owned(), cause: error.to_string(), denied }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Overloaded => t!("store.overloaded"),
            Self::Closed => t!("store.closed"),
            Self::CannotOpen { path, cause, denied: true } => {
                t!("store.may_not_open", path = path.display(), cause = cause)
            }
            Self::CannotOpen { path, cause, denied: false } => {
                t!("store.cannot_open", path = path.display(), cause = cause)
            }
            Self::Missing(path) => t!("store.missing", path = path.display()),
            Self::Foreign(path) => t!("store.foreign", path = path.display()),
            Self::Newer { path, found, known } => {
                t!("store.newer", path = path.display(), found = found, known = known)
            }
            Self::Older { path, found, known } => {
                t!("store.older", path = path.display(), found = found, known = known)
            }
            Self::OtherSchema { path, differences } => return write_other_schema(f, path, differences),
            Self::OpenToOthers { path, mode } => {
                t!("store.open_to_others", path = path.display(), mode = files::octal(*mode))
            }
            Self::NoSuchUser(telegram_id) => t!("store.no_such_user", user = telegram_id),
            Self::OutOfBounds { telegram_id, credits } => {
                t!("store.out_of_bounds", user = telegram_id, credits = credits)
            }
            Self::NoSuchOrder(order_no) => t!("cli.no_such_order", order = order_no),
            Self::WrongStatus { order_no, status } => {
                t!("store.wrong_status", order = order_no, status = t!(format!("status.{status}")))
            }
            Self::TradeReused { trade_no, order_no } => {
                t!("store.trade_reused", trade = trade_no, order = order_no)
            }
            Self::ChoosePayment { order_no, trade_nos } => {
                t!("store.choose_payment", order = order_no, trades = trade_nos.join(", "))
            }
            Self::NotPaidAgain(order_no) => t!("store.not_paid_again", order = order_no),
            Self::KeyReused => t!("store.key_reused"),
            Self::Failed(cause) => t!("store.failed", cause = cause),
        };
        f.write_str(&text)
    }
}

/// Says what is different, and what to do. Where all that is different can be removed, how to do that as well.
fn write_other_schema(f: &mut fmt::Formatter<'_>, path: &Path, differences: &[SchemaDifference]) -> fmt::Result {
    let named: Vec<_> = differences.iter().take(DIFFERENCES_NAMED_MAX).map(ToString::to_string).collect();
    let unnamed = differences.len() - named.len();
    let mut named = named.join("; ");
    if unnamed > 0 {
        named = format!("{named}; {}", t!("audit.more", count = unnamed));
    }
    write!(f, "{}", t!("store.other_schema", path = path.display(), differences = named))?;
    let removals: Option<Vec<_>> = differences.iter().map(|difference| difference.removal.as_deref()).collect();
    if let Some(removals) = removals.filter(|_| unnamed == 0) {
        write!(f, " {}", t!("store.other_schema_remove", sql = removals.join(" ")))?;
    }
    Ok(())
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error.to_string().into())
    }
}

/// A claim to settle by, with what it came as.
#[derive(Clone, Debug)]
pub struct Settle {
    /// What the source says.
    pub claim: Claim,
    /// What kind of source it is.
    pub source: SettledBy,
    /// What the operator's rules say about it.
    pub policy: Policy,
    /// What is kept of it.
    pub receipt: Receipt,
}

/// A notification as it arrived.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// When it arrived.
    pub received_at: Timestamp,
    /// Who sent it, as far as trusted proxies tell.
    pub client: Option<IpAddr>,
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The query string or body, byte by byte.
    pub payload: Vec<u8>,
}

/// What became of a claim, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Its name.
    pub outcome: Outcome,
    /// Who was credited with how much; `None` unless this claim settled its order.
    pub credited: Option<Credited>,
    /// What the merchant's order costs, where there is one.
    pub order_amount: Option<Amount>,
    /// Whether the order is another than before: paid, or in review.
    pub changed_order: bool,
}

/// Credits that a user got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credited {
    /// The user.
    pub telegram_id: i64,
    /// What they got.
    pub credits: i64,
}

/// A notification that proved nothing.
#[derive(Debug)]
pub struct Rejection {
    /// What it was refused as.
    pub outcome: Outcome,
    /// Why, in a word.
    pub reason: String,
    /// The `pid`, `out_trade_no` and `trade_no` that it claims, as far as it can be read.
    pub claimed: [Option<String>; 3],
    /// What is kept of it.
    pub receipt: Receipt,
    /// How long its payload was.
    pub payload_bytes: usize,
}

/// An order to create, with what is known beside its terms.
#[derive(Debug)]
pub struct Creation {
    /// Its terms.
    pub order: NewOrder,
    /// The buyer's language, where it is known.
    pub language: Option<Language>,
    /// When the gateway is first asked about it; never, where there is none to ask.
    pub ask_at: Option<Timestamp>,
    /// So that it is created once.
    pub(crate) idempotency: Option<Idempotency>,
}

impl From<NewOrder> for Creation {
    fn from(order: NewOrder) -> Self {
        Self { order, language: None, ask_at: None, idempotency: None }
    }
}

/// An order that was created, now or by an earlier request with the same key.
#[derive(Debug)]
pub struct Created {
    /// The order as it is now.
    pub order: Order,
    /// Whether it had been created before.
    pub repeated: bool,
}

/// Credits from a person's hand, or taken away where negative.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The user.
    pub telegram_id: i64,
    /// How many, not zero.
    pub credits: i64,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// A change of a user's balance.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerEntry {
    /// When.
    pub created_at: Timestamp,
    /// The change.
    pub credits: i64,
    /// `order`, `refund`, `grant` or `spend`.
    pub kind: String,
    /// The order that was paid.
    pub order_no: Option<String>,
    /// Why, in a person's words.
    pub reason: Option<String>,
}

/// Which orders to list; the newest come first.
#[derive(Clone, Debug)]
pub struct OrderFilter {
    /// Only those of this status at the time `now`.
    pub status: Option<OrderStatus>,
    /// Only this user's.
    pub telegram_id: Option<i64>,
    /// At most so many.
    pub limit: u32,
    /// The time by which orders are pending or expired.
    pub now: Timestamp,
}

/// The store, open.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<Queue>,
    writer: Mutex<Option<JoinHandle<()>>>,
    writer_alive: watch::Receiver<()>,
    readers: Arc<Readers>,
    /// Whether the outbox is for the bot as well.
    tells_bot: AtomicBool,
    outbox_growth: watch::Sender<()>,
    #[cfg(test)]
    faults: faults::Faults,
}

impl Store {
    /// Opens the database; creates it, with its directory, where there is none, and brings its schema up to date.
    pub async fn open(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let DatabaseUrl::Sqlite(path) = url.clone();
        blocking(move || Self::start(schema::open(&path)?, QUEUE_MAX)).await
    }

    /// Opens a database that must be there already, and leaves its schema as it is: an older service may be running on it.
    pub async fn open_existing(url: &DatabaseUrl) -> Result<Self, StoreError> {
        let DatabaseUrl::Sqlite(path) = url.clone();
        blocking(move || match path.try_exists() {
            Ok(true) => Self::start(schema::open_existing(&path)?, QUEUE_MAX),
            Ok(false) => Err(StoreError::Missing(path)),
            Err(error) => Err(StoreError::cannot_open(&path, &error)),
        })
        .await
    }

    /// Starts the writer on a database that is open.
    fn start((connection, place): (Connection, Place), queue_max: usize) -> Result<Self, StoreError> {
        #[cfg(test)]
        let (connection, faults) = faults::Faults::install(connection)?;
        let readers = Arc::new(Readers::new(place.clone()));
        let database = Database::new(connection, place, Arc::clone(&readers));
        let queue = Arc::new(Queue::new(queue_max));
        let (alive, writer_alive) = watch::channel(());
        let thread = std::thread::Builder::new().name("store-writer".into());
        let writer_queue = Arc::clone(&queue);
        let outbox_growth = watch::Sender::new(());
        let growth = outbox_growth.clone();
        let writer = thread
            .spawn(move || writer::run(database, &writer_queue, growth, alive))
            .map_err(|error| StoreError::Failed(error.to_string().into()))?;
        let shared = Shared {
            queue,
            writer: Mutex::new(Some(writer)),
            writer_alive,
            readers,
            tells_bot: AtomicBool::new(false),
            outbox_growth,
            #[cfg(test)]
            faults,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Settles an order by what a proven source says, once, and keeps the receipt. This is the one way to credit an order.
    pub async fn settle(&self, settle: impl Into<Arc<Settle>>) -> Result<Settlement, StoreError> {
        let claimed = Claimed { settle: settle.into(), tells_bot: self.tells_bot() };
        self.job(|reply| Job::settle(reply, claimed)).await
    }

    /// Keeps a notification that proved nothing, when there is time for it; never waits.
    pub fn reject(&self, rejection: Rejection) {
        self.shared.queue.push_rejection(rejection);
    }

    /// Creates an order, and its user where it is their first.
    pub async fn create_order(&self, creation: impl Into<Creation>) -> Result<Created, StoreError> {
        let creation = creation.into();
        self.write(move |db| write::create_order(db, creation)).await
    }

    /// Notes where an order can be paid.
    pub(crate) async fn set_pay_page(&self, order_no: String, page: PayPage) -> Result<(), StoreError> {
        self.write(move |db| write::set_pay_page(db, &order_no, &page)).await
    }

    /// Goes through the writer and back, as a settlement would.
    pub async fn probe(&self) -> Result<(), StoreError> {
        self.job(Job::probe).await
    }

    /// The order of this number.
    pub async fn order(&self, order_no: &str) -> Result<Option<Order>, StoreError> {
        let order_no = order_no.to_owned();
        self.read(move |db| read::order(db, &order_no)).await
    }

    /// The newest orders that fit the filter.
    pub async fn orders(&self, filter: OrderFilter) -> Result<Vec<Order>, StoreError> {
        self.read(move |db| read::orders(db, &filter)).await
    }

    /// A user with their credits.
    pub async fn user(&self, telegram_id: i64) -> Result<Option<User>, StoreError> {
        self.read(move |db| read::user(db, telegram_id)).await
    }

    /// The newest changes of a user's balance.
    pub async fn ledger(&self, telegram_id: i64, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        self.read(move |db| read::ledger(db, telegram_id, limit)).await
    }

    /// The wall clock was set back by so many milliseconds and says `now`: nothing is due later for that.
    pub(crate) async fn clock_was_set_back(&self, by_ms: i64, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| write::bring_forward(db, by_ms, now)).await
    }

    /// From now on, or no longer, leaves the database free for a moment after each commit, so that another process which has as
    /// much to write gets its turn: SQLite has no queue for those who wait.
    pub(crate) fn make_room(&self, yes: bool) {
        self.shared.queue.make_room(yes);
    }

    /// Comes back when the writer has ended; before [`Store::close`], that is a fault.
    pub async fn writer_ended(&self) {
        let mut alive = self.shared.writer_alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// Finishes what has queued up and closes the database.
    pub async fn close(self) -> Result<(), StoreError> {
        self.shared.queue.close();
        let writer = lock(&self.shared.writer).take();
        if let Some(writer) = writer {
            blocking(move || writer.join().map_err(|_| StoreError::Closed)).await?;
        }
        Ok(())
    }

    /// The version of the database engine.
    pub fn engine_version() -> &'static str {
        rusqlite::version()
    }

    fn tells_bot(&self) -> bool {
        self.shared.tells_bot.load(Ordering::Relaxed)
    }

    fn outbox_grew(&self) {
        self.shared.outbox_growth.send_replace(());
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.job(|reply| Job::new(reply, work)).await
    }

    async fn job<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.shared.queue.push(job(reply)).map_err(|error| match error {
            PushError::Full => StoreError::Overloaded,
            PushError::Closed => StoreError::Closed,
        })?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permits = Arc::clone(&self.shared.readers.permits);
        let permit = permits.acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            // Held by the query and not by whoever waits for it, who may have given up.
            let _permit = permit;
            shared.readers.read(query)
        })
        .await
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.close();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(StoreError::Closed))
}

/// Locks what no panic can leave half-done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
