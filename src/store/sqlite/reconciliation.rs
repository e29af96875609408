//! Which orders the gateways are to be asked about and when, and what they answered.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::{Sqlite, StoreError, read};
use crate::domain::clock::Timestamp;
use crate::domain::order::{Order, OrderStatus};
use crate::domain::outcome::Outcome;
use crate::store::{Answered, Question};

/// How long after an unconfirmed notification its order is asked about at the earliest: whoever sends it again and again must not
/// make us ask again and again.
const ASK_PAUSE_MS: i64 = 10_000;
/// How much of an answer is kept.
const DETAIL_CHARS_MAX: usize = 1000;

impl Sqlite {
    pub(in crate::store) async fn due_questions(
        &self,
        merchant: String,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Question>, StoreError> {
        let (open, done) = self.read(move |db| due_questions(db, &merchant, now, limit)).await?;
        if !done.is_empty() {
            self.write(move |db| forget(db, &done)).await?;
        }
        Ok(open)
    }

    pub(in crate::store) async fn schedule_question(
        &self,
        order_no: String,
        step: u32,
        next: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        self.write(move |db| schedule(db, &order_no, step, next)).await
    }

    pub(in crate::store) async fn ask_soon(
        &self,
        order_no: String,
        merchant: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |db| {
            let order = read::order_with_id(db, &order_no)?;
            match order.filter(|(_, order)| order.terms.merchant == merchant && order.paid_at.is_none()) {
                Some((order_id, order)) => ask_soon(db, order_id, &order.terms.merchant, now),
                None => Ok(()),
            }
        })
        .await
    }

    pub(in crate::store) async fn awaits_word(&self, order_no: String) -> Result<bool, StoreError> {
        self.read(move |db| {
            db.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM receipts JOIN orders ON orders.id = receipts.order_id
                                WHERE orders.order_no = ? AND outcome = ? AND orders.status IN ('pending', 'cancelled'))",
            )?
            .query_row([order_no.as_str(), Outcome::Unconfirmed.name()], |row| row.get(0))
        })
        .await
    }

    pub(in crate::store) async fn keep_answer(&self, answered: Answered) -> Result<(), StoreError> {
        self.write(move |db| keep_answer(db, &answered)).await
    }

    pub(in crate::store) async fn unpaid_orders(
        &self,
        since: Timestamp,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<Order>, StoreError> {
        self.read(move |db| unpaid_orders(db, since, after.as_deref(), limit)).await
    }

    pub(in crate::store) async fn count_unpaid_orders(&self, since: Timestamp) -> Result<u32, StoreError> {
        self.read(move |db| {
            db.prepare_cached("SELECT count(*) FROM orders WHERE status = 'pending' AND created_at_ms >= ?")?
                .query_row([since.ms()], |row| row.get(0))
        })
        .await
    }
}

/// Puts an order on the list for the first time.
pub(super) fn plan(db: &Connection, order_id: i64, merchant: &str, at: Timestamp) -> Result<(), StoreError> {
    db.prepare_cached("INSERT INTO reconciliation (order_id, merchant, due_at_ms) VALUES (?, ?, ?)")?
        .execute(params![order_id, merchant, at.ms()])?;
    Ok(())
}

/// Has an order asked about soon, whatever its schedule says, but not for ever sooner.
pub(super) fn ask_soon(db: &Connection, order_id: i64, merchant: &str, now: Timestamp) -> Result<(), StoreError> {
    // A question with a later time was asked before the clock was set back.
    let last: Option<i64> = db
        .prepare_cached("SELECT max(asked_at_ms) FROM answers WHERE order_id = ? AND asked_at_ms <= ?")?
        .query_row([order_id, now.ms()], |row| row.get(0))?;
    let soon = last.map_or(now.ms(), |last| now.ms().max(last.saturating_add(ASK_PAUSE_MS)));
    db.prepare_cached(
        "INSERT INTO reconciliation (order_id, merchant, due_at_ms) VALUES (?, ?, ?)
         ON CONFLICT (order_id) DO UPDATE SET due_at_ms = min(due_at_ms, excluded.due_at_ms)",
    )?
    .execute(params![order_id, merchant, soon])?;
    Ok(())
}

fn due_questions(
    db: &Connection,
    merchant: &str,
    now: Timestamp,
    limit: u32,
) -> rusqlite::Result<(Vec<Question>, Vec<i64>)> {
    let mut due = db.prepare_cached(
        "SELECT order_id, step FROM reconciliation WHERE merchant = :merchant AND due_at_ms <= :now
         ORDER BY due_at_ms LIMIT :limit",
    )?;
    let due = due.query_map(named_params! { ":merchant": merchant, ":now": now.ms(), ":limit": limit }, |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    let (mut open, mut done) = (Vec::new(), Vec::new());
    for row in due {
        let (order_id, step): (i64, u32) = row?;
        let order = read::order_by_id(db, order_id)?;
        // Money for an order that was called off is a person's to give back, and they have to hear of it.
        if matches!(order.stored_status, OrderStatus::Pending | OrderStatus::Cancelled) {
            open.push(Question { order, step });
        } else {
            done.push(order_id);
        }
    }
    Ok((open, done))
}

fn forget(db: &Connection, order_ids: &[i64]) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached("DELETE FROM reconciliation WHERE order_id = ?")?;
    for order_id in order_ids {
        statement.execute([order_id])?;
    }
    Ok(())
}

fn schedule(db: &Connection, order_no: &str, step: u32, next: Option<Timestamp>) -> Result<(), StoreError> {
    let order_id = "(SELECT id FROM orders WHERE order_no = :order_no)";
    match next {
        Some(next) => db
            .prepare_cached(&format!(
                "UPDATE reconciliation SET step = :step, due_at_ms = :next WHERE order_id = {order_id}"
            ))?
            .execute(named_params! { ":order_no": order_no, ":step": step, ":next": next.ms() })?,
        None => db
            .prepare_cached(&format!("DELETE FROM reconciliation WHERE order_id = {order_id}"))?
            .execute(named_params! { ":order_no": order_no })?,
    };
    Ok(())
}

fn keep_answer(db: &Connection, answered: &Answered) -> Result<(), StoreError> {
    let detail: String = answered.detail.chars().take(DETAIL_CHARS_MAX).collect();
    let order_id: Option<i64> = db
        .prepare_cached("SELECT id FROM orders WHERE order_no = ?")?
        .query_row([&answered.order_no], |row| row.get(0))
        .optional()?;
    if let Some(order_id) = order_id {
        db.prepare_cached("INSERT INTO answers (order_id, asked_at_ms, cause, answer, detail) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![order_id, answered.at.ms(), answered.cause.name(), answered.answer, detail])?;
        if let Some(hold) = answered.hold {
            db.prepare_cached(
                "UPDATE orders SET hold = ? WHERE id = ? AND paid_at_ms IS NULL AND hold IS NOT 'refunded'",
            )?
            .execute(params![hold.name(), order_id])?;
        }
    }
    Ok(())
}

/// After a restore: each unpaid order needs its gateway's own word, and is asked about at once.
pub(super) fn hold_unpaid(db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    db.execute("UPDATE orders SET hold = 'restored' WHERE status IN ('pending', 'cancelled') AND hold IS NULL", [])?;
    db.execute(
        "INSERT INTO reconciliation (order_id, merchant, due_at_ms)
         SELECT id, merchant, ?1 FROM orders WHERE status = 'pending'
         ON CONFLICT (order_id) DO UPDATE SET due_at_ms = min(due_at_ms, excluded.due_at_ms)",
        [now.ms()],
    )?;
    Ok(())
}

fn unpaid_orders(db: &Connection, since: Timestamp, after: Option<&str>, limit: u32) -> rusqlite::Result<Vec<Order>> {
    db.prepare_cached(&format!(
        "SELECT {} FROM orders WHERE status = 'pending' AND created_at_ms >= :since
             AND id > coalesce((SELECT id FROM orders WHERE order_no = :after), 0) ORDER BY id LIMIT :limit",
        read::ORDER_COLUMNS
    ))?
    .query_map(named_params! { ":since": since.ms(), ":after": after, ":limit": limit }, |row| {
        read::order_of(row).map(|(_, order)| order)
    })?
    .collect()
}
