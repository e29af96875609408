//! Delivering what the outbox holds: to buyers by Telegram, to the bot as events, and the operator's notices.
//!
//! A row is claimed before it is sent, and what became of it is noted afterwards, both durably: a crash costs a delay of one lease
//! and, only where it falls between the answer and the note, a second copy.

mod events;
mod messages;
mod notices;

use std::sync::Arc;
use std::time::Duration;

use rust_i18n::t;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::clock::Timestamp;
use crate::store::{Attempt, Channel, Delivery, Store, StoreError};
pub(crate) use events::{DISABLED, Events, type_of};
pub(crate) use messages::Messages;
pub(crate) use notices::{Notices, tell_operator};

const TARGET: &str = "webhookctl::outbox";

/// How many rows are claimed, and delivered at the same time.
const BATCH: u32 = 8;
/// How long a claim lasts: longer than a delivery may take.
const LEASE: Duration = Duration::from_secs(30);
/// How often it is looked for what other processes have put into the outbox, and for a changed configuration.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It arrived.
    Sent,
    /// It did not, and may the next time.
    Again(String),
    /// Nothing can be delivered for so long, whatever it is.
    Pause(Duration, String),
    /// It never will.
    Never(String),
}

/// Who delivers one channel.
pub(crate) trait Courier: Send + Sync + 'static {
    /// The channel.
    const CHANNEL: Channel;
    /// For how long a delivery is tried.
    const PATIENCE: Duration;
    /// How long until the second attempt, and between later ones at most.
    const BACKOFF: (Duration, Duration);

    /// Whether there is anybody to deliver to, by the configuration in force.
    fn is_on(&self) -> impl Future<Output = bool> + Send;
    /// Delivers, once.
    fn deliver(&self, delivery: &Delivery) -> impl Future<Output = Verdict> + Send;
    /// Hears of what is given up.
    fn gave_up(&self, delivery: &Delivery, error: &str);
}

/// Delivers until it is told to stop; then finishes what is being sent.
pub(crate) async fn deliver<C: Courier>(courier: Arc<C>, store: Store, stop: CancellationToken) {
    let mut growth = store.outbox_growth();
    let mut paused_until = Instant::now();
    while !stop.is_cancelled() {
        growth.mark_unchanged();
        let round = Round { courier: &courier, store: &store };
        let mut next = Instant::now() + LOOK_INTERVAL;
        if paused_until <= Instant::now() && courier.is_on().await {
            match round.run().await {
                Ok(Some(pause)) => paused_until = Instant::now() + pause,
                Ok(None) => {}
                Err(error) => log::warn!(target: TARGET, "{}", t!("log.outbox_failed", error = error)),
            }
            match store.next_due(C::CHANNEL).await {
                Ok(Some(due)) => next = next.min(Instant::now() + until(due)),
                Ok(None) => {}
                Err(error) => log::warn!(target: TARGET, "{}", t!("log.outbox_failed", error = error)),
            }
            next = next.max(paused_until);
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = sleep_until(next) => {}
            Ok(()) = growth.changed(), if paused_until <= Instant::now() => {}
        }
    }
}

/// How long it is until then.
fn until(due: Timestamp) -> Duration {
    Duration::from_millis(u64::try_from(due.ms() - Timestamp::now().ms()).unwrap_or(0))
}

/// One batch of deliveries.
struct Round<'a, C> {
    courier: &'a Arc<C>,
    store: &'a Store,
}

impl<C: Courier> Round<'_, C> {
    /// Delivers what is due, up to a batch; how long nothing more can be delivered, if so.
    async fn run(&self) -> Result<Option<Duration>, StoreError> {
        let now = Timestamp::now();
        let claimed = self.store.claim_due(C::CHANNEL, now, LEASE, BATCH).await?;
        if claimed.iter().any(|delivery| is_too_old::<C>(delivery, now)) {
            // There may be very many of them, where nothing was delivered for days.
            let oldest = Timestamp::from_ms(now.ms().saturating_sub(millis(C::PATIENCE)));
            let error = t!("outbox.too_old").into_owned();
            while self.store.give_up_older(C::CHANNEL, oldest, error.clone(), now).await? > 0 {}
        }
        let mut sending = JoinSet::new();
        for delivery in claimed {
            let courier = Arc::clone(self.courier);
            sending.spawn(async move {
                let verdict = match is_too_old::<C>(&delivery, now) {
                    true => Verdict::Never(t!("outbox.too_old").into_owned()),
                    false => courier.deliver(&delivery).await,
                };
                (delivery, verdict)
            });
        }
        let mut pause = None;
        while let Some(sent) = sending.join_next().await {
            let (delivery, verdict) = sent.map_err(|error| StoreError::Failed(error.to_string().into()))?;
            if let Verdict::Pause(time, _) = &verdict {
                pause = pause.max(Some(*time));
            }
            self.note(&delivery, verdict).await?;
        }
        Ok(pause)
    }

    async fn note(&self, delivery: &Delivery, verdict: Verdict) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let (news, order) = (delivery.news, &delivery.order.terms.order_no);
        let attempt = match verdict {
            Verdict::Sent => {
                log::debug!(target: TARGET, "{} {news} {order}: sent", C::CHANNEL);
                Attempt::Sent
            }
            Verdict::Pause(time, error) => Attempt::NotNow { at: after(now, time), error },
            Verdict::Again(error) => {
                log::debug!(target: TARGET, "{} {news} {order}: {error}", C::CHANNEL);
                let at = after(now, jittered(backoff::<C>(delivery.attempts)));
                let last = after(delivery.tried_since, C::PATIENCE);
                if at < last { Attempt::Again { at, error } } else { Attempt::Failed { error } }
            }
            Verdict::Never(error) => Attempt::Failed { error },
        };
        if let Attempt::Failed { error } = &attempt {
            let text = t!("log.delivery_failed", channel = C::CHANNEL, news = news, order = order, error = error);
            log::warn!(target: TARGET, "{text}");
            self.courier.gave_up(delivery, error);
        }
        self.store.attempted(delivery.id, attempt, now).await
    }
}

fn is_too_old<C: Courier>(delivery: &Delivery, now: Timestamp) -> bool {
    after(delivery.tried_since, C::PATIENCE) < now
}

fn after(time: Timestamp, wait: Duration) -> Timestamp {
    Timestamp::from_ms(time.ms().saturating_add(millis(wait)))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// How long to wait after so many attempts: twice as long each time.
fn backoff<C: Courier>(attempts: u32) -> Duration {
    let (first, most) = C::BACKOFF;
    first.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1))).min(most)
}

/// A quarter less to a quarter more, so that what failed together does not come together again.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 1];
    // Without random numbers they come together, which is no fault.
    let _ = getrandom::fill(&mut random);
    wait.mul_f64(0.75 + f64::from(random[0]) / 512.0)
}
