//! Reconciliation: asking gateways about unpaid orders, because callbacks get lost and some gateways never send a second one.
//!
//! An order is asked about on a schedule that thins out, and at once after the service was down. What the gateway says is paid
//! goes through the same settlement as a callback. A gateway that is down, slow or lying costs nothing but another question.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::channel::epay::client::{Answer, GatewayError, Verdict};
use crate::config::{Config, Current, Merchant};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::jitter::Jitter;
use crate::domain::language::Localized;
use crate::domain::order::{Order, SettledBy};
use crate::domain::outcome::Outcome;
use crate::domain::settlement::Policy;
use crate::logging::{self, log_text};
use crate::net::backoff;
use crate::payments::gateways::{AskError, Gateways, name_of};
use crate::store::{Cause, Question, Receipt, Settle, Store, StoreError};
use crate::sync::lock;

const TARGET: &str = "webhookctl::reconcile";

/// How often it is looked for orders whose time has come.
const TICK: Duration = Duration::from_secs(1);
/// How long one question may take, with the wait for a place.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long questions under way are waited for when the service stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How soon an order is asked about again whose question got no answer to go by: after a tenth of its age, within these bounds.
const RETRY_AFTER_S: std::ops::RangeInclusive<u32> = 5..=3600;
/// For how long after the last time of the schedule an order is still asked about that never got an answer.
const RETRY_FOR_S: u32 = 3 * 24 * 3600;
/// How often an order is asked about for good whose payment a signature proves, and that still needs its gateway's own word.
const WORD_EVERY_S: u32 = 24 * 3600;
/// How far times are moved at random, in percent of the time since the order was created: many orders of one minute must not be many
/// questions of one second.
const JITTER_PERCENT: std::ops::RangeInclusive<u32> = 100..=110;
/// How many orders the sweep takes from the store at a time.
const SWEEP_PAGE: u32 = 200;

/// Asks about unpaid orders and settles what is paid.
pub(crate) struct Reconciler {
    config: Current,
    store: Store,
    gateways: Arc<Gateways>,
    clock: Clock,
    jitter: Jitter,
    /// Orders with a question under way.
    asking: Mutex<HashSet<String>>,
}

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// The gateway says paid, and this is what the store made of it.
    Paid(Outcome),
    /// The gateway says that the payment was refunded, and this is what the store made of it.
    Refunded(Outcome),
    /// The gateway says paid, and nothing was to be changed.
    WouldSettle,
    /// Not paid (yet); the verdict in a word.
    NotPaid(String),
    /// What the gateway says contradicts itself or the order, in this field.
    Contradicts(&'static str),
    /// There is no answer to go by.
    NoAnswer(AskError),
}

impl Finding {
    /// What it is called in reports.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Paid(outcome) => outcome.name().into(),
            Self::Refunded(_) => "refunded".into(),
            Self::WouldSettle => "paid".into(),
            Self::NotPaid(verdict) => verdict.clone(),
            Self::Contradicts(field) => format!("contradicts_{field}"),
            Self::NoAnswer(_) => "no_answer".into(),
        }
    }
}

impl Reconciler {
    pub(crate) fn new(config: &Current, store: &Store, gateways: &Arc<Gateways>) -> Self {
        let (clock, gateways) = (gateways.clock().clone(), Arc::clone(gateways));
        let (jitter, asking) = (Jitter::default(), Mutex::default());
        Self { config: config.clone(), store: store.clone(), gateways, clock, jitter, asking }
    }

    /// Has the times of its questions depend on this source.
    #[cfg(test)]
    pub(crate) fn jittered_by(self, jitter: Jitter) -> Self {
        Self { jitter, ..self }
    }

    /// Asks on schedule until it is told to stop; then finishes the questions under way.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut questions = JoinSet::new();
        while stop.run_until_cancelled(self.clock.sleep(TICK)).await.is_some() {
            while let Some(ended) = questions.try_join_next() {
                if let Err(error) = ended {
                    log::error!(target: TARGET, "{error}");
                }
            }
            for question in self.round().await {
                questions.spawn(Arc::clone(&self).answer_question(question));
            }
        }
        // What is cut off is asked again: no answer is lost that was not settled.
        let _ = timeout(STOP_PATIENCE, async { while questions.join_next().await.is_some() {} }).await;
    }

    /// The questions whose time has come, as far as their gateways have room. Each is to be answered: until then its order is not
    /// asked about by another round.
    pub(crate) async fn round(&self) -> Vec<Question> {
        let mut questions = Vec::new();
        if let Err(error) = self.take_up(&mut questions).await {
            log::warn!(target: TARGET, "{}", log_text!("log.reconcile_failed", error = error));
        }
        questions
    }

    async fn take_up(&self, questions: &mut Vec<Question>) -> Result<(), StoreError> {
        let pids: Vec<String> = {
            let config = self.config.load();
            config.merchants.iter().filter(|m| m.gateway_url.is_some()).map(|m| m.pid.clone()).collect()
        };
        for pid in pids {
            let room = self.gateways.room_for(&pid);
            if room == 0 || self.gateways.of(&pid).is_none() {
                continue;
            }
            let under_way = self.asking().len();
            let limit = u32::try_from(room + under_way).unwrap_or(u32::MAX);
            let due = self.store.due_questions(pid, self.clock.now(), limit).await?;
            for question in due.into_iter().take(room + under_way) {
                if self.asking().insert(question.order.terms.order_no.to_string()) {
                    questions.push(question);
                }
            }
        }
        Ok(())
    }

    fn asking(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        lock(&self.asking)
    }

    /// Asks a question of a round, acts on the answer, and plans the next question about the order.
    pub(crate) async fn answer_question(self: Arc<Self>, question: Question) {
        let order_no = question.order.terms.order_no.to_string();
        let finding = self.ask_and_settle(&question.order, Cause::Reconcile, QUESTION_TIMEOUT).await;
        let (now, created_at) = (self.clock.now(), question.order.terms.created_at);
        let is_decided = matches!(finding, Ok(Finding::Paid(_) | Finding::Refunded(_)));
        let next = match finding {
            Ok(Finding::Paid(_) | Finding::Refunded(_)) => None,
            // Its turn has not come: the gateway was not even asked.
            Ok(Finding::NoAnswer(AskError::Busy)) => Some((question.step, now.plus_seconds(1))),
            Ok(Finding::NoAnswer(_) | Finding::Contradicts(_)) | Err(_) => {
                retry_time(&self.config.load(), created_at, now, &self.jitter).map(|at| (question.step, at))
            }
            Ok(Finding::NotPaid(_) | Finding::WouldSettle) => {
                next_time(&self.config.load(), created_at, question.step, now, &self.jitter)
            }
        };
        let next = match next {
            None if !is_decided && self.store.awaits_word(order_no.clone()).await.unwrap_or(true) => {
                Some((question.step, now.plus_seconds(jittered(WORD_EVERY_S, &self.jitter))))
            }
            next => next,
        };
        let (step, at) = next.map_or((question.step, None), |(step, at)| (step, Some(at)));
        if let Err(error) = self.store.schedule_question(order_no.clone(), step, at).await {
            log::warn!(target: TARGET, "{}", log_text!("log.reconcile_failed", error = error));
        }
        self.asking().remove(&order_no);
    }

    /// Asks about an order, and settles it if it is paid.
    pub(crate) async fn ask_and_settle(
        &self,
        order: &Order,
        cause: Cause,
        patience: Duration,
    ) -> Result<Finding, StoreError> {
        let (verdict, answer) = match self.ask(order, cause, patience).await {
            Ok(answered) => answered,
            Err(finding) => return Ok(finding),
        };
        let policy = self.policy(order);
        match Settle::by_answer(order, &verdict, answer, policy, self.clock.now()) {
            Some(settle) => {
                let outcome = self.settle(settle).await?;
                let is_refunded = matches!(verdict, Verdict::Refunded { .. });
                Ok(if is_refunded { Finding::Refunded(outcome) } else { Finding::Paid(outcome) })
            }
            None => Ok(Finding::NotPaid(name_of(&verdict))),
        }
    }

    fn policy(&self, order: &Order) -> Policy {
        let config = self.config.load();
        Policy {
            late: config.orders.late,
            can_ask: config.merchant(&order.terms.merchant).is_some_and(Merchant::can_be_asked),
        }
    }

    /// Asks about an order: what the gateway says that may be believed, or why there is nothing.
    async fn ask(&self, order: &Order, cause: Cause, patience: Duration) -> Result<(Verdict, Answer), Finding> {
        let order_no = &order.terms.order_no;
        match self.gateways.ask(order, cause, patience).await {
            Ok((Verdict::Contradicts(field), _)) => {
                log::warn!(target: TARGET, "{}", log_text!("log.gateway_contradicts", order = order_no, field = field));
                Err(Finding::Contradicts(field))
            }
            Ok(answered) => {
                log::debug!(target: TARGET, "{order_no}: {}", name_of(&answered.0));
                Ok(answered)
            }
            Err(AskError::Gateway(GatewayError::UnknownOrder)) => Err(Finding::NotPaid("unknown_order".into())),
            Err(error) => {
                log::debug!(target: TARGET, "{order_no}: {}", error.text(logging::language()));
                Err(Finding::NoAnswer(error))
            }
        }
    }

    async fn settle(&self, settle: Settle) -> Result<Outcome, StoreError> {
        let settle = Arc::new(settle);
        let settlement = self.store.settle(Arc::clone(&settle)).await?;
        let (outcome, claim) = (settlement.outcome, &settle.claim);
        let (level, rest) = match settlement.credited {
            Some(credited) => {
                let (user, credits) = (credited.telegram_id, credited.credits);
                (log::Level::Info, log_text!("log.credited", user = user, credits = credits).into_owned())
            }
            None => (log::Level::Warn, format!("pid={}", claim.merchant)),
        };
        log::log!(
            target: TARGET, level, "{}",
            log_text!("log.reconciled", outcome = outcome, order = claim.order_no, trade = claim.trade_no(), rest = rest)
        );
        Ok(outcome)
    }

    /// Asks about every unpaid order that was created at `since` or later, as fast as the gateways bear it; `heard` is told of each.
    pub(crate) async fn sweep(
        self: &Arc<Self>,
        since: Timestamp,
        dry_run: bool,
        mut heard: impl FnMut(&Order, &Finding),
    ) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let orders = self.store.unpaid_orders(since, after.take(), SWEEP_PAGE).await?;
            let Some(last) = orders.last() else { return Ok(()) };
            after = Some(last.terms.order_no.to_string());
            let mut questions = JoinSet::new();
            for order in orders {
                let reconciler = Arc::clone(self);
                questions.spawn(async move { (reconciler.sweep_one(&order, dry_run).await, order) });
            }
            while let Some(ended) = questions.join_next().await {
                let (finding, order) = ended.map_err(StoreError::failed)?;
                heard(&order, &finding?);
            }
        }
    }

    async fn sweep_one(&self, order: &Order, dry_run: bool) -> Result<Finding, StoreError> {
        // Room for all the others of the page, which wait for the same places.
        let patience = QUESTION_TIMEOUT * 30;
        if !dry_run {
            return self.ask_and_settle(order, Cause::Reconcile, patience).await;
        }
        Ok(match self.ask(order, Cause::Reconcile, patience).await {
            Ok((Verdict::Paid { .. }, _)) => Finding::WouldSettle,
            Ok((verdict, _)) => Finding::NotPaid(name_of(&verdict)),
            Err(finding) => finding,
        })
    }
}

impl Settle {
    /// The claim that a gateway's answer makes; `None` where it says nothing of a payment that came.
    pub(crate) fn by_answer(
        order: &Order,
        verdict: &Verdict,
        answer: Answer,
        policy: Policy,
        now: Timestamp,
    ) -> Option<Self> {
        let terms = &order.terms;
        let payload = answer.body.to_vec();
        let claim = answer.claim(verdict, &terms.merchant, &terms.order_no)?;
        let receipt = Receipt { received_at: now, client: None, method: "query", payload };
        Some(Self { claim, source: SettledBy::Reconcile, policy, receipt })
    }
}

/// The next time of the schedule after `now`, with the number of times that have passed; `None` where it was the last.
fn next_time(
    config: &Config,
    created_at: Timestamp,
    step: u32,
    now: Timestamp,
    jitter: &Jitter,
) -> Option<(u32, Timestamp)> {
    let schedule = &config.reconcile.schedule_s;
    if created_at > now {
        // The clock was set back since, and does not tell how old the order is.
        let time = |step: u32| schedule.get(step as usize).copied();
        let (passed, next) = (time(step)?, time(step + 1)?);
        return Some((step + 1, now.plus_seconds(jittered(next.saturating_sub(passed), jitter))));
    }
    let (step, &seconds) = schedule.iter().enumerate().find(|(_, seconds)| created_at.plus_seconds(**seconds) > now)?;
    let step = u32::try_from(step).ok()?;
    Some((step, created_at.plus_seconds(jittered(seconds, jitter))))
}

/// When to ask again that got no answer to go by; `None` when that has gone on for days.
fn retry_time(config: &Config, created_at: Timestamp, now: Timestamp, jitter: &Jitter) -> Option<Timestamp> {
    let age_s = u32::try_from((now.ms() - created_at.ms()).max(0) / 1000).unwrap_or(u32::MAX);
    let last_s = config.reconcile.schedule_s.last().copied().unwrap_or(0);
    let wait_s = (age_s / 10).clamp(*RETRY_AFTER_S.start(), *RETRY_AFTER_S.end());
    (age_s <= last_s.saturating_add(RETRY_FOR_S)).then(|| now.plus_seconds(jittered(wait_s, jitter)))
}

/// Up to a tenth more.
fn jittered(seconds: u32, jitter: &Jitter) -> u32 {
    let time = backoff::jittered(Duration::from_secs(seconds.into()), JITTER_PERCENT, jitter);
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::DatabaseUrl;
    use crate::domain::settlement::ClaimProof;
    use crate::net::client::Client;
    use crate::store::{Creation, fixtures};

    /// Its callbacks may never come again, and then nothing but a question ends the matter.
    #[tokio::test]
    async fn an_order_with_a_proved_payment_is_asked_about_until_the_gateway_decides() {
        let directory = tempfile::tempdir().unwrap();
        let store = fixtures::open(&DatabaseUrl::Sqlite(directory.path().join("x.db"))).await.unwrap();
        let text = "[[merchant]]\npid = \"1002\"\nkey = \"k\"\ngateway_url = \"http://127.0.0.1:1/\"";
        let config = Current::new(Config::from_toml(text, directory.path()).unwrap());
        // Long ago, so that the schedule and the retries are over.
        let created_at = Timestamp::from_ms(1_700_000_000_000);
        for (order_no, is_claimed, is_asked_again) in [("A1", false, false), ("A2", true, true)] {
            let order = fixtures::order(order_no, 1001, created_at);
            store.create_order(Creation { ask_at: Some(created_at), ..order.into() }).await.unwrap();
            if is_claimed {
                let mut callback = fixtures::paid(order_no, "T1", created_at);
                callback.claim.proof = ClaimProof::Missing;
                assert_eq!(store.settle(callback).await.unwrap().outcome, Outcome::Unconfirmed);
            }
            let order = store.order(order_no).await.unwrap().unwrap();
            // Its own, because one that is in trouble is left alone for a while.
            let gateways = Arc::new(Gateways::new(&config, &store, &Client::new(), &Clock::system()));
            Arc::new(Reconciler::new(&config, &store, &gateways)).answer_question(Question { order, step: 6 }).await;
            let due = async |after_s| {
                let until = Timestamp::now().plus_seconds(after_s);
                store.due_questions("1002".into(), until, 10).await.unwrap().len()
            };
            assert_eq!(due(3600).await, 0, "{order_no}: not at once");
            assert_eq!(due(2 * 24 * 3600).await, usize::from(is_asked_again), "{order_no}");
        }
    }

    #[test]
    fn what_got_no_answer_is_asked_again_less_and_less_often_and_not_for_ever() {
        let config = Config::from_toml("[reconcile]\nschedule_s = [15, 60]", Path::new("/x")).unwrap();
        let created_at = Timestamp::from_ms(1_700_000_000_000);
        for (age_s, wait_s) in
            [(0, Some(5)), (100, Some(10)), (3600, Some(360)), (200_000, Some(3600)), (259_261, None)]
        {
            let now = created_at.plus_seconds(age_s);
            let waits = retry_time(&config, created_at, now, &Jitter::default()).map(|at| (at.ms() - now.ms()) / 1000);
            let fits = |waits: i64| wait_s.is_some_and(|wait_s| (wait_s..=wait_s + wait_s / 10).contains(&waits));
            assert_eq!(waits.map(fits), wait_s.map(|_| true), "{age_s}: {waits:?}");
        }
    }

    #[test]
    fn the_schedule_goes_on_where_the_clock_was_set_back() {
        let config = Config::from_toml("[reconcile]\nschedule_s = [15, 60, 300]", Path::new("/x")).unwrap();
        let now = Timestamp::from_ms(1_700_000_000_000);
        let next = |step| next_time(&config, now.plus_seconds(3000), step, now, &Jitter::default());
        let waits = |step| next(step).map(|(step, at)| (step, (at.ms() - now.ms()) / 1000));
        assert!(matches!(waits(0), Some((1, 45..=50))), "{:?}", waits(0));
        assert!(matches!(waits(1), Some((2, 240..=264))), "{:?}", waits(1));
        assert_eq!(waits(2), None);
    }

    #[test]
    fn the_schedule_goes_on_where_the_clock_is() {
        let config = Config::from_toml("[reconcile]\nschedule_s = [15, 60, 300]", Path::new("/x")).unwrap();
        let created_at = Timestamp::from_ms(1_700_000_000_000);
        for (passed_s, expected) in [
            (0, Some((0, 15))),
            (14, Some((0, 15))),
            (15, Some((1, 60))),
            (200, Some((2, 300))),
            (300, None),
            (9999, None),
        ] {
            let next = next_time(&config, created_at, 0, created_at.plus_seconds(passed_s), &Jitter::default());
            let Some((step, seconds)) = expected else {
                assert_eq!(next, None, "{passed_s}");
                continue;
            };
            let (found_step, at) = next.unwrap();
            let after_s = (at.ms() - created_at.ms()) / 1000;
            assert_eq!(found_step, step, "{passed_s}");
            assert!((seconds..=seconds + seconds / 10).contains(&after_s), "{passed_s}: {after_s}");
        }
    }
}
