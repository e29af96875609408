//! Every statement that writes. Each function is called inside a savepoint of its own.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::{Credited, Grant, Rejection, Settle, Settlement, StoreError, read};
use crate::clock::Timestamp;
use crate::order::{NewOrder, Order, OrderStatus, User};
use crate::settlement::{Effect, decide};

/// How many rejections are kept.
pub(super) const REJECTIONS_KEPT: usize = 10_000;
/// How far a balance may go, either way: far beyond use, far below overflow.
const BALANCE_MAX: i64 = 1_000_000_000_000_000;

/// Loads what the decision needs, decides, and writes what follows from it together with the receipt.
pub(super) fn settle(db: &Connection, settle: &Settle) -> Result<Settlement, StoreError> {
    let claim = &settle.claim;
    let now = settle.receipt.received_at;
    let (order_id, order) = read::order_with_id(db, &claim.order_no)?.unzip();
    let settled_by_trade = read::order_settled_by(db, &claim.merchant, &claim.trade_no)?;
    let decision = decide(claim, order.as_ref(), settled_by_trade.as_ref(), settle.late, now);
    let mut settlement = Settlement { outcome: decision.outcome, credited: None, order_amount: None };
    // Another merchant's order is not this claim's, and `decide` has seen to it that it has no effect.
    let own_order = order_id.zip(order).filter(|(_, order)| order.terms.merchant == claim.merchant);
    if let Some((order_id, Order { terms, .. })) = &own_order {
        settlement.order_amount = Some(terms.amount);
        match decision.effect {
            Effect::None => {}
            Effect::Settle => {
                mark_paid(db, *order_id, settle)?;
                credit(db, *order_id, terms, now)?;
                enqueue(db, *order_id, "settled", now)?;
                settlement.credited = Some(Credited { telegram_id: terms.telegram_id, credits: terms.credits });
            }
            Effect::Review => {
                db.prepare_cached("UPDATE orders SET status = 'review' WHERE id = ?")?.execute([order_id])?;
                enqueue(db, *order_id, "review", now)?;
            }
        }
    }
    keep_receipt(db, settle, decision.outcome.name(), own_order.map(|(order_id, _)| order_id))?;
    Ok(settlement)
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
        let [merchant, order_no, trade_no] = &rejection.claimed;
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

pub(super) fn create_order(db: &Connection, terms: NewOrder) -> Result<Order, StoreError> {
    db.prepare_cached(
        "INSERT INTO users (telegram_id, created_at_ms)
         SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM users WHERE telegram_id = ?1)",
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

/// Writes something small, to see whether it can be done.
pub(super) fn heartbeat(db: &Connection) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO heartbeat (id, beats) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET beats = beats + 1",
    )?
    .execute([])?;
    Ok(())
}
