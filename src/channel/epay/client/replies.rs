//! What a reply would mean that nobody sent: the fuzz targets' way to those who read replies.

use bytes::Bytes;

use super::super::notification::Credentials;
use super::answer::Answer;
use super::error::GatewayError;
use super::fields::Fields;
use super::page::PayPage;
use super::protocol::Protocol;
use super::refund::{RefundAsked, RefundReply, RefundState};
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::OrderNo;
use crate::net::client::Reply;

/// One merchant's questions about one order, and whatever a gateway may answer.
pub(crate) struct Replies {
    protocol: Protocol,
    pid: &'static str,
    order_no: OrderNo,
    trade_no: &'static str,
    amount: Amount,
}

impl Replies {
    /// The questions about an order of `amount` that the payment `trade_no` paid.
    ///
    /// # Panics
    ///
    /// With V2 credentials that nothing can be asked with.
    pub(crate) fn new(
        credentials: &Credentials,
        pid: &'static str,
        order_no: OrderNo,
        trade_no: &'static str,
        amount: Amount,
    ) -> Self {
        let protocol = Protocol::new(credentials).expect("there is a private key");
        Self { protocol, pid, order_no, trade_no, amount }
    }

    /// The answer about the order.
    pub(crate) fn answer(&self, body: &[u8], now: Timestamp) -> Result<Answer, GatewayError> {
        Answer::read(&self.protocol, body, &self.fields(body)?, now)
    }

    /// The page to pay on.
    pub(crate) fn page(&self, body: &[u8], now: Timestamp) -> Result<PayPage, GatewayError> {
        PayPage::read(&self.protocol, &self.fields(body)?, now)
    }

    /// What became of a refund, by a reply with this HTTP status.
    pub(crate) fn refund(&self, body: &[u8], status: u16, now: Timestamp) -> RefundReply {
        let reply = Reply { status, body: Bytes::copy_from_slice(body), retry_after: None, date: None, location: None };
        let asked =
            RefundAsked { pid: self.pid, order_no: &self.order_no, trade_no: self.trade_no, amount: self.amount };
        RefundReply::read(&self.protocol, &reply, &asked, now)
    }

    /// V2: how far the refund has come.
    pub(crate) fn refund_state(&self, body: &[u8], now: Timestamp) -> Result<RefundState, GatewayError> {
        RefundState::read(&self.protocol, &self.fields(body)?, &self.order_no, now)
    }

    fn fields(&self, body: &[u8]) -> Result<Fields, GatewayError> {
        Fields::parse(body).ok_or_else(|| GatewayError::NotJson { status: 200, beginning: self.protocol.told(body) })
    }
}
