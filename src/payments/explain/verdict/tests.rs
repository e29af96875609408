//! One story for each verdict.

use super::*;
use crate::channel::epay::WrongWay;
use crate::domain::language::{Language, text};
use crate::domain::order::SettledBy;
use crate::store::{Delivery, KeptAnswer, Refund, fixtures};

const WITH_GATEWAY: &str = "gateway_url = \"https://pay.example.com/\"\n";

fn created_at() -> Timestamp {
    Timestamp::from_ms(1_000_000)
}

/// A story that is told one line at a time; like the store's, it has the newest of each kind first.
struct Tale {
    story: Story,
    diagnoses: Vec<Option<Diagnosis>>,
    gateway: &'static str,
    now: Timestamp,
}

impl Tale {
    fn of_nobody() -> Self {
        let now = created_at().plus_seconds(60);
        Self { story: Story::default(), diagnoses: Vec::new(), gateway: "", now }
    }

    fn of(status: OrderStatus) -> Self {
        let order = Order {
            stored_status: status,
            paid_at: (status == OrderStatus::Paid).then_some(created_at()),
            ..Order::new(fixtures::order("ORDER1", 1001, created_at()))
        };
        let mut tale = Self::of_nobody();
        tale.story.order = Some(order);
        tale
    }

    fn in_review(reason: ReviewReason) -> Self {
        Self::of(OrderStatus::Review).with_order(|order| order.review_reason = Some(reason))
    }

    fn on_hold(hold: Hold) -> Self {
        Self::of(OrderStatus::Pending).with_order(|order| order.hold = Some(hold))
    }

    fn with_order(mut self, change: impl FnOnce(&mut Order)) -> Self {
        change(self.story.order.as_mut().unwrap());
        self
    }

    fn received(mut self, outcome: &str, trade_no: &str) -> Self {
        self.story.receipts.insert(0, kept(outcome, trade_no));
        self
    }

    fn rejected(mut self, outcome: &str, way: Option<WrongWay>) -> Self {
        self.story.rejections.insert(0, kept(outcome, "T1"));
        self.diagnoses.insert(0, way.map(Diagnosis::from));
        self
    }

    fn answered(mut self, answer: &str) -> Self {
        let answer =
            KeptAnswer { at: created_at(), cause: "schedule".into(), answer: answer.into(), detail: String::new() };
        self.story.answers.insert(0, answer);
        self
    }

    fn refund(mut self, state: RefundState) -> Self {
        self.story.refund = Some(Refund { state, reason: "r".into(), answer: None, requested_at: created_at() });
        self
    }

    fn told(mut self, state: DeliveryState) -> Self {
        let order = self.story.order.clone().unwrap();
        let delivery = Delivery {
            id: 1,
            news: News::Settled,
            order,
            language: None,
            balance: 70,
            created_at: created_at(),
            tried_since: created_at(),
            due_at: created_at(),
            attempts: 1,
            state,
            error: None,
            finished_at: None,
        };
        self.story.deliveries.push((Channel::Telegram, delivery));
        self
    }

    fn with_gateway(mut self) -> Self {
        self.gateway = WITH_GATEWAY;
        self
    }

    fn verdict(&self) -> Verdict {
        let text = format!("[[merchant]]\npid = \"1002\"\nkey = \"k\"\n{}", self.gateway);
        let directory = tempfile::tempdir().unwrap();
        let config = Config::from_toml(&text, directory.path()).unwrap();
        Verdict::of(&self.story, &self.diagnoses, &config, self.now)
    }
}

fn kept(outcome: &str, trade_no: &str) -> KeptReceipt {
    KeptReceipt {
        at: created_at(),
        source: SettledBy::Notify,
        outcome: ReceiptOutcome::from_name(outcome).unwrap(),
        reason: String::new(),
        merchant: "1002".into(),
        order_no: "ORDER1".into(),
        trade_no: trade_no.into(),
        client: None,
        method: None,
        payload: Vec::new(),
        is_whole: true,
        alert: None,
    }
}

#[test]
fn every_story_has_its_verdict() {
    use OrderStatus::{Cancelled, Paid, Pending, Refunded, Review};
    use VerdictCode as V;
    let paid = || Tale::of(Paid).received("settled", "T1");
    let unpaid = || Tale::of(Pending);
    let cases = vec![
        (Tale::of_nobody(), V::NothingKnown),
        (Tale::of_nobody().received("unknown_order", "T1"), V::UnknownOrder),
        (Tale::of_nobody().rejected("bad_signature", None), V::OnlyRejected),
        (paid(), V::Credited),
        (paid().told(DeliveryState::Sent).received("duplicate", "T1"), V::Credited),
        (paid().rejected("bad_signature", None), V::Credited),
        (paid().told(DeliveryState::Failed), V::CreditedUntold),
        (paid().received("paid_again", "T2"), V::PaidAgain),
        (paid().received("paid_again", "T2").received("acknowledged", "T2"), V::Credited),
        (paid().received("paid_again", "T1").with_order(|order| order.trade_no = Some("T1".into())), V::Credited),
        (paid().received("paid_again", "T2").received("paid_again", "T3").received("acknowledged", "T2"), V::PaidAgain),
        (paid().refund(RefundState::Unclear), V::RefundUnclear),
        (paid().refund(RefundState::Requested), V::RefundUnclear),
        (Tale::of(Refunded).received("settled", "T1").refund(RefundState::Done), V::Refunded),
        (Tale::of(Cancelled), V::Cancelled),
        (Tale::of(Review).received("amount_mismatch", "T1"), V::ReviewAmount),
        (Tale::of(Review).received("held", "T1"), V::ReviewHeld),
        (Tale::in_review(ReviewReason::Amount).received("amount_mismatch", "T1"), V::ReviewAmount),
        // The reason is the first one: a later payment of another amount does not make it one of the amount.
        (Tale::in_review(ReviewReason::Param).received("held", "T1").received("amount_mismatch", "T2"), V::ReviewHeld),
        (Tale::on_hold(Hold::Frozen).answered("frozen"), V::OnHold),
        (Tale::on_hold(Hold::PreAuthorised).received("unconfirmed", "T1").answered("pre_authorised"), V::OnHold),
        (Tale::on_hold(Hold::Restored).received("unconfirmed", "T1"), V::Unconfirmed),
        (unpaid().received("unconfirmed", "T1").rejected("bad_signature", None), V::Unconfirmed),
        (unpaid().received("trade_reused", "T1"), V::TradeReused),
        (unpaid().rejected("bad_signature", None), V::BadSignature),
        (unpaid().rejected("bad_signature", Some(WrongWay::AmpersandKey)), V::SignedWrongly),
        (unpaid().rejected("stale", None), V::Refused),
        (unpaid().received("not_paid", "T1"), V::SaidUnpaid),
        (unpaid().answered("unpaid"), V::AskedUnpaid),
        (unpaid().answered("unpaid").answered("contradicts_money"), V::AskedContradicts),
        (unpaid().answered("unpaid").answered("no_answer"), V::AskedInVain),
        (unpaid().answered("no_answer").answered("unpaid"), V::AskedUnpaid),
        (unpaid(), V::NobodyToAsk),
        (unpaid().with_gateway(), V::NotAskedYet),
    ];
    for (tale, code) in &cases {
        let verdict = tale.verdict();
        assert_eq!(verdict.code, *code, "{}", verdict.text);
        assert!(!verdict.text.contains("verdict.") && !verdict.text.contains("%{"), "{}", verdict.text);
    }
    for code in V::ALL {
        assert!(cases.iter().any(|(_, told)| told == code), "no story has the verdict {code}");
    }
}

#[test]
fn a_verdict_says_why_the_money_waits() {
    for reason in ReviewReason::ALL.iter().filter(|reason| **reason != ReviewReason::Amount) {
        let text = Tale::in_review(*reason).verdict().text;
        assert!(
            text.contains(&*text!(Language::Chinese, format!("review_reason.{reason}")))
                && !text.contains("review_reason."),
            "{text}"
        );
    }
    for hold in [Hold::Frozen, Hold::PreAuthorised] {
        let text = Tale::on_hold(hold).verdict().text;
        assert!(text.contains(&*text!(Language::Chinese, format!("hold.{hold}"))) && !text.contains("hold."), "{text}");
    }
}

#[test]
fn an_unpaid_order_says_when_its_gateway_is_asked_next_and_that_its_time_is_over() {
    let mut tale = Tale::of(OrderStatus::Pending).with_gateway().answered("unpaid");
    let plain = tale.verdict().text;
    tale.story.next_question = Some(created_at().plus_seconds(600));
    let asked_again = tale.verdict().text;
    assert!(asked_again.len() > plain.len() && asked_again.starts_with(&plain), "{asked_again}");
    tale.now = created_at().plus_seconds(3600);
    let expired = tale.verdict().text;
    assert!(expired.len() > asked_again.len() && expired.starts_with(&asked_again), "{expired}");
}
