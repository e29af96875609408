//! What a gateway says about an order, and what of it may be believed.

use bytes::Bytes;

use super::super::text::echo;
use super::error::GatewayError;
use super::fields::Fields;
use super::protocol::Protocol;
#[cfg(test)]
use crate::channel::epay::Credentials;
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::{OrderNo, PaymentState};
use crate::domain::settlement::{Claim, ClaimProof};

/// The code with which V1 gateways answer a question about an order.
const V1_SUCCESS: &[i64] = &[1];

/// The code with which V1 gateways say, among other things, that they do not know an order.
const V1_UNKNOWN: i64 = -1;

/// What a gateway says about an order: not yet believed, see [`Answer::verdict`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The merchant's id.
    pub(crate) pid: Option<String>,
    /// Our number of the order.
    pub(crate) order_no: Option<String>,
    /// The gateway's number of the payment.
    pub(crate) trade_no: Option<String>,
    /// What the order costs.
    pub(crate) money: Option<Amount>,
    /// How far the payment has come.
    pub(crate) state: State,
    /// The word that notifications have for it, which few gateways repeat here.
    pub(crate) trade_status: Option<String>,
    /// What we sent as `param`.
    pub(crate) param: Option<String>,
    /// The reply, fit for keeping: without our key, and of 16 KiB at most.
    pub(crate) body: Bytes,
}

/// How far a payment has come, by its `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// 0.
    Unpaid,
    /// 1.
    Paid,
    /// 2, also after a part of it went back.
    Refunded,
    /// 3.
    Frozen,
    /// 4: the buyer's money is reserved and not ours yet.
    PreAuthorised,
    /// Any other number.
    Unknown(i64),
}

/// What may be believed of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The order is paid by this payment, in full or not.
    Paid {
        /// The gateway's number of the payment.
        trade_no: String,
        /// The amount paid.
        amount: Amount,
    },
    /// It is not paid.
    Unpaid,
    /// It was paid by this payment, of which all or a part went back.
    Refunded {
        /// The gateway's number of the payment.
        trade_no: String,
        /// The amount that had been paid.
        amount: Amount,
    },
    /// The gateway holds the money back.
    Frozen,
    /// The buyer's money is reserved and not ours yet.
    PreAuthorised,
    /// A state that no gateway known to us has.
    Unknown(i64),
    /// This field does not fit the question, or the others: nothing is believed.
    Contradicts(&'static str),
}

impl State {
    fn of(status: i64) -> Self {
        match status {
            0 => Self::Unpaid,
            1 => Self::Paid,
            2 => Self::Refunded,
            3 => Self::Frozen,
            4 => Self::PreAuthorised,
            other => Self::Unknown(other),
        }
    }
}

impl Answer {
    /// Reads the reply to a question about an order.
    pub(super) fn read(
        protocol: &Protocol,
        body: &[u8],
        fields: &Fields,
        now: Timestamp,
    ) -> Result<Self, GatewayError> {
        protocol.check(fields, V1_SUCCESS, now).map_err(|error| {
            let is_unknown = speaks_of_an_unknown_order(protocol, &error);
            if is_unknown { GatewayError::UnknownOrder } else { error }
        })?;
        Ok(Self {
            pid: fields.owned("pid"),
            order_no: fields.owned("out_trade_no"),
            trade_no: fields.owned("trade_no"),
            money: fields.money("money"),
            state: fields.integer("status").map(State::of).ok_or(GatewayError::Incomplete("status"))?,
            trade_status: fields.owned("trade_status"),
            param: fields.owned("param"),
            body: protocol.kept(body),
        })
    }

    /// Reads a reply as it came over the network.
    #[cfg(test)]
    pub(crate) fn of_reply(credentials: &Credentials, body: &[u8], now: Timestamp) -> Result<Self, GatewayError> {
        let protocol = Protocol::new(credentials).expect("these can ask");
        let fields = Fields::parse(body).ok_or(GatewayError::Incomplete("code"))?;
        Self::read(&protocol, body, &fields, now)
    }

    /// What may be believed of it, asked by `pid` about the order `order_no`.
    ///
    /// Gateways exist that set one field early, or answer about another order: paid is only what every field agrees on. The
    /// amount is not compared here: a payment of another amount is one that a person has to see.
    pub(crate) fn verdict(&self, pid: &str, order_no: &OrderNo) -> Verdict {
        let differs = |field: &Option<String>, own: &str| field.as_ref().is_some_and(|field| field != own);
        if differs(&self.pid, pid) {
            return Verdict::Contradicts("pid");
        }
        if differs(&self.order_no, order_no.as_str()) {
            return Verdict::Contradicts("out_trade_no");
        }
        match self.state {
            State::Unpaid => Verdict::Unpaid,
            State::Frozen => Verdict::Frozen,
            State::PreAuthorised => Verdict::PreAuthorised,
            State::Unknown(status) => Verdict::Unknown(status),
            State::Paid if self.trade_status.as_ref().is_some_and(|status| status != "TRADE_SUCCESS") => {
                Verdict::Contradicts("trade_status")
            }
            State::Paid => self
                .payment()
                .map_or_else(Verdict::Contradicts, |(trade_no, amount)| Verdict::Paid { trade_no, amount }),
            State::Refunded => self
                .payment()
                .map_or_else(Verdict::Contradicts, |(trade_no, amount)| Verdict::Refunded { trade_no, amount }),
        }
    }

    /// The claim that this answer makes, by its verdict; `None` where it says nothing of a payment that came.
    pub(crate) fn claim(self, verdict: &Verdict, pid: &str, order_no: &OrderNo) -> Option<Claim> {
        let (payment, trade_no, amount) = match verdict {
            Verdict::Paid { trade_no, amount } => (PaymentState::Paid, trade_no, *amount),
            Verdict::Refunded { trade_no, amount } => (PaymentState::Refunded, trade_no, *amount),
            _ => return None,
        };
        Some(Claim {
            merchant: pid.to_owned(),
            order_no: order_no.to_string(),
            trade_no: Some(trade_no.clone()),
            amount: Some(amount),
            payment,
            param: self.param.map(echo),
            proof: ClaimProof::Gateway,
        })
    }

    /// The payment's number and amount, where nothing is missing that makes it the payment of one order; else the missing field.
    fn payment(&self) -> Result<(String, Amount), &'static str> {
        self.pid.as_ref().ok_or("pid")?;
        self.order_no.as_ref().ok_or("out_trade_no")?;
        let amount = self.money.ok_or("money")?;
        Ok((self.trade_no.clone().ok_or("trade_no")?, amount))
    }
}

/// Whether a refusal means that there is no such order. Codes do not tell it from a wrong key, and so words have to.
fn speaks_of_an_unknown_order(protocol: &Protocol, error: &GatewayError) -> bool {
    let GatewayError::Refused { code, message } = error else {
        return false;
    };
    let message = message.to_ascii_lowercase();
    let has_one_of = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let is_missing =
        has_one_of(&["不存在", "未找到", "没有找到", "没有该", "not exist", "not found", "no such", "unknown"]);
    if has_one_of(&["订单", "order", "trade"]) && is_missing {
        return true;
    }
    let is_of_credentials = has_one_of(&["密钥", "key", "签名", "sign", "商户", "pid", "merchant", "ip"]);
    matches!(protocol, Protocol::V1 { .. }) && *code == V1_UNKNOWN && !is_of_credentials
}
