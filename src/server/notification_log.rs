//! What the log says of notifications: all settlements, and every other outcome at a rate that fills no disk.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rust_i18n::t;

use super::limits::{Bucket, Rate};
use crate::domain::clock::Timestamp;
use crate::domain::settlement::{Claim, Outcome};
use crate::store::{Credited, Settlement, StoreError};

/// The target of these records, whichever file writes them.
const TARGET: &str = "webhookctl::notify";
/// How often an outcome is logged of callbacks that anybody can forge.
const FORGED: Rate = Rate { burst: 50, interval: Duration::from_secs(5) };
/// How often an outcome is logged of those that are vouched for: whoever holds a valid one can send it again and again.
const REPEATED: Rate = Rate { burst: 100, interval: Duration::from_millis(500) };
/// How much of each field that a stranger chose is logged, and kept apart from the payload.
const FIELD_CHARS_MAX: usize = 64;

/// A notification that is not to be believed.
pub(super) struct Refused {
    pub(super) outcome: Outcome,
    /// More about it than the outcome's name says.
    pub(super) reason: String,
    /// `pid`, `out_trade_no` and `trade_no`, where they can be read.
    pub(super) claimed: [Option<String>; 3],
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
    budgets: [Budget; Outcome::ALL.len()],
    /// The minute in which it was last told that a previous key is still used.
    previous_key_told: AtomicI64,
}

impl Default for NotificationLog {
    fn default() -> Self {
        let budget = |number: usize| {
            let room = Bucket::new(if Outcome::ALL[number].is_rejection() { FORGED } else { REPEATED });
            Budget { room, unlogged: AtomicU64::new(0) }
        };
        Self { budgets: std::array::from_fn(budget), previous_key_told: AtomicI64::default() }
    }
}

impl NotificationLog {
    /// A vouched-for notification, and what the store made of it.
    pub(super) fn settlement(
        &self,
        outcome: Outcome,
        settled: &Result<Settlement, StoreError>,
        claim: &Claim,
        client: IpAddr,
    ) {
        if outcome != Outcome::Settled && !self.has_room_for(outcome) {
            return;
        }
        let [pid, order, trade] = [&claim.merchant, &claim.order_no, claim.trade_no()].map(shortened);
        let amount = claim.amount.map_or_else(|| "?".to_owned(), |amount| amount.to_string());
        let (credited, order_amount) = match settled {
            Ok(settlement) => (settlement.credited, settlement.order_amount),
            Err(error) => {
                let text = t!("log.store_failed", outcome = outcome, order = order, trade = trade, error = error);
                log::error!(target: TARGET, "{text}");
                return;
            }
        };
        let level = match outcome {
            Outcome::Settled | Outcome::Duplicate | Outcome::NotPaid => log::Level::Info,
            _ => log::Level::Warn,
        };
        let what = match (outcome, order_amount) {
            (Outcome::AmountMismatch, Some(expected)) => format!("{outcome} {amount} != {expected}"),
            _ => outcome.to_string(),
        };
        let rest = if let Some(Credited { telegram_id: user, credits }) = credited {
            t!("log.credited", user = user, credits = credits)
        } else {
            t!("log.sender", pid = pid, client = client)
        };
        let text = t!("log.verified", what = what, order = order, trade = trade, amount = amount, rest = rest);
        log::log!(target: TARGET, level, "{text}");
    }

    /// The gateway was told to come again before it was known what came of its notification.
    pub(super) fn late_settlement(&self, after: Duration) {
        let outcome = Outcome::Overloaded;
        if self.has_room_for(outcome) {
            log::error!(target: TARGET, "{}", t!("log.settle_late", outcome = outcome, seconds = after.as_secs()));
        }
    }

    /// A gateway has not changed over to its merchant's new key yet. Told once a minute: it is no fault.
    pub(super) fn previous_key(&self, pid: &str, now: Timestamp) {
        let minute = now.ms().div_euclid(60_000);
        if self.previous_key_told.swap(minute, Ordering::Relaxed) != minute {
            log::info!(target: TARGET, "{}", t!("log.previous_key", pid = shortened(pid)));
        }
    }

    /// A notification that proved nothing; why it did not is only looked into where it is told.
    pub(super) fn rejection(&self, refused: &Refused, client: IpAddr, diagnose: impl FnOnce() -> Option<String>) {
        if self.has_room_for(refused.outcome) {
            let what = format!("{} {}", refused.outcome, refused.reason);
            let [pid, order, _] = &refused.claimed;
            let [pid, order] = [pid, order].map(|field| field.as_deref().unwrap_or("?"));
            let sender = t!("log.sender", pid = pid, client = client);
            let rest = diagnose().map_or_else(|| sender.to_string(), |diagnosis| format!("{sender}: {diagnosis}"));
            log::warn!(target: TARGET, "{}", t!("log.rejected", what = what.trim_end(), order = order, rest = rest));
        }
    }

    /// A notification that is not worth a record of its own.
    pub(super) fn leave_out(&self, outcome: Outcome) {
        self.budgets[outcome as usize].unlogged.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells how many records there was no room for since this was last told.
    pub(super) fn report_unlogged(&self) {
        for (outcome, budget) in Outcome::ALL.iter().zip(&self.budgets) {
            let count = budget.unlogged.swap(0, Ordering::Relaxed);
            if count > 0 {
                log::warn!(target: TARGET, "{}", t!("log.more_unlogged", outcome = outcome, count = count));
            }
        }
    }

    fn has_room_for(&self, outcome: Outcome) -> bool {
        let has_room = self.budgets[outcome as usize].room.take();
        if !has_room {
            self.leave_out(outcome);
        }
        has_room
    }
}

/// Room for records, and a count of those that there was none for.
struct Budget {
    room: Bucket,
    unlogged: AtomicU64,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn each_outcome_has_its_own_room_and_what_is_left_out_is_counted_but_not_diagnosed() {
        let log = NotificationLog::default();
        let diagnosed = Cell::new(0);
        let reject = |outcome| {
            let refused = Refused { outcome, reason: String::new(), claimed: [None, None, None] };
            log.rejection(&refused, [10, 0, 0, 1].into(), || {
                diagnosed.set(diagnosed.get() + 1);
                None
            });
        };
        (0..1000).for_each(|_| reject(Outcome::BadSignature));
        assert_eq!(diagnosed.get(), 50);
        (0..30).for_each(|_| reject(Outcome::Malformed));
        assert_eq!(diagnosed.get(), 80);
        log.leave_out(Outcome::BadSignature);
        let logged = (0..1000).filter(|_| log.has_room_for(Outcome::Duplicate)).count();
        assert!((100..=102).contains(&logged), "{logged}");
        let unlogged = |outcome: Outcome| log.budgets[outcome as usize].unlogged.load(Ordering::Relaxed);
        assert_eq!(unlogged(Outcome::BadSignature), 951);
        assert_eq!(unlogged(Outcome::Malformed), 0);
        assert_eq!(usize::try_from(unlogged(Outcome::Duplicate)).unwrap(), 1000 - logged);
        log.report_unlogged();
        assert_eq!(unlogged(Outcome::BadSignature), 0, "told once");
    }
}
