//! Decisions of a person about an order: the rows that the rules ask for, and the rows that follow.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::ledger::{self, Entry};
use super::outbox::{self, Tidings};
use super::settle::{self, SettleByHand};
use super::{DecisionError, Sqlite, StoreError, read};
use crate::domain::clock::Timestamp;
use crate::domain::decisions::{
    self, OperatorDecision, PaymentOfDecision, RefundBeginning, RefundEnd, RefundState, Refused,
};
use crate::domain::ledger::EntryKind;
use crate::domain::order::{Order, OrderStatus};
use crate::domain::outcome::{Outcome, ReceiptOutcome};
use crate::domain::settlement::Alert;
use crate::store::{ByHand, News, Refund};

impl Sqlite {
    pub(in crate::store) async fn begin_refund(
        &self,
        wish: ByHand,
        even_if_spent: bool,
    ) -> Result<(Refund, bool), DecisionError> {
        self.write(move |db| begin_refund(db, &wish, even_if_spent)).await
    }

    pub(in crate::store) async fn refund_answered(
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

    pub(in crate::store) async fn finish_refund(
        &self,
        order_no: String,
        answer: String,
        proved: bool,
        tells_bot: bool,
        now: Timestamp,
    ) -> Result<Order, DecisionError> {
        let order = self.write(move |db| finish_refund(db, &order_no, &answer, proved, tells_bot, now)).await?;
        self.outbox_grew();
        Ok(order)
    }

    pub(in crate::store) async fn refund(&self, order_no: String) -> Result<Option<Refund>, StoreError> {
        self.read(move |db| refund(db, &order_no)).await
    }

    pub(in crate::store) async fn settle_by_hand(
        &self,
        decision: ByHand,
        payment: PaymentOfDecision,
        tells_bot: bool,
    ) -> Result<Order, DecisionError> {
        let order = self.write(move |db| settle_by_hand(db, &decision, &payment, tells_bot)).await?;
        self.outbox_grew();
        Ok(order)
    }

    pub(in crate::store) async fn acknowledge(
        &self,
        decision: ByHand,
        trade_no: Option<String>,
    ) -> Result<Vec<String>, DecisionError> {
        self.write(move |db| acknowledge(db, &decision, trade_no.as_deref())).await
    }

    pub(in crate::store) async fn cancel(&self, decision: ByHand) -> Result<Order, DecisionError> {
        self.write(move |db| cancel(db, &decision)).await
    }
}

fn order_of(db: &Connection, order_no: &str) -> Result<(i64, Order), DecisionError> {
    read::order_with_id(db, order_no)?.ok_or_else(|| DecisionError::NoSuchOrder(order_no.to_owned()))
}

/// The error of a decision about `order` that the rules refuse.
fn refusal(order: &Order) -> impl Fn(Refused) -> DecisionError {
    |refused| DecisionError::Refused {
        order_no: order.terms.order_no.to_string(),
        telegram_id: order.terms.telegram_id,
        refused,
    }
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

fn begin_refund(db: &Connection, wish: &ByHand, even_if_spent: bool) -> Result<(Refund, bool), DecisionError> {
    let (order_id, order) = order_of(db, &wish.order_no)?;
    let before = refund(db, &wish.order_no)?;
    let balance = read::user(db, order.terms.telegram_id)?.map_or(0, |user| user.credits);
    let state = before.as_ref().map(|before| before.state);
    let beginning = decisions::begin_refund(order.status(wish.at), state, order.terms.credits, balance, even_if_spent)
        .map_err(refusal(&order))?;
    if let (RefundBeginning::UnderWay, Some(before)) = (beginning, before) {
        return Ok((before, false));
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

fn finish_refund(
    db: &Connection,
    order_no: &str,
    answer: &str,
    proved: bool,
    tells_bot: bool,
    now: Timestamp,
) -> Result<Order, DecisionError> {
    let (order_id, mut order) = order_of(db, order_no)?;
    let refund = refund(db, order_no)?;
    let end = decisions::finish_refund(order.stored_status, refund.is_some()).map_err(refusal(&order))?;
    if end == RefundEnd::DoneBefore {
        return Ok(order);
    }
    let terms = &order.terms;
    db.prepare_cached("UPDATE orders SET status = 'refunded' WHERE id = ? AND status = 'paid'")?.execute([order_id])?;
    let entry = Entry {
        telegram_id: terms.telegram_id,
        kind: EntryKind::Refund,
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
    payment: &PaymentOfDecision,
    tells_bot: bool,
) -> Result<Order, DecisionError> {
    let (order_id, order) = order_of(db, &decision.order_no)?;
    let waiting = waiting_payments(db, order_id)?;
    let mut settled = BTreeMap::new();
    for trade_no in waiting.iter().chain(&payment.proved).chain(&payment.typed) {
        let order_no = read::order_settled_by(db, &order.terms.merchant, trade_no)?;
        settled.extend(order_no.map(|order_no| (trade_no.clone(), order_no.to_string())));
    }
    let settlement =
        decisions::settle_by_hand(order.status(decision.at), waiting, payment, &settled).map_err(refusal(&order))?;
    let reason = match &settlement.note {
        Some(typed) => format!("{} [trade_no {typed}]", decision.reason),
        None => decision.reason.clone(),
    };
    settle::settle_by_hand(
        db,
        &SettleByHand {
            order_id,
            terms: &order.terms,
            trade_no: settlement.trade_no.as_deref(),
            paid_outside: payment.paid_outside,
            reason: &reason,
            at: decision.at,
            tells_bot,
        },
    )?;
    for other in &settlement.paid_again {
        note_decision(db, decision, Outcome::PaidAgain.into(), &order, order_id, other)?;
    }
    Ok(order_of(db, &decision.order_no)?.1)
}

/// The proved payments that wait for a person's decision about their order. A refunded one does not: its money has gone back.
fn waiting_payments(db: &Connection, order_id: i64) -> rusqlite::Result<BTreeSet<String>> {
    db.prepare_cached(
        "SELECT DISTINCT trade_no FROM receipts
         WHERE order_id = ? AND outcome IN (?, ?) AND trade_no <> '' AND alert IS NOT ?",
    )?
    .query_map(
        params![order_id, Outcome::AmountMismatch.name(), Outcome::Held.name(), Alert::Refunded.name()],
        |row| row.get(0),
    )?
    .collect()
}

fn acknowledge(db: &Connection, decision: &ByHand, trade_no: Option<&str>) -> Result<Vec<String>, DecisionError> {
    let (order_id, order) = order_of(db, &decision.order_no)?;
    let mut open = db.prepare_cached(
        "SELECT DISTINCT trade_no FROM receipts AS again
         WHERE order_id = :order_id AND outcome = :paid_again
             AND NOT EXISTS (SELECT 1 FROM receipts WHERE order_id = :order_id AND outcome = :acknowledged
                                 AND trade_no = again.trade_no)
         ORDER BY trade_no",
    )?;
    let names = named_params! {
        ":order_id": order_id,
        ":paid_again": Outcome::PaidAgain.name(),
        ":acknowledged": OperatorDecision::Acknowledged.name(),
    };
    let open = open.query_map(names, |row| row.get(0))?.collect::<Result<_, _>>()?;
    let trade_nos = decisions::acknowledge(open, trade_no).map_err(refusal(&order))?;
    for trade_no in &trade_nos {
        note_decision(
            db,
            decision,
            ReceiptOutcome::Operator(OperatorDecision::Acknowledged),
            &order,
            order_id,
            trade_no,
        )?;
    }
    Ok(trade_nos)
}

/// Keeps a person's decision as a receipt of its own, with the amount of the payment that it is about: an alert tells it.
fn note_decision(
    db: &Connection,
    decision: &ByHand,
    outcome: ReceiptOutcome,
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
        outcome.name(),
        order.terms.merchant,
        decision.order_no,
        trade_no,
        order_id,
        decision.reason.as_bytes()
    ])?;
    Ok(())
}

fn cancel(db: &Connection, decision: &ByHand) -> Result<Order, DecisionError> {
    let (order_id, mut order) = order_of(db, &decision.order_no)?;
    decisions::cancel(order.status(decision.at)).map_err(refusal(&order))?;
    db.prepare_cached("UPDATE orders SET status = 'cancelled' WHERE id = ? AND status IN ('pending', 'review')")?
        .execute([order_id])?;
    note_decision(db, decision, ReceiptOutcome::Operator(OperatorDecision::Cancelled), &order, order_id, "")?;
    order.stored_status = OrderStatus::Cancelled;
    Ok(order)
}
