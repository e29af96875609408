//! Rules of the ledger: the kinds of entries, and the bounds of a balance.

use super::named::named_enum;

/// Bound of a balance, either way: far beyond use, far below overflow.
const BALANCE_MAX: i64 = 1_000_000_000_000_000;

named_enum! {
    /// Kind of a change of a balance.
    EntryKind {
        /// An order was settled.
        Order = "order",
        /// An order's credits were taken back.
        Refund = "refund",
        /// A person or the bot gave credits, or took them away.
        Grant = "grant",
        /// The bot spent credits for its user.
        Spend = "spend",
    }
}

/// The balance after a grant or a spend; `None` where it would be out of bounds.
///
/// Credits can always be given within the bounds: a refund may have taken the balance below zero. They are never taken below zero.
pub(crate) fn balance_after(balance: i64, change: i64) -> Option<i64> {
    let lowest = if change > 0 { -BALANCE_MAX } else { 0 };
    balance.checked_add(change).filter(|after| (lowest..=BALANCE_MAX).contains(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_are_given_within_bounds_and_never_taken_below_zero() {
        for (balance, change, after) in [
            (0, 70, Some(70)),
            (-70, 30, Some(-40)),
            (70, -70, Some(0)),
            (70, -71, None),
            (-1, -1, None),
            (BALANCE_MAX - 1, 1, Some(BALANCE_MAX)),
            (BALANCE_MAX, 1, None),
            (-BALANCE_MAX - 2, 1, None),
            (i64::MAX, i64::MAX, None),
            (i64::MIN, -1, None),
        ] {
            assert_eq!(balance_after(balance, change), after, "{balance} {change}");
        }
    }
}
