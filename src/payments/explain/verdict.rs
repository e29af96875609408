//! What a story comes to: what happened, and what to do. Total and pure.

use crate::channel::epay::Diagnosis;
use crate::config::Config;
use crate::domain::clock::Timestamp;
use crate::domain::decisions::{OperatorDecision, RefundState};
use crate::domain::language::{Language, Localized, text};
use crate::domain::named::named_enum;
use crate::domain::order::{Hold, Order, OrderStatus, ReviewReason};
use crate::domain::outcome::{Outcome, ReceiptOutcome, Rejected};
use crate::store::{Channel, DeliveryState, KeptReceipt, News, Story};

named_enum! {
    /// What a story comes to.
    VerdictCode {
        /// Nothing is known of such a number.
        NothingKnown = "nothing_known",
        /// Proved payments of an order that is not here.
        UnknownOrder = "unknown_order",
        /// No order, and only notifications that prove nothing.
        OnlyRejected = "only_rejected",
        /// Paid and credited, and the buyer was told or will be.
        Credited = "credited",
        /// Paid and credited, and the buyer could not be told.
        CreditedUntold = "credited_untold",
        /// Paid and credited, and paid once more.
        PaidAgain = "paid_again",
        /// A refund has begun, and nobody knows how it ended.
        RefundUnclear = "refund_unclear",
        /// Refunded.
        Refunded = "refunded",
        /// Called off.
        Cancelled = "cancelled",
        /// In review, because another amount was paid.
        ReviewAmount = "review_amount",
        /// In review, because a person wanted to look first.
        ReviewHeld = "review_held",
        /// Unpaid: the gateway holds the money back, or has only reserved it.
        OnHold = "on_hold",
        /// Unpaid: notifications came, and the gateway has yet to confirm them.
        Unconfirmed = "unconfirmed",
        /// Unpaid: what came was signed wrongly.
        BadSignature = "bad_signature",
        /// Unpaid: what came was signed wrongly, in a known way.
        SignedWrongly = "signed_wrongly",
        /// Unpaid: what came was refused for another reason.
        Refused = "refused",
        /// Unpaid: the payment that came has settled another order.
        TradeReused = "trade_reused",
        /// Unpaid: notifications came and said so.
        SaidUnpaid = "said_unpaid",
        /// Unpaid: the gateway was asked, and says so.
        AskedUnpaid = "asked_unpaid",
        /// Unpaid: the gateway's answers contradict the order.
        AskedContradicts = "asked_contradicts",
        /// Unpaid: the gateway was asked, and gave no answer.
        AskedInVain = "asked_in_vain",
        /// Unpaid: nothing came, and there is no gateway to ask.
        NobodyToAsk = "nobody_to_ask",
        /// Unpaid: nothing came, and the gateway was not asked yet.
        NotAskedYet = "not_asked_yet",
    }
}

/// What a story comes to, with the sentence that says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// In a word.
    pub code: VerdictCode,
    /// In a sentence.
    pub text: String,
}

impl Verdict {
    /// The verdict on a story; `diagnoses` has one place for each of its rejections, the newest first as they are.
    pub(super) fn of(story: &Story, diagnoses: &[Option<Diagnosis>], config: &Config, now: Timestamp) -> Self {
        let language = config.language;
        let Some(order) = &story.order else {
            let code = match (story.receipts.is_empty(), story.rejections.is_empty()) {
                (false, _) => VerdictCode::UnknownOrder,
                (true, false) => VerdictCode::OnlyRejected,
                (true, true) => VerdictCode::NothingKnown,
            };
            let why = story
                .rejections
                .first()
                .map(|rejection| why(rejection, diagnoses, config.language))
                .unwrap_or_default();
            let order_no = story.receipts.first().map(|receipt| receipt.order_no.as_str()).unwrap_or_default();
            return Self {
                code,
                text: text!(language, format!("verdict.{code}"), why = why, order = order_no).into_owned(),
            };
        };
        let code = code_of(story, order, diagnoses, config, now);
        let text = match code {
            VerdictCode::Refused | VerdictCode::BadSignature | VerdictCode::SignedWrongly => {
                let why = story
                    .rejections
                    .first()
                    .map(|rejection| why(rejection, diagnoses, config.language))
                    .unwrap_or_default();
                text!(language, format!("verdict.{code}"), why = why, count = story.rejections.len())
            }
            VerdictCode::AskedUnpaid | VerdictCode::AskedInVain | VerdictCode::AskedContradicts => {
                let last = story.answers.first();
                let detail = last.map(|last| last.answer.clone()).unwrap_or_default();
                text!(language, format!("verdict.{code}"), count = story.answers.len(), answer = detail)
            }
            code => {
                let terms = &order.terms;
                let paid_at = order.paid_at.map(|at| at.to_local().to_string()).unwrap_or_default();
                text!(
                    language,
                    format!("verdict.{code}"),
                    order = terms.order_no,
                    user = terms.telegram_id,
                    credits = terms.credits,
                    at = paid_at,
                    pid = terms.merchant,
                    why = text!(
                        language,
                        match (code, order.review_reason, order.hold) {
                            (VerdictCode::ReviewHeld, Some(reason), _) => format!("review_reason.{reason}"),
                            (VerdictCode::OnHold, _, Some(hold)) => format!("hold.{hold}"),
                            _ => "review_reason.unknown".into(),
                        }
                    ),
                    trades = again(story).collect::<Vec<_>>().join(", ")
                )
            }
        };
        let mut text = text.into_owned();
        if let (Some(at), None) = (story.next_question, order.paid_at) {
            text.push_str(&text!(language, "verdict.next_question", at = at.to_local()));
        }
        if order.status(now) == OrderStatus::Expired {
            text.push_str(&text!(language, "verdict.and_expired"));
        }
        Self { code, text }
    }
}

/// Why the newest notification that proves nothing was refused.
fn why(rejection: &KeptReceipt, diagnoses: &[Option<Diagnosis>], language: Language) -> String {
    if let Some(Some(diagnosis)) = diagnoses.first() {
        return diagnosis.text(language);
    }
    let what = text!(language, format!("outcome.{}", rejection.outcome)).into_owned();
    if rejection.reason.is_empty() { what } else { format!("{what} ({})", rejection.reason) }
}

/// Payments beyond the order's own, of which nobody has said that they are taken care of.
fn again(story: &Story) -> impl Iterator<Item = &str> {
    let of = |outcome: ReceiptOutcome| story.receipts.iter().filter(move |receipt| receipt.outcome == outcome);
    let mut trades: Vec<_> = of(Outcome::PaidAgain.into()).map(|receipt| receipt.trade_no.as_str()).collect();
    trades.sort_unstable();
    trades.dedup();
    // An older version called a payment one too many that the order has adopted since.
    let own = story.order.as_ref().and_then(|order| order.trade_no.as_deref());
    trades.retain(|trade_no| own != Some(*trade_no));
    let acknowledged = ReceiptOutcome::Operator(OperatorDecision::Acknowledged);
    trades.into_iter().filter(move |trade_no| of(acknowledged).all(|receipt| receipt.trade_no != *trade_no))
}

fn code_of(
    story: &Story,
    order: &Order,
    diagnoses: &[Option<Diagnosis>],
    config: &Config,
    now: Timestamp,
) -> VerdictCode {
    match order.status(now) {
        OrderStatus::Refunded => VerdictCode::Refunded,
        OrderStatus::Paid => paid(story),
        OrderStatus::Cancelled => VerdictCode::Cancelled,
        OrderStatus::Review => {
            let has = |outcome: Outcome| story.receipts.iter().any(|receipt| receipt.outcome == outcome.into());
            match order.review_reason {
                Some(ReviewReason::Amount) => VerdictCode::ReviewAmount,
                None if has(Outcome::AmountMismatch) => VerdictCode::ReviewAmount,
                _ => VerdictCode::ReviewHeld,
            }
        }
        OrderStatus::Pending | OrderStatus::Expired => unpaid(story, order, diagnoses, config),
    }
}

fn paid(story: &Story) -> VerdictCode {
    if again(story).next().is_some() {
        return VerdictCode::PaidAgain;
    }
    let is_open = |state| matches!(state, RefundState::Requested | RefundState::Unclear);
    if story.refund.as_ref().is_some_and(|refund| is_open(refund.state)) {
        return VerdictCode::RefundUnclear;
    }
    let message = story
        .deliveries
        .iter()
        .find(|(channel, delivery)| *channel == Channel::Telegram && delivery.news == News::Settled);
    match message {
        Some((_, delivery)) if delivery.state == DeliveryState::Failed => VerdictCode::CreditedUntold,
        _ => VerdictCode::Credited,
    }
}

fn unpaid(story: &Story, order: &Order, diagnoses: &[Option<Diagnosis>], config: &Config) -> VerdictCode {
    if matches!(order.hold, Some(Hold::Frozen | Hold::PreAuthorised)) {
        return VerdictCode::OnHold;
    }
    let newest = story.receipts.first().map(|receipt| receipt.outcome);
    match newest {
        Some(ReceiptOutcome::Decided(Outcome::Unconfirmed)) => return VerdictCode::Unconfirmed,
        Some(ReceiptOutcome::Decided(Outcome::TradeReused)) => return VerdictCode::TradeReused,
        _ => {}
    }
    if let Some(rejection) = story.rejections.first() {
        return match (rejection.outcome == ReceiptOutcome::Rejected(Rejected::BadSignature), diagnoses.first()) {
            (true, Some(Some(_))) => VerdictCode::SignedWrongly,
            (true, _) => VerdictCode::BadSignature,
            (false, _) => VerdictCode::Refused,
        };
    }
    let has_gateway = config.merchant(&order.terms.merchant).is_some_and(|merchant| merchant.gateway_url.is_some());
    match (newest, story.answers.first().map(|answer| answer.answer.as_str())) {
        (Some(ReceiptOutcome::Decided(Outcome::NotPaid)), _) => VerdictCode::SaidUnpaid,
        (_, Some("no_answer")) => VerdictCode::AskedInVain,
        (_, Some(answer)) if answer.starts_with("contradicts_") => VerdictCode::AskedContradicts,
        (_, Some(_)) => VerdictCode::AskedUnpaid,
        (_, None) if has_gateway => VerdictCode::NotAskedYet,
        (_, None) => VerdictCode::NobodyToAsk,
    }
}

#[cfg(test)]
mod tests;
