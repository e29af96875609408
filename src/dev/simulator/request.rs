//! What merchants ask for: forms read as PHP reads them, and the checks that a gateway makes.

use std::borrow::Cow;
use std::net::IpAddr;

use hyper::Uri;

use super::refusal::Refusal;
use crate::channel::epay::{Form, decode_pairs};
use crate::domain::money::Amount;

/// How many bytes of a product's name are kept.
const NAME_BYTES_MAX: usize = 127;
/// How long an order number may be.
const ORDER_NO_BYTES_MAX: usize = 32;
/// How long any other text may be.
const TEXT_BYTES_MAX: usize = 255;

/// What a merchant wants paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Purchase {
    pub(super) out_trade_no: String,
    /// Empty: the buyer chooses at the gateway.
    pub(super) payment_type: String,
    pub(super) notify_url: String,
    pub(super) return_url: String,
    pub(super) name: String,
    pub(super) money: Amount,
    pub(super) param: String,
}

/// Reads a form as PHP does: whatever the keys are, and the last value of a key.
pub(super) fn read(encoded: &[u8]) -> Result<Form<'_>, Refusal> {
    let pairs = decode_pairs(encoded).map_err(|_| Refusal::Malformed)?;
    let mut fields: Vec<(Cow<str>, Cow<str>)> = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        match fields.iter_mut().find(|(known, _)| *known == key) {
            Some((_, earlier)) => *earlier = value,
            None => fields.push((key, value)),
        }
    }
    Ok(Form::as_sent(fields))
}

/// A field that must be there.
pub(super) fn require<'a>(form: &'a Form, key: &'static str) -> Result<&'a str, Refusal> {
    form.get(key).filter(|value| !value.trim().is_empty()).ok_or(Refusal::Missing(key))
}

/// An amount of which something is left to pay or pay back.
pub(super) fn money(form: &Form) -> Result<Amount, Refusal> {
    let money = Amount::parse_received(require(form, "money")?).ok();
    money.filter(|money| money.fen() > 0).ok_or(Refusal::Bad("money"))
}

/// Reads what is to be paid. The `type` may be left out where a page lets the buyer choose.
pub(super) fn purchase(form: &Form, type_may_be_empty: bool) -> Result<Purchase, Refusal> {
    let text = |key: &'static str| {
        let value = form.get(key).unwrap_or_default();
        if value.len() <= TEXT_BYTES_MAX { Ok(value.to_owned()) } else { Err(Refusal::Bad(key)) }
    };
    if !type_may_be_empty {
        require(form, "type")?;
    }
    let out_trade_no = require(form, "out_trade_no")?;
    let order_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'|' | b'-');
    if out_trade_no.len() > ORDER_NO_BYTES_MAX || !out_trade_no.bytes().all(order_byte) {
        return Err(Refusal::Bad("out_trade_no"));
    }
    let name = require(form, "name")?;
    Ok(Purchase {
        out_trade_no: out_trade_no.to_owned(),
        payment_type: text("type")?,
        notify_url: notify_url(require(form, "notify_url")?)?,
        return_url: return_url(&text("return_url")?)?,
        name: name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned(),
        money: money(form)?,
        param: text("param")?,
    })
}

/// The buyer's address, which a server that asks for an order must know.
pub(super) fn clientip<'a>(form: &'a Form) -> Result<&'a str, Refusal> {
    let address = require(form, "clientip")?;
    let is_address = address.parse::<IpAddr>().is_ok();
    if is_address { Ok(address) } else { Err(Refusal::Bad("clientip")) }
}

/// The merchant's own number of a refund, which may be left out.
pub(super) fn refund_number<'a>(form: &'a Form) -> Result<Option<&'a str>, Refusal> {
    let number = form.get("out_refund_no").filter(|number| !number.is_empty());
    if number.is_some_and(|number| number.len() > TEXT_BYTES_MAX) {
        return Err(Refusal::Bad("out_refund_no"));
    }
    Ok(number)
}

fn notify_url(url: &str) -> Result<String, Refusal> {
    let uri = parsed(url).ok_or(Refusal::Bad("notify_url"))?;
    match uri.scheme_str() {
        Some("http") => Ok(url.to_owned()),
        Some("https") => Err(Refusal::NotHttp),
        _ => Err(Refusal::Bad("notify_url")),
    }
}

fn return_url(url: &str) -> Result<String, Refusal> {
    let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https"));
    if url.is_empty() || parsed(url).as_ref().is_some_and(is_http) {
        return Ok(url.to_owned());
    }
    Err(Refusal::Bad("return_url"))
}

fn parsed(url: &str) -> Option<Uri> {
    let uri: Option<Uri> = url.parse().ok().filter(|_| url.len() <= TEXT_BYTES_MAX && !url.contains('#'));
    uri.filter(|uri| uri.host().is_some_and(|host| !host.is_empty()))
}

/// A URL with more behind it in its query string.
pub(super) fn with_query(url: &str, query: &str) -> String {
    format!("{url}{}{query}", if url.contains('?') { '&' } else { '?' })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "pid=1002&type=alipay&out_trade_no=A1&notify_url=http%3A%2F%2Fa%2Fn&return_url=https%3A%2F%2Fa%2Fr\
                        &name=VIP&money=36.00&param=7";

    fn asked(text: &str) -> Result<Purchase, Refusal> {
        purchase(&read(text.as_bytes())?, false)
    }

    #[test]
    fn a_purchase_is_read() {
        let expected = Purchase {
            out_trade_no: "A1".into(),
            payment_type: "alipay".into(),
            notify_url: "http://a/n".into(),
            return_url: "https://a/r".into(),
            name: "VIP".into(),
            money: Amount::from_fen(3600).unwrap(),
            param: "7".into(),
        };
        assert_eq!(asked(FORM), Ok(expected.clone()));
        // The last of a key, as in PHP.
        assert_eq!(asked(&format!("name=x&money=1&{FORM}")), Ok(expected));
    }

    #[test]
    fn what_is_wrong_with_a_purchase_is_named() {
        let long = "x".repeat(256);
        for (field, value, refusal) in [
            ("type", "", Refusal::Missing("type")),
            ("out_trade_no", "", Refusal::Missing("out_trade_no")),
            ("out_trade_no", "a%20b", Refusal::Bad("out_trade_no")),
            ("out_trade_no", "123456789012345678901234567890123", Refusal::Bad("out_trade_no")),
            ("notify_url", "", Refusal::Missing("notify_url")),
            ("notify_url", "x", Refusal::Bad("notify_url")),
            ("notify_url", "ftp://a/n", Refusal::Bad("notify_url")),
            ("notify_url", "http://", Refusal::Bad("notify_url")),
            ("notify_url", "http://a/%23b", Refusal::Bad("notify_url")),
            ("notify_url", "https://a/n", Refusal::NotHttp),
            ("return_url", "javascript:x", Refusal::Bad("return_url")),
            ("return_url", "http://a/%0a", Refusal::Bad("return_url")),
            ("name", "+", Refusal::Missing("name")),
            ("money", "0", Refusal::Bad("money")),
            ("money", "-1", Refusal::Bad("money")),
            ("money", "1.001", Refusal::Bad("money")),
            ("param", &long, Refusal::Bad("param")),
            ("param", "%zz", Refusal::Malformed),
        ] {
            assert_eq!(asked(&format!("{FORM}&{field}={value}")), Err(refusal), "{field}={value}");
        }
    }

    #[test]
    fn only_a_page_lets_the_buyer_choose_the_type() {
        let form = FORM.replace("type=alipay&", "");
        assert!(purchase(&read(form.as_bytes()).unwrap(), true).is_ok());
    }

    #[test]
    fn a_long_name_is_cut_between_characters() {
        let form = FORM.replace("VIP", &"会".repeat(50));
        assert_eq!(asked(&form).unwrap().name, "会".repeat(42));
    }

    #[test]
    fn a_query_string_is_added_to_a_url() {
        assert_eq!(with_query("http://a/n", "b=1"), "http://a/n?b=1");
        assert_eq!(with_query("http://a/n?c=2", "b=1"), "http://a/n?c=2&b=1");
    }
}
