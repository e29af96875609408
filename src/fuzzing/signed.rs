use std::borrow::Cow;

use super::plain::{self, Fields};
use super::script::Script;
use super::{KEY, NOW_S, V2, now, v1};
use crate::epay::{Credentials, Form, Notification, Unverified};

/// How many changes are made to one notification.
const CHANGES_MAX: usize = 12;

/// What somebody may add to a notification, or put in a value's place.
const KEYS: [&str; 10] =
    ["param", "name", "u", "p", "trade_status", "out_trade_no", "money", "sign_type", "notify_url", "a.b"];
const VALUES: [&str; 10] =
    ["", " ", "\t\r\n", "0", "1", "TRADE_SUCCESS", "x&out_trade_no=VICTIM9&p=", "&amp;", "&u=", "=1"];

/// An honest notification that somebody has changed is believed only as long as it says the same, and always as long
/// as only its order, its escaping or the case of its signature is changed. A signed pay link is never believed.
///
/// `data` is a query string, a line feed, and what is done to it: the honest sender's fields are those of the query
/// string, which it signs.
///
/// # Panics
///
/// Where that does not hold of `data`.
pub fn signed(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let Some(mut honest) = plain::read(&data[..end]) else { return };
    honest.retain(|(key, _)| key != "sign" && key != "sign_type");
    let mut script = Script::new(data.get(end + 1..).unwrap_or_default());
    // Honest senders have keys like everybody, each once.
    if honest.is_empty() || honest.len() > 40 || honest.iter().any(|(key, _)| !plain::is_key(key)) {
        return;
    }
    if plain::has_key_twice(&honest) {
        return;
    }
    let way = script.byte();
    let is_v2 = way % 16 == 1;
    let blank_left_out = is_v2 || way & 2 != 0;
    let (credentials, mut sign) = if is_v2 {
        honest.retain(|(key, _)| key != "timestamp");
        honest.push(("timestamp".into(), NOW_S.to_string()));
        let borrowed = honest.iter().map(|(key, value)| (Cow::from(key), Cow::from(value))).collect();
        let sign = V2.platform.sign(&Form::as_sent(borrowed));
        (V2.credentials.clone(), sign)
    } else {
        (v1(KEY), plain::sign(&honest, blank_left_out, KEY))
    };
    let mut changed = honest.clone();
    let honest_sign = sign.clone();
    for _ in 0..CHANGES_MAX {
        if script.is_done() {
            break;
        }
        change(&mut script, &mut changed, &mut sign, blank_left_out, is_v2);
    }
    let is_forged = !sign.eq_ignore_ascii_case(&honest_sign);
    changed.push(("sign".into(), sign));
    if is_v2 {
        changed.push(("sign_type".into(), "RSA".into()));
    }
    let is_link = plain::value(&honest, "notify_url").is_some_and(|url| !plain::is_blank(url));
    let written = plain::write(&changed, way & 4 != 0);
    let believed = Unverified::parse(written.as_bytes()).ok().and_then(|read| read.verify(&credentials, now()).ok());
    match believed {
        Some(believed) => {
            assert!(!is_forged, "a signature that was changed is believed: {written}");
            assert!(!is_link, "a pay link is believed: {written}");
            says_the_same(&believed, &honest, &changed);
            if !is_v2 {
                no_digit_is_spare(&changed, &credentials);
            }
        }
        None => assert!(!must_be_believed(&honest, &changed, is_forged, &credentials), "{written} is not believed"),
    }
}

/// With any digit of its signature changed, it is not believed.
fn no_digit_is_spare(believed: &Fields, credentials: &Credentials) {
    for at in 0..32 {
        let mut forged = believed.clone();
        for (_, sign) in forged.iter_mut().filter(|(key, _)| key == "sign") {
            let digit = if sign[at..].starts_with('0') { "1" } else { "0" };
            sign.replace_range(at..=at, digit);
        }
        let written = plain::write(&forged, false);
        let read = Unverified::parse(written.as_bytes()).expect("it could be read before");
        assert!(!read.is_signed(credentials), "a signature that was changed is believed: {written}");
    }
}

/// Does one thing to a notification.
fn change(script: &mut Script, fields: &mut Fields, sign: &mut String, blank_left_out: bool, is_v2: bool) {
    let what = script.byte() % 10;
    if fields.is_empty() && what != 0 {
        return;
    }
    match what {
        0 => fields.push((script.one_of(&KEYS).into(), script.one_of(&VALUES).into())),
        1 => {
            let at = script.below(fields.len());
            fields.remove(at);
        }
        2 => {
            let (one, other) = (script.below(fields.len()), script.below(fields.len()));
            fields.swap(one, other);
        }
        3 => {
            let at = script.below(fields.len());
            fields.push(fields[at].clone());
        }
        4 => {
            let at = script.below(fields.len());
            fields[at].1 = script.one_of(&VALUES).into();
        }
        5 => {
            let at = script.below(fields.len());
            let character = char::from(script.byte());
            fields[at].1.push(character);
        }
        6 => {
            let at = script.below(fields.len());
            fields[at].1 = fields[at].1.replace('&', "&amp;");
        }
        7 if !is_v2 => *sign = sign.to_ascii_uppercase(),
        8 if !is_v2 => {
            let at = script.below(sign.len());
            let digit = if sign[at..].starts_with('0') { "1" } else { "0" };
            sign.replace_range(at..=at, digit);
        }
        _ => *fields = plain::recut(script, fields, blank_left_out),
    }
}

/// Who paid what for which order is what the honest sender said; and so is all else, where no text of it could be cut.
fn says_the_same(believed: &Notification, honest: &Fields, changed: &Fields) {
    let value = |key: &str| plain::value(honest, key).filter(|value| !plain::is_blank(value));
    let decisive = ["pid", "trade_no", "out_trade_no", "money", "trade_status"];
    // Who signs without one of these is no gateway that tells of a payment, and no merchant that asks for one.
    if decisive.iter().any(|key| value(key).is_none()) {
        return;
    }
    assert_eq!(Some(believed.pid.as_str()), value("pid"), "{changed:?}");
    assert_eq!(Some(believed.trade_no.as_str()), value("trade_no"), "{changed:?}");
    assert_eq!(Some(believed.out_trade_no.as_str()), value("out_trade_no"), "{changed:?}");
    assert_eq!(Some(believed.money.fen()), value("money").and_then(plain::fen), "{changed:?}");
    assert_eq!(believed.paid, value("trade_status") == Some("TRADE_SUCCESS"), "{changed:?}");
    if !honest.iter().any(|(_, value)| plain::has_bare_ampersand(value)) {
        assert_eq!(plain::signed(changed, true), plain::signed(honest, true));
        assert_eq!(believed.param.as_deref(), value("param"), "{changed:?}");
    }
}

/// Whether there is nothing that a notification may be refused for: the honest sender's fields, all of them with one
/// reading.
fn must_be_believed(honest: &Fields, changed: &Fields, is_forged: bool, credentials: &Credentials) -> bool {
    let is_of_sender = |(key, _): &&(String, String)| key != "sign" && key != "sign_type";
    let mut own: Fields = changed.iter().filter(is_of_sender).cloned().collect();
    let mut honest = honest.clone();
    own.sort();
    honest.sort();
    let has_other_type = matches!(credentials, Credentials::V1 { .. }) && plain::value(changed, "sign_type").is_some();
    !is_forged && !has_other_type && own == honest && plain::has_one_reading(changed) && plain::is_complete(changed)
}
