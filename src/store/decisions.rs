//! Decisions of a person about an order, carried out: refunds, settlement by hand, cancellation, acknowledgement.
//!
//! A refund is written down before the gateway is asked, because the answer may never come: `requested` says that it may have
//! been asked, and only `done` moves credits, in the transaction that says so.

use super::{DecisionError, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::decisions::{PaymentOfDecision, RefundState};
use crate::domain::order::Order;

/// A refund as the store has it.
#[derive(Clone, Debug)]
pub(crate) struct Refund {
    /// How far it has come.
    pub state: RefundState,
    /// Why it was wanted.
    pub reason: String,
    /// The gateway's last answer.
    pub answer: Option<String>,
    /// When it was first wanted.
    pub requested_at: Timestamp,
}

/// A person's decision about an order.
#[derive(Clone, Debug)]
pub(crate) struct ByHand {
    /// The order.
    pub order_no: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

impl Store {
    /// Writes down that an order is to be refunded; a refund that is under way is returned as it is. Whether it is new.
    ///
    /// Refuses an order that is not paid, and (unless `even_if_spent`) one whose credits have been spent already.
    pub(crate) async fn begin_refund(
        &self,
        wish: ByHand,
        even_if_spent: bool,
    ) -> Result<(Refund, bool), DecisionError> {
        on_engine!(self, engine => engine.begin_refund(wish, even_if_spent).await)
    }

    /// Notes the gateway's answer to a refund that is not done by it.
    pub(crate) async fn refund_answered(
        &self,
        order_no: String,
        state: RefundState,
        answer: String,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.refund_answered(order_no, state, answer, now).await)
    }

    /// Takes the credits back and marks the order refunded, once; the order after it.
    pub(crate) async fn finish_refund(
        &self,
        order_no: String,
        answer: String,
        proved: bool,
        now: Timestamp,
    ) -> Result<Order, DecisionError> {
        on_engine!(self, engine => engine.finish_refund(order_no, answer, proved, self.tells_bot(), now).await)
    }

    /// The refund of an order, if one was ever wanted.
    pub(crate) async fn refund(&self, order_no: &str) -> Result<Option<Refund>, StoreError> {
        on_engine!(self, engine => engine.refund(order_no.to_owned()).await)
    }

    /// Settles an order by a person's decision: as paid by the one proved payment that waits, if any. Others become `paid_again`.
    pub(crate) async fn settle_by_hand(
        &self,
        decision: ByHand,
        payment: PaymentOfDecision,
    ) -> Result<Order, DecisionError> {
        on_engine!(self, engine => engine.settle_by_hand(decision, payment, self.tells_bot()).await)
    }

    /// Notes that a person has taken care of payments beyond the one that settled an order: of `trade_no`, else of all. Which.
    pub(crate) async fn acknowledge(
        &self,
        decision: ByHand,
        trade_no: Option<String>,
    ) -> Result<Vec<String>, DecisionError> {
        on_engine!(self, engine => engine.acknowledge(decision, trade_no).await)
    }

    /// Calls an unpaid order off by a person's decision.
    pub(crate) async fn cancel(&self, decision: ByHand) -> Result<Order, DecisionError> {
        on_engine!(self, engine => engine.cancel(decision).await)
    }
}
