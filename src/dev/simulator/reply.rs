//! Replies of the API, as loosely typed as those of real gateways: numbers as text here and there, and nulls.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::book::{Refund, State, Trade};
use super::refusal::Refusal;
use crate::channel::epay::{Form, PrivateKey};
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::named::named_enum;
use crate::domain::secret::Secret;

named_enum! {
    /// What a merchant is given to show to the buyer.
    PayAnswer {
        /// A page to send the browser to.
        PayUrl = "payurl",
        /// A text to show as a QR code.
        QrCode = "qrcode",
        /// A link that opens an app.
        UrlScheme = "urlscheme",
    }
}

impl PayAnswer {
    fn text(self, trade_no: &str, base: &str) -> String {
        match self {
            Self::PayUrl | Self::QrCode => pay_url(trade_no, base),
            Self::UrlScheme => format!("weixin://dl/business/?t={trade_no}"),
        }
    }
}

/// The page on which an order is paid.
pub(super) fn pay_url(trade_no: &str, base: &str) -> String {
    format!("{base}pay/{trade_no}")
}

/// What a reply to a query lies about.
#[derive(Clone, Debug, Default)]
pub(super) struct Lies {
    /// Another merchant's id.
    pub(super) pid: Option<String>,
    /// Another amount.
    pub(super) money: Option<Amount>,
    /// An unpaid order has status 1.
    pub(super) status: bool,
}

impl Lies {
    /// The status that a reply says.
    pub(super) fn status_of(&self, trade: &Trade) -> u8 {
        if self.status && trade.status() == 0 { 1 } else { trade.status() }
    }
}

/// `mapi.php`: where the buyer pays.
pub(super) fn created_v1(trade: &Trade, base: &str, answer: PayAnswer) -> Value {
    let mut reply = json!({ "code": 1, "msg": "success", "trade_no": trade.trade_no });
    reply[answer.name()] = answer.text(&trade.trade_no, base).into();
    reply
}

/// `api.php?act=order`.
pub(super) fn order_v1(trade: &Trade, lies: &Lies) -> Value {
    let mut reply = order(trade, lies);
    reply.insert("code".into(), 1.into());
    reply.insert("msg".into(), "查询订单号成功！".into());
    // As a column of a database is written by PHP.
    reply.insert("status".into(), lies.status_of(trade).to_string().into());
    reply.into()
}

/// `api.php?act=query`: the merchant's account, with the key in it.
pub(super) fn merchant_v1(pid: &str, key: &Secret, orders: usize) -> Value {
    json!({
        "code": 1, "pid": loose_pid(pid), "key": key.expose(), "active": 1, "money": "0.00", "type": 1,
        "account": null, "username": null, "orders": orders, "order_today": orders.to_string(), "order_lastday": 0,
    })
}

/// `api.php?act=refund`: V1 has no field for the merchant's number of a refund, and the gateway makes one up.
pub(super) fn refunded_v1(trade: &Trade, refund: &Refund) -> Value {
    json!({
        "code": 0, "msg": format!("退款成功！退款金额¥{}", refund.money), "refund_no": refund.number,
        "out_refund_no": format!("R{}", refund.number), "trade_no": trade.trade_no, "money": refund.money,
    })
}

/// A refusal, which nobody signs.
pub(super) fn refused(refusal: Refusal, reason: &str) -> Value {
    json!({ "code": refusal.code(), "msg": reason })
}

/// `api/pay/create`.
pub(super) fn created_v2(trade: &Trade, base: &str, answer: PayAnswer) -> Map<String, Value> {
    let pay_type = match answer {
        PayAnswer::PayUrl => "jump",
        PayAnswer::QrCode => "qrcode",
        PayAnswer::UrlScheme => "urlscheme",
    };
    let mut reply = done();
    reply.insert("trade_no".into(), trade.trade_no.as_str().into());
    reply.insert("pay_type".into(), pay_type.into());
    reply.insert("pay_info".into(), answer.text(&trade.trade_no, base).into());
    reply
}

/// `api/pay/query`.
pub(super) fn order_v2(trade: &Trade, lies: &Lies) -> Map<String, Value> {
    let mut reply = done();
    reply.extend(order(trade, lies));
    reply.insert("status".into(), lies.status_of(trade).into());
    reply.insert("refundmoney".into(), trade.refunded().to_string().into());
    reply.insert("clientip".into(), trade.clientip.as_str().into());
    reply
}

/// `api/pay/refund` and `api/pay/refundquery`.
pub(super) fn refund_v2(trade: &Trade, out_refund_no: Option<&str>, refund: &Refund) -> Map<String, Value> {
    let mut reply = done();
    reply.insert("refund_no".into(), refund.number.as_str().into());
    reply.insert("out_refund_no".into(), out_refund_no.into());
    reply.insert("trade_no".into(), trade.trade_no.as_str().into());
    reply.insert("out_trade_no".into(), trade.purchase.out_trade_no.as_str().into());
    reply.insert("money".into(), refund.money.to_string().into());
    // Done at once, always.
    reply.insert("status".into(), 1.into());
    reply
}

/// A V2 reply that says only that it went well.
pub(super) fn done() -> Map<String, Value> {
    let mut reply = Map::new();
    reply.insert("code".into(), 0.into());
    reply.insert("msg".into(), "success".into());
    reply
}

/// Adds the time and the signature that V2 replies have.
pub(super) fn signed(mut reply: Map<String, Value>, platform_key: &PrivateKey, now: Timestamp) -> Value {
    reply.insert("timestamp".into(), now.ms().div_euclid(1000).to_string().into());
    let fields = reply.iter().map(|(key, value)| (Cow::from(key.as_str()), signed_text(value))).collect();
    let sign = platform_key.sign(&Form::as_sent(fields));
    reply.insert("sign".into(), sign.into());
    reply.insert("sign_type".into(), "RSA".into());
    reply.into()
}

/// A value in the signing string: numbers as they are written, null as nothing.
fn signed_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Null => "".into(),
        number => number.to_string().into(),
    }
}

/// What both protocols tell of an order.
fn order(trade: &Trade, lies: &Lies) -> Map<String, Value> {
    let paid_at = match trade.state {
        State::Paid { at, .. } => Some(at.to_gateway_time()),
        State::Unpaid | State::Closed => None,
    };
    let purchase = &trade.purchase;
    let mut fields = Map::new();
    for (key, value) in [
        ("trade_no", trade.trade_no.as_str().into()),
        ("out_trade_no", purchase.out_trade_no.as_str().into()),
        ("api_trade_no", paid_at.is_some().then(|| format!("4200{}", trade.trade_no)).into()),
        ("type", trade.payment_type().into()),
        ("pid", loose_pid(lies.pid.as_deref().unwrap_or(&trade.pid))),
        ("addtime", trade.created_at.to_gateway_time().into()),
        ("endtime", paid_at.into()),
        ("name", purchase.name.as_str().into()),
        ("money", lies.money.unwrap_or(trade.money()).to_string().into()),
        ("param", purchase.param.as_str().into()),
        ("buyer", Value::Null),
    ] {
        fields.insert(key.into(), value);
    }
    if lies.status_of(trade) != trade.status() {
        fields.insert("trade_status".into(), "WAIT_BUYER_PAY".into());
    }
    fields
}

/// A merchant's id: a number where it is one, as PHP makes it.
fn loose_pid(pid: &str) -> Value {
    // Not where the number would be written in another way.
    let number: Option<u64> = pid.parse().ok();
    number.filter(|number| number.to_string() == pid).map_or_else(|| pid.into(), Value::from)
}
