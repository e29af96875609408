//! What the log says of notifications: all settlements, and so many a second of every other outcome.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rust_i18n::t;

use crate::clock::Timestamp;
use crate::settlement::{Claim, Outcome};
use crate::store::{Credited, Settlement, StoreError};

/// The target of these records, whichever file writes them.
const TARGET: &str = "webhookctl::notify";
/// How many notifications of one outcome are logged in a second: whoever forges callbacks, or holds a valid one and sends it
/// again and again, must not fill the disk.
const LOGGED_PER_S: u64 = 50;
/// How much of each field that a stranger chose is logged, and kept apart from the payload.
const FIELD_CHARS_MAX: usize = 64;

/// A notification that is not to be believed.
pub(super) struct Refused {
    pub(super) outcome: Outcome,
    /// More about it than the outcome's name says.
    pub(super) reason: Cow<'static, str>,
    /// `pid`, `out_trade_no` and `trade_no`, where they can be read.
    pub(super) claimed: [Option<String>; 3],
}

/// As much of a field as is logged.
pub(super) fn shortened(field: &str) -> String {
    field.chars().take(FIELD_CHARS_MAX).collect()
}

#[derive(Default)]
pub(super) struct NotificationLog {
    /// One for each outcome.
    budgets: [Budget; Outcome::ALL.len()],
    /// The minute in which it was last told that a previous key is still used.
    previous_key_told: AtomicI64,
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
        let [pid, order, trade] = [&claim.merchant, &claim.order_no, &claim.trade_no].map(|field| shortened(field));
        let amount = claim.amount;
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
            (Outcome::Malformed, _) => format!("{outcome} foreign_param"),
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
    pub(super) fn previous_key(&self, pid: &str) {
        let minute = Timestamp::now().ms().div_euclid(60_000);
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
        self.budgets[outcome as usize].take(Timestamp::now())
    }
}

/// So many records a second, and a count of those that there was no room for.
#[derive(Default)]
struct Budget {
    second: AtomicI64,
    used: AtomicU64,
    unlogged: AtomicU64,
}

impl Budget {
    /// Takes room for a record at the time `now`; counts it where there is none.
    fn take(&self, now: Timestamp) -> bool {
        let second = now.ms().div_euclid(1000);
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.used.store(0, Ordering::Relaxed);
        }
        let has_room = self.used.fetch_add(1, Ordering::Relaxed) < LOGGED_PER_S;
        if !has_room {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_by_number() {
        let budget = Budget::default();
        let at = Timestamp::from_ms;
        let logged = (0..1000).filter(|_| budget.take(at(5_000))).count();
        assert_eq!(logged, 50);
        assert_eq!(budget.unlogged.load(Ordering::Relaxed), 950);
        assert!(budget.take(at(6_000)));
    }
}
