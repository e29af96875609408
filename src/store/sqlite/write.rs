//! What is written beside settlements. Each function is called inside a savepoint of its own.

use rusqlite::{Connection, named_params, params};

use super::{AccountError, Created, Creation, Rejection, StoreError, accounts, reconciliation};
use crate::domain::clock::Timestamp;
use crate::domain::order::{Order, PayPage};
use crate::domain::outcome::ClaimedFields;

/// How many rejections are kept.
pub(super) const REJECTIONS_KEPT: usize = 10_000;

/// How much a heartbeat writes.
const HEARTBEAT_BYTES: u32 = 64 * 1024;

/// Keeps rejections, and only the newest of them.
pub(super) fn rejections(db: &Connection, rejections: &[Rejection]) -> Result<(), StoreError> {
    for rejection in rejections {
        let ClaimedFields { merchant, order_no, trade_no } = &rejection.claimed;
        db.prepare_cached(
            "INSERT INTO rejections
                 (received_at_ms, outcome, reason, merchant, order_no, trade_no, client, method, payload, payload_bytes)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            rejection.receipt.received_at.ms(),
            rejection.outcome.name(),
            rejection.reason,
            merchant,
            order_no,
            trade_no,
            rejection.receipt.client.map(|client| client.to_string()),
            rejection.receipt.method,
            rejection.receipt.payload,
            i64::try_from(rejection.payload_bytes).unwrap_or(i64::MAX),
        ])?;
    }
    db.prepare_cached("DELETE FROM rejections WHERE id <= (SELECT max(id) FROM rejections) - ?")?
        .execute([i64::try_from(REJECTIONS_KEPT).unwrap_or(i64::MAX)])?;
    Ok(())
}

pub(super) fn create_order(db: &Connection, creation: Creation) -> Result<Created, AccountError> {
    let Creation { order: terms, language, ask_at, idempotency } = creation;
    if let Some(idempotency) = &idempotency
        && let Some(order) = accounts::earlier_order(db, idempotency)?
    {
        return Ok(Created { order, repeated: true });
    }
    db.prepare_cached(
        "INSERT INTO users (telegram_id, created_at_ms)
         SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM users WHERE telegram_id = ?1)",
    )?
    .execute(params![terms.telegram_id, terms.created_at.ms()])?;
    if let Some(language) = language {
        db.prepare_cached("UPDATE users SET language = ?1 WHERE telegram_id = ?2 AND language IS NOT ?1")?
            .execute(params![language.name(), terms.telegram_id])?;
    }
    db.prepare_cached(
        "INSERT INTO orders
             (order_no, merchant, telegram_id, package, name, type, amount_fen, credits, param, created_at_ms, expires_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        terms.order_no.as_str(),
        terms.merchant,
        terms.telegram_id,
        terms.package,
        terms.name,
        terms.payment_type,
        terms.amount.fen(),
        terms.credits,
        terms.param,
        terms.created_at.ms(),
        terms.expires_at.ms(),
    ])?;
    let order_id = db.last_insert_rowid();
    if let Some(ask_at) = ask_at {
        reconciliation::plan(db, order_id, &terms.merchant, ask_at)?;
    }
    if let Some(idempotency) = &idempotency {
        accounts::remember(db, idempotency, Some(order_id), None, terms.created_at)?;
    }
    Ok(Created { order: Order::new(terms), repeated: false })
}

/// Notes where an order can be paid.
pub(super) fn set_pay_page(db: &Connection, order_no: &str, page: &PayPage) -> Result<(), StoreError> {
    db.prepare_cached("UPDATE orders SET pay_kind = ?, pay_url = ? WHERE order_no = ?")?.execute(params![
        page.kind.name(),
        page.url,
        order_no
    ])?;
    Ok(())
}

/// Has everything that is due after `now` become due so many milliseconds earlier.
pub(super) fn bring_forward(db: &Connection, by_ms: i64, now: Timestamp) -> Result<(), StoreError> {
    for update in [
        "UPDATE outbox SET due_at_ms = due_at_ms - :by WHERE state = 'due' AND due_at_ms > :now",
        "UPDATE reconciliation SET due_at_ms = due_at_ms - :by WHERE due_at_ms > :now",
        "UPDATE orders SET expires_at_ms = expires_at_ms - :by WHERE status = 'pending' AND expires_at_ms > :now",
    ] {
        db.prepare_cached(update)?.execute(named_params! { ":by": by_ms, ":now": now.ms() })?;
    }
    Ok(())
}

/// Writes about as much as a payment, to see whether it can be done: on a full disk there may be room for a row.
pub(super) fn heartbeat(db: &Connection) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO heartbeat (id, beats) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET beats = beats + 1",
    )?
    .execute([])?;
    // Another text each time: SQLite does not write what is the same already.
    db.prepare_cached(
        "INSERT INTO memory (name, value) SELECT 'heartbeat', printf('%.*c', ?, beats % 10) FROM heartbeat WHERE TRUE
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )?
    .execute([HEARTBEAT_BYTES])?;
    Ok(())
}
