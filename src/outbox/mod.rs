//! What has to be told of orders goes to whom it is for, until it arrives or its time is over.
//!
//! A [`Courier`] knows one kind of addressee: [`Buyers`] hear by Telegram, the bot by signed [`Events`]. [`run`] is the loop that takes
//! what is due from the store and hands it to a courier; every attempt is noted before the next. [`Notices`] are what
//! the operator hears of trouble.

mod buyers;
mod events;
mod notices;
pub(crate) mod telegram;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, text};
use crate::domain::notices::{NoticeKind, Notices};
use crate::logging::{self, log_text};
use crate::net::backoff::Backoff;
use crate::store::{Attempt, Channel, Delivery, Store, StoreError};
pub(crate) use buyers::Buyers;
pub(crate) use events::{DISABLED as EVENTS_DISABLED, Events};
pub(crate) use notices::tell_admin;

/// How many deliveries of one channel are under way at the same time.
const CONCURRENCY: usize = 8;
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
pub(crate) async fn run<C: Courier>(courier: C, store: Store, notices: Notices, stop: CancellationToken) {
    let mut growth = store.outbox_growth();
    let desk = Arc::new(Desk { courier, store, notices });
    let mut under_way = JoinSet::new();
    let mut paused_until = Instant::now();
    while !stop.is_cancelled() {
        // Before the look into the outbox: what comes after it is news.
        growth.mark_unchanged();
        let room = CONCURRENCY - under_way.len();
        let pause = paused_until.saturating_duration_since(Instant::now());
        let may_take_up = room > 0 && pause.is_zero();
        let patience = match room {
            // Whatever ends makes room, and wakes us.
            0 => LOOK_EVERY,
            _ if may_take_up => desk.take_up(room, &mut under_way).await,
            _ => pause,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Some(ended) = under_way.join_next() => {
                if let Some(pause) = outcome_of(ended) {
                    pause.begin(C::CHANNEL, &mut paused_until);
                }
            }
            _ = growth.changed(), if may_take_up => {}
            () = sleep(patience) => {}
        }
    }
    while let Some(ended) = under_way.join_next().await {
        outcome_of(ended);
    }
}

/// A delivery that panics is a fault of ours, and the loop ends with it.
fn outcome_of(ended: Result<Option<Pause>, JoinError>) -> Option<Pause> {
    match ended {
        Ok(pause) => pause,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

/// The channel is to be left alone.
struct Pause {
    until: Instant,
    level: log::Level,
    error: String,
}

impl Pause {
    /// Told once: what was under way beside it meets the same.
    fn begin(self, channel: Channel, paused_until: &mut Instant) {
        if *paused_until <= Instant::now() {
            let seconds = self.until.saturating_duration_since(Instant::now()).as_secs() + 1;
            let text = log_text!("outbox.paused", channel = channel, seconds = seconds, cause = self.error);
            log::log!(self.level, "{text}");
        }
        *paused_until = (*paused_until).max(self.until);
    }
}

struct Desk<C> {
    courier: C,
    store: Store,
    notices: Notices,
}

impl<C: Courier> Desk<C> {
    /// Begins to deliver at most `room` of what is due; how long nothing else can be due.
    async fn take_up(self: &Arc<Self>, room: usize, under_way: &mut JoinSet<Option<Pause>>) -> Duration {
        let taken = self.try_take_up(room, under_way).await;
        taken.unwrap_or_else(|error| {
            log::warn!("{}", log_text!("outbox.store_failed", channel = C::CHANNEL, cause = error));
            LOOK_EVERY
        })
    }

    async fn try_take_up(
        self: &Arc<Self>,
        room: usize,
        under_way: &mut JoinSet<Option<Pause>>,
    ) -> Result<Duration, StoreError> {
        let Some(route) = self.courier.route().await? else { return Ok(LOOK_EVERY) };
        let route = Arc::new(route);
        let now = Timestamp::now();
        // Without a look first, an idle service would write all the time.
        let next_due = self.store.next_due(C::CHANNEL).await?;
        if next_due.is_none_or(|due_at| due_at > now) {
            return Ok(next_due.map_or(LOOK_EVERY, |due_at| until(due_at).min(LOOK_EVERY)));
        }
        self.give_up_old(now).await?;
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        for delivery in self.store.claim_due(C::CHANNEL, now, LEASE, room).await? {
            under_way.spawn(Arc::clone(self).deliver(Arc::clone(&route), delivery));
        }
        // There may be more, for which the next round looks.
        Ok(Duration::ZERO)
    }

    async fn give_up_old(&self, now: Timestamp) -> Result<(), StoreError> {
        let oldest = Timestamp::from_ms(now.ms().saturating_sub(ms(C::KEEPS_TRYING)));
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

    async fn deliver(self: Arc<Self>, route: Arc<C::Route>, delivery: Delivery) -> Option<Pause> {
        let verdict = self.courier.deliver(&route, &delivery).await;
        let now = Timestamp::now();
        let mut pause = None;
        let attempt = match verdict {
            Verdict::Sent => Attempt::Sent,
            Verdict::Final { error } => Attempt::Failed { error },
            Verdict::Again { error, after } => again_or_never::<C>(&delivery, error, after, now),
            Verdict::Pause { time, level, error } => {
                pause = Some(Pause { until: Instant::now() + time, level, error: error.clone() });
                Attempt::NotNow { at: later(now, time), error }
            }
        };
        self.tell(&delivery, &attempt);
        self.note(delivery.id, attempt, now).await;
        pause
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
        let deadline = Instant::now() + NOTE_PATIENCE;
        let mut is_first = true;
        while let Err(error) = self.store.attempted(id, attempt.clone(), now).await {
            if is_first {
                log::warn!("{}", log_text!("outbox.store_failed", channel = C::CHANNEL, cause = error));
            }
            if matches!(error, StoreError::Closed) || Instant::now() + STORE_PAUSE > deadline {
                return;
            }
            is_first = false;
            sleep(STORE_PAUSE).await;
        }
    }
}

/// When it is tried again; never, where that would be too late.
fn again_or_never<C: Courier>(delivery: &Delivery, error: String, after: Option<Duration>, now: Timestamp) -> Attempt {
    let pause = C::BACKOFF.after(delivery.attempts);
    let pause = after.map_or(pause, |after| pause.max(after.min(C::BACKOFF.longest)));
    let at = later(now, pause);
    if at > later(delivery.tried_since, C::KEEPS_TRYING) {
        Attempt::Failed { error }
    } else {
        Attempt::Again { at, error }
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn later(time: Timestamp, pause: Duration) -> Timestamp {
    Timestamp::from_ms(time.ms().saturating_add(ms(pause)))
}

fn until(time: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(time.ms().saturating_sub(Timestamp::now().ms())).unwrap_or(0))
}

#[cfg(test)]
mod tests;
