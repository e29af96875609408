//! Credits that come and go without an order, and requests that may be repeated without doing more.

use rusqlite::{Connection, OptionalExtension, params};

use super::ledger::{self, Entry};
use super::{Grant, Store, StoreError, read};
use crate::domain::clock::Timestamp;
use crate::domain::order::{Order, User};

/// How far a balance may go, either way: far beyond use, far below overflow.
const BALANCE_MAX: i64 = 1_000_000_000_000_000;

/// What makes a request the same as an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Idempotency {
    /// The key that the bot chose.
    pub key: String,
    /// What the request asks for: the same key with another fingerprint is a mistake of the bot's.
    pub fingerprint: String,
}

/// Credits that a user spends.
#[derive(Clone, Debug)]
pub(crate) struct Spend {
    /// The user.
    pub telegram_id: i64,
    /// How many, one or more.
    pub credits: i64,
    /// What for, in the bot's words.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
    /// So that it happens once.
    pub idempotency: Idempotency,
}

/// What a request of the bot did, now or when it came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Booked {
    /// The number of the ledger entry.
    pub entry: i64,
    /// The user's credits after it.
    pub credits_after: i64,
    /// Whether it had happened before.
    pub repeated: bool,
}

impl Store {
    /// Changes a user's balance by a person's decision.
    pub async fn grant(&self, grant: Grant) -> Result<User, StoreError> {
        self.write(move |db| {
            book(db, &grant_entry(&grant))?;
            read::user(db, grant.telegram_id)?.ok_or(StoreError::NoSuchUser(grant.telegram_id))
        })
        .await
    }

    /// Changes a user's balance at the bot's request, once.
    pub(crate) async fn grant_once(&self, grant: Grant, idempotency: Idempotency) -> Result<Booked, StoreError> {
        self.write(move |db| book_once(db, &grant_entry(&grant), &idempotency)).await
    }

    /// Takes credits off a user's balance at the bot's request, once, and never more than there are.
    pub(crate) async fn spend(&self, spend: Spend) -> Result<Booked, StoreError> {
        self.write(move |db| {
            let entry = Entry {
                telegram_id: spend.telegram_id,
                kind: "spend",
                credits: -spend.credits,
                order_id: None,
                reason: spend.reason.as_deref(),
                at: spend.at,
            };
            book_once(db, &entry, &spend.idempotency)
        })
        .await
    }
}

fn grant_entry(grant: &Grant) -> Entry<'_> {
    Entry {
        telegram_id: grant.telegram_id,
        kind: "grant",
        credits: grant.credits,
        order_id: None,
        reason: Some(&grant.reason),
        at: grant.at,
    }
}

fn book(db: &Connection, entry: &Entry) -> Result<Booked, StoreError> {
    let telegram_id = entry.telegram_id;
    let credits: Option<i64> = db
        .prepare_cached("SELECT credits FROM users WHERE telegram_id = ?")?
        .query_row([telegram_id], |row| row.get(0))
        .optional()?;
    let credits = credits.ok_or(StoreError::NoSuchUser(telegram_id))?;
    let after = credits.checked_add(entry.credits);
    // A refund may have taken the balance below zero: giving credits must still be possible then.
    let lowest = if entry.credits > 0 { -BALANCE_MAX } else { 0 };
    let Some(credits_after) = after.filter(|after| (lowest..=BALANCE_MAX).contains(after)) else {
        return Err(StoreError::OutOfBounds { telegram_id, credits });
    };
    ledger::enter(db, std::slice::from_ref(entry))?;
    Ok(Booked { entry: db.last_insert_rowid(), credits_after, repeated: false })
}

fn book_once(db: &Connection, entry: &Entry, idempotency: &Idempotency) -> Result<Booked, StoreError> {
    if let Some(booked) = earlier(db, idempotency)?.booked {
        return Ok(booked);
    }
    let booked = book(db, entry)?;
    remember(db, idempotency, None, Some(booked), entry.at)?;
    Ok(booked)
}

/// What an earlier request did.
#[derive(Default)]
struct Earlier {
    order_id: Option<i64>,
    booked: Option<Booked>,
}

/// What an earlier request with this key did; nothing, where there was none.
fn earlier(db: &Connection, idempotency: &Idempotency) -> Result<Earlier, StoreError> {
    let found = db
        .prepare_cached("SELECT fingerprint, order_id, ledger_id, credits_after FROM idempotency WHERE key = ?")?
        .query_row([&idempotency.key], |row| {
            let booked = match (row.get(2)?, row.get(3)?) {
                (Some(entry), Some(credits_after)) => Some(Booked { entry, credits_after, repeated: true }),
                _ => None,
            };
            Ok((row.get::<_, String>(0)?, Earlier { order_id: row.get(1)?, booked }))
        })
        .optional()?;
    match found {
        None => Ok(Earlier::default()),
        Some((fingerprint, earlier)) if fingerprint == idempotency.fingerprint => Ok(earlier),
        Some(_) => Err(StoreError::KeyReused),
    }
}

/// The order that an earlier request with this key created.
pub(super) fn earlier_order(db: &Connection, idempotency: &Idempotency) -> Result<Option<Order>, StoreError> {
    let order_id = earlier(db, idempotency)?.order_id;
    Ok(order_id.map(|order_id| read::order_by_id(db, order_id)).transpose()?)
}

/// Remembers what a request did, in the transaction that does it.
pub(super) fn remember(
    db: &Connection,
    idempotency: &Idempotency,
    order_id: Option<i64>,
    booked: Option<Booked>,
    now: Timestamp,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO idempotency (key, fingerprint, order_id, ledger_id, credits_after, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        idempotency.key,
        idempotency.fingerprint,
        order_id,
        booked.map(|booked| booked.entry),
        booked.map(|booked| booked.credits_after),
        now.ms()
    ])?;
    Ok(())
}
