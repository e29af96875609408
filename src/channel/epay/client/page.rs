//! Where a buyer pays: what a gateway is told about an order, and the page or code that it answers with.

use std::borrow::Cow;
use std::net::IpAddr;

use super::super::text::forbidden_char;
use super::error::GatewayError;
use super::fields::Fields;
use super::protocol::{Protocol, Request};
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::OrderNo;

/// How many bytes of a product name gateways keep.
const NAME_BYTES_MAX: usize = 127;

/// How long a link may be: a QR code holds little more.
const LINK_BYTES_MAX: usize = 2048;

/// The code with which V1 gateways grant a payment page.
const V1_SUCCESS: &[i64] = &[1];

/// Schemes whose links are not for going somewhere: who opens one runs or reads something.
const DANGEROUS_SCHEMES: [&str; 6] = ["about", "blob", "data", "file", "javascript", "vbscript"];

/// An order as a gateway is told of it.
#[derive(Clone, Debug)]
pub(crate) struct Payable<'a> {
    /// Our number of it.
    pub(crate) order_no: &'a OrderNo,
    /// The payment method; empty for the gateway's own page to choose one.
    pub(crate) payment_type: &'a str,
    /// The product; what is longer than gateways keep is cut off.
    pub(crate) name: &'a str,
    /// What it costs.
    pub(crate) amount: Amount,
    /// What is to come back in the notification.
    pub(crate) param: Option<&'a str>,
    /// Where notifications go; without a query, which gateways mangle.
    pub(crate) notify_url: &'a str,
    /// Where the buyer goes afterwards.
    pub(crate) return_url: &'a str,
    /// The buyer's address.
    pub(crate) client_ip: IpAddr,
    /// What the buyer has in hand: `pc`, `mobile`, `qq`, `wechat`, `alipay`, `app`, `jump`.
    pub(crate) device: &'a str,
}

/// A gateway's way to pay one order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PayPage {
    /// The gateway's number of the payment, where it says so already.
    pub(crate) trade_no: Option<String>,
    /// Where the buyer goes.
    pub(crate) target: PayTarget,
}

/// Where a buyer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PayTarget {
    /// To this page: http or https.
    Url(String),
    /// Nowhere: this is what a QR code has to say, for the payment method's own app to scan.
    QrCode(String),
    /// To the app that this link opens.
    UrlScheme(String),
}

impl<'a> Payable<'a> {
    /// The fields that a link to the gateway's page has.
    pub(super) fn link_fields(&self, pid: &'a str) -> Result<Request<'a>, GatewayError> {
        // Cut where the gateway would cut it, which may leave a blank at the end.
        let name = self.name[..self.name.floor_char_boundary(NAME_BYTES_MAX)].trim_end();
        let param = self.param.unwrap_or_default();
        for (field, text) in
            [("name", self.name), ("param", param), ("type", self.payment_type), ("device", self.device)]
        {
            if forbidden_char(text).is_some() {
                return Err(GatewayError::BadText(field));
            }
        }
        if name.trim().is_empty() {
            return Err(GatewayError::BadText("name"));
        }
        if self.notify_url.is_empty() || self.notify_url.contains(['?', '#', '&']) {
            return Err(GatewayError::BadText("notify_url"));
        }
        Ok(vec![
            ("pid", Cow::Borrowed(pid)),
            ("type", self.payment_type.into()),
            ("out_trade_no", self.order_no.as_str().to_owned().into()),
            ("notify_url", self.notify_url.into()),
            ("return_url", self.return_url.into()),
            ("name", name.into()),
            ("money", self.amount.to_string().into()),
            ("param", param.into()),
        ])
    }

    /// The fields that a request for a payment page has.
    pub(super) fn request_fields(&self, pid: &'a str) -> Result<Request<'a>, GatewayError> {
        let mut fields = self.link_fields(pid)?;
        let client_ip = self.client_ip.to_canonical().to_string();
        fields.extend([("clientip", client_ip.into()), ("device", self.device.into())]);
        Ok(fields)
    }
}

impl PayPage {
    /// Reads the reply to a request for a payment page.
    pub(super) fn read(protocol: &Protocol, fields: &Fields, now: Timestamp) -> Result<Self, GatewayError> {
        protocol.check(fields, V1_SUCCESS, now)?;
        let target = match protocol {
            Protocol::V1 { .. } => v1_target(fields)?,
            Protocol::V2 { .. } => v2_target(protocol, fields)?,
        };
        Ok(Self { trade_no: fields.owned("trade_no"), target })
    }
}

/// V1 names the way to pay by the field that it stands in.
fn v1_target(fields: &Fields) -> Result<PayTarget, GatewayError> {
    let told = ["payurl", "qrcode", "urlscheme"].into_iter().find_map(|field| Some((field, fields.text(field)?)));
    match told {
        Some(("payurl", link)) => page(link).ok_or(GatewayError::Incomplete("payurl")),
        Some(("qrcode", text)) => qr_code(text).ok_or(GatewayError::Incomplete("qrcode")),
        Some((_, link)) => scheme_link(link).ok_or(GatewayError::Incomplete("urlscheme")),
        None => Err(GatewayError::Incomplete("payurl")),
    }
}

/// V2 names the way to pay in `pay_type`.
fn v2_target(protocol: &Protocol, fields: &Fields) -> Result<PayTarget, GatewayError> {
    let kind = fields.text("pay_type").ok_or(GatewayError::Incomplete("pay_type"))?;
    let read = match kind {
        "jump" => page,
        "qrcode" => qr_code,
        "urlscheme" => scheme_link,
        // A page to show, or what only a script inside an app can use.
        _ => return Err(GatewayError::NotPayable(protocol.told(kind.as_bytes()))),
    };
    fields.text("pay_info").and_then(read).ok_or(GatewayError::Incomplete("pay_info"))
}

fn page(link: &str) -> Option<PayTarget> {
    is_web_link(link).then(|| PayTarget::Url(link.to_owned()))
}

/// Not every code is a link (an account's address can be one), but none may be a dangerous one.
fn qr_code(text: &str) -> Option<PayTarget> {
    let is_harmless = scheme(text).is_none_or(|scheme| !DANGEROUS_SCHEMES.contains(&scheme.as_str()));
    (is_harmless && is_printable(text)).then(|| PayTarget::QrCode(text.to_owned()))
}

fn scheme_link(link: &str) -> Option<PayTarget> {
    let is_of_letters = scheme(link).is_some_and(|scheme| {
        scheme.bytes().all(|b| b.is_ascii_lowercase()) && !DANGEROUS_SCHEMES.contains(&scheme.as_str())
    });
    (is_of_letters && is_printable(link)).then(|| PayTarget::UrlScheme(link.to_owned()))
}

fn is_web_link(link: &str) -> bool {
    let after_scheme = scheme(link).filter(|scheme| scheme == "http" || scheme == "https").map(|s| &link[s.len()..]);
    let host = after_scheme.and_then(|rest| rest.strip_prefix("://"));
    host.is_some_and(|host| !host.starts_with(['/', '?', '#', ':', '@']) && !host.is_empty()) && is_printable(link)
}

/// What stands before the first `:`, in lower case.
fn scheme(link: &str) -> Option<String> {
    let (scheme, _) = link.split_once(':')?;
    Some(scheme.to_ascii_lowercase()).filter(|scheme| !scheme.is_empty())
}

/// Short enough, and without the characters that end a link where it is written down.
fn is_printable(link: &str) -> bool {
    let ends_links = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '<' | '>' | '\\' | '`');
    link.len() <= LINK_BYTES_MAX && !link.contains(ends_links)
}
