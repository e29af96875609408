//! `/payment/notify`: a gateway tells of a payment.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use rust_i18n::t;
use tokio::time::timeout;

use super::{Response, read_body, text};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::epay::{self, Notification, Unverified, VerifyError};
use crate::order::SettledBy;
use crate::settlement::{Claim, Outcome};
use crate::store::{Credited, Receipt, Rejection, Settle, Settlement, Store, StoreError};

pub(crate) const PATH: &str = "/payment/notify";

/// What a gateway takes for delivered. It looks for this text in the body and for nothing else, often whatever the status.
const SUCCESS: &str = "success";
/// What it takes for not delivered; so must every other body that it could see.
pub(super) const FAIL: &str = "fail";

/// How long a settlement may take: the shortest timeout seen at gateways is 5 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How many notifications of one outcome are logged in a second: whoever forges callbacks, or holds a valid one and sends it
/// again and again, must not fill the disk. Settlements are all logged.
const LOGGED_PER_S: u64 = 50;
/// How much of each field that a stranger claims is logged and kept apart; the payload is kept as it came.
const CLAIM_CHARS_MAX: usize = 64;
/// How many bytes of a rejected payload are kept; an honest notification has a few hundred.
const REJECTED_PAYLOAD_BYTES_MAX: usize = 4096;
/// How often it is told how many records the log had no room for.
const UNLOGGED_REPORT_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Notify {
    config: Arc<Config>,
    store: Store,
    log: Arc<NotificationLog>,
}

/// A notification that is not to be believed.
struct Refused {
    outcome: Outcome,
    /// More about it than the outcome's name says.
    reason: Cow<'static, str>,
    /// `pid`, `out_trade_no` and `trade_no`, where they can be read.
    claimed: [Option<String>; 3],
}

impl Notify {
    pub(super) fn new(config: Arc<Config>, store: Store) -> Self {
        Self { config, store, log: Arc::default() }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, client: IpAddr) -> Response {
        let is_post = *request.method() == Method::POST;
        let (head, body) = request.into_parts();
        let body = match read_body(body).await {
            Ok(body) => body,
            Err(status) => return text(status, FAIL),
        };
        // The two are never merged: a gateway signs one of them.
        let payload = if is_post && !body.is_empty() {
            body
        } else {
            Bytes::copy_from_slice(head.uri.query().unwrap_or_default().as_bytes())
        };
        let receipt = Receipt {
            received_at: Timestamp::now(),
            client: Some(client),
            method: if is_post { "POST" } else { "GET" },
            payload: payload.into(),
        };
        let outcome = match self.judge(&receipt, client) {
            Ok(notification) => self.settle(notification, receipt, client).await,
            Err(refused) => self.reject(refused, receipt, client),
        };
        match outcome {
            Outcome::Overloaded | Outcome::StoreError => text(StatusCode::SERVICE_UNAVAILABLE, FAIL),
            outcome if outcome.is_success() => text(StatusCode::OK, SUCCESS),
            _ => text(StatusCode::OK, FAIL),
        }
    }

    /// Decides whether to believe it, by what it says alone; the order of the checks is the public contract's.
    fn judge(&self, receipt: &Receipt, client: IpAddr) -> Result<Notification, Refused> {
        let claimed =
            || ["pid", "out_trade_no", "trade_no"].map(|key| Some(shortened(&epay::glimpse(&receipt.payload, key)?)));
        let refused = |outcome: Outcome| Refused { outcome, reason: "".into(), claimed: claimed() };
        let unverified = Unverified::parse(&receipt.payload)
            .map_err(|malformed| Refused { reason: malformed.to_string().into(), ..refused(Outcome::Malformed) })?;
        let merchant = self.config.merchant(unverified.pid()).ok_or_else(|| refused(Outcome::UnknownMerchant))?;
        if !merchant.allow_ips.is_empty() && !merchant.allow_ips.contains(client) {
            return Err(refused(Outcome::AddressNotAllowed));
        }
        unverified.verify(&merchant.credentials, receipt.received_at).map_err(|error| match error {
            VerifyError::BadSignature => refused(Outcome::BadSignature),
            VerifyError::Stale => refused(Outcome::Stale),
        })
    }

    async fn settle(&self, notification: Notification, receipt: Receipt, client: IpAddr) -> Outcome {
        let claim = Claim::from(notification);
        let settle = Settle { claim: claim.clone(), source: SettledBy::Notify, late: self.config.orders.late, receipt };
        let mut settling = Box::pin({
            let (store, log) = (self.store.clone(), Arc::clone(&self.log));
            async move {
                let settled = store.settle(settle).await;
                log.settlement(&settled, &claim, client);
                settled
            }
        });
        match timeout(SETTLE_TIMEOUT, &mut settling).await {
            Ok(Ok(settlement)) => settlement.outcome,
            Ok(Err(StoreError::Overloaded)) => Outcome::Overloaded,
            Ok(Err(_)) => Outcome::StoreError,
            Err(_) => {
                // Too late for this gateway's patience, but not for the buyer: its next attempt will be a duplicate.
                self.log.late_settlement();
                tokio::spawn(settling);
                Outcome::Overloaded
            }
        }
    }

    fn reject(&self, refused: Refused, mut receipt: Receipt, client: IpAddr) -> Outcome {
        self.log.rejection(&refused, client);
        let Refused { outcome, reason, claimed } = refused;
        let payload_bytes = receipt.payload.len();
        receipt.payload.truncate(REJECTED_PAYLOAD_BYTES_MAX);
        self.store.reject(Rejection { outcome, reason: reason.into(), claimed, receipt, payload_bytes });
        outcome
    }

    /// Tells now and then how many records the log had no room for.
    pub(super) async fn report_unlogged(&self) {
        loop {
            tokio::time::sleep(UNLOGGED_REPORT_INTERVAL).await;
            self.log.report_unlogged();
        }
    }
}

/// What the log says of notifications: so many a second for each outcome, and all settlements.
#[derive(Default)]
struct NotificationLog {
    budgets: [LogBudget; Outcome::ALL.len()],
}

impl NotificationLog {
    fn settlement(&self, settled: &Result<Settlement, StoreError>, claim: &Claim, client: IpAddr) {
        let [pid, order, trade] = [&claim.merchant, &claim.order_no, &claim.trade_no].map(|field| shortened(field));
        let amount = claim.amount;
        let (outcome, level, text) = match settled {
            Ok(Settlement { outcome, credited: Some(Credited { telegram_id: user, credits }), .. }) => {
                let text = t!(
                    "log.settled",
                    outcome = outcome,
                    order = order,
                    trade = trade,
                    amount = amount,
                    user = user,
                    credits = credits
                );
                log::info!("{text}");
                return;
            }
            Ok(Settlement { outcome, order_amount, .. }) => {
                let level = match outcome {
                    Outcome::Duplicate | Outcome::NotPaid => log::Level::Info,
                    _ => log::Level::Warn,
                };
                let what = match (outcome, order_amount) {
                    (Outcome::AmountMismatch, Some(expected)) => format!("{outcome} {amount} != {expected}"),
                    (Outcome::Malformed, _) => format!("{outcome} foreign_param"),
                    _ => outcome.to_string(),
                };
                let text = t!(
                    "log.verified",
                    what = what,
                    order = order,
                    trade = trade,
                    amount = amount,
                    pid = pid,
                    client = client
                );
                (*outcome, level, text)
            }
            Err(error) => {
                let outcome = match error {
                    StoreError::Overloaded => Outcome::Overloaded,
                    _ => Outcome::StoreError,
                };
                let text = t!("log.store_failed", outcome = outcome, order = order, trade = trade, error = error);
                (outcome, log::Level::Error, text)
            }
        };
        if self.has_room_for(outcome) {
            log::log!(level, "{text}");
        }
    }

    /// The gateway was told to come again before it was known what came of its notification.
    fn late_settlement(&self) {
        let outcome = Outcome::Overloaded;
        if self.has_room_for(outcome) {
            log::error!("{}", t!("log.settle_late", outcome = outcome, seconds = SETTLE_TIMEOUT.as_secs()));
        }
    }

    fn rejection(&self, refused: &Refused, client: IpAddr) {
        if self.has_room_for(refused.outcome) {
            let what = format!("{} {}", refused.outcome, refused.reason);
            let [pid, order, _] = &refused.claimed;
            let [pid, order] = [pid, order].map(|field| field.as_deref().unwrap_or("?"));
            log::warn!("{}", t!("log.rejected", what = what.trim_end(), pid = pid, order = order, client = client));
        }
    }

    fn has_room_for(&self, outcome: Outcome) -> bool {
        self.budgets[outcome as usize].take(Timestamp::now())
    }

    fn report_unlogged(&self) {
        for (outcome, budget) in Outcome::ALL.iter().zip(&self.budgets) {
            let count = budget.unlogged.swap(0, Ordering::Relaxed);
            if count > 0 {
                log::warn!("{}", t!("log.more_unlogged", outcome = outcome, count = count));
            }
        }
    }
}

/// The last count is told when the service ends.
impl Drop for NotificationLog {
    fn drop(&mut self) {
        self.report_unlogged();
    }
}

fn shortened(field: &str) -> String {
    field.chars().take(CLAIM_CHARS_MAX).collect()
}

/// So many records a second, and a count of those that there was no room for.
#[derive(Default)]
struct LogBudget {
    second: AtomicI64,
    used: AtomicU64,
    unlogged: AtomicU64,
}

impl LogBudget {
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
        let budget = LogBudget::default();
        let at = Timestamp::from_ms;
        let logged = (0..1000).filter(|_| budget.take(at(5_000))).count();
        assert_eq!(logged, 50);
        assert_eq!(budget.unlogged.load(Ordering::Relaxed), 950);
        assert!(budget.take(at(6_000)));
    }

    #[test]
    fn no_failure_contains_what_gateways_take_for_success() {
        for body in [FAIL, "not found\n"] {
            assert!(!body.contains("success") && !body.to_lowercase().contains("ok"), "{body}");
        }
    }
}
