//! Orders: created, shown, as a QR code; and the packages that they can be for.

use std::net::IpAddr;

use hyper::StatusCode;
use hyper::header::{HeaderValue, LOCATION};
use serde::Serialize;

use super::fields::{Fields, required};
use super::problem::Problem;
use super::request::Asked;
use super::{Api, json, qr};
use crate::config::{CREDITS_MAX, faults_of_gateway_text};
use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, Localized, localized};
use crate::domain::money::Amount;
use crate::domain::order::{Order, OrderNo, OrderStatus, OrderView, PayKind, ReviewReason, SettledBy};
use crate::net::response::{Response, respond_uncached};
use crate::payments::checkout::{DEFAULT_PAYMENT_TYPE, Goods, Wish, is_payment_type};
use crate::store::Idempotency;

/// What a creation asks for, with its keys in alphabetical order and its defaults filled in.
#[derive(Clone, Debug, Serialize)]
struct NewOrder {
    amount: Option<Amount>,
    client_ip: Option<IpAddr>,
    credits: Option<i64>,
    language: Option<Language>,
    merchant: Option<String>,
    name: Option<String>,
    package: Option<String>,
    param: Option<String>,
    telegram_id: i64,
    #[serde(rename = "type")]
    payment_type: String,
}

/// What is worth saying about the payment page; `null` where there is nothing.
#[derive(Serialize)]
#[serde(transparent)]
struct Remark<'a>(Option<&'a str>);

/// An order as the bot sees it, with its keys in alphabetical order: the order's public shape, and how to show its page.
#[derive(Serialize)]
struct ShownOrder<'a> {
    amount: Amount,
    created_at: Timestamp,
    credits: i64,
    merchant: &'a str,
    order_no: &'a OrderNo,
    package: Option<&'a str>,
    paid_at: Option<Timestamp>,
    pay_kind: Option<PayKind>,
    pay_url: Option<&'a str>,
    qr: Option<Qr<'a>>,
    /// Only in the answer to a creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<Remark<'a>>,
    review_reason: Option<ReviewReason>,
    settled_by: Option<SettledBy>,
    status: OrderStatus,
    telegram_id: i64,
    trade_no: Option<&'a str>,
    #[serde(rename = "type")]
    payment_type: &'a str,
}

/// What a QR code of the order has to say.
#[derive(Serialize)]
struct Qr<'a> {
    text: &'a str,
}

/// A package, with its keys in alphabetical order.
#[derive(Serialize)]
struct ShownPackage<'a> {
    credits: i64,
    id: &'a str,
    name: &'a str,
    price: Amount,
}

/// The packages; an object, so that there can be more beside them.
#[derive(Serialize)]
struct Packages<'a> {
    packages: Vec<ShownPackage<'a>>,
}

impl Api {
    pub(super) async fn create_order(&self, asked: &Asked) -> Result<Response, Problem> {
        let wanted = NewOrder::parse(&asked.body)?;
        let idempotency = asked.idempotency(&wanted);
        let checkout = self.cashier.create(wanted.wish(idempotency)?).await?;
        let status = if checkout.repeated { StatusCode::OK } else { StatusCode::CREATED };
        let remark = checkout.remark.map(|remark| remark.text(self.config.load().language));
        let mut response = json(status, &shown(&checkout.order, self.clock.now(), Some(Remark(remark.as_deref()))));
        let location = format!("/v1/orders/{}", checkout.order.terms.order_no);
        let location = HeaderValue::try_from(location).expect("order numbers are letters and digits");
        response.headers_mut().insert(LOCATION, location);
        Ok(response)
    }

    pub(super) async fn show_order(&self, order_no: &str) -> Result<Response, Problem> {
        Ok(json(StatusCode::OK, &shown(&self.order(order_no).await?, self.clock.now(), None)))
    }

    pub(super) async fn qr_code(&self, order_no: &str) -> Result<Response, Problem> {
        let order = self.order(order_no).await?;
        let no_code = |detail| Problem::new(StatusCode::NOT_FOUND, "no_qr_code", detail);
        let page = order.open_pay_page(self.clock.now()).ok_or_else(|| no_code(localized!("api.no_pay_link")))?;
        let png = qr::png(&page.url).ok_or_else(|| no_code(localized!("api.no_qr_code")))?;
        Ok(respond_uncached(StatusCode::OK, "image/png", png))
    }

    pub(super) fn packages(&self) -> Response {
        let config = self.config.load();
        let packages = config.packages.iter().map(|package| ShownPackage {
            credits: package.credits,
            id: &package.id,
            name: &package.name,
            price: package.price,
        });
        json(StatusCode::OK, &Packages { packages: packages.collect() })
    }

    async fn order(&self, order_no: &str) -> Result<Order, Problem> {
        let order = match order_no.parse::<OrderNo>() {
            Ok(order_no) => self.store.order(order_no.as_str()).await?,
            Err(_) => None,
        };
        order.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no_such_order", localized!("api.no_such_order")))
    }
}

fn shown<'a>(order: &'a Order, now: Timestamp, remark: Option<Remark<'a>>) -> ShownOrder<'a> {
    // All of them by name: a field that is added to an order's public shape has to be added here.
    let OrderView {
        amount,
        created_at,
        credits,
        merchant,
        order_no,
        package,
        paid_at,
        pay_url,
        review_reason,
        settled_by,
        status,
        telegram_id,
        trade_no,
        payment_type,
    } = order.view(now);
    ShownOrder {
        amount,
        created_at,
        credits,
        merchant,
        order_no,
        package,
        paid_at,
        pay_kind: order.open_pay_page(now).map(|page| page.kind),
        pay_url,
        qr: pay_url.map(|text| Qr { text }),
        remark,
        review_reason,
        settled_by,
        status,
        telegram_id,
        trade_no,
        payment_type,
    }
}

impl NewOrder {
    const FIELDS: &[&str] =
        &["amount", "client_ip", "credits", "language", "merchant", "name", "package", "param", "telegram_id", "type"];

    fn parse(body: &[u8]) -> Result<Self, Problem> {
        let mut fields = Fields::parse(body, Self::FIELDS)?;
        let is_package = fields.has("package");
        let is_credits = fields.has("amount") && fields.has("credits");
        let has_either = fields.has("amount") || fields.has("credits") || fields.has("name");
        if if is_package { has_either } else { !is_credits } {
            return Err(Problem::bad_request("invalid_goods", localized!("api.package_or_amount")));
        }
        let any_text = || localized!("api.expected_text");
        let verbatim = |text: &str| Some(text.to_owned());
        let payment_type = fields.text(
            "type",
            || localized!("cli.bad_payment_type"),
            |text| is_payment_type(text).then(|| text.to_owned()),
        )?;
        Ok(Self {
            telegram_id: required("telegram_id", fields.integer("telegram_id", 1..=i64::MAX)?)?,
            amount: fields.text("amount", || localized!("api.expected_amount"), read_amount)?,
            credits: fields.integer("credits", 1..=CREDITS_MAX)?,
            package: fields.text("package", any_text, verbatim)?,
            merchant: fields.text("merchant", any_text, verbatim)?,
            name: fields.checked_text("name", faults_of_gateway_text)?,
            param: fields.checked_text("param", faults_of_gateway_text)?,
            // Telegram knows more languages than we do: an unknown one is no mistake of the bot's.
            language: fields.text("language", any_text, |tag| Some(Language::of_tag(tag)))?.flatten(),
            client_ip: fields.text("client_ip", || localized!("api.expected_ip"), |text| text.parse().ok())?,
            payment_type: payment_type.unwrap_or_else(|| DEFAULT_PAYMENT_TYPE.to_owned()),
        })
    }

    fn wish(self, idempotency: Idempotency) -> Result<Wish, Problem> {
        let goods = Goods::of(self.package, self.amount.zip(self.credits), self.name);
        let goods = goods.ok_or_else(|| Problem::bad_request("invalid_goods", localized!("api.package_or_amount")))?;
        Ok(Wish {
            telegram_id: self.telegram_id,
            goods,
            payment_type: self.payment_type,
            merchant: self.merchant,
            param: self.param,
            language: self.language,
            client_ip: self.client_ip,
            idempotency: Some(idempotency),
        })
    }
}

fn read_amount(text: &str) -> Option<Amount> {
    Amount::parse_price(text).ok().filter(|amount| amount.fen() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_wishes_have_one_canonical_form() {
        let canonical = |body: &str| serde_json::to_string(&NewOrder::parse(body.as_bytes()).unwrap()).unwrap();
        let plain = canonical(r#"{"telegram_id":1,"package":"silver"}"#);
        for same in [
            r#"{"package":"silver", "telegram_id":1}"#,
            r#"{"telegram_id":1,"package":"silver","type":"alipay"}"#,
            r#"{"telegram_id":1,"package":"silver","language":"de","param":null}"#,
        ] {
            assert_eq!(canonical(same), plain, "{same}");
        }
        for other in
            [r#"{"telegram_id":2,"package":"silver"}"#, r#"{"telegram_id":1,"package":"silver","type":"wxpay"}"#]
        {
            assert_ne!(canonical(other), plain, "{other}");
        }
    }

    #[test]
    fn wishes_that_make_no_sense_are_refused_by_field() {
        for (rest, code, word) in [
            (r#""telegram_id":1"#, "invalid_goods", "package"),
            (r#""telegram_id":1,"package":"a","amount":"1.00","credits":1"#, "invalid_goods", "package"),
            (r#""telegram_id":1,"package":"a","name":"b""#, "invalid_goods", "package"),
            (r#""telegram_id":1,"amount":"1.00""#, "invalid_goods", "credits"),
            (r#""package":"a""#, "missing_field", "telegram_id"),
            (r#""telegram_id":0,"package":"a""#, "invalid_field", "telegram_id"),
            (r#""telegram_id":"1","package":"a""#, "invalid_field", "telegram_id"),
            (r#""telegram_id":1,"amount":36,"credits":1"#, "invalid_field", "36.00"),
            (r#""telegram_id":1,"amount":"0.001","credits":1"#, "invalid_field", "amount"),
            (r#""telegram_id":1,"amount":"0","credits":1"#, "invalid_field", "amount"),
            (r#""telegram_id":1,"amount":"1","credits":0"#, "invalid_field", "credits"),
            (r#""telegram_id":1,"amount":"1","credits":1,"name":"a&b""#, "invalid_field", "name"),
            (r#""telegram_id":1,"package":"a","param":"a=b""#, "invalid_field", "param"),
            (r#""telegram_id":1,"package":"a","type":"ali pay""#, "invalid_field", "type"),
            (r#""telegram_id":1,"package":"a","client_ip":"here""#, "invalid_field", "client_ip"),
            (r#""telegram_id":1,"package":"a","language":7"#, "invalid_field", "language"),
            (r#""telegram_id":1,"package":"a","order_no":"X""#, "unknown_field", "order_no"),
        ] {
            let problem = NewOrder::parse(format!("{{{rest}}}").as_bytes()).unwrap_err();
            assert_eq!(problem.code(), code, "{rest}");
            assert!(problem.detail().contains(word), "{rest}: {}", problem.detail());
        }
    }
}
