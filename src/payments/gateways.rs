//! The gateways of the configured merchants: how each is reached, and how many questions it is asked.
//!
//! Whatever causes a question (the schedule, a notification, a returning buyer, a refund), it is asked here, and the answer kept.
//! The schedule's questions wait for each other and for a gateway that is in trouble; a notification's do not, because somebody
//! waits for the answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use crate::channel::epay::client::{Answer, Gateway, GatewayError, Verdict};
use crate::config::Current;
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::language::{Language, Localized};
use crate::domain::notices::{NoticeKind, Notices};
use crate::domain::order::{Hold, Order};
use crate::logging;
use crate::net::backoff::Backoff;
use crate::net::client::Client;
use crate::net::rate_limit::{Rate, TokenBucket};
use crate::store::{Answered, Cause, Store};
use crate::sync::lock;

/// How many questions because of notifications one gateway is asked at the same time.
const NOTIFY_CONCURRENCY: usize = 32;
/// How long a gateway is left alone that says "too many requests" and not for how long.
const RATE_LIMITED_PAUSE: Duration = Duration::from_secs(5);
/// How long a gateway is left alone that does not answer.
const TROUBLE_PAUSES: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_mins(5) };
/// For how long a gateway's questions may be saved up.
const SAVED_UP: Duration = Duration::from_secs(10);

/// Asks gateways, within their limits.
pub(crate) struct Gateways {
    config: Current,
    store: Store,
    client: Client,
    clock: Clock,
    limits: Mutex<HashMap<String, Arc<Limit>>>,
    notices: Notices,
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AskError {
    /// The merchant has no gateway that can be asked, or is not configured any more.
    #[error("no_gateway: the merchant has no gateway that can be asked")]
    NoGateway,
    /// Too many others are asking.
    #[error("busy: too many others are asking")]
    Busy,
    /// The gateway gave no answer to go by.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The answer could not be stored, and is therefore not acted on.
    #[error("not_stored: the answer could not be stored")]
    NotStored,
}

impl Localized for AskError {
    /// In a word where the gateway is not the cause: reports show it as it is.
    fn text(&self, language: Language) -> String {
        match self {
            Self::NoGateway => "no_gateway".into(),
            Self::Busy => "busy".into(),
            Self::Gateway(error) => error.text(language),
            Self::NotStored => "not_stored".into(),
        }
    }
}

impl Gateways {
    pub(crate) fn new(config: &Current, store: &Store, client: &Client, clock: &Clock) -> Self {
        Self {
            config: config.clone(),
            store: store.clone(),
            client: client.clone(),
            clock: clock.clone(),
            limits: Mutex::default(),
            notices: Notices::default(),
        }
    }

    /// Has the operator hear of gateways that refuse us.
    pub(crate) fn telling(self, notices: &Notices) -> Self {
        Self { notices: notices.clone(), ..self }
    }

    /// The clock by which gateways are asked, and by which their answers are acted on.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The gateway of a merchant, where one can be asked.
    pub(crate) fn of(&self, pid: &str) -> Option<Gateway> {
        let config = self.config.load();
        let merchant = config.merchant(pid)?;
        let (client, clock) = (self.client.clone(), self.clock.clone());
        Gateway::new(client, clock, merchant.gateway_url.as_deref()?, pid, &merchant.credentials)
    }

    /// Whether the merchant's gateway may be asked by the schedule now, and how many questions at the same time.
    pub(crate) fn room_for(&self, pid: &str) -> usize {
        let limit = self.limit(pid);
        let (concurrency, per_minute) = self.rates();
        if limit.is_paused() { 0 } else { limit.tokens(per_minute).min(concurrency) }
    }

    /// Asks about an order and keeps the answer. `patience` includes the wait for a place.
    pub(crate) async fn ask(
        &self,
        order: &Order,
        cause: Cause,
        patience: Duration,
    ) -> Result<(Verdict, Answer), AskError> {
        self.ask_about(order, None, cause, patience).await
    }

    /// Asks about one payment of an order, by the gateway's number of it.
    pub(crate) async fn ask_about_payment(
        &self,
        order: &Order,
        trade_no: &str,
        cause: Cause,
        patience: Duration,
    ) -> Result<(Verdict, Answer), AskError> {
        self.ask_about(order, Some(trade_no), cause, patience).await
    }

    async fn ask_about(
        &self,
        order: &Order,
        payment: Option<&str>,
        cause: Cause,
        patience: Duration,
    ) -> Result<(Verdict, Answer), AskError> {
        let terms = &order.terms;
        let deadline = self.clock.instant() + patience;
        let gateway = self.of(&terms.merchant).ok_or(AskError::NoGateway)?;
        let limit = self.limit(&terms.merchant);
        let _permit = limit.enter(cause, self.rates(), deadline).await.ok_or(AskError::Busy)?;
        let left = deadline.saturating_duration_since(self.clock.instant());
        let asked_at = self.clock.now();
        let answer = gateway.query_within(&terms.order_no, payment, left).await;
        limit.heard(answer.as_ref().err());
        if let Err(error @ (GatewayError::Refused { .. } | GatewayError::Unverified)) = &answer {
            // Most likely a wrong key, which only a person can set right.
            let text = |language| format!("{}: {}", terms.merchant, error.text(language));
            log::warn!("{}", text(logging::language()));
            self.notices.tell(NoticeKind::GatewayRefused, &text(self.language()));
        }
        let answer = answer.map(|answer| {
            let verdict = match answer.verdict(&terms.merchant, &terms.order_no) {
                Verdict::Paid { trade_no, .. } | Verdict::Refunded { trade_no, .. }
                    if payment.is_some_and(|asked| asked != trade_no) =>
                {
                    Verdict::Contradicts("trade_no")
                }
                verdict => verdict,
            };
            (verdict, answer)
        });
        self.keep(order, cause, asked_at, &answer).await?;
        Ok(answer?)
    }

    async fn keep(
        &self,
        order: &Order,
        cause: Cause,
        at: Timestamp,
        answer: &Result<(Verdict, Answer), GatewayError>,
    ) -> Result<(), AskError> {
        let (word, detail) = match answer {
            Ok((verdict, answer)) => (name_of(verdict), String::from_utf8_lossy(&answer.body).into_owned()),
            Err(GatewayError::UnknownOrder) => ("unknown_order".into(), String::new()),
            Err(error) => ("no_answer".into(), error.text(self.language())),
        };
        let hold = answer.as_ref().ok().and_then(|(verdict, _)| hold_of(verdict));
        let answered = Answered { order_no: order.terms.order_no.to_string(), at, cause, answer: word, detail, hold };
        self.store.keep_answer(answered).await.map_err(|error| {
            log::warn!("{}", error.text(logging::language()));
            AskError::NotStored
        })
    }

    /// The language of what is kept for the operator.
    pub(crate) fn language(&self) -> Language {
        self.config.load().language
    }

    /// Concurrency and questions in a minute.
    fn rates(&self) -> (usize, u32) {
        let config = self.config.load();
        (config.reconcile.concurrency as usize, config.reconcile.per_minute)
    }

    fn limit(&self, pid: &str) -> Arc<Limit> {
        let mut limits = lock(&self.limits);
        Arc::clone(limits.entry(pid.to_owned()).or_insert_with(|| Arc::new(Limit::new(&self.clock))))
    }
}

/// Why callbacks alone no longer settle an order of which the gateway says this.
pub(crate) fn hold_of(verdict: &Verdict) -> Option<Hold> {
    match verdict {
        Verdict::Frozen => Some(Hold::Frozen),
        Verdict::PreAuthorised => Some(Hold::PreAuthorised),
        Verdict::Refunded { .. } => Some(Hold::Refunded),
        Verdict::Paid { .. } | Verdict::Unpaid | Verdict::Unknown(_) | Verdict::Contradicts(_) => None,
    }
}

/// A verdict in a word, for what is kept and shown.
pub(crate) fn name_of(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Paid { .. } => "paid".into(),
        Verdict::Unpaid => "unpaid".into(),
        Verdict::Refunded { .. } => "refunded".into(),
        Verdict::Frozen => "frozen".into(),
        Verdict::PreAuthorised => "pre_authorised".into(),
        Verdict::Unknown(status) => format!("status_{status}"),
        Verdict::Contradicts(field) => format!("contradicts_{field}"),
    }
}

/// What one gateway bears.
struct Limit {
    clock: Clock,
    notify: Semaphore,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Questions of the schedule that are under way.
    scheduled: usize,
    /// One token a question.
    bucket: TokenBucket,
    /// Questions in a row that got no answer.
    failures: u32,
    paused_until: Option<Instant>,
}

impl Limit {
    fn new(clock: &Clock) -> Self {
        let (clock, started) = (clock.clone(), clock.instant());
        Self { clock, started, notify: Semaphore::new(NOTIFY_CONCURRENCY), state: Mutex::default() }
    }

    /// The time since the limit was made.
    fn running(&self) -> Duration {
        self.clock.instant().duration_since(self.started)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn is_paused(&self) -> bool {
        self.state().paused_until.is_some_and(|until| until > self.clock.instant())
    }

    /// How many questions may be asked right now.
    fn tokens(&self, per_minute: u32) -> usize {
        self.state().bucket.tokens(Rate::per_minute(per_minute, SAVED_UP), self.running())
    }

    /// Waits for a place, till the deadline.
    async fn enter(&self, cause: Cause, rates: (usize, u32), deadline: Instant) -> Option<Place<'_>> {
        if matches!(cause, Cause::Notify | Cause::Refund | Cause::Manual) {
            let left = deadline.saturating_duration_since(self.clock.instant());
            let permit = timeout(left, self.notify.acquire()).await.ok()?.ok()?;
            return Some(Place::Notify(permit));
        }
        let rate = Rate::per_minute(rates.1, SAVED_UP);
        loop {
            let wait = {
                let mut state = self.state();
                match state.paused_until {
                    Some(until) if until > self.clock.instant() => return None,
                    _ => {}
                }
                if state.scheduled < rates.0 && state.bucket.take(rate, self.running()) {
                    state.scheduled += 1;
                    return Some(Place::Scheduled(self));
                }
                // The time that one question's worth of tokens takes, or a place to become free.
                Duration::from_millis(u64::from(60_000 / rates.1.max(1)).clamp(10, 1000))
            };
            if self.clock.instant() + wait >= deadline {
                return None;
            }
            self.clock.sleep(wait).await;
        }
    }

    /// Learns from how the last question ended.
    fn heard(&self, error: Option<&GatewayError>) {
        let mut state = self.state();
        let pause = match error {
            Some(GatewayError::RateLimited(wait)) => Some(wait.unwrap_or(RATE_LIMITED_PAUSE)),
            Some(GatewayError::Unreachable(_) | GatewayError::Failed { .. } | GatewayError::NotJson { .. }) => {
                state.failures = state.failures.saturating_add(1);
                Some(TROUBLE_PAUSES.exactly_after(state.failures))
            }
            _ => None,
        };
        if pause.is_none() {
            state.failures = 0;
        }
        state.paused_until = pause.map(|pause| self.clock.instant() + pause.min(TROUBLE_PAUSES.longest));
    }
}

/// The right to ask one question.
enum Place<'a> {
    Notify(#[allow(dead_code, reason = "held, not read")] SemaphorePermit<'a>),
    Scheduled(&'a Limit),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Self::Scheduled(limit) = self {
            limit.state().scheduled -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DatabaseUrl};
    use crate::domain::money::Amount;
    use crate::net::client::OutgoingError;
    use crate::net::client::loopback::{Act, Loopback};
    use crate::store::fixtures;

    /// A merchant with one unpaid order, `ORDER1`, at a gateway that answers so.
    struct Shop {
        _directory: tempfile::TempDir,
        server: Loopback,
        store: Store,
        gateways: Gateways,
    }

    impl Shop {
        async fn open(answers: &[&str]) -> Self {
            let acts = answers.iter().map(|answer| Act::reply("200 OK", answer)).collect();
            let (directory, server) = (tempfile::tempdir().unwrap(), Loopback::start(acts).await);
            let text = format!("[[merchant]]\npid = \"1002\"\nkey = \"k\"\ngateway_url = \"{}\"\n", server.url(""));
            let config = Current::new(Config::from_toml(&text, directory.path()).unwrap());
            let store = fixtures::open(&DatabaseUrl::Sqlite(directory.path().join("x.db"))).await.unwrap();
            store.create_order(fixtures::order("ORDER1", 1001, Timestamp::now())).await.unwrap();
            let gateways = Gateways::new(&config, &store, &Client::new(), &Clock::system());
            Self { _directory: directory, server, store, gateways }
        }

        async fn order(&self) -> Order {
            self.store.order("ORDER1").await.unwrap().unwrap()
        }

        async fn ask(&self) -> Result<Verdict, AskError> {
            let order = self.order().await;
            self.gateways.ask(&order, Cause::Reconcile, Duration::from_secs(20)).await.map(|(verdict, _)| verdict)
        }
    }

    fn answer(status: u8, trade_no: &str) -> String {
        format!(
            r#"{{"code":1,"pid":"1002","out_trade_no":"ORDER1","trade_no":"{trade_no}","money":"36.00","status":{status}}}"#
        )
    }

    #[tokio::test]
    async fn what_the_gateway_says_of_the_money_stays_with_the_order() {
        for (status, hold) in [
            (0, None),
            (1, None),
            (2, Some(Hold::Refunded)),
            (3, Some(Hold::Frozen)),
            (4, Some(Hold::PreAuthorised)),
            (7, None),
        ] {
            let shop = Shop::open(&[&answer(status, "T1")]).await;
            shop.ask().await.unwrap();
            assert_eq!(shop.order().await.hold, hold, "{status}");
        }
        // An answer that is about another order, or that contradicts itself, is no state of this one.
        let shop = Shop::open(&[&answer(3, "T1").replace("ORDER1", "ORDER2")]).await;
        assert_eq!(shop.ask().await, Ok(Verdict::Contradicts("out_trade_no")));
        assert_eq!(shop.order().await.hold, None);
    }

    /// An answer that is acted on without being stored could be undone by the next callback.
    #[tokio::test]
    async fn an_answer_that_cannot_be_stored_is_none() {
        let shop = Shop::open(&[&answer(1, "T1")]).await;
        let order = shop.order().await;
        shop.store.close().await.unwrap();
        let asked = shop.gateways.ask(&order, Cause::Notify, Duration::from_secs(20)).await;
        assert_eq!(asked.map(|(verdict, _)| verdict), Err(AskError::NotStored));
        assert_eq!(shop.server.requests().len(), 1);
    }

    #[tokio::test]
    async fn an_answer_about_another_payment_than_the_one_asked_about_is_not_believed() {
        let amount = Amount::from_fen(3600).unwrap();
        for (status, said, expected) in [
            (1, "T2", Verdict::Paid { trade_no: "T2".into(), amount }),
            (2, "T2", Verdict::Refunded { trade_no: "T2".into(), amount }),
            (1, "T1", Verdict::Contradicts("trade_no")),
            (2, "T1", Verdict::Contradicts("trade_no")),
            (0, "T1", Verdict::Unpaid),
        ] {
            let shop = Shop::open(&[&answer(status, said)]).await;
            let order = shop.order().await;
            let asked = shop.gateways.ask_about_payment(&order, "T2", Cause::Notify, Duration::from_secs(20)).await;
            assert_eq!(asked.map(|(verdict, _)| verdict), Ok(expected));
            let request = &shop.server.requests()[0];
            assert!(request.contains("&trade_no=T2") && !request.contains("out_trade_no"), "{request}");
        }
    }

    /// Later than any of these tests ends: each of them gets a place at once.
    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[tokio::test]
    async fn scheduled_questions_wait_for_a_place_and_notifications_do_not() {
        let limit = Limit::new(&Clock::system());
        let first = limit.enter(Cause::Reconcile, (1, 600), soon()).await;
        assert!(first.is_some());
        assert!(limit.enter(Cause::Reconcile, (1, 600), Instant::now()).await.is_none());
        assert!(limit.enter(Cause::Notify, (1, 600), soon()).await.is_some());
        drop(first);
        assert!(limit.enter(Cause::Return, (1, 600), soon()).await.is_some());
    }

    fn clock() -> Clock {
        Clock::by_hand(Timestamp::from_ms(1_700_000_000_000))
    }

    #[tokio::test]
    async fn no_more_are_asked_than_the_rate_allows() {
        let clock = clock();
        let limit = Limit::new(&clock);
        let asked = async || {
            let mut asked = 0;
            while limit.enter(Cause::Reconcile, (100, 60), clock.instant()).await.is_some() {
                asked += 1;
            }
            asked
        };
        assert_eq!(asked().await, 10, "ten seconds' worth");
        for (seconds, more) in [(1, 1), (3, 3), (60, 10)] {
            clock.pass(Duration::from_secs(seconds));
            assert_eq!(asked().await, more, "after {seconds} s");
        }
    }

    #[tokio::test]
    async fn a_gateway_in_trouble_is_left_alone_for_longer_and_longer_until_it_answers() {
        let clock = clock();
        let limit = Limit::new(&clock);
        let soon = || clock.instant() + Duration::from_mins(1);
        let down = GatewayError::Unreachable(OutgoingError::TimedOut);
        let moment = Duration::from_millis(1);
        for pause_s in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            limit.heard(Some(&down));
            clock.pass(Duration::from_secs(pause_s).saturating_sub(moment));
            assert!(limit.is_paused(), "{pause_s}");
            assert!(limit.enter(Cause::Reconcile, (1, 600), soon()).await.is_none());
            assert!(limit.enter(Cause::Notify, (1, 600), soon()).await.is_some());
            clock.pass(moment);
            assert!(!limit.is_paused(), "{pause_s}");
        }
        limit.heard(None);
        // What a gateway says about one order is no trouble of the gateway's.
        limit.heard(Some(&GatewayError::UnknownOrder));
        assert!(!limit.is_paused());
        limit.heard(Some(&GatewayError::RateLimited(Some(Duration::from_secs(7)))));
        clock.pass(Duration::from_secs(6));
        assert!(limit.is_paused());
    }
}
