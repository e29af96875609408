//! The decision: what a vouched-for payment does to an order.

use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::named::named_enum;
use crate::domain::order::{Hold, OrderStatus, PaymentState, ReviewReason, SettledBy};
use crate::domain::outcome::Outcome;

named_enum! {
    /// Alerts that do not follow from the outcome alone.
    Alert {
        /// A payment became that of an order which a person had settled.
        Adopted = "adopted",
        /// The gateway says that the payment was refunded.
        Refunded = "refunded",
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

/// A payment as a gateway tells it, by a notification or by an answer.
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
    /// The `param` as it came back, if any.
    pub param: Option<Echo>,
    /// How it is proved.
    pub proof: ClaimProof,
}

impl Claim {
    /// The payment's number; blank where it was not said.
    pub fn trade_no(&self) -> &str {
        self.trade_no.as_deref().unwrap_or_default()
    }
}

/// A text of ours as a gateway sent it back: every text that it may have been before the gateway escaped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo(Vec<String>);

impl Echo {
    /// Of a text as it came back, with what else it may stand for.
    pub fn new(received: String, readings: impl IntoIterator<Item = String>) -> Self {
        Self(std::iter::once(received).chain(readings).collect())
    }

    /// Whether it may be what came back for the text `sent`.
    pub fn may_be(&self, sent: &str) -> bool {
        self.0.iter().any(|reading| reading == sent)
    }

    /// The text as it came back.
    pub fn as_received(&self) -> &str {
        &self.0[0]
    }
}

named_enum! {
    /// Rule for money that comes after its order expired.
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
    /// The rule for money that comes late.
    pub late: LatePolicy,
    /// Whether the merchant's gateway can be asked about an order.
    pub can_ask: bool,
}

/// The change to the order, written in the same transaction as the receipt.
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
    /// Its name.
    pub outcome: Outcome,
    /// The change to the order.
    pub effect: Effect,
    /// An alert that does not follow from the outcome.
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
    /// Its price.
    pub amount: Amount,
    /// The `param` that was sent.
    pub param: Option<String>,
    /// When it counts as expired.
    pub expires_at: Timestamp,
    /// Its status as stored.
    pub stored_status: OrderStatus,
    /// The payment that settled it.
    pub trade_no: Option<String>,
    /// The source that settled it.
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
        return Decision { alert: Some(Alert::Refunded), ..held(ReviewReason::Refunded) };
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
    if is_foreign_param(order.param.as_deref(), claim.param.as_ref()) {
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
fn is_foreign_param(sent: Option<&str>, received: Option<&Echo>) -> bool {
    sent.zip(received).is_some_and(|(sent, received)| !received.may_be(sent))
}

#[cfg(test)]
mod tests {
    use Effect::{Adopt, Ask, None as Nothing, Settle};
    use OrderStatus::{Cancelled, Paid, Pending, Refunded, Review};

    use super::*;

    const ALL_STORED: [OrderStatus; 5] = [Pending, Paid, Review, Cancelled, Refunded];
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
            settled_by: trade_no.map(|_| SettledBy::Notify),
            paid_outside: false,
            hold: None,
        }
    }

    /// An order that a person has settled without knowing the payment.
    fn by_hand(case: &mut Case) {
        case.order = Some(Payable { settled_by: Some(SettledBy::Manual), ..order(Paid, None) });
    }

    /// As a gateway sends it back that writes entities.
    fn echo(received: &str) -> Echo {
        Echo::new(received.to_owned(), [received.replace("&lt;", "<").replace("&amp;", "&")])
    }

    fn claim() -> Claim {
        Claim {
            merchant: "1002".into(),
            order_no: "ORDER1".into(),
            trade_no: Some("T1".into()),
            amount: Amount::from_fen(3600),
            payment: PaymentState::Paid,
            param: None,
            proof: ClaimProof::Signature,
        }
    }

    struct Case {
        when: &'static str,
        order: Option<Payable>,
        claim: Claim,
        trade_used: bool,
        policy: Policy,
        now: i64,
    }

    impl Case {
        fn of(when: &'static str, status: OrderStatus) -> Self {
            let trade_no = matches!(status, Paid | Refunded).then_some("T1");
            Self {
                when,
                order: Some(order(status, trade_no)),
                claim: claim(),
                trade_used: false,
                policy: Policy { late: LatePolicy::Credit, can_ask: true },
                now: CREATED,
            }
        }

        fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }

        fn decide(&self) -> Decision {
            let now = Timestamp::from_ms(self.now);
            decide(&self.claim, self.order.as_ref(), self.trade_used, self.policy, now)
        }

        #[track_caller]
        fn is(self, outcome: Outcome, effect: Effect) {
            assert_eq!(self.decide(), Decision::new(outcome, effect), "{}", self.when);
        }

        #[track_caller]
        fn alerts(self, outcome: Outcome, effect: Effect, alert: Alert) {
            let expected = Decision { alert: Some(alert), ..Decision::new(outcome, effect) };
            assert_eq!(self.decide(), expected, "{}", self.when);
        }
    }

    fn other_amount(case: &mut Case) {
        case.claim.amount = Amount::from_fen(3599);
    }

    fn other_trade(case: &mut Case) {
        case.claim.trade_no = Some("T2".into());
    }

    fn late_money_is_reviewed(case: &mut Case) {
        (case.now, case.policy.late) = (EXPIRES, LatePolicy::Review);
    }

    fn on_hold(hold: Hold) -> impl Fn(&mut Case) {
        move |case| case.order.as_mut().unwrap().hold = Some(hold)
    }

    #[test]
    fn the_outcome_table() {
        let to_review = Effect::Review;

        Case::of("payable", Pending).is(Outcome::Settled, Settle);
        Case::of("one ms before it expires", Pending).with(|c| c.now = EXPIRES - 1).is(Outcome::Settled, Settle);
        Case::of("expired, late money is credited", Pending).with(|c| c.now = EXPIRES).is(Outcome::Settled, Settle);
        Case::of("expired, late money is reviewed", Pending)
            .with(late_money_is_reviewed)
            .is(Outcome::Held, to_review(ReviewReason::Late));
        Case::of("in time, late money would be reviewed", Pending)
            .with(|c| c.policy.late = LatePolicy::Review)
            .is(Outcome::Settled, Settle);
        Case::of("in review", Review).is(Outcome::Held, Nothing);
        Case::of("cancelled", Cancelled).is(Outcome::Held, to_review(ReviewReason::Cancelled));

        Case::of("paid by this trade", Paid).is(Outcome::Duplicate, Nothing);
        Case::of("paid by this trade, other money", Paid).with(other_amount).is(Outcome::Duplicate, Nothing);
        Case::of("refunded, replayed", Refunded).is(Outcome::Duplicate, Nothing);
        Case::of("paid by another trade", Paid).with(other_trade).is(Outcome::PaidAgain, Nothing);
        Case::of("refunded, paid by another trade", Refunded).with(other_trade).is(Outcome::PaidAgain, Nothing);
        Case::of("paid, and no trade number", Paid).with(|c| c.claim.trade_no = None).is(Outcome::PaidAgain, Nothing);

        for status in [Pending, Review, Cancelled] {
            Case::of("trade settled another order", status)
                .with(|c| c.trade_used = true)
                .is(Outcome::TradeReused, Nothing);
        }
        for status in [Paid, Refunded] {
            Case::of("settled, and the trade settled another order", status)
                .with(other_trade)
                .with(|c| c.trade_used = true)
                .is(Outcome::TradeReused, Nothing);
        }
        Case::of("trade reused, and other money", Pending)
            .with(|c| c.trade_used = true)
            .with(other_amount)
            .is(Outcome::TradeReused, Nothing);

        let amount = to_review(ReviewReason::Amount);
        Case::of("one fen short", Pending).with(other_amount).is(Outcome::AmountMismatch, amount);
        Case::of("one fen too much", Pending)
            .with(|c| c.claim.amount = Amount::from_fen(3601))
            .is(Outcome::AmountMismatch, amount);
        Case::of("money that cannot be read", Pending)
            .with(|c| c.claim.amount = None)
            .is(Outcome::AmountMismatch, amount);
        Case::of("other money while in review", Review).with(other_amount).is(Outcome::AmountMismatch, Nothing);
        Case::of("other money while cancelled", Cancelled).with(other_amount).is(Outcome::AmountMismatch, amount);
        Case::of("no trade number", Pending)
            .with(|c| c.claim.trade_no = None)
            .is(Outcome::Held, to_review(ReviewReason::NoTradeNo));

        for status in ALL_STORED {
            Case::of("another merchant's order", status)
                .with(|c| c.claim.merchant = "1003".into())
                .is(Outcome::UnknownOrder, Nothing);
            Case::of("not paid", status).with(|c| c.claim.payment = PaymentState::Unpaid).is(Outcome::NotPaid, Nothing);
        }
        Case::of("no order", Pending).with(|c| c.order = None).is(Outcome::UnknownOrder, Nothing);
        Case::of("no order, and not paid", Pending)
            .with(|c| (c.order, c.claim.payment) = (None, PaymentState::Unpaid))
            .is(Outcome::NotPaid, Nothing);
    }

    #[test]
    fn an_order_settled_by_hand_adopts_one_payment_of_its_amount() {
        Case::of("the payment arrives", Paid).with(by_hand).alerts(Outcome::Duplicate, Adopt, Alert::Adopted);
        Case::of("by the gateway's word", Paid).with(by_hand).with(|c| c.claim.proof = ClaimProof::Gateway).alerts(
            Outcome::Duplicate,
            Adopt,
            Alert::Adopted,
        );
        Case::of("unproved", Paid)
            .with(by_hand)
            .with(|c| c.claim.proof = ClaimProof::Missing)
            .is(Outcome::Unconfirmed, Ask);
        Case::of("another amount", Paid).with(by_hand).with(other_amount).is(Outcome::PaidAgain, Nothing);
        Case::of("no trade number", Paid)
            .with(by_hand)
            .with(|c| c.claim.trade_no = None)
            .is(Outcome::PaidAgain, Nothing);
        Case::of("a used trade number", Paid)
            .with(by_hand)
            .with(|c| c.trade_used = true)
            .is(Outcome::TradeReused, Nothing);
        Case::of("refunded meanwhile", Paid)
            .with(by_hand)
            .with(|c| c.order.as_mut().unwrap().stored_status = Refunded)
            .is(Outcome::PaidAgain, Nothing);
        Case::of("paid outside the gateway", Paid)
            .with(by_hand)
            .with(|c| c.order.as_mut().unwrap().paid_outside = true)
            .is(Outcome::PaidAgain, Nothing);
        Case::of("settled by hand with a known payment", Paid)
            .with(by_hand)
            .with(|c| c.order.as_mut().unwrap().trade_no = Some("T0".into()))
            .is(Outcome::PaidAgain, Nothing);
        Case::of("settled by a notification without a trade number", Paid)
            .with(by_hand)
            .with(|c| c.order.as_mut().unwrap().settled_by = Some(SettledBy::Notify))
            .is(Outcome::PaidAgain, Nothing);
    }

    #[test]
    fn a_claim_without_proof_changes_nothing() {
        let unproved = |c: &mut Case| c.claim.proof = ClaimProof::Missing;
        for status in ALL_STORED {
            Case::of("another trade", status).with(other_trade).with(unproved).is(Outcome::Unconfirmed, Ask);
            Case::of("other money", status)
                .with(other_trade)
                .with(other_amount)
                .with(unproved)
                .is(Outcome::Unconfirmed, Ask);
            Case::of("a used trade", status)
                .with(other_trade)
                .with(|c| c.trade_used = true)
                .with(unproved)
                .is(Outcome::Unconfirmed, Ask);
        }
        Case::of("late, reviewed", Pending).with(late_money_is_reviewed).with(unproved).is(Outcome::Unconfirmed, Ask);
        Case::of("this very payment", Paid).with(unproved).is(Outcome::Duplicate, Nothing);
        Case::of("no order", Pending).with(|c| c.order = None).with(unproved).is(Outcome::UnknownOrder, Nothing);
    }

    #[test]
    fn what_the_gateway_answered_is_state() {
        let refunded = Effect::Review(ReviewReason::Refunded);
        for (hold, own_word) in [
            (Hold::Frozen, Outcome::Settled),
            (Hold::PreAuthorised, Outcome::Settled),
            (Hold::Restored, Outcome::Settled),
        ] {
            Case::of("a callback", Pending).with(on_hold(hold)).is(Outcome::Unconfirmed, Ask);
            Case::of("a callback with another amount", Pending)
                .with(on_hold(hold))
                .with(other_amount)
                .is(Outcome::Unconfirmed, Ask);
            Case::of("the gateway says paid", Pending)
                .with(on_hold(hold))
                .with(|c| c.claim.proof = ClaimProof::Gateway)
                .is(own_word, Settle);
            Case::of("a callback, and nobody can be asked", Pending)
                .with(on_hold(hold))
                .with(|c| c.policy.can_ask = false)
                .is(Outcome::Held, Effect::Review(ReviewReason::TooOld));
            Case::of("another amount, and nobody can be asked", Pending)
                .with(on_hold(hold))
                .with(|c| c.policy.can_ask = false)
                .with(other_amount)
                .is(Outcome::AmountMismatch, Effect::Review(ReviewReason::Amount));
        }
        for proof in [ClaimProof::Signature, ClaimProof::Gateway] {
            Case::of("a payment that was refunded before", Pending)
                .with(on_hold(Hold::Refunded))
                .with(|c| c.claim.proof = proof)
                .alerts(Outcome::Held, refunded, Alert::Refunded);
        }
        let now_refunded = |c: &mut Case| {
            (c.claim.payment, c.claim.proof) = (PaymentState::Refunded, ClaimProof::Gateway);
        };
        for status in [Pending, Cancelled] {
            Case::of("the gateway says refunded", status).with(now_refunded).alerts(
                Outcome::Held,
                refunded,
                Alert::Refunded,
            );
        }
        Case::of("in review, refunded", Review).with(now_refunded).alerts(Outcome::Held, Nothing, Alert::Refunded);
        for status in [Paid, Refunded] {
            Case::of("settled, refunded there", status).with(now_refunded).is(Outcome::NotPaid, Nothing);
        }
    }

    #[test]
    fn an_unclear_status_causes_a_question_and_an_alert_where_nobody_can_be_asked() {
        let unclear = |c: &mut Case| c.claim.payment = PaymentState::Unclear;
        for status in [Pending, Review, Cancelled] {
            Case::of("unclear", status).with(unclear).is(Outcome::NotPaid, Ask);
            Case::of("unclear, nobody to ask", status).with(unclear).with(|c| c.policy.can_ask = false).alerts(
                Outcome::Unconfirmed,
                Nothing,
                Alert::StatusUnclear,
            );
        }
        for status in [Paid, Refunded] {
            Case::of("settled", status).with(unclear).is(Outcome::NotPaid, Nothing);
        }
        Case::of("no order", Pending).with(unclear).with(|c| c.order = None).is(Outcome::NotPaid, Nothing);
    }

    #[test]
    fn param_comes_back_as_sent_or_not_at_all() {
        let held = (Outcome::Held, Effect::Review(ReviewReason::Param));
        for (param, (outcome, effect)) in [
            (None, (Outcome::Settled, Settle)),
            (Some("a<b"), (Outcome::Settled, Settle)),
            (Some("a&lt;b"), (Outcome::Settled, Settle)),
            (Some("a"), held),
            (Some("a&amp;lt;b"), held),
        ] {
            Case::of("param", Pending).with(|c| c.claim.param = param.map(echo)).is(outcome, effect);
        }
        Case::of("a foreign param of a settled payment", Paid)
            .with(|c| c.claim.param = Some(echo("a")))
            .is(Outcome::Duplicate, Nothing);
        Case::of("none sent", Pending)
            .with(|c| c.order.as_mut().unwrap().param = None)
            .with(|c| c.claim.param = Some(echo("gateway's own")))
            .is(Outcome::Settled, Settle);
    }

    /// Every combination of an order's state and a claim: proved money is credited or adopted, or a person hears of it.
    #[test]
    fn proved_money_ends_at_the_buyer_or_at_a_person() {
        let mut proved = 0;
        let trades = [None, Some("T1".to_owned()), Some("T2".to_owned())];
        let amounts = [None, Amount::from_fen(3600), Amount::from_fen(1)];
        let params = [None, Some(echo("a<b")), Some(echo("b"))];
        let holds = Hold::ALL.iter().map(|&hold| Some(hold)).chain([None]);
        for (status, hold) in ALL_STORED.into_iter().flat_map(|status| holds.clone().map(move |hold| (status, hold))) {
            for (trade_no, amount) in trades.iter().flat_map(|trade| amounts.map(|amount| (trade.clone(), amount))) {
                for (param, proof) in params
                    .iter()
                    .flat_map(|param| [ClaimProof::Signature, ClaimProof::Gateway].map(|proof| (param.clone(), proof)))
                {
                    for (trade_used, can_ask) in [(false, false), (false, true), (true, false), (true, true)] {
                        let case = Case::of("any", status).with(|c| {
                            c.order.as_mut().unwrap().hold = hold;
                            (c.claim.trade_no, c.claim.amount) = (trade_no.clone(), amount);
                            (c.claim.param, c.claim.proof) = (param.clone(), proof);
                            (c.trade_used, c.policy.can_ask) = (trade_used, can_ask);
                        });
                        let decision = case.decide();
                        proved += 1;
                        let ends_well = match decision.outcome {
                            Outcome::Settled => decision.effect == Settle,
                            Outcome::AmountMismatch | Outcome::Held => {
                                status == Review || matches!(decision.effect, Effect::Review(_))
                            }
                            Outcome::Duplicate | Outcome::PaidAgain | Outcome::TradeReused | Outcome::UnknownOrder => {
                                true
                            }
                            // The gateway's word is still to come, and it is asked for.
                            Outcome::Unconfirmed => decision.effect == Ask && can_ask && proof == ClaimProof::Signature,
                            Outcome::NotPaid => false,
                        };
                        assert!(ends_well, "{:?} {:?}: {decision:?}", case.order, case.claim);
                        let is_credited = decision.effect == Settle;
                        let is_right = amount == Amount::from_fen(3600)
                            && trade_no.is_some()
                            && !trade_used
                            && status == Pending
                            && param != Some(echo("b"));
                        assert!(!is_credited || is_right, "{:?} {:?}", case.order, case.claim);
                    }
                }
            }
        }
        assert!(proved > 1000, "{proved}");
    }

    #[test]
    fn success_is_answered_only_for_what_is_settled_or_was_never_paid() {
        let answered: Vec<_> = Outcome::ALL.iter().filter(|outcome| outcome.is_success()).collect();
        assert_eq!(answered, [&Outcome::NotPaid, &Outcome::Duplicate, &Outcome::PaidAgain, &Outcome::Settled]);
    }
}
