//! What happens to a store: one write each, as the service would make it.

use std::fmt;
use std::net::IpAddr;

use crate::domain::clock::Timestamp;
use crate::domain::decisions::{PaymentOfDecision, RefundState};
use crate::domain::order::{Hold, NewOrder, PaymentState};
use crate::store::{Attempt, Channel, Settle};

/// How much of a payload is shown.
const SHOWN_BYTES_MAX: usize = 400;

/// One write, with all that it depends on: done again, it is the same.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Create {
        order: NewOrder,
        ask_at: Option<Timestamp>,
        key: Option<Key>,
    },
    /// A gateway's request comes in.
    Notify {
        payload: Payload,
        client: IpAddr,
        at: Timestamp,
        meaning: Meaning,
    },
    /// What was believed for another reason than its signature alone.
    Settle {
        settle: Settle,
    },
    KeepAnswer {
        order_no: String,
        at: Timestamp,
        answer: String,
        hold: Option<Hold>,
    },
    Schedule {
        order_no: String,
        step: u32,
        next: Option<Timestamp>,
    },
    DueQuestions {
        merchant: String,
        now: Timestamp,
        limit: u32,
    },
    SettleByHand {
        order_no: String,
        payment: PaymentOfDecision,
        at: Timestamp,
    },
    Cancel {
        order_no: String,
        at: Timestamp,
    },
    Acknowledge {
        order_no: String,
        at: Timestamp,
    },
    BeginRefund {
        order_no: String,
        even_if_spent: bool,
        at: Timestamp,
    },
    RefundAnswered {
        order_no: String,
        state: RefundState,
        answer: String,
        at: Timestamp,
    },
    FinishRefund {
        order_no: String,
        answer: String,
        proved: bool,
        at: Timestamp,
    },
    /// Credits by a person's hand, or by the bot's where there is a key.
    Grant {
        user: i64,
        credits: i64,
        key: Option<Key>,
        at: Timestamp,
    },
    Spend {
        user: i64,
        credits: i64,
        key: Key,
        at: Timestamp,
    },
    Claim {
        channel: Channel,
        now: Timestamp,
        limit: u32,
    },
    Attempted {
        message: Message,
        attempt: Attempt,
        now: Timestamp,
    },
    GiveUp {
        channel: Channel,
        until: Timestamp,
        now: Timestamp,
    },
    DeliverAgain {
        channel: Channel,
        order_no: String,
        now: Timestamp,
    },
    AddMissingEvents {
        since: Timestamp,
        now: Timestamp,
    },
}

/// What came over the network, shown as text.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Payload(pub(super) Vec<u8>);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES_MAX)];
        write!(f, "{} ({} bytes)", shown.escape_ascii(), self.0.len())
    }
}

/// Makes a request happen once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) key: String,
    pub(super) fingerprint: String,
}

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Message {
    pub(super) id: i64,
    pub(super) order_no: String,
    pub(super) kind: String,
    pub(super) channel: String,
}

/// What whoever made a callback has signed, or what else a gateway vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) merchant: String,
    pub(super) order_no: String,
    /// `None`: it is not said.
    pub(super) trade_no: Option<String>,
    /// `None`: it is said in a way that cannot be read.
    pub(super) fen: Option<i64>,
    pub(super) payment: PaymentState,
    pub(super) param: Option<String>,
}

/// What a callback is worth, known by how it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It is the gateway's.
    Genuine(Told),
    /// It is nobody's, and must be refused by this name.
    Refused(&'static str),
    /// It is nobody's, and must be refused by whatever name.
    Forged,
    /// It is the gateway's, but for a byte: refused, or what it was.
    Damaged(Told),
}

/// What is kept of a rejection's outcome.
pub(super) const REJECTIONS: [&str; 5] =
    ["malformed", "unknown_merchant", "address_not_allowed", "bad_signature", "stale"];
