//! The decision: what a vouched-for payment does to an order.

use crate::clock::Timestamp;
use crate::epay::{self, Notification};
use crate::money::Amount;
use crate::named::named_enum;
use crate::order::{Hold, OrderStatus, PaymentState, ReviewReason, SettledBy};

named_enum! {
    /// What became of a notification. The names are part of the public contract.
    Outcome {
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
        /// Vouched for, and says that nothing was paid.
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
        /// Vouched for, and the gateway itself has yet to say that it was paid.
        Unconfirmed = "unconfirmed",
        /// The order is paid now, and the credits are given.
        Settled = "settled",
        /// Too much is waiting to be written.
        Overloaded = "overloaded",
        /// The store failed.
        StoreError = "store_error",
    }
}

impl Outcome {
    /// Whether the gateway may stop sending: the payment is durably recorded, or there was none.
    pub const fn is_success(self) -> bool {
        matches!(self, Self::NotPaid | Self::Duplicate | Self::PaidAgain | Self::Settled)
    }

    /// Whether it proved nothing: anybody can have sent it.
    pub const fn is_rejection(self) -> bool {
        matches!(
            self,
            Self::Malformed | Self::UnknownMerchant | Self::AddressNotAllowed | Self::BadSignature | Self::Stale
        )
    }
}

named_enum! {
    /// Alerts that do not follow from the outcome alone.
    Alert {
        /// A payment became that of an order which a person had settled.
        Adopted = "adopted",
        /// A notification has a status that nobody knows, and its gateway cannot be asked what it means.
        StatusUnclear = "status_unclear",
    }
}

/// How a claim is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimProof {
    /// Not yet: the merchant wants the gateway's own word, and it is not there.
    Missing,
    /// By the gateway's signature.
    Signature,
    /// By the gateway's answer to a question of ours.
    Gateway,
}

/// What a gateway says of a payment, by a notification or by an answer.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The merchant that the source speaks for.
    pub merchant: String,
    /// The order that is paid.
    pub order_no: String,
    /// The gateway's number of the payment, where it was said.
    pub trade_no: Option<String>,
    /// The amount that was paid, where it can be read.
    pub amount: Option<Amount>,
    /// Whether anything was paid at all.
    pub payment: PaymentState,
    /// What came back as `param`, if anything.
    pub param: Option<String>,
    /// How it is proved.
    pub proof: ClaimProof,
}

impl Claim {
    /// The payment's number; blank where it was not said.
    pub fn trade_no(&self) -> &str {
        self.trade_no.as_deref().unwrap_or_default()
    }
}

impl From<Notification> for Claim {
    fn from(notification: Notification) -> Self {
        Self {
            merchant: notification.pid,
            order_no: notification.out_trade_no,
            trade_no: notification.trade_no,
            amount: notification.money,
            payment: notification.payment,
            param: notification.param,
            proof: ClaimProof::Signature,
        }
    }
}

named_enum! {
    /// What to do with money for an order that expired unpaid.
    LatePolicy {
        /// Give the credits all the same.
        Credit = "credit",
        /// Let a person decide.
        Review = "review",
    }
}

/// The operator's rules for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What happens to money that comes late.
    pub late: LatePolicy,
    /// Whether the merchant's gateway can be asked about an order.
    pub can_ask: bool,
}

/// What has to be written about the order, in the same transaction as the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The order stays as it is.
    None,
    /// The order is paid: credits, ledger entry and message.
    Settle,
    /// The order, which a person settled, gets this payment's number.
    Adopt,
    /// The order goes into review, with a message.
    Review(ReviewReason),
    /// The gateway is to be asked about the order soon.
    Ask,
}

/// A decision: its name, and what it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    /// What it is called.
    pub outcome: Outcome,
    /// What it changes.
    pub effect: Effect,
    /// What the operator hears of it beside the outcome.
    pub alert: Option<Alert>,
}

impl Decision {
    const fn new(outcome: Outcome, effect: Effect) -> Self {
        Self { outcome, effect, alert: None }
    }
}

/// An order, as far as it matters to a claim on it.
#[derive(Clone, Debug)]
pub(crate) struct Payable {
    /// The merchant whose word counts.
    pub merchant: String,
    /// What it costs.
    pub amount: Amount,
    /// What was sent as `param`.
    pub param: Option<String>,
    /// When it counts as expired.
    pub expires_at: Timestamp,
    /// Its status as stored.
    pub stored_status: OrderStatus,
    /// The payment that settled it.
    pub trade_no: Option<String>,
    /// What settled it.
    pub settled_by: Option<SettledBy>,
    /// Whether a person settled it because the money came by another way than the gateway.
    pub paid_outside: bool,
    /// Why a callback alone does not settle it.
    pub hold: Option<Hold>,
}

impl Payable {
    /// Whether it is paid, or was and is refunded: nothing settles it any more.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.stored_status, OrderStatus::Paid | OrderStatus::Refunded)
    }

    /// Whether it waits for the one payment that a person settled it for.
    fn adopts(&self) -> bool {
        self.stored_status == OrderStatus::Paid
            && self.settled_by == Some(SettledBy::Manual)
            && self.trade_no.is_none()
            && !self.paid_outside
    }

    /// Whether this payment settled it.
    fn is_settled_by(&self, claim: &Claim) -> bool {
        self.is_settled() && self.trade_no.is_some() && self.trade_no == claim.trade_no
    }
}

/// Decides what `claim` does.
///
/// `order` is the order that it names, whoever its merchant is; `trade_used` says whether this merchant's `trade_no` has settled
/// another one. Total and pure: the same answer for the same arguments, at any time.
pub(crate) fn decide(
    claim: &Claim,
    order: Option<&Payable>,
    trade_used: bool,
    policy: Policy,
    now: Timestamp,
) -> Decision {
    let own = order.filter(|order| order.merchant == claim.merchant);
    match (claim.payment, own) {
        (PaymentState::Unpaid, _) => Decision::new(Outcome::NotPaid, Effect::None),
        (PaymentState::Unclear, order) => decide_unclear(order, policy),
        (PaymentState::Paid | PaymentState::Refunded, None) => Decision::new(Outcome::UnknownOrder, Effect::None),
        (PaymentState::Paid, Some(order)) if order.is_settled_by(claim) => {
            Decision::new(Outcome::Duplicate, Effect::None)
        }
        // A notification that is no proof yet must change nothing: anybody may have made it.
        (PaymentState::Paid, Some(_)) if claim.proof == ClaimProof::Missing => {
            Decision::new(Outcome::Unconfirmed, Effect::Ask)
        }
        (PaymentState::Paid, Some(order)) if order.is_settled() => decide_settled(claim, order, trade_used),
        // The money is back where it came from, so a settled order is none of its business.
        (PaymentState::Refunded, Some(order)) if order.is_settled() => Decision::new(Outcome::NotPaid, Effect::None),
        (PaymentState::Paid | PaymentState::Refunded, Some(order)) => {
            decide_unsettled(claim, order, trade_used, policy, now)
        }
    }
}

/// A verified notification whose status says neither paid nor unpaid.
fn decide_unclear(order: Option<&Payable>, policy: Policy) -> Decision {
    match order {
        Some(order) if !order.is_settled() && policy.can_ask => Decision::new(Outcome::NotPaid, Effect::Ask),
        Some(order) if !order.is_settled() => {
            Decision { alert: Some(Alert::StatusUnclear), ..Decision::new(Outcome::Unconfirmed, Effect::None) }
        }
        _ => Decision::new(Outcome::NotPaid, Effect::None),
    }
}

/// A proved payment of an order that another payment, or a person, has settled.
fn decide_settled(claim: &Claim, order: &Payable, trade_used: bool) -> Decision {
    if trade_used {
        return Decision::new(Outcome::TradeReused, Effect::None);
    }
    if order.adopts() && claim.trade_no.is_some() && claim.amount == Some(order.amount) {
        return Decision { alert: Some(Alert::Adopted), ..Decision::new(Outcome::Duplicate, Effect::Adopt) };
    }
    Decision::new(Outcome::PaidAgain, Effect::None)
}

fn decide_unsettled(claim: &Claim, order: &Payable, trade_used: bool, policy: Policy, now: Timestamp) -> Decision {
    let needs_the_gateways_word =
        order.hold.is_some_and(|hold| hold != Hold::Refunded) && claim.proof != ClaimProof::Gateway;
    if needs_the_gateways_word && policy.can_ask {
        return Decision::new(Outcome::Unconfirmed, Effect::Ask);
    }
    if trade_used {
        return Decision::new(Outcome::TradeReused, Effect::None);
    }
    let status = order.stored_status.at(now, order.expires_at);
    let review = |outcome, reason| {
        let effect = if status == OrderStatus::Review { Effect::None } else { Effect::Review(reason) };
        Decision::new(outcome, effect)
    };
    let held = |reason| review(Outcome::Held, reason);
    if claim.payment == PaymentState::Refunded || order.hold == Some(Hold::Refunded) {
        return held(ReviewReason::Refunded);
    }
    if claim.amount != Some(order.amount) {
        return review(Outcome::AmountMismatch, ReviewReason::Amount);
    }
    match status {
        OrderStatus::Cancelled => return held(ReviewReason::Cancelled),
        OrderStatus::Expired if policy.late == LatePolicy::Review => return held(ReviewReason::Late),
        // A later payment for an order in review: the reason stays the first one.
        OrderStatus::Review => return Decision::new(Outcome::Held, Effect::None),
        OrderStatus::Pending | OrderStatus::Expired | OrderStatus::Paid | OrderStatus::Refunded => {}
    }
    if is_foreign_param(order.param.as_deref(), claim.param.as_deref()) {
        return held(ReviewReason::Param);
    }
    if claim.trade_no.is_none() {
        return held(ReviewReason::NoTradeNo);
    }
    if needs_the_gateways_word {
        return held(ReviewReason::TooOld);
    }
    Decision::new(Outcome::Settled, Effect::Settle)
}

/// Whether a `param` came back that is not the one that was sent, however the gateway escaped it.
///
/// An order for which none was sent makes no promise about what a gateway adds on its own.
fn is_foreign_param(sent: Option<&str>, received: Option<&str>) -> bool {
    sent.zip(received).is_some_and(|(sent, received)| !epay::is_sent_text(sent, received))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: i64 = 1_700_000_000_000;
    const EXPIRES: i64 = CREATED + 1_800_000;

    fn order(status: OrderStatus, trade_no: Option<&str>) -> Payable {
        Payable {
            merchant: "1002".into(),
            amount: Amount::from_fen(3600).unwrap(),
            param: Some("a<b".into()),
            expires_at: Timestamp::from_ms(EXPIRES),
            stored_status: status,
            trade_no: trade_no.map(str::to_owned),
        }
    }

    fn claim() -> Claim {
        Claim {
            merchant: "1002".into(),
            order_no: "ORDER1".into(),
            trade_no: "T1".into(),
            amount: Amount::from_fen(3600).unwrap(),
            paid: true,
            param: None,
        }
    }

    struct Case {
        when: &'static str,
        order: Option<Payable>,
        claim: Claim,
        trade_used: bool,
        late: LatePolicy,
        is_proof: bool,
        now: i64,
    }

    impl Case {
        fn of(when: &'static str, status: OrderStatus) -> Self {
            let trade_no = matches!(status, OrderStatus::Paid | OrderStatus::Refunded).then_some("T1");
            Self {
                when,
                order: Some(order(status, trade_no)),
                claim: claim(),
                trade_used: false,
                late: LatePolicy::Credit,
                is_proof: true,
                now: CREATED,
            }
        }

        fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }

        #[track_caller]
        fn is(self, outcome: Outcome, effect: Effect) {
            let now = Timestamp::from_ms(self.now);
            let policy = Policy { late: self.late, is_proof: self.is_proof };
            let decision = decide(&self.claim, self.order.as_ref(), self.trade_used, policy, now);
            assert_eq!(decision, Decision { outcome, effect }, "{}", self.when);
        }
    }

    fn other_amount(case: &mut Case) {
        case.claim.amount = Amount::from_fen(3599).unwrap();
    }

    fn other_trade(case: &mut Case) {
        case.claim.trade_no = "T2".into();
    }

    #[test]
    fn the_outcome_table() {
        use Effect::{None as Nothing, Review as ToReview, Settle};
        use OrderStatus::{Cancelled, Paid, Pending, Refunded, Review};

        Case::of("payable", Pending).is(Outcome::Settled, Settle);
        Case::of("one ms before it expires", Pending).with(|c| c.now = EXPIRES - 1).is(Outcome::Settled, Settle);
        Case::of("expired, late money is credited", Pending).with(|c| c.now = EXPIRES).is(Outcome::Settled, Settle);
        Case::of("expired, late money is reviewed", Pending)
            .with(|c| (c.now, c.late) = (EXPIRES, LatePolicy::Review))
            .is(Outcome::Held, ToReview);
        Case::of("in time, late money would be reviewed", Pending)
            .with(|c| c.late = LatePolicy::Review)
            .is(Outcome::Settled, Settle);
        Case::of("in review", Review).is(Outcome::Held, Nothing);
        Case::of("cancelled", Cancelled).is(Outcome::Held, ToReview);

        Case::of("paid by this trade", Paid).is(Outcome::Duplicate, Nothing);
        Case::of("paid by this trade, other money", Paid).with(other_amount).is(Outcome::Duplicate, Nothing);
        Case::of("refunded, replayed", Refunded).is(Outcome::Duplicate, Nothing);
        Case::of("paid by another trade", Paid).with(other_trade).is(Outcome::PaidAgain, Nothing);
        Case::of("refunded, paid by another trade", Refunded).with(other_trade).is(Outcome::PaidAgain, Nothing);
        Case::of("settled by hand, without a trade", Paid)
            .with(|c| c.order = Some(order(Paid, None)))
            .is(Outcome::PaidAgain, Nothing);

        for status in [Pending, Review, Cancelled] {
            Case::of("trade settled another order", status)
                .with(|c| c.trade_used = true)
                .is(Outcome::TradeReused, Nothing);
        }
        Case::of("trade reused, and other money", Pending)
            .with(|c| c.trade_used = true)
            .with(other_amount)
            .is(Outcome::TradeReused, Nothing);

        Case::of("one fen short", Pending).with(other_amount).is(Outcome::AmountMismatch, ToReview);
        Case::of("one fen too much", Pending)
            .with(|c| c.claim.amount = Amount::from_fen(3601).unwrap())
            .is(Outcome::AmountMismatch, ToReview);
        Case::of("other money while in review", Review).with(other_amount).is(Outcome::AmountMismatch, Nothing);
        Case::of("other money while cancelled", Cancelled).with(other_amount).is(Outcome::AmountMismatch, ToReview);

        for status in [Pending, Paid, Review, Cancelled, Refunded] {
            Case::of("another merchant's order", status)
                .with(|c| c.claim.merchant = "1003".into())
                .is(Outcome::UnknownOrder, Nothing);
            Case::of("not paid", status).with(|c| c.claim.paid = false).is(Outcome::NotPaid, Nothing);
        }
        Case::of("no order", Pending).with(|c| c.order = None).is(Outcome::UnknownOrder, Nothing);
        Case::of("no order, and not paid", Pending)
            .with(|c| (c.order, c.claim.paid) = (None, false))
            .is(Outcome::NotPaid, Nothing);
    }

    #[test]
    fn what_is_no_proof_yet_never_settles_and_changes_no_other_outcome() {
        use OrderStatus::{Cancelled, Paid, Pending, Refunded, Review};
        let unproved = |c: &mut Case| c.is_proof = false;

        Case::of("payable", Pending).with(unproved).is(Outcome::Unconfirmed, Effect::Ask);
        Case::of("late", Pending).with(|c| c.now = EXPIRES).with(unproved).is(Outcome::Unconfirmed, Effect::Ask);
        Case::of("late, reviewed", Pending)
            .with(|c| (c.now, c.late) = (EXPIRES, LatePolicy::Review))
            .with(unproved)
            .is(Outcome::Held, Effect::Review);
        Case::of("other money", Pending).with(other_amount).with(unproved).is(Outcome::AmountMismatch, Effect::Review);
        Case::of("in review", Review).with(unproved).is(Outcome::Held, Effect::None);
        Case::of("cancelled", Cancelled).with(unproved).is(Outcome::Held, Effect::Review);
        Case::of("paid", Paid).with(unproved).is(Outcome::Duplicate, Effect::None);
        Case::of("refunded", Refunded).with(unproved).is(Outcome::Duplicate, Effect::None);
    }

    #[test]
    fn param_comes_back_as_sent_or_not_at_all() {
        for (param, outcome) in [
            (None, Outcome::Settled),
            (Some("a<b"), Outcome::Settled),
            (Some("a&lt;b"), Outcome::Settled),
            (Some("a"), Outcome::Malformed),
            (Some("a&amp;lt;b"), Outcome::Malformed),
        ] {
            let effect = if outcome == Outcome::Settled { Effect::Settle } else { Effect::None };
            Case::of("param", OrderStatus::Pending)
                .with(|c| c.claim.param = param.map(str::to_owned))
                .is(outcome, effect);
        }
        Case::of("none sent", OrderStatus::Pending)
            .with(|c| c.order.as_mut().unwrap().param = None)
            .with(|c| c.claim.param = Some("gateway's own".into()))
            .is(Outcome::Settled, Effect::Settle);
    }

    #[test]
    fn success_is_answered_only_for_what_is_settled_or_was_never_paid() {
        let answered: Vec<_> = Outcome::ALL.iter().filter(|outcome| outcome.is_success()).collect();
        assert_eq!(answered, [&Outcome::NotPaid, &Outcome::Duplicate, &Outcome::PaidAgain, &Outcome::Settled]);
    }
}
