//! The protocol once more, from its words: fields, the string that is signed, what has two readings, money.

use md5::{Digest, Md5};

use super::script::Script;
use crate::domain::order::PaymentState;

/// Keys and values, decoded.
pub(super) type Fields = Vec<(String, String)>;

/// Fields that only a request to a gateway has.
const OF_REQUESTS: [&str; 5] = ["notify_url", "return_url", "clientip", "device", "key"];

/// A notification without one of these cannot be matched with a merchant, an order or a key.
const REQUIRED: [&str; 3] = ["pid", "out_trade_no", "sign"];

/// The longest name of an entity, in letters, and the shortest.
const ENTITY_LETTERS: std::ops::RangeInclusive<usize> = 2..=8;

/// The fields of a query string or form body; `None` where its encoding is broken.
pub(super) fn read(encoded: &[u8]) -> Option<Fields> {
    let mut fields = Vec::new();
    for pair in encoded.split(|byte| *byte == b'&') {
        if pair.is_empty() {
            continue;
        }
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let key = decode(halves.next()?)?;
        let value = decode(halves.next().unwrap_or_default())?;
        fields.push((key, value));
    }
    Some(fields)
}

fn decode(encoded: &[u8]) -> Option<String> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < encoded.len() {
        match encoded[at] {
            b'%' => {
                let digits = std::str::from_utf8(encoded.get(at + 1..at + 3)?).ok()?;
                if !digits.chars().all(|c| c.is_ascii_hexdigit()) {
                    return None;
                }
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                at += 2;
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
        at += 1;
    }
    String::from_utf8(bytes).ok()
}

/// Fields as a query string, each byte escaped that does not have to stand as it is, or only those that must not.
pub(super) fn write(fields: &Fields, escape_all: bool) -> String {
    let escape = |text: &str| -> String {
        let one = |byte: u8| match byte {
            b'%' | b'&' | b'=' | b'+' | 0..=b' ' | 0x7f..=0xff => format!("%{byte:02x}"),
            _ if escape_all => format!("%{byte:02X}"),
            _ => char::from(byte).to_string(),
        };
        text.bytes().map(one).collect()
    };
    let pairs: Vec<String> = fields.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value))).collect();
    pairs.join("&")
}

/// The value of a field.
pub(super) fn value<'a>(fields: &'a Fields, key: &str) -> Option<&'a str> {
    fields.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
}

/// Whether PHP's `trim` leaves nothing of it.
pub(super) fn is_blank(value: &str) -> bool {
    value.trim_matches([' ', '\t', '\n', '\r', '\0', '\x0b']).is_empty()
}

/// Whether every field can be read in one way: letters, digits and `_.-` in keys, no key twice, no `&` outside an
/// entity, nothing that only requests have, and not more than a hundred.
pub(super) fn has_one_reading(fields: &Fields) -> bool {
    let is_fine = |(key, value): &(String, String)| {
        is_key(key) && !has_bare_ampersand(value) && !OF_REQUESTS.contains(&key.as_str())
    };
    fields.len() <= 100 && fields.iter().all(is_fine) && !has_key_twice(fields)
}

pub(super) fn is_key(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| "_.-".contains(c) || c.is_ascii_alphanumeric())
}

pub(super) fn has_key_twice(fields: &Fields) -> bool {
    fields.iter().enumerate().any(|(at, (key, _))| fields[..at].iter().any(|(earlier, _)| earlier == key))
}

/// Whether an `&` stands there that begins no entity: 2 to 8 letters and a `;`, or `#`, digits and a `;`.
pub(super) fn has_bare_ampersand(value: &str) -> bool {
    let characters: Vec<char> = value.chars().collect();
    let begins_entity = |at: usize| {
        let (is_name, from): (fn(&char) -> bool, usize) = match characters.get(at + 1) {
            Some('#') => (char::is_ascii_digit, at + 2),
            _ => (char::is_ascii_alphabetic, at + 1),
        };
        let length = characters[from.min(characters.len())..].iter().take_while(|c| is_name(c)).count();
        let is_long_enough = if from == at + 2 { length > 0 } else { ENTITY_LETTERS.contains(&length) };
        is_long_enough && characters.get(from + length) == Some(&';')
    };
    characters.iter().enumerate().any(|(at, character)| *character == '&' && !begins_entity(at))
}

/// Whether the fields have what a notification needs to be somebody's word on some order.
pub(super) fn is_complete(fields: &Fields) -> bool {
    REQUIRED.iter().all(|key| said(fields, key).is_some())
}

/// The value of a field that is not blank.
pub(super) fn said<'a>(fields: &'a Fields, key: &str) -> Option<&'a str> {
    value(fields, key).filter(|value| !is_blank(value))
}

/// The fields that a signature is made over, in their order.
pub(super) fn signed(fields: &Fields, blank_left_out: bool) -> Fields {
    let mut signed = fields.clone();
    signed.retain(|(key, value)| {
        key != "sign" && key != "sign_type" && !value.is_empty() && !(blank_left_out && is_blank(value))
    });
    signed.sort();
    signed
}

/// The string that a signature is made over.
pub(super) fn signing_string(fields: &Fields, blank_left_out: bool) -> String {
    let pairs: Vec<String> =
        signed(fields, blank_left_out).iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join("&")
}

/// The fields of the same signing string, cut at other places: at each `&` behind which no key stands that was there
/// before, as somebody would who wants to be believed, or at each that `script` says.
pub(super) fn recut(script: &mut Script, fields: &Fields, blank_left_out: bool) -> Fields {
    let string = signing_string(fields, blank_left_out);
    let is_said = script.byte() % 2 == 1;
    let mut pieces = Fields::new();
    for piece in string.split('&') {
        let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
        let is_cut =
            if is_said { script.byte().is_multiple_of(2) } else { pieces.iter().all(|(earlier, _)| earlier != key) };
        match pieces.last_mut() {
            Some((_, last)) if !is_cut => {
                last.push('&');
                last.push_str(piece);
            }
            _ => pieces.push((key.to_owned(), value.to_owned())),
        }
    }
    pieces
}

/// The V1 signature.
pub(super) fn sign(fields: &Fields, blank_left_out: bool, key: &str) -> String {
    let digest: [u8; 16] = Md5::digest(format!("{}{key}", signing_string(fields, blank_left_out))).into();
    format!("{:032x}", u128::from_be_bytes(digest))
}

/// Whether the fields have the V1 signature that they name, in either dialect of blank values.
pub(super) fn is_signed(fields: &Fields, key: &str) -> bool {
    let sign_type = value(fields, "sign_type").unwrap_or_default().to_ascii_lowercase();
    let claimed = value(fields, "sign").unwrap_or_default().to_ascii_lowercase();
    matches!(sign_type.as_str(), "" | "md5") && [true, false].iter().any(|blank| sign(fields, *blank, key) == claimed)
}

/// What the status means: one word for paid, some for a payment that never came or went back, and no other is known.
pub(super) fn payment(fields: &Fields) -> PaymentState {
    let not_paid = ["WAIT_BUYER_PAY", "TRADE_CLOSED", "TRADE_REFUND", "REFUND_SUCCESS", "SETTLEMENT_SUCCESS"];
    match value(fields, "trade_status") {
        Some("TRADE_SUCCESS") => PaymentState::Paid,
        Some(status) if not_paid.contains(&status) => PaymentState::Unpaid,
        _ => PaymentState::Unclear,
    }
}

/// What an amount is in fen, where it is digits, perhaps with a point and more digits behind it, of which none beyond
/// the second is anything but zero, and ten thousand million yuan at most.
pub(super) fn fen(text: &str) -> Option<i64> {
    let mut parts = text.split('.');
    let (yuan, decimals) = (parts.next()?, parts.next());
    let is_number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    if parts.next().is_some() || !is_number(yuan) || !decimals.is_none_or(is_number) {
        return None;
    }
    let decimals: Vec<char> = decimals.unwrap_or_default().chars().chain(['0', '0']).collect();
    if decimals[2..].iter().any(|c| *c != '0') {
        return None;
    }
    let digits = format!("{yuan}{}{}", decimals[0], decimals[1]);
    let digits = digits.trim_start_matches('0');
    // Ten thousand million yuan has thirteen digits in fen.
    if digits.len() > 13 || (digits.len() == 13 && digits > "1000000000000") {
        return None;
    }
    Some(digits.chars().fold(0, |fen, digit| fen * 10 + i64::from(u32::from(digit) - u32::from('0'))))
}
