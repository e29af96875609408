//! What happens at the pretend gateway, for whoever listens.

use serde::Serialize;

use crate::domain::money::Amount;

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// An order was made.
    Created {
        /// The merchant.
        pid: String,
        /// The merchant's number.
        out_trade_no: String,
        /// The gateway's number.
        trade_no: String,
        /// What is to be paid.
        money: Amount,
    },
    /// An order was paid.
    Paid {
        /// The merchant's number.
        out_trade_no: String,
        /// What was paid.
        money: Amount,
    },
    /// A callback was sent.
    Callback {
        /// The merchant's number.
        out_trade_no: String,
        /// How many were sent for this order, with this one.
        count: u32,
        /// `honest`, or the fault that spoilt it.
        sent: &'static str,
        /// What came back, or why nothing did.
        answer: String,
        /// Whether it is taken for delivered.
        delivered: bool,
    },
    /// The merchant asked for an order.
    Query {
        /// The merchant's number.
        out_trade_no: String,
        /// The status in the reply.
        status: u8,
    },
    /// Money went back.
    Refund {
        /// The merchant's number.
        out_trade_no: String,
        /// How much.
        money: Amount,
    },
    /// An order was called off.
    Closed {
        /// The merchant's number.
        out_trade_no: String,
    },
    /// A fault came over a request, instead of a reply or with one.
    Fault {
        /// Which request.
        endpoint: &'static str,
        /// Which fault.
        fault: &'static str,
    },
    /// A request was refused.
    Refused {
        /// Which request.
        endpoint: &'static str,
        /// Why.
        reason: String,
    },
}
