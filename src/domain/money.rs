//! Amounts of money: whole fen (1/100 yuan), parsed from decimal text without ever becoming a float.

use std::fmt;

use serde::{Serialize, Serializer};

/// An amount of money in fen, zero or more and at most [`Amount::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not digits with at most one decimal point between them.
    #[error("not a decimal number")]
    NotDecimal,
    /// Has a part smaller than one fen, or more decimals than the context allows.
    #[error("finer than one fen")]
    TooFine,
    /// Above [`Amount::MAX`].
    #[error("too large")]
    TooLarge,
}

impl Amount {
    /// The largest amount, 10,000,000,000.00 yuan: far above any order, far below overflow.
    pub const MAX: Self = Self(1_000_000_000_000);

    /// No money.
    pub(crate) const ZERO: Self = Self(0);

    /// An amount of `fen`, or `None` outside zero to [`Amount::MAX`].
    pub fn from_fen(fen: i64) -> Option<Self> {
        (0..=Self::MAX.0).contains(&fen).then_some(Self(fen))
    }

    /// The amount in fen.
    pub fn fen(self) -> i64 {
        self.0
    }

    /// Reads the amount that a gateway sent: `10`, `0.1`, `10.00` and `10.0000` all occur.
    ///
    /// Decimals beyond the second must be zeros: no fraction of a fen is rounded away.
    pub fn parse_received(text: &str) -> Result<Self, AmountError> {
        let (yuan, decimals) = split(text)?;
        let (fen, rest) = decimals.split_at(decimals.len().min(2));
        if rest.bytes().any(|digit| digit != b'0') {
            return Err(AmountError::TooFine);
        }
        Self::from_parts(yuan, fen)
    }

    /// Reads a price that a person wrote: like [`Amount::parse_received`], with at most two decimals.
    pub fn parse_price(text: &str) -> Result<Self, AmountError> {
        let (yuan, decimals) = split(text)?;
        if decimals.len() > 2 {
            return Err(AmountError::TooFine);
        }
        Self::from_parts(yuan, decimals)
    }

    fn from_parts(yuan: &str, decimals: &str) -> Result<Self, AmountError> {
        let digits = |text: &str| {
            text.bytes().try_fold(0_i64, |value, digit| value.checked_mul(10)?.checked_add(i64::from(digit - b'0')))
        };
        let decimals_as_fen = match decimals.len() {
            1 => digits(decimals).and_then(|tenths| tenths.checked_mul(10)),
            _ => digits(decimals),
        };
        digits(yuan)
            .and_then(|yuan| yuan.checked_mul(100))
            .zip(decimals_as_fen)
            .and_then(|(yuan_as_fen, fen)| yuan_as_fen.checked_add(fen))
            .and_then(Self::from_fen)
            .ok_or(AmountError::TooLarge)
    }
}

/// Splits decimal text into its digits before and after the point; the latter are empty where there is no point.
fn split(text: &str) -> Result<(&str, &str), AmountError> {
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (yuan, decimals) = match text.split_once('.') {
        Some((yuan, decimals)) if all_digits(decimals) => (yuan, decimals),
        Some(_) => return Err(AmountError::NotDecimal),
        None => (text, ""),
    };
    if all_digits(yuan) { Ok((yuan, decimals)) } else { Err(AmountError::NotDecimal) }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// As in every format that we speak: text with two decimals.
impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn received_money_in_every_form_that_gateways_send() {
        for (text, fen) in [
            ("10.00", Ok(1000)),
            ("10", Ok(1000)),
            ("0.1", Ok(10)),
            ("10.0000", Ok(1000)),
            ("0.01", Ok(1)),
            ("0", Ok(0)),
            ("10000000000.00", Ok(1_000_000_000_000)),
            ("10000000000.01", Err(AmountError::TooLarge)),
            ("99999999999999999999999999", Err(AmountError::TooLarge)),
            ("10.001", Err(AmountError::TooFine)),
            ("10.0000000000000000000001", Err(AmountError::TooFine)),
            ("", Err(AmountError::NotDecimal)),
            (".5", Err(AmountError::NotDecimal)),
            ("5.", Err(AmountError::NotDecimal)),
            ("-1.00", Err(AmountError::NotDecimal)),
            ("+1.00", Err(AmountError::NotDecimal)),
            (" 1.00", Err(AmountError::NotDecimal)),
            ("1.00\n", Err(AmountError::NotDecimal)),
            ("1e3", Err(AmountError::NotDecimal)),
            ("1,00", Err(AmountError::NotDecimal)),
            ("1.0.0", Err(AmountError::NotDecimal)),
            ("１", Err(AmountError::NotDecimal)),
            ("NaN", Err(AmountError::NotDecimal)),
        ] {
            assert_eq!(Amount::parse_received(text).map(Amount::fen), fen, "{text:?}");
        }
    }

    #[test]
    fn a_price_has_at_most_two_decimals() {
        assert_eq!(Amount::parse_price("36.00").map(Amount::fen), Ok(3600));
        assert_eq!(Amount::parse_price("36.5").map(Amount::fen), Ok(3650));
        assert_eq!(Amount::parse_price("36.000"), Err(AmountError::TooFine));
        assert_eq!(Amount::parse_price("36.005"), Err(AmountError::TooFine));
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(fen in 0..=Amount::MAX.fen()) {
            let amount = Amount::from_fen(fen).unwrap();
            prop_assert_eq!(Amount::parse_price(&amount.to_string()), Ok(amount));
            prop_assert_eq!(Amount::parse_received(&format!("{amount}00")), Ok(amount));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Amount::parse_received(&text);
            let _ = Amount::parse_price(&text);
        }
    }
}
