//! Credits that come and go without an order, and requests that may be repeated without doing more.

use rusqlite::{Connection, OptionalExtension, params};

use super::ledger::{self, Entry};
use super::{AccountError, Sqlite, StoreError, read};
use crate::domain::clock::Timestamp;
use crate::domain::ledger::{EntryKind, balance_after};
use crate::domain::order::{Order, User};
use crate::store::{Booked, Grant, Idempotency, LedgerEntry, Spend};

impl Sqlite {
    pub(in crate::store) async fn grant(&self, grant: Grant) -> Result<User, AccountError> {
        self.write(move |db| {
            book(db, &grant_entry(&grant))?;
            read::user(db, grant.telegram_id)?.ok_or(AccountError::NoSuchUser(grant.telegram_id))
        })
        .await
    }

    pub(in crate::store) async fn grant_once(
        &self,
        grant: Grant,
        idempotency: Idempotency,
    ) -> Result<Booked, AccountError> {
        self.write(move |db| book_once(db, &grant_entry(&grant), &idempotency)).await
    }

    pub(in crate::store) async fn spend(&self, spend: Spend) -> Result<Booked, AccountError> {
        self.write(move |db| {
            let entry = Entry {
                telegram_id: spend.telegram_id,
                kind: EntryKind::Spend,
                credits: -spend.credits,
                order_id: None,
                reason: spend.reason.as_deref(),
                at: spend.at,
            };
            book_once(db, &entry, &spend.idempotency)
        })
        .await
    }

    pub(in crate::store) async fn user(&self, telegram_id: i64) -> Result<Option<User>, StoreError> {
        self.read(move |db| read::user(db, telegram_id)).await
    }

    pub(in crate::store) async fn ledger(&self, telegram_id: i64, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        self.read(move |db| read::ledger(db, telegram_id, limit)).await
    }
}

fn grant_entry(grant: &Grant) -> Entry<'_> {
    Entry {
        telegram_id: grant.telegram_id,
        kind: EntryKind::Grant,
        credits: grant.credits,
        order_id: None,
        reason: Some(&grant.reason),
        at: grant.at,
    }
}

fn book(db: &Connection, entry: &Entry) -> Result<Booked, AccountError> {
    let telegram_id = entry.telegram_id;
    let credits: Option<i64> = db
        .prepare_cached("SELECT credits FROM users WHERE telegram_id = ?")?
        .query_row([telegram_id], |row| row.get(0))
        .optional()?;
    let credits = credits.ok_or(AccountError::NoSuchUser(telegram_id))?;
    let out_of_bounds = AccountError::OutOfBounds { telegram_id, credits };
    let credits_after = balance_after(credits, entry.credits).ok_or(out_of_bounds)?;
    ledger::enter(db, std::slice::from_ref(entry))?;
    Ok(Booked { entry: db.last_insert_rowid(), credits_after, repeated: false })
}

fn book_once(db: &Connection, entry: &Entry, idempotency: &Idempotency) -> Result<Booked, AccountError> {
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
fn earlier(db: &Connection, idempotency: &Idempotency) -> Result<Earlier, AccountError> {
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
        Some(_) => Err(AccountError::KeyReused),
    }
}

/// The order that an earlier request with this key created.
pub(super) fn earlier_order(db: &Connection, idempotency: &Idempotency) -> Result<Option<Order>, AccountError> {
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
