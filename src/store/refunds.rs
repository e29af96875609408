//! Refunds, and what else a person decides about an order.
//!
//! A refund is written down before the gateway is asked, because the answer may never come: `requested` says that it may have
//! been asked, and only `done` moves credits, in the transaction that says so.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::ledger::{self, Entry};
use super::outbox::{self, News, Tidings};
use super::settle::{self, SettleByHand};
use super::{Store, StoreError, read};
use crate::domain::clock::Timestamp;
use crate::domain::named::named_enum;
use crate::domain::order::{Order, OrderStatus};
use crate::domain::settlement::Outcome;

named_enum! {
    /// How far a refund has come.
    RefundState {
        /// Intended; the gateway may have been asked.
        Requested = "requested",
        /// The gateway said no.
        Refused = "refused",
        /// The gateway was asked, and nobody knows what it did.
        Unclear = "unclear",
        /// The gateway said yes, and the credits are taken back.
        Done = "done",
    }
}

/// A refund as the store has it.
#[derive(Clone, Debug)]
pub(crate) struct Refund {
    /// How far it has come.
    pub state: RefundState,
    /// Why it was wanted.
    pub reason: String,
    /// What the gateway said last.
    pub answer: Option<String>,
    /// When it was first wanted.
    pub requested_at: Timestamp,
}

/// What a person decides about an order.
#[derive(Clone, Debug)]
pub(crate) struct ByHand {
    /// The order.
    pub order_no: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// The payment for which a person settles an order, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct PaymentOfDecision {
    /// The payment that the gateway has just called paid.
    pub proved: Option<String>,
    /// The number that the person typed: it chooses among proved payments, and is a note where there is none.
    pub typed: Option<String>,
    /// The money came by another way than the gateway.
    pub paid_outside: bool,
}

impl Store {
    /// Writes down that an order is to be refunded; a refund that is under way is returned as it is. Whether it is new.
    ///
    /// Refuses what is not paid, and (unless `even_if_spent`) what has been spent already.
    pub(crate) async fn begin_refund(&self, wish: ByHand, even_if_spent: bool) -> Result<(Refund, bool), StoreError> {
        self.write(move |db| begin(db, &wish, even_if_spent)).await
    }

    /// Notes what the gateway said to a refund that is not done by it.
    pub(crate) async fn refund_answered(
        &self,
        order_no: String,
        state: RefundState,
        answer: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |db| {
            db.prepare_cached(
                "UPDATE refunds SET state = ?, answer = ?, changed_at_ms = ?
                 WHERE order_id = (SELECT id FROM orders WHERE order_no = ?) AND state <> 'done'",
            )?
            .execute(params![state.name(), answer, now.ms(), order_no])?;
            Ok(())
        })
        .await
    }

    /// Takes the credits back and marks the order refunded, once; the order after it.
    pub(crate) async fn finish_refund(
        &self,
        order_no: String,
        answer: String,
        proved: bool,
        now: Timestamp,
    ) -> Result<Order, StoreError> {
        let tells_bot = self.tells_bot();
        let order = self.write(move |db| finish(db, &order_no, &answer, proved, tells_bot, now)).await?;
        self.outbox_grew();
        Ok(order)
    }

    /// The refund of an order, if one was ever wanted.
    pub(crate) async fn refund(&self, order_no: &str) -> Result<Option<Refund>, StoreError> {
        let order_no = order_no.to_owned();
        self.read(move |db| refund(db, &order_no)).await
    }

    /// Settles an order by a person's decision: as paid by the one proved payment that waits, if any. Others become `paid_again`.
    pub(crate) async fn settle_by_hand(
        &self,
        decision: ByHand,
        payment: PaymentOfDecision,
    ) -> Result<Order, StoreError> {
        let tells_bot = self.tells_bot();
        let order = self.write(move |db| settle_by_hand(db, &decision, payment, tells_bot)).await?;
        self.outbox_grew();
        Ok(order)
    }

    /// Notes that a person has taken care of payments beyond the one that settled an order: of `trade_no`, else of all. Which.
    pub(crate) async fn acknowledge(
        &self,
        decision: ByHand,
        trade_no: Option<String>,
    ) -> Result<Vec<String>, StoreError> {
        self.write(move |db| acknowledge(db, &decision, trade_no.as_deref())).await
    }

    /// Calls an unpaid order off by a person's decision.
    pub(crate) async fn cancel(&self, decision: ByHand) -> Result<Order, StoreError> {
        self.write(move |db| cancel(db, &decision)).await
    }
}

fn order_of(db: &Connection, order_no: &str) -> Result<(i64, Order), StoreError> {
    read::order_with_id(db, order_no)?.ok_or_else(|| StoreError::NoSuchOrder(order_no.to_owned()))
}

pub(super) fn refund(db: &Connection, order_no: &str) -> rusqlite::Result<Option<Refund>> {
    db.prepare_cached(
        "SELECT state, reason, answer, requested_at_ms FROM refunds
         WHERE order_id = (SELECT id FROM orders WHERE order_no = ?)",
    )?
    .query_row([order_no], |row| {
        Ok(Refund {
            state: read::expect(0, RefundState::from_name(row.get_ref(0)?.as_str()?))?,
            reason: row.get(1)?,
            answer: row.get(2)?,
            requested_at: Timestamp::from_ms(row.get(3)?),
        })
    })
    .optional()
}

fn begin(db: &Connection, wish: &ByHand, even_if_spent: bool) -> Result<(Refund, bool), StoreError> {
    let (order_id, order) = order_of(db, &wish.order_no)?;
    let before = refund(db, &wish.order_no)?;
    if order.stored_status != OrderStatus::Paid {
        // A refund that is done has an order that is refunded: whoever asks is told by its status.
        return Err(StoreError::WrongStatus { order_no: wish.order_no.clone(), status: order.status(wish.at) });
    }
    if let Some(before) = before.filter(|before| before.state != RefundState::Refused) {
        return Ok((before, false));
    }
    let terms = &order.terms;
    let credits = read::user(db, terms.telegram_id)?.map_or(0, |user| user.credits);
    if credits < terms.credits && !even_if_spent {
        return Err(StoreError::OutOfBounds { telegram_id: terms.telegram_id, credits });
    }
    db.prepare_cached(
        "INSERT INTO refunds (order_id, reason, state, requested_at_ms, changed_at_ms) VALUES (?1, ?2, 'requested', ?3, ?3)
         ON CONFLICT (order_id) DO UPDATE SET reason = ?2, state = 'requested', answer = NULL, requested_at_ms = ?3,
             changed_at_ms = ?3",
    )?
    .execute(params![order_id, wish.reason, wish.at.ms()])?;
    let refund =
        Refund { state: RefundState::Requested, reason: wish.reason.clone(), answer: None, requested_at: wish.at };
    Ok((refund, true))
}

fn finish(
    db: &Connection,
    order_no: &str,
    answer: &str,
    proved: bool,
    tells_bot: bool,
    now: Timestamp,
) -> Result<Order, StoreError> {
    let (order_id, mut order) = order_of(db, order_no)?;
    let refund = refund(db, order_no)?;
    match (order.stored_status, &refund) {
        // Finished by another process, or before a crash.
        (OrderStatus::Refunded, _) => return Ok(order),
        (OrderStatus::Paid, Some(_)) => {}
        (status, _) => return Err(StoreError::WrongStatus { order_no: order_no.to_owned(), status }),
    }
    let terms = &order.terms;
    db.prepare_cached("UPDATE orders SET status = 'refunded' WHERE id = ? AND status = 'paid'")?.execute([order_id])?;
    let entry = Entry {
        telegram_id: terms.telegram_id,
        kind: "refund",
        credits: -terms.credits,
        order_id: Some(order_id),
        reason: refund.as_ref().map(|refund| refund.reason.as_str()),
        at: now,
    };
    ledger::enter(db, &[entry])?;
    db.prepare_cached(
        "UPDATE refunds SET state = 'done', answer = ?, proved = ?, changed_at_ms = ? WHERE order_id = ?",
    )?
    .execute(params![answer, proved, now.ms(), order_id])?;
    outbox::tell(db, &[Tidings { order_id, news: News::Refunded, tells_bot, at: now }])?;
    order.stored_status = OrderStatus::Refunded;
    Ok(order)
}

fn settle_by_hand(
    db: &Connection,
    decision: &ByHand,
    payment: PaymentOfDecision,
    tells_bot: bool,
) -> Result<Order, StoreError> {
    let (order_id, order) = order_of(db, &decision.order_no)?;
    if !matches!(order.stored_status, OrderStatus::Pending | OrderStatus::Review) {
        let status = order.status(decision.at);
        return Err(StoreError::WrongStatus { order_no: decision.order_no.clone(), status });
    }
    let PaymentOfDecision { proved, typed, paid_outside } = payment;
    let mut waiting = waiting_payments(db, order_id)?;
    waiting.extend(proved);
    let known = match (&typed, waiting.len()) {
        _ if paid_outside => None,
        (Some(typed), 1..) if waiting.contains(typed) => Some(typed.clone()),
        (None, 1) => waiting.first().cloned(),
        (_, 0) => None,
        (_, _) => {
            let trade_nos = waiting.into_iter().collect();
            return Err(StoreError::ChoosePayment { order_no: decision.order_no.clone(), trade_nos });
        }
    };
    for trade_no in known.iter().chain(&typed) {
        if let Some(other) = read::order_settled_by(db, &order.terms.merchant, trade_no)? {
            return Err(StoreError::TradeReused { trade_no: trade_no.clone(), order_no: other.to_string() });
        }
    }
    let note = typed.filter(|typed| known.as_ref() != Some(typed));
    let reason = match note {
        Some(typed) => format!("{} [trade_no {typed}]", decision.reason),
        None => decision.reason.clone(),
    };
    settle::settle_by_hand(
        db,
        &SettleByHand {
            order_id,
            terms: &order.terms,
            trade_no: known.as_deref(),
            paid_outside,
            reason: &reason,
            at: decision.at,
            tells_bot,
        },
    )?;
    for other in waiting.iter().filter(|trade_no| known.as_ref() != Some(trade_no)) {
        note_decision(db, decision, Outcome::PaidAgain.name(), &order, order_id, other)?;
    }
    Ok(order_of(db, &decision.order_no)?.1)
}

/// The proved payments that wait for a person's decision about their order. A refunded one does not: its money has gone back.
fn waiting_payments(db: &Connection, order_id: i64) -> rusqlite::Result<BTreeSet<String>> {
    db.prepare_cached(
        "SELECT DISTINCT trade_no FROM receipts
         WHERE order_id = ? AND outcome IN ('amount_mismatch', 'held') AND trade_no <> '' AND alert IS NOT 'refunded'",
    )?
    .query_map([order_id], |row| row.get(0))?
    .collect()
}

fn acknowledge(db: &Connection, decision: &ByHand, trade_no: Option<&str>) -> Result<Vec<String>, StoreError> {
    let (order_id, order) = order_of(db, &decision.order_no)?;
    let mut open = db.prepare_cached(
        "SELECT DISTINCT trade_no FROM receipts AS again
         WHERE order_id = :order_id AND outcome = 'paid_again' AND (:trade_no IS NULL OR trade_no = :trade_no)
             AND NOT EXISTS (SELECT 1 FROM receipts WHERE order_id = :order_id AND outcome = 'acknowledged'
                                 AND trade_no = again.trade_no)
         ORDER BY trade_no",
    )?;
    let trades: Vec<String> = open
        .query_map(named_params! { ":order_id": order_id, ":trade_no": trade_no }, |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for trade_no in &trades {
        note_decision(db, decision, "acknowledged", &order, order_id, trade_no)?;
    }
    if trades.is_empty() { Err(StoreError::NotPaidAgain(decision.order_no.clone())) } else { Ok(trades) }
}

/// Keeps a person's decision as a receipt of its own, with the amount of the payment that it is about: an alert tells it.
fn note_decision(
    db: &Connection,
    decision: &ByHand,
    outcome: &str,
    order: &Order,
    order_id: i64,
    trade_no: &str,
) -> Result<(), StoreError> {
    db.prepare_cached(
        "INSERT INTO receipts (received_at_ms, source, outcome, merchant, order_no, trade_no, order_id, method, payload, amount_fen)
         VALUES (?1, 'manual', ?2, ?3, ?4, ?5, ?6, 'manual', ?7,
                 (SELECT amount_fen FROM receipts WHERE order_id = ?6 AND trade_no = ?5 AND trade_no <> '' ORDER BY id DESC LIMIT 1))",
    )?
    .execute(params![
        decision.at.ms(),
        outcome,
        order.terms.merchant,
        decision.order_no,
        trade_no,
        order_id,
        decision.reason.as_bytes()
    ])?;
    Ok(())
}

fn cancel(db: &Connection, decision: &ByHand) -> Result<Order, StoreError> {
    let (order_id, mut order) = order_of(db, &decision.order_no)?;
    if !matches!(order.stored_status, OrderStatus::Pending | OrderStatus::Review) {
        let status = order.status(decision.at);
        return Err(StoreError::WrongStatus { order_no: decision.order_no.clone(), status });
    }
    db.prepare_cached("UPDATE orders SET status = 'cancelled' WHERE id = ? AND status IN ('pending', 'review')")?
        .execute([order_id])?;
    note_decision(db, decision, "cancelled", &order, order_id, "")?;
    order.stored_status = OrderStatus::Cancelled;
    Ok(order)
}
