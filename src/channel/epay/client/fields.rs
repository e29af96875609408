//! A gateway's reply as fields: JSON, as loosely typed as it really comes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::super::form::{Form, is_blank, is_key};
use super::super::notification::is_fresh;
use super::super::rsa::PlatformKey;
use super::super::text::has_bare_ampersand;
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;

/// How many fields a reply may have; gateways send about twenty.
const FIELDS_MAX: usize = 256;

/// How many digits a whole number may have, so that it fits.
const DIGITS_MAX: usize = 18;

/// The one field whose value may have an `&`, since it is a link. It decides nothing about money.
const LINK_FIELD: &str = "pay_info";

/// The fields of a reply, sorted by key, each key once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, Value)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    /// A number as it is written: order numbers have more digits than any number type.
    Number(String),
    /// What is neither text nor number, and stands for nothing: null, true, false, an array, an object, broken text.
    Other,
}

impl Fields {
    /// Reads a reply's body; `None` where it is not one JSON object with each key once, whatever stands around it.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        // Messages in the gateway's own encoding occur, and are the only such text.
        let text = String::from_utf8_lossy(body);
        let json = text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\0'));
        let Object(members) = serde_json::from_str(json).ok()?;
        let mut fields: Vec<_> = members.into_iter().map(|(key, value)| (key, Value::of(value))).collect();
        fields.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let is_unique = fields.windows(2).all(|pair| pair[0].0 != pair[1].0);
        is_unique.then_some(Self(fields))
    }

    /// The text or number of `key`, as it is written; `None` where it is absent, blank or anything else.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok()?;
        self.0[at].1.signed().filter(|text| !is_blank(text))
    }

    /// The text of `key` for keeping.
    pub(super) fn owned(&self, key: &str) -> Option<String> {
        self.text(key).map(str::to_owned)
    }

    /// The whole number of `key`, written as a number or as text.
    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        whole(self.text(key)?)
    }

    /// The money of `key`.
    pub(super) fn money(&self, key: &str) -> Option<Amount> {
        Amount::parse_received(self.text(key)?).ok()
    }

    /// Whether a V2 gateway signed this, about now, and with one reading only.
    pub(super) fn is_signed_by(&self, key: &PlatformKey, now: Timestamp) -> bool {
        self.text("sign_type") == Some("RSA")
            && self.text("timestamp").is_some_and(|timestamp| is_fresh(timestamp, now))
            && self.signed().all(|(k, v)| is_key(k) && (k == LINK_FIELD || !has_bare_ampersand(v)))
            && self.text("sign").is_some_and(|sign| key.verify(&self.form(), sign))
    }

    fn form(&self) -> Form<'_> {
        Form::as_sent(self.signed().map(|(key, value)| (Cow::Borrowed(key), Cow::Borrowed(value))).collect())
    }

    fn signed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(key, value)| Some((key.as_str(), value.signed()?)))
    }
}

impl Value {
    fn of(raw: &RawValue) -> Self {
        let json = raw.get();
        match json.bytes().next() {
            Some(b'"') => serde_json::from_str(json).map_or(Self::Other, Self::Text),
            Some(b'-' | b'0'..=b'9') => Self::Number(json.to_owned()),
            _ => Self::Other,
        }
    }

    /// The value as it stands in a signing string, which has no place for anything but text and numbers.
    fn signed(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Number(text) => Some(text),
            Self::Other => None,
        }
    }
}

/// A whole number: `1`, `-3`, and `1.0` as some languages write it.
fn whole(text: &str) -> Option<i64> {
    let (number, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = number.strip_prefix('-').unwrap_or(number);
    let is_whole = (1..=DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|b| b.is_ascii_digit())
        && !decimals.is_empty()
        && decimals.bytes().all(|b| b == b'0');
    if is_whole { number.parse().ok() } else { None }
}

/// The members of an object in the order and number in which they stand there: serde's own maps would keep the last of a key.
struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            if members.len() == FIELDS_MAX {
                return Err(A::Error::custom("too many fields"));
            }
            members.push(member);
        }
        Ok(Object(members))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Option<Fields> {
        Fields::parse(json.as_bytes())
    }

    #[test]
    fn values_are_read_as_they_really_come() {
        for (json, text, integer) in [
            ("1", Some("1"), Some(1)),
            ("\"1\"", Some("1"), Some(1)),
            ("-1", Some("-1"), Some(-1)),
            ("1.0", Some("1.0"), Some(1)),
            ("\"1.00\"", Some("1.00"), Some(1)),
            ("0", Some("0"), Some(0)),
            ("1.5", Some("1.5"), None),
            ("1e0", Some("1e0"), None),
            ("20160806151343349021", Some("20160806151343349021"), None),
            ("\"+1\"", Some("+1"), None),
            ("\" 1\"", Some(" 1"), None),
            ("\"1.\"", Some("1."), None),
            ("\"-\"", Some("-"), None),
            ("\"ok\"", Some("ok"), None),
            ("\"\\u4f1a\\/\"", Some("会/"), None),
            ("\"\"", None, None),
            ("\" \\t\"", None, None),
            ("null", None, None),
            ("true", None, None),
            ("false", None, None),
            ("[1]", None, None),
            ("{\"a\":1}", None, None),
            ("\"\\ud800\"", None, None),
        ] {
            let fields = parse(&format!("{{\"b\":2,\"a\":{json}}}")).unwrap();
            assert_eq!((fields.text("a"), fields.integer("a")), (text, integer), "{json}");
            assert_eq!((fields.integer("b"), fields.text("c")), (Some(2), None));
        }
    }

    #[test]
    fn money_is_read_in_every_form_and_never_rounded() {
        for (json, fen) in [
            ("\"36.00\"", Some(3600)),
            ("36", Some(3600)),
            ("36.0", Some(3600)),
            ("36.5", Some(3650)),
            ("\"36.0000\"", Some(3600)),
            ("35.990000000000002", None),
            ("3.6e1", None),
            ("-36", None),
            ("\"￥36\"", None),
            ("null", None),
        ] {
            let fields = parse(&format!("{{\"money\":{json}}}")).unwrap();
            assert_eq!(fields.money("money").map(Amount::fen), fen, "{json}");
        }
    }

    #[test]
    fn what_stands_around_the_object_does_no_harm() {
        for body in [
            &b"\xef\xbb\xbf{\"code\":1}"[..],
            b" \r\n\xef\xbb\xbf\n{\"code\":1}\n\0",
            b"{\"code\":1,\"msg\":\"\xb6\xa9\"}",
        ] {
            assert_eq!(Fields::parse(body).unwrap().integer("code"), Some(1), "{body:?}");
        }
    }

    #[test]
    fn what_is_not_one_object_with_each_key_once_is_not_read() {
        let many: Vec<String> = (0..=FIELDS_MAX).map(|n| format!("\"k{n}\":1")).collect();
        for body in [
            "",
            "{}x",
            "[]",
            "[{\"code\":1}]",
            "1",
            "null",
            "\"code\"",
            "<html>{\"code\":1}</html>",
            "{\"code\":1",
            "{\"code\":1}{\"code\":1}",
            "{code:1}",
            "{\"code\":1,\"code\":1}",
            "{\"code\":1,\"c\\u006fde\":-1}",
            &format!("{{{}}}", many.join(",")),
        ] {
            assert_eq!(parse(body), None, "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Fields::parse(&bytes);
        }
    }
}
