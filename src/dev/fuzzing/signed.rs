use std::borrow::Cow;

use super::plain::{self, Fields};
use super::script::Script;
use super::{KEY, NOW_S, V2, now, v1};
use crate::channel::epay::{Credentials, Form, Notification, Unverified};
use crate::domain::money::Amount;

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

/// Every field is what the honest sender said; and only a text of theirs in which an `&` stands can be cut, into its own
/// beginning and fields that sort behind it.
///
/// So a gateway that lets no `&` of other people's into its texts cannot be made to say more: nobody moves its word to another
/// order or merchant, makes a payment of what is none, or adds or takes away a payment's number or amount.
fn says_the_same(believed: &Notification, honest: &Fields, changed: &Fields) {
    let cut_off = |whole: &str, start: &str| whole.strip_prefix(start).is_some_and(|rest| rest.starts_with('&'));
    for (key, said) in honest.iter().filter(|(_, said)| !plain::is_blank(said)) {
        let now = plain::value(changed, key);
        let is_cut = plain::has_bare_ampersand(said) && now.is_some_and(|now| cut_off(said, now));
        assert!(now == Some(said) || is_cut, "{key} is not what was said: {changed:?}");
    }
    for (key, now) in changed.iter().filter(|(key, now)| !plain::is_blank(now) && key != "sign" && key != "sign_type") {
        let field = format!("&{key}={now}");
        let is_in_text = |(from, text): &(String, String)| {
            let ends = |at: usize| text.len() == at + field.len() || text[at + field.len()..].starts_with('&');
            from < key && text.match_indices(&field).any(|(at, _)| ends(at))
        };
        assert!(plain::said(honest, key).is_some() || honest.iter().any(is_in_text), "nobody said {key}: {changed:?}");
    }
    let said = |key: &str| plain::said(changed, key);
    assert_eq!(Some(believed.pid.as_str()), said("pid"), "{changed:?}");
    assert_eq!(Some(believed.out_trade_no.as_str()), said("out_trade_no"), "{changed:?}");
    assert_eq!(believed.trade_no.as_deref(), said("trade_no"), "{changed:?}");
    assert_eq!(believed.money.map(Amount::fen), said("money").and_then(plain::fen), "{changed:?}");
    assert_eq!(believed.payment, plain::payment(changed), "{changed:?}");
    assert_eq!(believed.param.as_deref(), said("param"), "{changed:?}");
    if !honest.iter().any(|(_, value)| plain::has_bare_ampersand(value)) {
        assert_eq!(plain::signed(changed, true), plain::signed(honest, true));
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
