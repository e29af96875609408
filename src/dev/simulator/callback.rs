//! Callbacks: what they say, and when they are sent.

use std::time::Duration;

use super::book::Trade;
use super::fault::{Fault, other_amount};
use super::merchant::Merchant;
use crate::channel::epay::{CallbackFields, SignedCallback};
use crate::domain::clock::Timestamp;

/// When a callback is sent, in minutes since the payment, for as long as nobody answers `success`.
const PATTERN: [u32; ATTEMPTS_MAX as usize] = [0, 1, 3, 19, 55];
/// How many attempts the pattern has.
pub(crate) const ATTEMPTS_MAX: u8 = 5;

/// The faults that spoil the first callback; the first of them that happens does.
pub(super) const SPOILING: [Fault; 3] = [Fault::WrongAmount, Fault::WrongPid, Fault::BadSign];

/// How long after the payment each attempt is due.
pub(super) fn schedule(minute: Duration, attempts: u8, minutes_late: u32) -> impl Iterator<Item = Duration> {
    let due = PATTERN.into_iter().map(move |minutes| minute.saturating_mul(minutes + minutes_late));
    due.take(attempts.into())
}

/// What the callback for an order says.
pub(super) fn fields(trade: &Trade) -> CallbackFields {
    let param = &trade.purchase.param;
    CallbackFields {
        pid: trade.pid.clone(),
        trade_no: trade.trade_no.clone(),
        out_trade_no: trade.purchase.out_trade_no.clone(),
        payment_type: trade.payment_type().to_owned(),
        name: escaped(&trade.purchase.name),
        money: trade.money().to_string(),
        trade_status: "TRADE_SUCCESS".into(),
        // As PHP's `empty` has it.
        param: Some(escaped(param)).filter(|param| !matches!(param.as_str(), "" | "0")),
    }
}

/// A text as PHP's `htmlspecialchars(addslashes($text))` writes it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' => escaped.push_str(r"\&#039;"),
            '"' => escaped.push_str(r"\&quot;"),
            '\\' => escaped.push_str(r"\\"),
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            character => escaped.push(character),
        }
    }
    escaped
}

/// The callback for an order, signed; `spoilt` as one of [`SPOILING`] says.
pub(super) fn signed(
    trade: &Trade,
    merchant: &Merchant,
    spoilt: Option<Fault>,
    other_pid: &str,
    now: Timestamp,
) -> SignedCallback {
    let mut fields = fields(trade);
    match spoilt {
        Some(Fault::WrongAmount) => fields.money = other_amount(trade.money()).to_string(),
        Some(Fault::WrongPid) => other_pid.clone_into(&mut fields.pid),
        _ => {}
    }
    let mut signed = merchant.sign(fields, now);
    if spoilt == Some(Fault::BadSign) {
        signed.spoil();
    }
    signed
}

/// Whether an answer means that the merchant has understood.
pub(super) fn is_delivered(body: &[u8]) -> bool {
    memchr::memmem::find(body, b"success").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_retry_pattern() {
        let seconds = |minute, attempts, late| -> Vec<u64> {
            schedule(Duration::from_secs(minute), attempts, late).map(|due| due.as_secs()).collect()
        };
        assert_eq!(seconds(60, 5, 0), [0, 60, 180, 1140, 3300]);
        assert_eq!(seconds(60, 5, 2), [120, 180, 300, 1260, 3420]);
        assert_eq!(seconds(1, 3, 0), [0, 1, 3]);
        assert_eq!(seconds(1, 9, 0).len(), 5);
    }

    #[test]
    fn texts_come_back_as_php_escapes_them() {
        for (text, expected) in [
            ("VIP白银 (1)", "VIP白银 (1)"),
            ("it's", r"it\&#039;s"),
            ("\"q\"", r"\&quot;q\&quot;"),
            (r"a\b", r"a\\b"),
            ("<&>", "&lt;&amp;&gt;"),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn only_success_in_the_body_is_delivered() {
        for (body, delivered) in
            [("success", true), ("\u{feff}xsuccess\n", true), ("fail", false), ("", false), ("Success", false)]
        {
            assert_eq!(is_delivered(body.as_bytes()), delivered, "{body:?}");
        }
    }
}
