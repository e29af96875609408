//! The story of an order: everything that happened to it in the order of time, and one sentence that says what it comes to.
//!
//! It only tells what is kept. Why a signature did not fit is worked out anew, with today's keys, and changes nothing.

mod verdict;

use crate::channel::epay::{self, Diagnosis};
use crate::config::Config;
use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, Localized, text};
use crate::domain::named::named_enum;
use crate::domain::order::{Order, SettledBy};
use crate::domain::outcome::{ReceiptOutcome, Rejected};
use crate::domain::secret::MASK;
use crate::store::{Channel, Delivery, DeliveryState, KeptAnswer, KeptReceipt, LedgerEntry, Refund, Story};
pub(crate) use verdict::{Verdict, VerdictCode};

named_enum! {
    /// What happened.
    EventKind {
        /// The order was created.
        Created = "created",
        /// A notification came.
        Callback = "callback",
        /// A gateway was asked.
        Question = "question",
        /// A gateway's answer was taken for a payment.
        Reconciled = "reconciled",
        /// A person decided.
        Decision = "decision",
        /// Credits came or went.
        Ledger = "ledger",
        /// A refund came so far.
        Refund = "refund",
        /// The buyer or the bot was told, or is to be.
        Message = "message",
    }
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// When.
    pub at: Timestamp,
    /// What kind of thing.
    pub kind: EventKind,
    /// It in a few words.
    pub text: String,
    /// More of it: a name that never changes, and a value.
    pub details: Vec<(&'static str, String)>,
}

/// A story, told.
#[derive(Clone, Debug)]
pub(crate) struct Explanation {
    /// The order; none where a number is no order of ours.
    pub order: Option<Order>,
    /// What happened, the earliest first.
    pub events: Vec<Event>,
    /// What it comes to.
    pub verdict: Verdict,
}

impl Explanation {
    /// Tells a story as it stands at the time `now`.
    pub(crate) fn of(story: Story, config: &Config, now: Timestamp) -> Self {
        let language = config.language;
        let diagnoses: Vec<_> = story.rejections.iter().map(|rejection| diagnosis_of(rejection, config)).collect();
        let verdict = Verdict::of(&story, &diagnoses, config, now);
        let mut events = Vec::new();
        events.extend(story.order.as_ref().map(|order| created(order, language)));
        events.extend(story.receipts.iter().map(|receipt| received(receipt, None, language)));
        let refused = story.rejections.iter().zip(&diagnoses);
        events.extend(refused.map(|(rejection, diagnosis)| received(rejection, diagnosis.as_ref(), language)));
        events.extend(story.answers.iter().map(|answer| answered(answer, language)));
        events.extend(story.entries.iter().map(|entry| booked(entry, language)));
        events.extend(story.refund.as_ref().map(|refund| refunded(refund, language)));
        events.extend(story.deliveries.iter().map(|(channel, delivery)| told(*channel, delivery, language)));
        // Stable: what one transaction wrote has one time, and stays in the order of this list.
        events.sort_by_key(|event| event.at);
        Self { order: story.order, events, verdict }
    }
}

/// What a wrong signature would fit, by the keys that are configured now.
fn diagnosis_of(rejection: &KeptReceipt, config: &Config) -> Option<Diagnosis> {
    if rejection.outcome != ReceiptOutcome::Rejected(Rejected::BadSignature) || !rejection.is_whole {
        return None;
    }
    config.diagnose(&rejection.merchant, &rejection.payload)
}

fn created(order: &Order, language: Language) -> Event {
    let terms = &order.terms;
    let text = text!(
        language,
        "explain.created",
        user = terms.telegram_id,
        amount = terms.amount,
        credits = terms.credits,
        name = terms.name
    );
    let details = vec![
        ("merchant", format!("{} ({})", terms.merchant, terms.payment_type)),
        ("expires", terms.expires_at.to_local().to_string()),
    ];
    Event { at: terms.created_at, kind: EventKind::Created, text: text.into_owned(), details }
}

fn received(receipt: &KeptReceipt, diagnosis: Option<&Diagnosis>, language: Language) -> Event {
    let said = || String::from_utf8_lossy(&receipt.payload).into_owned();
    let what = match (receipt.alert, receipt.outcome) {
        (Some(alert), _) => text!(language, format!("explain.alert_{alert}")).into_owned(),
        (None, ReceiptOutcome::Operator(decision)) => decision.to_string(),
        (None, outcome) => text!(language, format!("outcome.{outcome}")).into_owned(),
    };
    let (kind, text, details) = match receipt.source {
        SettledBy::Manual => {
            let text = text!(language, format!("explain.by_hand_{}", receipt.outcome)).into_owned();
            let mut details = vec![("reason", said())];
            details.extend(Some(("trade_no", receipt.trade_no.clone())).filter(|(_, trade_no)| !trade_no.is_empty()));
            (EventKind::Decision, text, details)
        }
        SettledBy::Reconcile => {
            let text =
                text!(language, "explain.reconciled", trade = receipt.trade_no, outcome = receipt.outcome, what = what);
            (EventKind::Reconciled, text.into_owned(), vec![("answer", said())])
        }
        SettledBy::Notify => {
            let text = text!(language, "explain.callback", outcome = receipt.outcome, what = what).into_owned();
            (EventKind::Callback, text, callback_details(receipt, diagnosis, language))
        }
    };
    Event { at: receipt.at, kind, text, details }
}

fn callback_details(
    receipt: &KeptReceipt,
    diagnosis: Option<&Diagnosis>,
    language: Language,
) -> Vec<(&'static str, String)> {
    let (method, client) = (receipt.method.as_deref().unwrap_or("?"), receipt.client.as_deref().unwrap_or("?"));
    let mut details = vec![("from", format!("{method} {client}"))];
    match epay::readable(&receipt.payload) {
        Some(readable) => {
            details.push(("fields", readable.fields));
            // The key stands behind the string, without a separator.
            details.push(("signed", readable.signed + MASK));
        }
        None => {
            details.push(("bytes", text!(language, "explain.unreadable", count = receipt.payload.len()).into_owned()));
        }
    }
    if !receipt.reason.is_empty() {
        details.push(("reason", receipt.reason.clone()));
    }
    details.extend(diagnosis.map(|diagnosis| ("would_fit", diagnosis.text(language))));
    let is_success = matches!(receipt.outcome, ReceiptOutcome::Decided(outcome) if outcome.is_success());
    let answer = if is_success { "success" } else { "fail" };
    details.push(("answered", answer.to_owned()));
    details
}

fn answered(answer: &KeptAnswer, language: Language) -> Event {
    let cause = text!(language, format!("explain.cause_{}", answer.cause));
    let text = text!(language, "explain.question", cause = cause, answer = answer.answer);
    let details = Some(("detail", answer.detail.clone())).filter(|(_, detail)| !detail.is_empty());
    Event { at: answer.at, kind: EventKind::Question, text: text.into_owned(), details: details.into_iter().collect() }
}

fn booked(entry: &LedgerEntry, language: Language) -> Event {
    let text = text!(language, "explain.booked", credits = format!("{:+}", entry.credits));
    let details = entry.reason.clone().map(|reason| ("reason", reason));
    Event {
        at: entry.created_at,
        kind: EventKind::Ledger,
        text: text.into_owned(),
        details: details.into_iter().collect(),
    }
}

fn refunded(refund: &Refund, language: Language) -> Event {
    let text = text!(language, "explain.refund", state = refund.state);
    let mut details = vec![("reason", refund.reason.clone())];
    details.extend(refund.answer.clone().map(|answer| ("answer", answer)));
    Event { at: refund.requested_at, kind: EventKind::Refund, text: text.into_owned(), details }
}

fn told(channel: Channel, delivery: &Delivery, language: Language) -> Event {
    let news = text!(language, format!("delivery.{}", delivery.news));
    let whom = text!(language, format!("explain.to_{channel}"));
    let state = text!(language, format!("delivery.{}", delivery.state));
    let text = text!(language, "explain.told", whom = whom, news = news, state = state, attempts = delivery.attempts);
    let at = match delivery.state {
        DeliveryState::Due => delivery.created_at,
        DeliveryState::Sent | DeliveryState::Failed => delivery.finished_at.unwrap_or(delivery.created_at),
    };
    let details = delivery.error.clone().map(|error| ("error", error));
    Event { at, kind: EventKind::Message, text: text.into_owned(), details: details.into_iter().collect() }
}
