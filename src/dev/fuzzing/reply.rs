use std::borrow::Cow;

use serde_json::{Map, Value};

use super::plain::{self, Fields};
use super::script::Script;
use super::{KEY, NOW_S, PID, V2, now, v1};
use crate::channel::epay::Form;
use crate::channel::epay::client::{
    Answer, GatewayError, PayPage, PayTarget, RefundReply, RefundState, Replies, Verdict,
};
use crate::domain::language::{Language, Localized};
use crate::domain::money::Amount;
use crate::domain::order::OrderNo;

const ORDER_NO: &str = "01KEXAMPLE0000000000000000";
const TRADE_NO: &str = "20160806151343349021";
const FEN: i64 = 3600;

/// How much of a reply is kept, and how long what is told of one may be.
const KEPT_BYTES_MAX: usize = 16 * 1024;
const TOLD_CHARS_MAX: usize = 4000;

/// How many changes are made to one reply.
const CHANGES_MAX: usize = 8;

/// What may be added to a reply, or put in a value's place.
const KEYS: [&str; 8] = ["code", "status", "money", "pid", "trade_no", "u", "pay_info", "msg"];
const VALUES: [&str; 8] = ["0", "1", "", " ", "36.00", PID, "x&status=1", "TRADE_SUCCESS"];

/// What a gateway's reply says counts only where its fields are those that were asked about, each as a slow reader
/// reads it; a V2 gateway's yes counts only as it was signed; where a buyer is sent is harmless; and our key is not
/// in what is kept or told.
///
/// `data` is a byte that says what was asked, one for the HTTP status, and the reply's body. For a signed reply, the
/// body ends with its first line, and what is done to it follows.
///
/// # Panics
///
/// Where that does not hold of `data`.
pub fn reply(data: &[u8]) {
    let Some((&[question, status], body)) = data.split_first_chunk() else { return };
    let status = 200 + u16::from(status % 4) * 100;
    if question & 8 == 0 {
        read(&Replies::new(&v1(KEY), PID, order_no(), TRADE_NO, amount()), question, status, body, true);
        return;
    }
    let replies = Replies::new(&V2.credentials, PID, order_no(), TRADE_NO, amount());
    if question & 16 == 0 {
        let is_yes = read(&replies, question, status, body, false);
        assert!(!is_yes, "nobody signed {}", body.escape_ascii());
        return;
    }
    let end = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
    let Some(mut honest) = fields_of(&body[..end]) else { return };
    honest.retain(|(key, value)| {
        plain::is_key(key) && !matches!(key.as_str(), "sign" | "sign_type" | "timestamp") && !value.is_empty()
    });
    honest.push(("timestamp".into(), NOW_S.to_string()));
    let borrowed = honest.iter().map(|(key, value)| (Cow::from(key), Cow::from(value))).collect();
    let sign = V2.platform.sign(&Form::as_sent(borrowed));
    let mut changed = honest.clone();
    let mut script = Script::new(body.get(end + 1..).unwrap_or_default());
    let mut others = Map::new();
    for _ in 0..CHANGES_MAX {
        if !script.is_done() {
            change(&mut script, &mut changed, &mut others);
        }
    }
    for (key, value) in changed.iter().chain([&("sign".to_owned(), sign), &("sign_type".to_owned(), "RSA".to_owned())])
    {
        let is_number = value.parse::<i64>().is_ok_and(|number| number.to_string() == *value);
        let value = if is_number && script.byte() % 2 == 1 {
            Value::from(value.parse::<i64>().unwrap_or(0))
        } else {
            value.as_str().into()
        };
        others.insert(key.clone(), value);
    }
    let written = Value::from(others).to_string();
    let is_yes = read(&replies, question, status, written.as_bytes(), false);
    if is_yes && plain::value(&honest, "pay_info").is_none() {
        says_the_same(&honest, &changed, &written);
    }
}

/// What decides is what the gateway said; and so is all else, where no text of it could be cut.
fn says_the_same(honest: &Fields, changed: &Fields, written: &str) {
    let decisive = ["code", "status", "money", "pid", "out_trade_no", "trade_no"];
    if decisive.iter().all(|key| value(honest, key).is_some()) {
        for key in decisive {
            assert_eq!(plain::value(changed, key), plain::value(honest, key), "{written}");
        }
    }
    if !honest.iter().any(|(_, value)| plain::has_bare_ampersand(value)) {
        assert_eq!(plain::signed(changed, true), plain::signed(honest, true), "{written}");
    }
}

fn order_no() -> OrderNo {
    ORDER_NO.parse().expect("it is a number")
}

fn amount() -> Amount {
    Amount::from_fen(FEN).expect("it is an amount")
}

/// Does one thing to a reply; `others` are its members that are neither texts nor numbers.
fn change(script: &mut Script, fields: &mut Fields, others: &mut Map<String, Value>) {
    let what = script.byte() % 6;
    match what {
        0 if !fields.is_empty() => {
            let at = script.below(fields.len());
            fields.remove(at);
        }
        1 if !fields.is_empty() => {
            let at = script.below(fields.len());
            fields[at].1 = script.one_of(&VALUES).into();
        }
        2 => {
            let key = script.one_of(&KEYS);
            fields.retain(|(k, _)| k != key);
            fields.push((key.into(), script.one_of(&VALUES).into()));
        }
        3 => {
            let key = script.one_of(&KEYS);
            if plain::value(fields, key).is_none() {
                others.insert(key.into(), script.one_of(&[&Value::Null, &Value::Bool(true)]).clone());
            }
        }
        4 if !fields.is_empty() => {
            let at = script.below(fields.len());
            let (key, _) = fields.remove(at);
            others.insert(key, Value::Array(Vec::new()));
        }
        _ => {
            let pieces = plain::recut(script, fields, true);
            // A reply has each key once.
            if !plain::has_key_twice(&pieces) {
                *fields = pieces;
            }
        }
    }
}

/// Reads a reply as the answer to one of the questions; whether it is a yes.
fn read(replies: &Replies, question: u8, status: u16, body: &[u8], is_v1: bool) -> bool {
    let fields = fields_of(body);
    match question % 4 {
        0 => {
            let answer = told(replies.answer(body, now()), is_v1);
            if let Some(answer) = &answer {
                assert!(answer.body.len() <= KEPT_BYTES_MAX && is_without_key(&answer.body, is_v1));
                believed(answer, fields.as_ref(), is_v1);
            }
            answer.is_some()
        }
        1 => {
            let page: Option<PayPage> = told(replies.page(body, now()), is_v1);
            if let Some(page) = &page {
                harmless(&page.target);
            }
            page.is_some()
        }
        2 => match replies.refund(body, status, now()) {
            RefundReply::Accepted { body } => {
                assert!(body.len() <= KEPT_BYTES_MAX && is_without_key(&body, is_v1) && status < 500);
                refunded(fields.as_ref(), is_v1);
                true
            }
            RefundReply::Refused { code, message } => {
                assert!(code < 0 && status < 500 && is_without_key(message.as_bytes(), is_v1));
                false
            }
            RefundReply::Unclear(error) => {
                told::<()>(Err(error), is_v1);
                false
            }
        },
        _ => {
            let state: Option<RefundState> = told(replies.refund_state(body, now()), is_v1);
            assert!(!is_v1 || state.is_none(), "V1 has no such question");
            state.is_some()
        }
    }
}

/// The texts and numbers of a reply, by another reader; `None` where it is not sure of each of them.
fn fields_of(body: &[u8]) -> Option<Fields> {
    let text = std::str::from_utf8(body).ok()?;
    let object: Map<String, Value> = serde_json::from_str(text.trim()).ok()?;
    let mut fields = Fields::new();
    for (key, value) in object {
        match value {
            Value::String(text) => fields.push((key, text)),
            // Others are not written as they were read.
            Value::Number(number) if number.is_i64() => fields.push((key, number.to_string())),
            Value::Number(_) => return None,
            _ => {}
        }
    }
    Some(fields)
}

fn value<'a>(fields: &'a Fields, key: &str) -> Option<&'a str> {
    plain::said(fields, key)
}

/// `1`, `1.0` and so on.
fn is_number(text: Option<&str>, number: &str) -> bool {
    let (whole, zeros) = text.map_or(("", ""), |text| text.split_once('.').unwrap_or((text, "0")));
    let whole =
        if whole.trim_start_matches('0').is_empty() && !whole.is_empty() { "0" } else { whole.trim_start_matches('0') };
    whole == number && !zeros.is_empty() && zeros.chars().all(|zero| zero == '0')
}

/// Paid and refunded is only what every field agrees on.
fn believed(answer: &Answer, fields: Option<&Fields>, is_v1: bool) {
    let verdict = answer.verdict(PID, &order_no());
    let (Verdict::Paid { trade_no, amount } | Verdict::Refunded { trade_no, amount }) = &verdict else { return };
    let Some(fields) = fields else { return };
    let is_refunded = matches!(verdict, Verdict::Refunded { .. });
    assert!(is_number(value(fields, "code"), if is_v1 { "1" } else { "0" }), "{fields:?}");
    assert!(is_number(value(fields, "status"), if is_refunded { "2" } else { "1" }), "{fields:?}");
    assert_eq!(value(fields, "pid"), Some(PID), "{fields:?}");
    assert_eq!(value(fields, "out_trade_no"), Some(ORDER_NO), "{fields:?}");
    assert_eq!(value(fields, "money").and_then(plain::fen), Some(amount.fen()), "{fields:?}");
    assert_eq!(value(fields, "trade_no"), Some(trade_no.as_str()), "{fields:?}");
    let status = value(fields, "trade_status");
    assert!(is_refunded || status.is_none_or(|status| status == "TRADE_SUCCESS"), "{fields:?}");
}

/// A refund is done only where nothing beside the code takes it back or speaks of another one. V1 has no number of ours for a
/// refund, so what stands there is the gateway's.
fn refunded(fields: Option<&Fields>, is_v1: bool) {
    let Some(fields) = fields else { return };
    let code = value(fields, "code");
    assert!(is_number(code, "0") || (is_v1 && is_number(code, "1")), "{fields:?}");
    let own = [("pid", PID), ("out_trade_no", ORDER_NO), ("trade_no", TRADE_NO), ("out_refund_no", ORDER_NO)];
    let own = if is_v1 { &own[..3] } else { &own[..] };
    assert!(own.iter().all(|(key, own)| value(fields, key).is_none_or(|value| value == *own)), "{fields:?}");
    assert!(value(fields, "money").is_none_or(|money| plain::fen(money) == Some(FEN)), "{fields:?}");
    let message = value(fields, "msg").unwrap_or_default().to_ascii_lowercase();
    assert!(["fail", "error", "失败", "错误"].iter().all(|word| !message.contains(word)), "{fields:?}");
}

/// A page is one on the web; and nothing that a buyer is given ends a link where it is written down, or runs something.
fn harmless(target: &PayTarget) {
    let (PayTarget::Url(link) | PayTarget::QrCode(link) | PayTarget::UrlScheme(link)) = target;
    let lower = link.to_ascii_lowercase();
    if let PayTarget::Url(_) = target {
        assert!(lower.starts_with("http://") || lower.starts_with("https://"), "{link:?}");
    }
    for scheme in ["javascript:", "data:", "vbscript:", "file:", "blob:", "about:"] {
        assert!(!lower.trim_start().starts_with(scheme), "{link:?}");
    }
    assert!(link.chars().all(|c| !c.is_control() && !c.is_whitespace() && !"\"'<>\\`".contains(c)), "{link:?}");
}

/// What there is; where there is nothing, a person is told why, in one short line without our key.
fn told<T>(read: Result<T, GatewayError>, is_v1: bool) -> Option<T> {
    let error = match read {
        Ok(read) => return Some(read),
        Err(error) => error,
    };
    for told in [error.to_string(), error.text(Language::Chinese), error.text(Language::English)] {
        assert!(is_without_key(told.as_bytes(), is_v1) && told.chars().count() <= TOLD_CHARS_MAX, "{told}");
        assert!(!told.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')), "{told:?}");
    }
    None
}

/// Whether our key is not in it, which is one only in V1.
fn is_without_key(bytes: &[u8], is_v1: bool) -> bool {
    !is_v1 || !bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes())
}
