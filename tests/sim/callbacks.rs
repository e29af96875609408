//! Callbacks as gateways make them, and as others would like them to be.

use std::borrow::Cow;
use std::sync::OnceLock;

use super::ops::{Meaning, Told};
use super::random::Random;
use super::world::{KEY_PREVIOUS, key_of};
use crate::channel::epay::{CallbackFields, Field, Form, PrivateKey, SignedCallback, encode, sign_md5};
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::PaymentState;
use crate::domain::secret::Secret;

/// The merchant whose gateway signs with RSA.
const V2: &str = "1004";
/// How far a V2 timestamp may be off.
const DRIFT_MAX_MS: i64 = 300_000;

fn platform_key() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::parse(include_str!("../keys/v2_platform_private.pem")).unwrap())
}

fn fields(told: &Told, random: &mut Random) -> CallbackFields {
    // As it is, as PHP's htmlspecialchars leaves it, or as both it and addslashes do.
    let param = told.param.as_ref().map(|param| match random.below(3) {
        0 => param.clone(),
        1 => param.replace('<', "&lt;").replace('\'', "&#039;"),
        _ => param.replace('\'', "\\&#039;").replace('<', "&lt;"),
    });
    // Some gateways send their receipts' worth of text: enough for pages of its own.
    let name = if random.chance(20) { "VIP白银 ".repeat(600) } else { "VIP白银".to_owned() };
    let yuan = told.fen.map_or_else(|| "ten".into(), |fen| Amount::from_fen(fen).unwrap().to_string());
    let money = match yuan.strip_suffix(".00") {
        Some(whole) if random.chance(50) => whole.to_owned(),
        _ => yuan,
    };
    let trade_status = match told.payment {
        PaymentState::Paid => "TRADE_SUCCESS",
        PaymentState::Unpaid | PaymentState::Refunded => "TRADE_CLOSED",
        PaymentState::Unclear => "TRADE_FINISHED",
    };
    CallbackFields {
        pid: told.merchant.clone(),
        trade_no: told.trade_no.clone().unwrap_or_default(),
        out_trade_no: told.order_no.clone(),
        payment_type: "alipay".into(),
        name,
        money,
        trade_status: trade_status.into(),
        param,
    }
}

fn signed(fields: CallbackFields, merchant: &str, now: Timestamp) -> SignedCallback {
    match merchant {
        V2 => SignedCallback::v2(fields, platform_key(), now),
        merchant => SignedCallback::v1(fields, &Secret::new(key_of(merchant))),
    }
}

fn encoded(callback: &SignedCallback) -> Vec<u8> {
    encode(callback.fields()).into_bytes()
}

/// What the gateway sends.
pub(super) fn genuine(told: &Told, now: Timestamp, random: &mut Random) -> Vec<u8> {
    let fields = fields(told, random);
    if told.merchant == "1002" && random.chance(20) {
        return encoded(&SignedCallback::v1(fields, &Secret::new(KEY_PREVIOUS)));
    }
    encoded(&signed(fields, &told.merchant, now))
}

/// What somebody else sends, or the gateway by mistake, with what it has to be taken for.
pub(super) fn mistaken(told: &Told, now: Timestamp, random: &mut Random) -> (Vec<u8>, Meaning) {
    let mut fields = fields(told, random);
    let merchant = told.merchant.as_str();
    match random.below(7) {
        0 => {
            fields.pid = "9999".into();
            (encoded(&signed(fields, merchant, now)), Meaning::Refused("unknown_merchant"))
        }
        1 => {
            let key = Secret::new("the key of nobody");
            (encoded(&SignedCallback::v1(fields, &key)), Meaning::Refused("bad_signature"))
        }
        2 => {
            let mut callback = signed(fields, merchant, now);
            callback.spoil();
            (encoded(&callback), Meaning::Refused("bad_signature"))
        }
        3 => {
            // By the key of another merchant's gateway, which knows no more than its own.
            let other = if merchant == "1003" { "1002" } else { "1003" };
            (encoded(&signed(fields, other, now)), Meaning::Refused("bad_signature"))
        }
        4 => {
            let mut bytes = encoded(&signed(fields, merchant, now));
            bytes.extend_from_slice(b"&money=0.01");
            (bytes, Meaning::Refused("malformed"))
        }
        5 => {
            let drift = DRIFT_MAX_MS + random.between(2_000, 100_000);
            let then = Timestamp::from_ms(now.ms() + if random.chance(50) { drift } else { -drift });
            let bytes = encoded(&signed(fields, merchant, then));
            (bytes, if merchant == V2 { Meaning::Refused("stale") } else { Meaning::Genuine(told.clone()) })
        }
        _ => (recut(told, random), Meaning::Forged),
    }
}

/// A callback in which one byte is another.
pub(super) fn damaged(told: &Told, now: Timestamp, random: &mut Random) -> Vec<u8> {
    let mut bytes = genuine(told, now, random);
    let at = random.index(bytes.len());
    bytes[at] = u8::try_from(random.below(256)).unwrap();
    bytes
}

/// Something that the gateway did sign, with texts of the buyer's choice in it, cut into other fields: the signed string is the same.
fn recut(told: &Told, random: &mut Random) -> Vec<u8> {
    let money = Amount::from_fen(told.fen.unwrap_or(1)).unwrap().to_string();
    let trade_no = told.trade_no.clone().unwrap_or_default();
    let wish = format!(
        "x&out_trade_no={}&pid={}&trade_no={}&trade_status=TRADE_SUCCESS&type=alipay&u=",
        told.order_no, told.merchant, trade_no
    );
    let bought = format!("x&out_trade_no={}&p=", told.order_no);
    let honest: Vec<(&str, &str)> = if random.chance(50) {
        // A link to the page on which the buyer pays: not even a callback.
        vec![
            ("money", &money),
            ("name", "x"),
            ("notify_url", "http://a"),
            ("out_trade_no", "ANOTHER1"),
            ("param", &wish),
            ("pid", &told.merchant),
            ("return_url", "http://b"),
            ("type", "alipay"),
        ]
    } else {
        vec![
            ("money", &money),
            ("name", &bought),
            ("out_trade_no", "ANOTHER1"),
            ("pid", &told.merchant),
            ("trade_no", &trade_no),
            ("trade_status", "TRADE_SUCCESS"),
            ("type", "alipay"),
        ]
    };
    let form: Vec<Field<'_>> = honest.iter().map(|&(key, value)| (Cow::from(key), Cow::from(value))).collect();
    let sign = sign_md5(&Form::as_sent(form), &Secret::new(key_of(&told.merchant)));
    let string = honest.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
    // Each `&` is a cut or a part of a value.
    let mut cut: Vec<String> = Vec::new();
    for piece in string.split('&') {
        match cut.last_mut() {
            Some(before) if random.chance(40) => before.extend(["&", piece]),
            _ => cut.push(piece.to_owned()),
        }
    }
    let mut recut: Vec<(&str, &str)> = cut.iter().map(|field| field.split_once('=').unwrap_or((field, ""))).collect();
    recut.extend([("sign", sign.as_str()), ("sign_type", "MD5")]);
    encode(recut).into_bytes()
}

/// What a gateway answers when it is asked about an order.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answering {
    Truly,
    OtherAmount,
    OtherMerchant,
    OtherOrder,
    OtherWord,
    NoTrade,
    Refunded,
    Frozen,
    PreAuthorised,
    UnknownOrder,
    Error,
    Page,
    Nothing,
}

pub(super) const ANSWERS: [(Answering, u64); 13] = [
    (Answering::Truly, 40),
    (Answering::OtherAmount, 5),
    (Answering::OtherMerchant, 5),
    (Answering::OtherOrder, 5),
    (Answering::OtherWord, 5),
    (Answering::NoTrade, 5),
    (Answering::Refunded, 3),
    (Answering::Frozen, 3),
    (Answering::PreAuthorised, 3),
    (Answering::UnknownOrder, 5),
    (Answering::Error, 5),
    (Answering::Page, 5),
    (Answering::Nothing, 10),
];

/// The answer's bytes, none where none comes, and the word for what it is worth. `paid` is the payment that the gateway knows of.
pub(super) fn answer(
    answering: Answering,
    merchant: &str,
    order_no: &str,
    fen: i64,
    paid: Option<&str>,
) -> (Option<String>, &'static str) {
    let body = |pid: &str, order_no: &str, fen: i64, status: u8, rest: &str| {
        let money = Amount::from_fen(fen).unwrap();
        let trade_no = paid.unwrap_or("T0");
        Some(format!(
            r#"{{"code":1,"msg":"succ","pid":"{pid}","out_trade_no":"{order_no}","trade_no":"{trade_no}","money":"{money}","status":{status}{rest}}}"#
        ))
    };
    match answering {
        Answering::Truly if paid.is_some() => (body(merchant, order_no, fen, 1, ""), "paid"),
        Answering::Truly => (body(merchant, order_no, fen, 0, ""), "unpaid"),
        Answering::OtherAmount => (body(merchant, order_no, fen + 1, 1, ""), "paid"),
        Answering::OtherMerchant => (body("9999", order_no, fen, 1, ""), "contradicts_pid"),
        Answering::OtherOrder => (body(merchant, "ANOTHER1", fen, 1, ""), "contradicts_out_trade_no"),
        Answering::OtherWord => {
            (body(merchant, order_no, fen, 1, r#","trade_status":"TRADE_CLOSED""#), "contradicts_trade_status")
        }
        Answering::NoTrade => {
            let money = Amount::from_fen(fen).unwrap();
            let body =
                format!(r#"{{"code":1,"pid":"{merchant}","out_trade_no":"{order_no}","money":"{money}","status":1}}"#);
            (Some(body), "contradicts_trade_no")
        }
        Answering::Refunded => (body(merchant, order_no, fen, 2, ""), "refunded"),
        Answering::Frozen => (body(merchant, order_no, fen, 3, ""), "frozen"),
        Answering::PreAuthorised => (body(merchant, order_no, fen, 4, ""), "pre_authorised"),
        Answering::UnknownOrder => (Some(r#"{"code":-1,"msg":"订单号不存在"}"#.into()), "unknown_order"),
        Answering::Error => (Some(r#"{"code":-2,"msg":"签名校验失败"}"#.into()), "no_answer"),
        Answering::Page => (Some("<html>502 Bad Gateway</html>".into()), "no_answer"),
        Answering::Nothing => (None, "no_answer"),
    }
}
