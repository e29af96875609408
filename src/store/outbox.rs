//! The outbox: what has to be told of an order, to its buyer and to the bot, until it is told or given up.
//!
//! A row is written in the transaction that it tells of. Whoever delivers it claims it first: the claim counts the attempt and
//! makes the row due again after a while, so a crash costs a delay and neither the message nor, in practice, a second one.

use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::insert::Insert;
use super::{Store, StoreError, read};
use crate::domain::clock::Timestamp;
use crate::domain::language::Language;
use crate::domain::named::named_enum;
use crate::domain::order::Order;

named_enum! {
    /// Whom a row of the outbox is for.
    Channel {
        /// The buyer, by Telegram.
        Telegram = "telegram",
        /// The bot, by an event to its URL.
        Event = "event",
    }
}

named_enum! {
    /// What is told of an order.
    News {
        /// It is paid, and its credits are given.
        Settled = "settled",
        /// A person has to look at it.
        Review = "review",
        /// The money went back.
        Refunded = "refunded",
    }
}

named_enum! {
    /// How far a row of the outbox has come.
    DeliveryState {
        /// Waits for its time.
        Due = "due",
        /// Was delivered.
        Sent = "sent",
        /// Will not be delivered.
        Failed = "failed",
    }
}

/// A row of the outbox, with what there is to tell.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// Its number.
    pub id: i64,
    /// What happened.
    pub news: News,
    /// The order that it happened to.
    pub order: Order,
    /// The buyer's language, where it is known.
    pub language: Option<Language>,
    /// The buyer's credits now.
    pub balance: i64,
    /// When it happened.
    pub created_at: Timestamp,
    /// When the time that it has began: when it happened, or when a person last asked for it again.
    pub tried_since: Timestamp,
    /// When it is tried next.
    pub due_at: Timestamp,
    /// How often it was tried; in what [`Store::claim_due`] returns, with the attempt that it is claimed for.
    pub attempts: u32,
    /// How far it has come.
    pub state: DeliveryState,
    /// Why it failed the last time.
    pub error: Option<String>,
    /// When it was delivered or given up.
    pub finished_at: Option<Timestamp>,
}

/// What became of an attempt to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It arrived.
    Sent,
    /// It is to be tried again then.
    Again { at: Timestamp, error: String },
    /// It could not be tried, which leaves as many attempts as there were before, and is to be tried then.
    NotNow { at: Timestamp, attempts_before: u32, error: String },
    /// It will never arrive.
    Failed { error: String },
}

/// Which rows of one channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeliveryFilter {
    /// Only those that have come so far.
    pub state: Option<DeliveryState>,
    /// Only those of this order.
    pub order_no: Option<String>,
    /// Only the one of this number.
    pub id: Option<i64>,
    /// Only those of what happened at this time or later.
    pub since: Option<Timestamp>,
}

const CONDITION: &str = "channel = :channel AND (:state IS NULL OR state = :state) \
     AND (:order_no IS NULL OR order_id = (SELECT id FROM orders WHERE order_no = :order_no)) \
     AND (:id IS NULL OR outbox.id = :id) AND (:since IS NULL OR outbox.created_at_ms >= :since)";

impl Store {
    /// Whether what happens to orders is to be told to the bot from now on, too.
    pub(crate) fn tell_bot(&self, yes: bool) {
        self.shared.tells_bot.store(yes, std::sync::atomic::Ordering::Relaxed);
    }

    /// Takes at most `limit` rows whose time has come, and makes them due again after `lease`.
    pub(crate) async fn claim_due(
        &self,
        channel: Channel,
        now: Timestamp,
        lease: Duration,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.write(move |db| claim_due(db, channel, now, lease, limit)).await
    }

    /// When the next row of this channel has its time.
    pub(crate) async fn next_due(&self, channel: Channel) -> Result<Option<Timestamp>, StoreError> {
        self.read(move |db| next_due(db, channel)).await
    }

    /// Comes back when something may have come into the outbox from this process.
    pub(crate) fn outbox_growth(&self) -> tokio::sync::watch::Receiver<()> {
        self.shared.outbox_growth.subscribe()
    }

    /// Notes what became of an attempt.
    pub(crate) async fn attempted(&self, id: i64, attempt: Attempt, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |db| attempted(db, id, &attempt, now)).await
    }

    /// Gives up what is due and has had its time since before `until`; how much that was.
    pub(crate) async fn give_up_older(
        &self,
        channel: Channel,
        until: Timestamp,
        error: String,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        self.write(move |db| give_up_older(db, channel, until, &error, now)).await
    }

    /// The newest rows that fit the filter.
    pub(crate) async fn deliveries(
        &self,
        channel: Channel,
        filter: DeliveryFilter,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.read(move |db| deliveries(db, channel, &filter, limit)).await
    }

    /// Makes rows due now, whatever became of them, with all attempts before them; how many.
    pub(crate) async fn deliver_again(
        &self,
        channel: Channel,
        filter: DeliveryFilter,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let changed = self.write(move |db| deliver_again(db, channel, &filter, now)).await?;
        self.outbox_grew();
        Ok(changed)
    }

    /// Puts events into the outbox for what happened to orders before there was anybody to tell; how many.
    pub(crate) async fn add_missing_events(&self, since: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
        let added = self.write(move |db| add_missing_events(db, since, now)).await?;
        self.outbox_grew();
        Ok(added)
    }
}

/// What is to be told of an order.
pub(super) struct Tidings {
    pub(super) order_id: i64,
    pub(super) news: News,
    /// Whether the bot is to hear of it as well.
    pub(super) tells_bot: bool,
    pub(super) at: Timestamp,
}

static INSERT: LazyLock<Insert> = LazyLock::new(|| {
    // An order that comes into review again has told of it once.
    let end = "ON CONFLICT (order_id, kind, channel) DO NOTHING";
    Insert::new("INSERT INTO outbox (order_id, kind, channel, created_at_ms, due_at_ms)", "(?, ?, ?, ?, ?)", end)
});

/// Puts news of orders into the outbox.
pub(super) fn tell(db: &Connection, tidings: &[Tidings]) -> rusqlite::Result<()> {
    let rows: Vec<_> = tidings
        .iter()
        .flat_map(|Tidings { order_id, news, tells_bot, at }| {
            let channels = if *tells_bot { Channel::ALL } else { &[Channel::Telegram][..] };
            channels.iter().map(move |channel| (order_id, news.name(), channel.name(), at.ms()))
        })
        .collect();
    INSERT.run(db, &rows, |(order_id, news, channel, at_ms)| [order_id, news, channel, at_ms, at_ms])
}

fn next_due(db: &Connection, channel: Channel) -> rusqlite::Result<Option<Timestamp>> {
    let due_at: Option<i64> = db
        .prepare_cached("SELECT due_at_ms FROM outbox WHERE channel = ? AND state = 'due' ORDER BY due_at_ms LIMIT 1")?
        .query_row([channel.name()], |row| row.get(0))
        .optional()?;
    Ok(due_at.map(Timestamp::from_ms))
}

fn claim_due(
    db: &Connection,
    channel: Channel,
    now: Timestamp,
    lease: Duration,
    limit: u32,
) -> Result<Vec<Delivery>, StoreError> {
    let condition = "channel = :channel AND state = 'due' AND due_at_ms <= :now ORDER BY due_at_ms, outbox.id";
    let mut due = db
        .prepare_cached(&select(condition))?
        .query_map(named_params! { ":channel": channel.name(), ":now": now.ms(), ":limit": limit }, delivery_of)?
        .collect::<Result<Vec<_>, _>>()?;
    let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let mut claim = db.prepare_cached("UPDATE outbox SET due_at_ms = ?, attempts = attempts + 1 WHERE id = ?")?;
    for delivery in &mut due {
        delivery.due_at = Timestamp::from_ms(now.ms().saturating_add(lease_ms));
        delivery.attempts += 1;
        claim.execute(params![delivery.due_at.ms(), delivery.id])?;
    }
    Ok(due)
}

fn attempted(db: &Connection, id: i64, attempt: &Attempt, now: Timestamp) -> Result<(), StoreError> {
    let (state, due_at, error, attempts_max) = match attempt {
        Attempt::Sent => (DeliveryState::Sent, None, None, None),
        Attempt::Again { at, error } => (DeliveryState::Due, Some(at.ms()), Some(error), None),
        Attempt::NotNow { at, attempts_before, error } => {
            (DeliveryState::Due, Some(at.ms()), Some(error), Some(*attempts_before))
        }
        Attempt::Failed { error } => (DeliveryState::Failed, None, Some(error), None),
    };
    let finished_at = due_at.is_none().then(|| now.ms());
    // Whoever overran its lease may find that another one has delivered it in the meantime, which then stays true.
    db.prepare_cached(
        "UPDATE outbox SET state = :state, due_at_ms = coalesce(:due_at, due_at_ms),
             attempts = min(attempts, coalesce(:attempts_max, attempts)), error = :error, finished_at_ms = :finished_at
         WHERE id = :id AND (state = 'due' OR :state = 'sent')",
    )?
    .execute(named_params! {
        ":attempts_max": attempts_max,
        ":state": state.name(),
        ":due_at": due_at,
        ":error": error,
        ":finished_at": finished_at,
        ":id": id,
    })?;
    Ok(())
}

fn give_up_older(
    db: &Connection,
    channel: Channel,
    until: Timestamp,
    error: &str,
    now: Timestamp,
) -> Result<usize, StoreError> {
    // Bounded: payments wait for this transaction.
    let changed = db
        .prepare_cached(
            "UPDATE outbox SET state = 'failed', error = :error, finished_at_ms = :now WHERE id IN
                 (SELECT id FROM outbox WHERE channel = :channel AND state = 'due' AND due_at_ms <= :now
                      AND coalesce(retried_at_ms, created_at_ms) < :until
                  ORDER BY due_at_ms LIMIT 500)",
        )?
        .execute(named_params! {
            ":error": error,
            ":channel": channel.name(),
            ":until": until.ms(),
            ":now": now.ms(),
        })?;
    Ok(changed)
}

pub(super) fn deliveries(
    db: &Connection,
    channel: Channel,
    filter: &DeliveryFilter,
    limit: u32,
) -> rusqlite::Result<Vec<Delivery>> {
    db.prepare_cached(&select(&format!("{CONDITION} ORDER BY outbox.id DESC")))?
        .query_map(
            named_params! {
                ":channel": channel.name(),
                ":state": filter.state.map(DeliveryState::name),
                ":order_no": filter.order_no,
                ":id": filter.id,
                ":since": filter.since.map(Timestamp::ms),
                ":limit": limit,
            },
            delivery_of,
        )?
        .collect()
}

fn deliver_again(
    db: &Connection,
    channel: Channel,
    filter: &DeliveryFilter,
    now: Timestamp,
) -> Result<usize, StoreError> {
    // The time that it has is counted from now: what is too old would be given up at once.
    let changed = db
        .prepare_cached(&format!(
            "UPDATE outbox SET state = 'due', due_at_ms = :now, attempts = 0, error = NULL, finished_at_ms = NULL,
                 retried_at_ms = :now WHERE {CONDITION}"
        ))?
        .execute(named_params! {
            ":channel": channel.name(),
            ":state": filter.state.map(DeliveryState::name),
            ":order_no": filter.order_no,
            ":id": filter.id,
            ":since": filter.since.map(Timestamp::ms),
            ":now": now.ms(),
        })?;
    Ok(changed)
}

fn add_missing_events(db: &Connection, since: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
    // As with what is delivered again, the time that it has is counted from now.
    let added = db
        .prepare_cached(
            "INSERT INTO outbox (order_id, kind, channel, created_at_ms, due_at_ms, retried_at_ms)
             SELECT order_id, kind, 'event', created_at_ms, :now, :now FROM outbox AS told
             WHERE channel = 'telegram' AND created_at_ms >= :since
             ON CONFLICT (order_id, kind, channel) DO NOTHING",
        )?
        .execute(named_params! { ":since": since.ms(), ":now": now.ms() })?;
    Ok(added)
}

/// The columns of the outbox stand behind those of the order.
fn select(condition: &str) -> String {
    let order_columns: Vec<_> =
        read::ORDER_COLUMNS.split(", ").map(|column| format!("orders.{}", column.trim())).collect();
    format!(
        "SELECT {}, outbox.id, kind, language, users.credits, outbox.created_at_ms, due_at_ms, attempts, state, error, \
         finished_at_ms, coalesce(retried_at_ms, outbox.created_at_ms) \
         FROM outbox JOIN orders ON orders.id = outbox.order_id JOIN users ON users.telegram_id = orders.telegram_id \
         WHERE {condition} LIMIT :limit",
        order_columns.join(", ")
    )
}

fn delivery_of(row: &Row) -> rusqlite::Result<Delivery> {
    const FIRST: usize = read::ORDER_COLUMNS_COUNT;
    let (_, order) = read::order_of(row)?;
    let text = |column: usize| row.get_ref(FIRST + column)?.as_str().map_err(rusqlite::Error::from);
    let time = |column: usize| row.get(FIRST + column).map(Timestamp::from_ms);
    let language = row.get_ref(FIRST + 2)?.as_str_or_null()?.and_then(Language::from_name);
    let finished_at: Option<i64> = row.get(FIRST + 9)?;
    Ok(Delivery {
        id: row.get(FIRST)?,
        news: read::expect(FIRST + 1, News::from_name(text(1)?))?,
        order,
        language,
        balance: row.get(FIRST + 3)?,
        created_at: time(4)?,
        tried_since: time(10)?,
        due_at: time(5)?,
        attempts: row.get(FIRST + 6)?,
        state: read::expect(FIRST + 7, DeliveryState::from_name(text(7)?))?,
        error: row.get(FIRST + 8)?,
        finished_at: finished_at.map(Timestamp::from_ms),
    })
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
