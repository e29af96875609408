//! Everything that is kept about one order: the answer to a buyer's "I paid and got nothing".

use super::{Channel, Delivery, LedgerEntry, Refund, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::order::{Order, SettledBy};
use crate::domain::outcome::ReceiptOutcome;
use crate::domain::settlement::Alert;

/// An order with all that is known of it, or what is known of a number that is no order of ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    /// The order; none where there is none.
    pub order: Option<Order>,
    /// What proved itself, a person's decisions among it.
    pub receipts: Vec<KeptReceipt>,
    /// What did not prove itself and names the order or its payment.
    pub rejections: Vec<KeptReceipt>,
    /// What gateways answered.
    pub answers: Vec<KeptAnswer>,
    /// What it did to the buyer's balance.
    pub entries: Vec<LedgerEntry>,
    /// Its refund, if one was ever wanted.
    pub refund: Option<Refund>,
    /// What was told of it, and to whom.
    pub deliveries: Vec<(Channel, Delivery)>,
    /// When its gateway is asked next.
    pub next_question: Option<Timestamp>,
}

/// A notification, an answer or a decision as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct KeptReceipt {
    /// When it arrived.
    pub at: Timestamp,
    /// Kind of its source.
    pub source: SettledBy,
    /// What it came to.
    pub outcome: ReceiptOutcome,
    /// More about that, in a word; empty for what proved itself.
    pub reason: String,
    /// The merchant that it names.
    pub merchant: String,
    /// The order that it names.
    pub order_no: String,
    /// The payment that it names.
    pub trade_no: String,
    /// Who sent it.
    pub client: Option<String>,
    /// How it was sent.
    pub method: Option<String>,
    /// What it said, byte by byte, as much of it as is kept.
    pub payload: Vec<u8>,
    /// Whether that is all of it.
    pub is_whole: bool,
    /// An alert that does not follow from the outcome.
    pub alert: Option<Alert>,
}

/// What a gateway answered, as it is kept.
#[derive(Clone, Debug)]
pub(crate) struct KeptAnswer {
    /// When it was asked.
    pub at: Timestamp,
    /// What caused the question.
    pub cause: String,
    /// The answer in a word.
    pub answer: String,
    /// The reply, or what went wrong.
    pub detail: String,
}

impl Store {
    /// The stories that belong to a number: of the order that has it, else of the orders that were settled by a payment of this
    /// number, else of the notifications about it without any such order. None where nothing is known.
    pub(crate) async fn stories(&self, number: String) -> Result<Vec<Story>, StoreError> {
        on_engine!(self, engine => engine.stories(number).await)
    }
}
