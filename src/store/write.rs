//! Every statement that writes. Each function is called inside a savepoint of its own.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::{Credited, Grant, Rejection, Settle, Settlement, StoreError, read};
use crate::clock::Timestamp;
use crate::order::{NewOrder, Order, OrderStatus, User};
use crate::settlement::{Effect, decide};

/// How many rejections are kept.
const REJECTIONS_KEPT: i64 = 10_000;
/// How many bytes of a rejected payload are kept; an honest notification has a few hundred.
const REJECTED_PAYLOAD_BYTES_MAX: usize = 4096;
/// How far a balance may go, either way: far beyond use, far below overflow.
const BALANCE_MAX: i64 = 1_000_000_000_000_000;

/// Loads what the decision needs, decides, and writes what follows from it together with the receipt.
pub(super) fn settle(db: &Connection, settle: &Settle) -> Result<Settlement, StoreError> {
    let claim = &settle.claim;
    let now = settle.receipt.received_at;
    let found = read::order_with_id(db, &claim.order_no)?;
    let (order_id, order) = found.unzip();
    let settled_by_trade = read::order_settled_by(db, &claim.merchant, &claim.trade_no)?;
    let decision = decide(claim, order.as_ref(), settled_by_trade.as_ref(), settle.late, now);
    let mut credited = None;
    if let (Some(order_id), Some(order)) = (order_id, &order) {
        match decision.effect {
            Effect::None => {}
            Effect::Settle => {
                mark_paid(db, order_id, settle)?;
                credit(db, order_id, &order.terms, now)?;
                enqueue(db, order_id, "settled", now)?;
                credited = Some(Credited { telegram_id: order.terms.telegram_id, credits: order.terms.credits });
            }
            Effect::Review => {
                db.prepare_cached("UPDATE orders SET status = 'review' WHERE id = ?")?.execute([order_id])?;
                enqueue(db, order_id, "review", now)?;
            }
        }
    }
    // Another merchant's order is not this notification's.
    let own_order_id = order_id.filter(|_| order.as_ref().is_some_and(|o| o.terms.merchant == claim.merchant));
    keep_receipt(db, settle, decision.outcome.name(), own_order_id)?;
    Ok(Settlement { outcome: decision.outcome, credited })
}

fn mark_paid(db: &Connection, order_id: i64, settle: &Settle) -> Result<(), StoreError> {
    let changed = db
        .prepare_cached(
            "UPDATE orders SET status = 'paid', trade_no = :trade_no, settled_by = :settled_by, paid_at_ms = :now
             WHERE id = :id AND status = 'pending'",
        )?
        .execute(named_params! {
            ":trade_no": settle.claim.trade_no,
            ":settled_by": settle.source.name(),
            ":now": settle.receipt.received_at.ms(),
            ":id": order_id,
        })?;
    // The decision was made on this very row, inside this transaction: anything else is a bug, and must not credit.
    if changed == 1 { Ok(()) } else { Err(StoreError::Failed("the order changed while it was settled".into())) }
}

fn credit(db: &Connection, order_id: i64, terms: &NewOrder, now: Timestamp) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO ledger (telegram_id, kind, credits, order_id, created_at_ms) VALUES (?, 'order', ?, ?, ?)",
    )?
    .execute(params![terms.telegram_id, terms.credits, order_id, now.ms()])?;
    Ok(())
}

fn enqueue(db: &Connection, order_id: i64, kind: &str, now: Timestamp) -> Result<(), StoreError> {
    // An order that comes into review again has told of it once.
    db.prepare_cached(
        "INSERT INTO outbox (order_id, kind, created_at_ms, due_at_ms) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT (order_id, kind) DO NOTHING",
    )?
    .execute(params![order_id, kind, now.ms()])?;
    Ok(())
}

fn keep_receipt(db: &Connection, settle: &Settle, outcome: &str, order_id: Option<i64>) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO receipts
             (received_at_ms, source, outcome, merchant, order_no, trade_no, order_id, client, method, payload)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?
    .execute(params![
        settle.receipt.received_at.ms(),
        settle.source.name(),
        outcome,
        settle.claim.merchant,
        settle.claim.order_no,
        settle.claim.trade_no,
        order_id,
        settle.receipt.client.map(|client| client.to_string()),
        settle.receipt.method,
        settle.receipt.payload,
    ])?;
    Ok(())
}

/// Keeps rejections, and only the newest of them.
pub(super) fn rejections(db: &Connection, rejections: &[Rejection]) -> Result<(), StoreError> {
    for rejection in rejections {
        let claimed = rejection.claimed.as_ref();
        let payload = &rejection.receipt.payload;
        db.prepare_cached(
            "INSERT INTO rejections
                 (received_at_ms, outcome, reason, merchant, order_no, trade_no, client, method, payload, payload_bytes)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?
        .execute(params![
            rejection.receipt.received_at.ms(),
            rejection.outcome.name(),
            rejection.reason,
            claimed.map(|[merchant, _, _]| merchant),
            claimed.map(|[_, order_no, _]| order_no),
            claimed.map(|[_, _, trade_no]| trade_no),
            rejection.receipt.client.map(|client| client.to_string()),
            rejection.receipt.method,
            &payload[..payload.len().min(REJECTED_PAYLOAD_BYTES_MAX)],
            i64::try_from(payload.len()).unwrap_or(i64::MAX),
        ])?;
    }
    db.prepare_cached("DELETE FROM rejections WHERE id <= (SELECT max(id) FROM rejections) - ?")?
        .execute([REJECTIONS_KEPT])?;
    Ok(())
}

pub(super) fn create_order(db: &Connection, terms: NewOrder) -> Result<Order, StoreError> {
    db.prepare_cached(
        "INSERT INTO users (telegram_id, created_at_ms) VALUES (?, ?) ON CONFLICT (telegram_id) DO NOTHING",
    )?
    .execute(params![terms.telegram_id, terms.created_at.ms()])?;
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
    Ok(Order { terms, stored_status: OrderStatus::Pending, trade_no: None, settled_by: None, paid_at: None })
}

pub(super) fn grant(db: &Connection, grant: &Grant) -> Result<User, StoreError> {
    let telegram_id = grant.telegram_id;
    let credits: Option<i64> = db
        .prepare_cached("SELECT credits FROM users WHERE telegram_id = ?")?
        .query_row([telegram_id], |row| row.get(0))
        .optional()?;
    let credits = credits.ok_or(StoreError::NoSuchUser(telegram_id))?;
    let after = credits.checked_add(grant.credits);
    if !after.is_some_and(|after| (0..=BALANCE_MAX).contains(&after)) {
        return Err(StoreError::OutOfBounds { telegram_id, credits });
    }
    db.prepare_cached(
        "INSERT INTO ledger (telegram_id, kind, credits, reason, created_at_ms) VALUES (?, 'grant', ?, ?, ?)",
    )?
    .execute(params![telegram_id, grant.credits, grant.reason, grant.at.ms()])?;
    read::user(db, telegram_id)?.ok_or(StoreError::NoSuchUser(telegram_id))
}
