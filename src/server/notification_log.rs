//! What the log says of notifications: all settlements, and every other outcome at a rate that fills no disk.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::clock::{Clock, Timestamp};
use crate::domain::outcome::{ClaimedFields, NotificationOutcome, Outcome, Rejected, Unanswered};
use crate::domain::settlement::Claim;
use crate::logging::log_text;
use crate::net::rate_limit::{Rate, RateLimiter};
use crate::store::{Credited, Settlement, StoreError};

/// The target of these records, whichever file writes them.
const TARGET: &str = "webhookctl::notify";
/// How often an outcome is logged of callbacks that anybody can forge.
const FORGED: Rate = Rate::new(50, Duration::from_secs(5));
/// How often an outcome is logged of those that are vouched for: whoever holds a valid one can send it again and again.
const REPEATED: Rate = Rate::new(100, Duration::from_millis(500));
/// How much of each field that a stranger chose is logged, and kept apart from the payload.
const FIELD_CHARS_MAX: usize = 64;

/// A notification that is not to be believed.
pub(super) struct Refused {
    pub(super) outcome: Rejected,
    /// More about it than the outcome's name says.
    pub(super) reason: String,
    /// The fields to find it by.
    pub(super) claimed: ClaimedFields,
}

/// As much of a field as is logged.
pub(super) fn shortened(field: &str) -> &str {
    if field.len() <= FIELD_CHARS_MAX {
        return field;
    }
    field.char_indices().nth(FIELD_CHARS_MAX).map_or(field, |(end, _)| &field[..end])
}

pub(super) struct NotificationLog {
    /// One for each outcome.
    budgets: [Budget; NotificationOutcome::COUNT],
    /// The minute in which it was last told that a previous key is still used.
    previous_key_told: AtomicI64,
}

impl Default for NotificationLog {
    fn default() -> Self {
        let budget = |index: usize| {
            let room = RateLimiter::new(if index < Rejected::ALL.len() { FORGED } else { REPEATED }, &Clock::system());
            Budget { room, unlogged: AtomicU64::new(0) }
        };
        Self { budgets: std::array::from_fn(budget), previous_key_told: AtomicI64::default() }
    }
}

impl NotificationLog {
    /// A vouched-for notification, and what the store made of it.
    pub(super) fn settlement(
        &self,
        outcome: NotificationOutcome,
        settled: &Result<Settlement, StoreError>,
        claim: &Claim,
        client: IpAddr,
    ) {
        if outcome != NotificationOutcome::Decided(Outcome::Settled) && !self.has_room_for(outcome) {
            return;
        }
        let [pid, order, trade] = [&claim.merchant, &claim.order_no, claim.trade_no()].map(shortened);
        let amount = claim.amount.map_or_else(|| "?".to_owned(), |amount| amount.to_string());
        let (credited, order_amount) = match settled {
            Ok(settlement) => (settlement.credited, settlement.order_amount),
            Err(error) => {
                let text =
                    log_text!("log.store_failed", outcome = outcome, order = order, trade = trade, error = error);
                log::error!(target: TARGET, "{text}");
                return;
            }
        };
        let level = match outcome {
            NotificationOutcome::Decided(Outcome::Settled | Outcome::Duplicate | Outcome::NotPaid) => log::Level::Info,
            _ => log::Level::Warn,
        };
        let what = match (outcome, order_amount) {
            (NotificationOutcome::Decided(Outcome::AmountMismatch), Some(expected)) => {
                format!("{outcome} {amount} != {expected}")
            }
            _ => outcome.to_string(),
        };
        let rest = if let Some(Credited { telegram_id: user, credits }) = credited {
            log_text!("log.credited", user = user, credits = credits)
        } else {
            log_text!("log.sender", pid = pid, client = client)
        };
        let text = log_text!("log.verified", what = what, order = order, trade = trade, amount = amount, rest = rest);
        log::log!(target: TARGET, level, "{text}");
    }

    /// The gateway was told to come again before it was known what came of its notification.
    pub(super) fn late_settlement(&self, after: Duration) {
        let outcome = NotificationOutcome::Unanswered(Unanswered::Overloaded);
        if self.has_room_for(outcome) {
            log::error!(target: TARGET, "{}", log_text!("log.settle_late", outcome = outcome, seconds = after.as_secs()));
        }
    }

    /// A gateway has not changed over to its merchant's new key yet. Told once a minute: it is no fault.
    pub(super) fn previous_key(&self, pid: &str, now: Timestamp) {
        let minute = now.ms().div_euclid(60_000);
        if self.previous_key_told.swap(minute, Ordering::Relaxed) != minute {
            log::info!(target: TARGET, "{}", log_text!("log.previous_key", pid = shortened(pid)));
        }
    }

    /// A notification that proved nothing; why it did not is only looked into where it is told.
    pub(super) fn rejection(&self, refused: &Refused, client: IpAddr, diagnose: impl FnOnce() -> Option<String>) {
        if self.has_room_for(NotificationOutcome::Rejected(refused.outcome)) {
            let what = format!("{} {}", refused.outcome, refused.reason);
            let ClaimedFields { merchant, order_no, .. } = &refused.claimed;
            let [pid, order] = [merchant, order_no].map(|field| field.as_deref().unwrap_or("?"));
            let sender = log_text!("log.sender", pid = pid, client = client);
            let rest = diagnose().map_or_else(|| sender.to_string(), |diagnosis| format!("{sender}: {diagnosis}"));
            log::warn!(target: TARGET, "{}", log_text!("log.rejected", what = what.trim_end(), order = order, rest = rest));
        }
    }

    /// A notification that is not worth a record of its own.
    pub(super) fn leave_out(&self, outcome: NotificationOutcome) {
        self.budgets[outcome.index()].unlogged.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells how many records there was no room for since this was last told.
    pub(super) fn report_unlogged(&self) {
        for (outcome, budget) in NotificationOutcome::all().zip(&self.budgets) {
            let count = budget.unlogged.swap(0, Ordering::Relaxed);
            if count > 0 {
                log::warn!(target: TARGET, "{}", log_text!("log.more_unlogged", outcome = outcome, count = count));
            }
        }
    }

    fn has_room_for(&self, outcome: NotificationOutcome) -> bool {
        let has_room = self.budgets[outcome.index()].room.take();
        if !has_room {
            self.leave_out(outcome);
        }
        has_room
    }
}

/// Room for records, and a count of those that there was none for.
struct Budget {
    room: RateLimiter,
    unlogged: AtomicU64,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn each_outcome_has_its_own_room_and_what_is_left_out_is_counted_but_not_diagnosed() {
        let log = NotificationLog::default();
        let bad_signature = NotificationOutcome::Rejected(Rejected::BadSignature);
        let duplicate = NotificationOutcome::Decided(Outcome::Duplicate);
        let diagnosed = Cell::new(0);
        let reject = |outcome| {
            let refused = Refused { outcome, reason: String::new(), claimed: ClaimedFields::default() };
            log.rejection(&refused, [10, 0, 0, 1].into(), || {
                diagnosed.set(diagnosed.get() + 1);
                None
            });
        };
        (0..1000).for_each(|_| reject(Rejected::BadSignature));
        assert_eq!(diagnosed.get(), 50);
        (0..30).for_each(|_| reject(Rejected::Malformed));
        assert_eq!(diagnosed.get(), 80);
        log.leave_out(bad_signature);
        let logged = (0..1000).filter(|_| log.has_room_for(duplicate)).count();
        assert!((100..=102).contains(&logged), "{logged}");
        let unlogged = |outcome: NotificationOutcome| log.budgets[outcome.index()].unlogged.load(Ordering::Relaxed);
        assert_eq!(unlogged(bad_signature), 951);
        assert_eq!(unlogged(NotificationOutcome::Rejected(Rejected::Malformed)), 0);
        assert_eq!(usize::try_from(unlogged(duplicate)).unwrap(), 1000 - logged);
        log.report_unlogged();
        assert_eq!(unlogged(bad_signature), 0, "told once");
    }
}
