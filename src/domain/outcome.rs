//! Names for the result of a notification, which are part of the public contract: rejected before any proof, decided by
//! the rules of settlement, or not answered by the store.

use super::decisions::OperatorDecision;
use super::named::named_enum;

named_enum! {
    /// A rejection: the notification proved nothing, and anybody can have sent it.
    Rejected {
        /// Cannot be read in exactly one way, or says something impossible.
        Malformed = "malformed",
        /// No merchant has this `pid`.
        UnknownMerchant = "unknown_merchant",
        /// Comes from an address that the merchant's `allow_ips` does not name.
        AddressNotAllowed = "address_not_allowed",
        /// Not signed by that merchant's gateway.
        BadSignature = "bad_signature",
        /// V2: signed too long ago, or in the future.
        Stale = "stale",
    }
}

named_enum! {
    /// A decision about a claim.
    Outcome {
        /// Says that nothing was paid.
        NotPaid = "not_paid",
        /// That merchant has no such order.
        UnknownOrder = "unknown_order",
        /// The order is settled already by this very payment, or a person settled it and this is the payment they meant.
        Duplicate = "duplicate",
        /// The order is settled already, by another payment: the buyer paid twice.
        PaidAgain = "paid_again",
        /// This payment has settled another order.
        TradeReused = "trade_reused",
        /// The money is not the order's amount.
        AmountMismatch = "amount_mismatch",
        /// A person has to look at the order first.
        Held = "held",
        /// The gateway itself has yet to say that it was paid.
        Unconfirmed = "unconfirmed",
        /// The order is paid now, and the credits are given.
        Settled = "settled",
    }
}

impl Outcome {
    /// Outcomes that the operator is alerted to.
    pub(crate) const ALERTED: [Self; 5] =
        [Self::AmountMismatch, Self::Held, Self::PaidAgain, Self::TradeReused, Self::UnknownOrder];

    /// Whether the gateway may stop sending: the payment is durably recorded, or there was none.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::NotPaid | Self::Duplicate | Self::PaidAgain | Self::Settled)
    }
}

named_enum! {
    /// Why the store gave no decision. The gateway has to send again.
    Unanswered {
        /// Too much is waiting to be written.
        Overloaded = "overloaded",
        /// The store failed.
        StoreError = "store_error",
    }
}

/// The result of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotificationOutcome {
    /// Rejected before any proof.
    Rejected(Rejected),
    /// Decided.
    Decided(Outcome),
    /// Not answered by the store.
    Unanswered(Unanswered),
}

impl NotificationOutcome {
    /// The number of names.
    pub(crate) const COUNT: usize = Rejected::ALL.len() + Outcome::ALL.len() + Unanswered::ALL.len();

    /// Every result, each at its [`NotificationOutcome::index`].
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let rejected = Rejected::ALL.iter().map(|&rejected| Self::Rejected(rejected));
        let decided = Outcome::ALL.iter().map(|&outcome| Self::Decided(outcome));
        let unanswered = Unanswered::ALL.iter().map(|&unanswered| Self::Unanswered(unanswered));
        rejected.chain(decided).chain(unanswered)
    }

    /// Its place among all of them.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Rejected(rejected) => rejected as usize,
            Self::Decided(outcome) => Rejected::ALL.len() + outcome as usize,
            Self::Unanswered(unanswered) => Rejected::ALL.len() + Outcome::ALL.len() + unanswered as usize,
        }
    }

    /// Its public name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rejected(rejected) => rejected.name(),
            Self::Decided(outcome) => outcome.name(),
            Self::Unanswered(unanswered) => unanswered.name(),
        }
    }
}

impl std::fmt::Display for NotificationOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What a stored receipt or rejection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiptOutcome {
    /// The notification was rejected.
    Rejected(Rejected),
    /// The claim was decided.
    Decided(Outcome),
    /// A person decided, and the receipt tells it.
    Operator(OperatorDecision),
}

impl ReceiptOutcome {
    /// The name that is stored.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Rejected(rejected) => rejected.name(),
            Self::Decided(outcome) => outcome.name(),
            Self::Operator(decision) => decision.name(),
        }
    }

    /// The result that is stored under this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let decided = Outcome::from_name(name).map(Self::Decided);
        let by_person = || OperatorDecision::from_name(name).map(Self::Operator);
        decided.or_else(by_person).or_else(|| Rejected::from_name(name).map(Self::Rejected))
    }
}

impl From<Outcome> for ReceiptOutcome {
    fn from(outcome: Outcome) -> Self {
        Self::Decided(outcome)
    }
}

impl std::fmt::Display for ReceiptOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// The fields by which a rejected notification can be found again, as far as they can be read. Nothing proves them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClaimedFields {
    /// `pid`.
    pub merchant: Option<String>,
    /// `out_trade_no`.
    pub order_no: Option<String>,
    /// `trade_no`.
    pub trade_no: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_result_of_a_notification_has_one_name_and_one_place() {
        let all: Vec<_> = NotificationOutcome::all().collect();
        assert_eq!(all.len(), NotificationOutcome::COUNT);
        assert!(all.iter().enumerate().all(|(index, outcome)| outcome.index() == index));
        assert_eq!(all.iter().map(|outcome| outcome.name()).collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn a_stored_result_is_read_back_as_it_was_written() {
        let rejected = Rejected::ALL.iter().map(|&rejected| ReceiptOutcome::Rejected(rejected));
        let decided = Outcome::ALL.iter().map(|&outcome| ReceiptOutcome::Decided(outcome));
        let decisions = OperatorDecision::ALL.iter().map(|&decision| ReceiptOutcome::Operator(decision));
        for outcome in rejected.chain(decided).chain(decisions) {
            assert_eq!(ReceiptOutcome::from_name(outcome.name()), Some(outcome));
        }
        assert_eq!(ReceiptOutcome::from_name("odd"), None);
    }
}
