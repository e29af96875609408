//! Rows of the outbox.

use std::sync::LazyLock;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::insert::Insert;
use super::{Sqlite, StoreError, read};
use crate::domain::clock::Timestamp;
use crate::domain::language::Language;
use crate::store::{Attempt, Channel, Delivery, DeliveryFilter, DeliveryState, News};

const CONDITION: &str = "channel = :channel AND (:state IS NULL OR state = :state) \
     AND (:order_no IS NULL OR order_id = (SELECT id FROM orders WHERE order_no = :order_no)) \
     AND (:id IS NULL OR outbox.id = :id) AND (:since IS NULL OR outbox.created_at_ms >= :since)";

impl Sqlite {
    pub(in crate::store) async fn claim_due(
        &self,
        channel: Channel,
        now: Timestamp,
        lease: Duration,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.write(move |db| claim_due(db, channel, now, lease, limit)).await
    }

    pub(in crate::store) async fn next_due(&self, channel: Channel) -> Result<Option<Timestamp>, StoreError> {
        self.read(move |db| next_due(db, channel)).await
    }

    pub(in crate::store) fn outbox_growth(&self) -> tokio::sync::watch::Receiver<()> {
        self.outbox_growth.subscribe()
    }

    pub(in crate::store) async fn attempted(
        &self,
        id: i64,
        attempt: Attempt,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |db| attempted(db, id, &attempt, now)).await
    }

    pub(in crate::store) async fn give_up_older(
        &self,
        channel: Channel,
        until: Timestamp,
        error: String,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        self.write(move |db| give_up_older(db, channel, until, &error, now)).await
    }

    pub(in crate::store) async fn deliveries(
        &self,
        channel: Channel,
        filter: DeliveryFilter,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        self.read(move |db| deliveries(db, channel, &filter, limit)).await
    }

    pub(in crate::store) async fn deliver_again(
        &self,
        channel: Channel,
        filter: DeliveryFilter,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let changed = self.write(move |db| deliver_again(db, channel, &filter, now)).await?;
        self.outbox_grew();
        Ok(changed)
    }

    pub(in crate::store) async fn add_missing_events(
        &self,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
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
    // After its lease a deliverer may report late: a row that another one has delivered meanwhile stays delivered.
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
mod tests;
