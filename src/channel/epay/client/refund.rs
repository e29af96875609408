//! Giving money back: the one request whose answer may stay unknown.

use bytes::Bytes;

use super::error::GatewayError;
use super::fields::Fields;
use super::protocol::Protocol;
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::OrderNo;
use crate::net::client::Reply;

/// The codes with which V1 gateways accept a refund: most say 0, some 1.
const V1_ACCEPTED: &[i64] = &[0, 1];

/// Words beside an accepting code that take it back.
const WORDS_OF_FAILURE: [&str; 4] = ["失败", "错误", "fail", "error"];

/// What became of a refund.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RefundReply {
    /// The gateway says that it is done. V1 does not prove it.
    Accepted {
        /// The reply, fit for keeping.
        body: Bytes,
    },
    /// The gateway says that it does not do it.
    Refused {
        /// Its code.
        code: i64,
        /// Its words.
        message: String,
    },
    /// It may have been done or not: nobody here knows, and asking again may do it twice.
    Unclear(GatewayError),
}

/// How far a refund has come, by a V2 gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefundState {
    /// The money went back.
    Done {
        /// How much.
        money: Option<Amount>,
    },
    /// It did not.
    Failed,
    /// Any other number.
    Unknown(i64),
}

/// What a refund was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefundAsked<'a> {
    pub(super) pid: &'a str,
    pub(super) order_no: &'a OrderNo,
    /// The gateway's number of the payment; blank where it is not known.
    pub(super) trade_no: &'a str,
    pub(super) amount: Amount,
}

impl RefundAsked<'_> {
    /// The field of a reply that speaks of another refund than this.
    fn contradiction(&self, protocol: &Protocol, fields: &Fields) -> Option<&'static str> {
        let order_no = self.order_no.as_str();
        // V1 has no field for our number of the refund: gateways answer with one of their own.
        let out_refund_no = match protocol {
            Protocol::V1 { .. } => "",
            Protocol::V2 { .. } => order_no,
        };
        let texts = [
            ("pid", self.pid),
            ("out_trade_no", order_no),
            ("out_refund_no", out_refund_no),
            ("trade_no", self.trade_no),
        ];
        let differs =
            |(field, own): &(&str, &str)| !own.is_empty() && fields.text(field).is_some_and(|text| text != *own);
        let is_other_money = fields.text("money").is_some() && fields.money("money") != Some(self.amount);
        let text = texts.iter().find(|text| differs(text)).map(|(field, _)| *field);
        text.or_else(|| is_other_money.then_some("money"))
    }
}

impl RefundReply {
    /// Reads the reply to a refund. What a failing server says beside its failure proves neither a yes nor a no.
    pub(super) fn read(protocol: &Protocol, reply: &Reply, asked: &RefundAsked<'_>, now: Timestamp) -> Self {
        if reply.status >= 500 {
            return Self::Unclear(GatewayError::Failed { status: reply.status });
        }
        let Some(fields) = Fields::parse(&reply.body) else {
            let beginning = protocol.told(&reply.body);
            return Self::Unclear(GatewayError::NotJson { status: reply.status, beginning });
        };
        match protocol.check(&fields, V1_ACCEPTED, now) {
            Err(GatewayError::Refused { code, message }) if code < 0 => Self::Refused { code, message },
            Err(error) => Self::Unclear(error),
            Ok(()) => {
                let message = fields.text("msg").unwrap_or_default().to_ascii_lowercase();
                if WORDS_OF_FAILURE.iter().any(|word| message.contains(word)) {
                    return Self::Unclear(GatewayError::Contradicts("msg"));
                }
                match asked.contradiction(protocol, &fields) {
                    Some(field) => Self::Unclear(GatewayError::Contradicts(field)),
                    None => Self::Accepted { body: protocol.kept(&reply.body) },
                }
            }
        }
    }
}

impl RefundState {
    /// Reads the reply to a question about the refund of an order.
    pub(super) fn read(
        protocol: &Protocol,
        fields: &Fields,
        order_no: &OrderNo,
        now: Timestamp,
    ) -> Result<Self, GatewayError> {
        protocol.check(fields, &[], now)?;
        if fields.text("out_refund_no").is_some_and(|text| text != order_no.as_str()) {
            return Err(GatewayError::Contradicts("out_refund_no"));
        }
        Ok(match fields.integer("status").ok_or(GatewayError::Incomplete("status"))? {
            0 => Self::Failed,
            1 => Self::Done { money: fields.money("money") },
            other => Self::Unknown(other),
        })
    }
}
