use super::plain;
use crate::domain::money::{Amount, AmountError};

/// Money is read as a slow reader reads it, printed so that it reads back as itself, and never rounded.
///
/// # Panics
///
/// Where that does not hold of `data`.
pub fn money(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (received, price) = (Amount::parse_received(text), Amount::parse_price(text));
    assert_eq!(received.ok().map(Amount::fen), plain::fen(text), "{text:?}");

    // A price is what a person writes: all that a gateway may send, with two decimals at most.
    let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    match (received, price) {
        (Ok(received), Ok(price)) => assert!(received == price && decimals <= 2, "{text:?}"),
        (Ok(_), Err(error)) => assert!(error == AmountError::TooFine && decimals > 2, "{text:?}"),
        (Err(received), Err(price)) => assert!(received == price || decimals > 2, "{text:?}"),
        (Err(_), Ok(_)) => panic!("{text:?} is a price, and could not be received"),
    }

    let Ok(amount) = received else { return };
    let printed = amount.to_string();
    assert!(amount >= Amount::ZERO && amount <= Amount::MAX, "{text:?}");
    assert_eq!(Amount::parse_price(&printed), Ok(amount), "{text:?}");
    assert_eq!(plain::fen(&printed), Some(amount.fen()), "{text:?}");
    assert_eq!(printed.split_once('.').map(|(_, decimals)| decimals.len()), Some(2), "{text:?}");
    assert_eq!(Amount::from_fen(amount.fen()), Some(amount), "{text:?}");
}
