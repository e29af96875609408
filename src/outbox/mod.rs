//! What has to be told of orders goes to whom it is for, until it arrives or its time is over.
//!
//! A [`Courier`] knows one kind of addressee: [`Buyers`] hear by Telegram, the bot by signed [`Events`]. A [`Dispatcher`] takes what is
//! due from the store and hands it to a courier; every attempt is noted before the next. [`run`] is the loop around its rounds.
//! [`Notices`] are what the operator hears of trouble.

mod buyers;
mod events;
mod notices;
pub(crate) mod telegram;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::domain::clock::{Clock, Timestamp};
use crate::domain::jitter::Jitter;
use crate::domain::language::{Language, text};
use crate::domain::notices::{NoticeKind, Notices};
use crate::logging::{self, log_text};
use crate::net::backoff::Backoff;
use crate::store::{Attempt, Channel, Delivery, Store, StoreError};
use crate::sync::lock;
pub(crate) use buyers::Buyers;
pub(crate) use events::{DISABLED as EVENTS_DISABLED, Events};
pub(crate) use notices::{Watch, tell_admin};

/// How many deliveries of one channel are under way at the same time.
pub(crate) const CONCURRENCY: usize = 8;
/// How long a row that is claimed belongs to this process: longer than an attempt takes, waiting for its turn included.
const LEASE: Duration = Duration::from_secs(30);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it is until the outbox is looked into without a cause: commands, too, put something in, and a reload may have brought
/// somebody to tell.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long it is tried to note what became of an attempt: until the lease ends, and it makes no difference any more.
const NOTE_PATIENCE: Duration = Duration::from_secs(15);
/// How long the store is left alone when it has failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Who brings what is due to one kind of addressee.
pub(crate) trait Courier: Send + Sync + 'static {
    /// Whose rows these are.
    const CHANNEL: Channel;
    /// How long a row is tried before it is given up.
    const KEEPS_TRYING: Duration;
    /// How attempts are apart.
    const BACKOFF: Backoff;
    /// What the operator hears of a row that will never arrive.
    const FAILURE: NoticeKind;
    /// What it takes from the configuration in force to deliver.
    type Route: Send + Sync + 'static;

    /// The language of what is kept and told of attempts.
    fn language(&self) -> Language;

    /// How to deliver now; `None` while there is nobody to deliver to.
    fn route(&self) -> impl Future<Output = Result<Option<Self::Route>, StoreError>> + Send;

    /// Tries once. It takes less time than a lease.
    fn deliver(&self, route: &Self::Route, delivery: &Delivery) -> impl Future<Output = Verdict> + Send;
}

/// What a courier says of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It arrived.
    Sent,
    /// It may arrive another time, and not before `after`.
    Again { error: String, after: Option<Duration> },
    /// It will never arrive.
    Final { error: String },
    /// Nothing will arrive for so long: it says nothing about this row.
    Pause { time: Duration, level: log::Level, error: String },
}

/// Delivers what is due until `stop`. Then nothing more is taken up, and what is being sent is finished.
pub(crate) async fn run<C: Courier>(dispatcher: Dispatcher<C>, stop: CancellationToken) {
    let mut growth = dispatcher.store.outbox_growth();
    let dispatcher = Arc::new(dispatcher);
    let mut under_way = JoinSet::new();
    while !stop.is_cancelled() {
        // Before the look into the outbox: what comes after it is news.
        growth.mark_unchanged();
        let round = dispatcher.round(CONCURRENCY - under_way.len()).await;
        for taken in round.taken {
            let dispatcher = Arc::clone(&dispatcher);
            under_way.spawn(async move { dispatcher.deliver(taken).await });
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Some(ended) = under_way.join_next() => resume_panic(ended),
            _ = growth.changed(), if round.waits_for_growth => {}
            () = dispatcher.clock.sleep(round.next_after) => {}
        }
    }
    while let Some(ended) = under_way.join_next().await {
        resume_panic(ended);
    }
}

/// A delivery that panics is a fault of ours, and the loop ends with it.
fn resume_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// What a look into the outbox took up, and when the next look is due.
pub(crate) struct Round<R> {
    pub(crate) taken: Vec<Taken<R>>,
    /// Nothing can be due earlier, but for a delivery that ends and for what comes into the outbox.
    pub(crate) next_after: Duration,
    /// Whether the next look is due earlier when something comes into the outbox.
    pub(crate) waits_for_growth: bool,
}

/// A row that is claimed, and how to deliver it. One that is dropped is due again when its lease ends.
pub(crate) struct Taken<R> {
    route: Arc<R>,
    pub(crate) delivery: Delivery,
}

/// Hands what is due on one channel to its courier.
pub(crate) struct Dispatcher<C> {
    courier: C,
    store: Store,
    notices: Notices,
    clock: Clock,
    jitter: Jitter,
    /// The channel is left alone until then.
    paused_until: Mutex<Instant>,
}

impl<C: Courier> Dispatcher<C> {
    pub(crate) fn new(courier: C, store: Store, notices: Notices, clock: Clock) -> Self {
        let paused_until = Mutex::new(clock.instant());
        Self { courier, store, notices, clock, jitter: Jitter::default(), paused_until }
    }

    /// Has its pauses depend on this source.
    #[cfg(test)]
    pub(crate) fn jittered_by(self, jitter: Jitter) -> Self {
        Self { jitter, ..self }
    }

    /// Claims at most `room` of what is due.
    pub(crate) async fn round(&self, room: usize) -> Round<C::Route> {
        let idle = |next_after, waits_for_growth| Round { taken: Vec::new(), next_after, waits_for_growth };
        if room == 0 {
            // A delivery that ends makes room, and wakes the loop.
            return idle(LOOK_EVERY, false);
        }
        let pause = self.paused_until().saturating_duration_since(self.clock.instant());
        if !pause.is_zero() {
            return idle(pause, false);
        }
        self.take_up(room).await.unwrap_or_else(|error| {
            log::warn!("{}", log_text!("outbox.store_failed", channel = C::CHANNEL, cause = error));
            idle(LOOK_EVERY, true)
        })
    }

    async fn take_up(&self, room: usize) -> Result<Round<C::Route>, StoreError> {
        let mut round = Round { taken: Vec::new(), next_after: LOOK_EVERY, waits_for_growth: true };
        let Some(route) = self.courier.route().await?.map(Arc::new) else { return Ok(round) };
        let now = self.clock.now();
        // Without a look first, an idle service would write all the time.
        let Some(due_at) = self.store.next_due(C::CHANNEL).await? else { return Ok(round) };
        if due_at > now {
            round.next_after = until(due_at, now).min(LOOK_EVERY);
            return Ok(round);
        }
        self.give_up_old(now).await?;
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let claimed = self.store.claim_due(C::CHANNEL, now, LEASE, room).await?;
        round.taken = claimed.into_iter().map(|delivery| Taken { route: Arc::clone(&route), delivery }).collect();
        // There may be more, for which the next round looks.
        round.next_after = Duration::ZERO;
        Ok(round)
    }

    async fn give_up_old(&self, now: Timestamp) -> Result<(), StoreError> {
        let tried_for_ms = i64::try_from(C::KEEPS_TRYING.as_millis()).unwrap_or(i64::MAX);
        let oldest = Timestamp::from_ms(now.ms().saturating_sub(tried_for_ms));
        let language = self.courier.language();
        let count = self.store.give_up_older(C::CHANNEL, oldest, Self::too_old(language), now).await?;
        if count > 0 {
            let text = |language| {
                let cause = Self::too_old(language);
                text!(language, "outbox.gave_up", channel = C::CHANNEL, count = count, cause = cause)
            };
            log::warn!("{}", text(logging::language()));
            self.notices.tell(C::FAILURE, &text(language));
        }
        Ok(())
    }

    fn too_old(language: Language) -> String {
        text!(language, "outbox.too_old", hours = C::KEEPS_TRYING.as_secs() / 3600).into_owned()
    }

    /// Tries once to deliver a row, and notes what became of it.
    pub(crate) async fn deliver(&self, taken: Taken<C::Route>) {
        let Taken { route, delivery } = taken;
        let verdict = self.courier.deliver(&route, &delivery).await;
        let now = self.clock.now();
        let attempt = match verdict {
            Verdict::Sent => Attempt::Sent,
            Verdict::Final { error } => Attempt::Failed { error },
            Verdict::Again { error, after } => again_or_never::<C>(&delivery, error, after, now, &self.jitter),
            Verdict::Pause { time, level, error } => {
                self.pause(time, level, &error);
                // Without the attempt that it was claimed for.
                let attempts_before = delivery.attempts.saturating_sub(1);
                Attempt::NotNow { at: now.plus(time), attempts_before, error }
            }
        };
        self.tell(&delivery, &attempt);
        self.note(delivery.id, attempt, now).await;
    }

    /// Leaves the channel alone. Told once: what is under way at the same time meets the same.
    fn pause(&self, time: Duration, level: log::Level, error: &str) {
        let mut paused_until = self.paused_until();
        let now = self.clock.instant();
        if *paused_until <= now {
            let seconds = time.as_secs() + 1;
            log::log!(level, "{}", log_text!("outbox.paused", channel = C::CHANNEL, seconds = seconds, cause = error));
        }
        *paused_until = (*paused_until).max(now + time);
    }

    fn paused_until(&self) -> MutexGuard<'_, Instant> {
        lock(&self.paused_until)
    }

    fn tell(&self, delivery: &Delivery, attempt: &Attempt) {
        let (channel, order, news) = (C::CHANNEL, &delivery.order.terms.order_no, delivery.news);
        match attempt {
            Attempt::Sent => log::debug!("{}", log_text!("outbox.sent", channel = channel, order = order, news = news)),
            Attempt::Again { error, .. } => {
                log::debug!(
                    "{}",
                    log_text!("outbox.again", channel = channel, order = order, news = news, cause = error)
                );
            }
            Attempt::NotNow { .. } => {}
            Attempt::Failed { error } => {
                let text = |language| {
                    text!(language, "outbox.failed", channel = channel, order = order, news = news, cause = error)
                };
                log::warn!("{}", text(logging::language()));
                self.notices.tell(C::FAILURE, &text(self.courier.language()));
            }
        }
    }

    /// Notes an attempt. What is not noted is delivered again when its lease ends, so this is worth some patience.
    async fn note(&self, id: i64, attempt: Attempt, now: Timestamp) {
        let deadline = self.clock.instant() + NOTE_PATIENCE;
        let mut is_first = true;
        while let Err(error) = self.store.attempted(id, attempt.clone(), now).await {
            if is_first {
                log::warn!("{}", log_text!("outbox.store_failed", channel = C::CHANNEL, cause = error));
            }
            if matches!(error, StoreError::Closed) || self.clock.instant() + STORE_PAUSE > deadline {
                return;
            }
            is_first = false;
            self.clock.sleep(STORE_PAUSE).await;
        }
    }
}

/// When it is tried again; never, where that would be too late.
fn again_or_never<C: Courier>(
    delivery: &Delivery,
    error: String,
    after: Option<Duration>,
    now: Timestamp,
    jitter: &Jitter,
) -> Attempt {
    let pause = C::BACKOFF.after(delivery.attempts, jitter);
    let pause = after.map_or(pause, |after| pause.max(after.min(C::BACKOFF.longest)));
    let at = now.plus(pause);
    if at > delivery.tried_since.plus(C::KEEPS_TRYING) {
        Attempt::Failed { error }
    } else {
        Attempt::Again { at, error }
    }
}

/// How long it is from `now` until then.
fn until(time: Timestamp, now: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(time.ms().saturating_sub(now.ms())).unwrap_or(0))
}

#[cfg(test)]
mod tests;
