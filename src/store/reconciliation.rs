//! Questions to gateways: which orders are due to be asked about, and the answers.

use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::named::named_enum;
use crate::domain::order::{Hold, Order};

named_enum! {
    /// Cause of a question to a gateway.
    Cause {
        /// The schedule, or the command.
        Reconcile = "reconcile",
        /// A notification that needs the gateway's own word.
        Notify = "notify",
        /// A buyer who came back and whose order is unpaid.
        Return = "return",
        /// A refund.
        Refund = "refund",
        /// A person who is about to settle the order.
        Manual = "manual",
    }
}

/// An order whose time to be asked about has come.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The order.
    pub order: Order,
    /// How many times of the schedule have passed.
    pub step: u32,
}

/// A gateway's answer.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    /// The order that it was asked about.
    pub order_no: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub cause: Cause,
    /// The answer in a word.
    pub answer: String,
    /// As much more of it as is worth keeping, without any secret.
    pub detail: String,
    /// Why callbacks alone no longer settle the order.
    pub hold: Option<Hold>,
}

impl Store {
    /// The orders of a merchant whose time has come, the most urgent first; one that needs no question any more leaves the list.
    pub(crate) async fn due_questions(
        &self,
        merchant: String,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<Question>, StoreError> {
        on_engine!(self, engine => engine.due_questions(merchant, now, limit).await)
    }

    /// Sets the time of the next question about an order, after `step` times of the schedule; none for no more of them.
    pub(crate) async fn schedule_question(
        &self,
        order_no: String,
        step: u32,
        next: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.schedule_question(order_no, step, next).await)
    }

    /// Has an order asked about soon, because of a notification that proves nothing by itself.
    pub(crate) async fn ask_soon(&self, order_no: String, merchant: String, now: Timestamp) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.ask_soon(order_no, merchant, now).await)
    }

    /// Whether a signature proves a payment of the order that still needs the gateway's own word.
    pub(crate) async fn awaits_word(&self, order_no: String) -> Result<bool, StoreError> {
        on_engine!(self, engine => engine.awaits_word(order_no).await)
    }

    /// Keeps an answer; an unpaid order is on hold from then on where the answer says so.
    pub(crate) async fn keep_answer(&self, answered: Answered) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.keep_answer(answered).await)
    }

    /// The unpaid orders that were created at `since` or later, the oldest first, after the one of this number.
    pub(crate) async fn unpaid_orders(
        &self,
        since: Timestamp,
        after: Option<String>,
        limit: u32,
    ) -> Result<Vec<Order>, StoreError> {
        on_engine!(self, engine => engine.unpaid_orders(since, after, limit).await)
    }

    /// How many orders [`Store::unpaid_orders`] has in all.
    pub(crate) async fn count_unpaid_orders(&self, since: Timestamp) -> Result<u32, StoreError> {
        on_engine!(self, engine => engine.count_unpaid_orders(since).await)
    }
}
