//! What we ask of gateways: a page to pay on, the state of an order, a refund.
//!
//! [`Gateway`] sends; each kind of reply is read by a function of its own, without the network: [`PayPage`], [`Answer`],
//! [`RefundReply`]. V1 gateways answer unsigned, so that only the connection vouches for them; a V2 gateway's yes is signed, and
//! its no proves nothing. An answer about an order is believed by [`Answer::verdict`] alone.

mod answer;
mod error;
mod fields;
mod page;
mod protocol;
mod refund;
#[cfg(any(test, fuzzing))]
mod replies;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub(crate) use answer::{Answer, Verdict};
pub(crate) use error::GatewayError;
pub(crate) use page::{PayPage, PayTarget, Payable};
pub(crate) use refund::{RefundReply, RefundState};
#[cfg(any(test, fuzzing))]
pub(crate) use replies::Replies;

use super::form::encode;
use super::notification::Credentials;
use crate::domain::clock::Clock;
use crate::domain::money::Amount;
use crate::domain::order::OrderNo;
use crate::net::client::{Client, OutgoingError, Reply};
use fields::Fields;
use protocol::{Protocol, Request};
use refund::RefundAsked;

/// How long a gateway may take for anything but a question about an order, whose caller knows how long it can wait.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A merchant's account at a gateway, for asking.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    client: Client,
    clock: Clock,
    /// The base URL, with a `/` at its end.
    base_url: String,
    pid: String,
    protocol: Protocol,
}

impl Gateway {
    /// The gateway at `base_url`, asked as the merchant `pid`; `None` for V2 without a private key, with which nothing can be asked.
    pub(crate) fn new(
        client: Client,
        clock: Clock,
        base_url: &str,
        pid: &str,
        credentials: &Credentials,
    ) -> Option<Self> {
        let protocol = Protocol::new(credentials)?;
        let base_url = format!("{}/", base_url.trim_end_matches('/'));
        Some(Self { client, clock, base_url, pid: pid.to_owned(), protocol })
    }

    /// A signed link to the gateway's page for `payable`, made without asking anybody. `None` for V2, which has no such links, and
    /// where a text of it must not be sent.
    pub(crate) fn pay_link(&self, payable: &Payable<'_>) -> Option<String> {
        let Protocol::V1 { .. } = self.protocol else {
            return None;
        };
        let signed = self.protocol.sign(payable.link_fields(&self.pid).ok()?);
        Some(format!("{}submit.php?{}", self.base_url, encode(signed.iter().map(|(k, v)| (*k, v.as_str())))))
    }

    /// Asks for a page to pay on. Asked again with the same order, gateways answer with the same payment.
    pub(crate) async fn create(&self, payable: &Payable<'_>) -> Result<PayPage, GatewayError> {
        let mut request = payable.request_fields(&self.pid)?;
        let page = match self.protocol {
            Protocol::V1 { .. } => "mapi.php",
            Protocol::V2 { .. } => {
                request.extend([("method", "web".into()), ("timestamp", self.timestamp().into())]);
                "api/pay/create"
            }
        };
        let reply = self.post_repeatable(page, request, TIMEOUT).await?;
        PayPage::read(&self.protocol, &self.fields(&reply)?, self.clock.now())
    }

    /// Asks about the order `order_no`, or about its payment `trade_no` where one is named, all attempts within `timeout`.
    pub(crate) async fn query_within(
        &self,
        order_no: &OrderNo,
        trade_no: Option<&str>,
        timeout: Duration,
    ) -> Result<Answer, GatewayError> {
        let (field, number) = trade_no.map_or(("out_trade_no", order_no.as_str()), |trade_no| ("trade_no", trade_no));
        let reply = match &self.protocol {
            Protocol::V1 { key, .. } => {
                let query = [("act", "order"), ("pid", self.pid.as_str()), ("key", key.expose()), (field, number)];
                let url = format!("{}api.php?{}", self.base_url, encode(query));
                self.client.get(&url, timeout).await?
            }
            Protocol::V2 { .. } => {
                let request = self.v2_request(field, number);
                self.post_repeatable("api/pay/query", request, timeout).await?
            }
        };
        Answer::read(&self.protocol, &reply.body, &self.fields(&reply)?, self.clock.now())
    }

    /// Asks to give `amount` of the payment `trade_no` back; where that number is blank, of whichever payment paid the order.
    ///
    /// An error means that nothing was done. It is sent once; V2 gateways know a second request for the same order by its number.
    pub(crate) async fn refund(
        &self,
        order_no: &OrderNo,
        trade_no: &str,
        amount: Amount,
    ) -> Result<RefundReply, GatewayError> {
        let (field, number) =
            if trade_no.is_empty() { ("out_trade_no", order_no.as_str()) } else { ("trade_no", trade_no) };
        let money = amount.to_string();
        let (page, request) = match &self.protocol {
            Protocol::V1 { key, .. } => {
                let fields = [("pid", self.pid.as_str()), ("key", key.expose()), (field, number), ("money", &money)];
                ("api.php?act=refund", fields.map(|(key, value)| (key, value.to_owned())).into())
            }
            Protocol::V2 { .. } => {
                let mut request = self.v2_request(field, number);
                request.extend([("money", money.into()), ("out_refund_no", order_no.as_str().into())]);
                ("api/pay/refund", self.protocol.sign(request))
            }
        };
        let url = format!("{}{page}", self.base_url);
        let reply = match self.client.post_form(&url, &borrowed(&request), TIMEOUT).await {
            Ok(reply) => reply,
            Err(error) if error.may_have_arrived() => return Ok(RefundReply::Unclear(error.into())),
            Err(error) => return Err(error.into()),
        };
        if reply.status == 429 {
            return Err(GatewayError::RateLimited(reply.retry_after));
        }
        let asked = RefundAsked { pid: &self.pid, order_no, trade_no, amount };
        Ok(RefundReply::read(&self.protocol, &reply, &asked, self.clock.now()))
    }

    /// V2: asks how far the refund of the order `order_no` has come.
    pub(crate) async fn refund_query(&self, order_no: &OrderNo) -> Result<RefundState, GatewayError> {
        let fields = self.ask_v2("api/pay/refundquery", "out_refund_no", order_no).await?;
        RefundState::read(&self.protocol, &fields, order_no, self.clock.now())
    }

    /// V2: asks to take no payment for the order `order_no` any more.
    pub(crate) async fn close(&self, order_no: &OrderNo) -> Result<(), GatewayError> {
        let fields = self.ask_v2("api/pay/close", "out_trade_no", order_no).await?;
        self.protocol.check(&fields, &[], self.clock.now())
    }

    async fn ask_v2(&self, page: &str, field: &'static str, order_no: &OrderNo) -> Result<Fields, GatewayError> {
        let Protocol::V2 { .. } = self.protocol else {
            return Err(GatewayError::Unsupported);
        };
        let reply = self.post_repeatable(page, self.v2_request(field, order_no.as_str()), TIMEOUT).await?;
        self.fields(&reply)
    }

    /// What every V2 request about an order has.
    fn v2_request<'a>(&'a self, field: &'static str, number: &'a str) -> Request<'a> {
        vec![("pid", self.pid.as_str().into()), ("timestamp", self.timestamp().into()), (field, number.into())]
    }

    /// Now, as V2 requests say it: in Unix seconds.
    fn timestamp(&self) -> String {
        self.clock.now().ms().div_euclid(1000).to_string()
    }

    async fn post_repeatable(
        &self,
        page: &str,
        request: Request<'_>,
        timeout: Duration,
    ) -> Result<Reply, OutgoingError> {
        let signed = self.protocol.sign(request);
        let url = format!("{}{page}", self.base_url);
        self.client.post_repeatable_form(&url, &borrowed(&signed), timeout).await
    }

    /// The fields of a reply, whatever its status: gateways answer with 200 when they fail, and otherwise when they do not.
    fn fields(&self, reply: &Reply) -> Result<Fields, GatewayError> {
        if reply.status == 429 || (reply.status == 503 && reply.retry_after.is_some()) {
            return Err(GatewayError::RateLimited(reply.retry_after));
        }
        Fields::parse(&reply.body)
            .ok_or_else(|| GatewayError::NotJson { status: reply.status, beginning: self.protocol.told(&reply.body) })
    }
}

fn borrowed<'a>(request: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    request.iter().map(|(key, value)| (*key, value.as_str())).collect()
}
