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
use crate::epay::{Notification, Unverified, VerifyError};
use crate::order::SettledBy;
use crate::settlement::{Claim, Outcome};
use crate::store::{Credited, Receipt, Rejection, Settle, Store, StoreError};

pub(super) const PATH: &str = "/payment/notify";

/// What a gateway takes for delivered. It looks for this text in the body and for nothing else, often whatever the status.
const SUCCESS: &str = "success";
/// What it takes for not delivered; so must every other body that it could see.
pub(super) const FAIL: &str = "fail";

/// How long a settlement may take: the shortest timeout seen at gateways is 5 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How many notifications of one outcome are logged in a second: whoever forges callbacks, or holds a valid one and sends it
/// again and again, must not fill the disk. Settlements are all logged.
const LOGGED_PER_S: u64 = 50;
/// How much of what a stranger claims is logged.
const CLAIM_CHARS_LOGGED: usize = 64;

pub(super) struct Notify {
    config: Arc<Config>,
    store: Store,
    /// One for each outcome.
    logged: [LogBudget; Outcome::ALL.len()],
}

/// A notification that is not to be believed.
struct Refused {
    outcome: Outcome,
    /// More about it than the outcome's name says.
    reason: Cow<'static, str>,
    /// `pid`, `out_trade_no` and `trade_no`, where they can be read.
    claimed: Option<[String; 3]>,
}

impl Notify {
    pub(super) fn new(config: Arc<Config>, store: Store) -> Self {
        Self { config, store, logged: Default::default() }
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
        let unverified = Unverified::parse(&receipt.payload).map_err(|malformed| Refused {
            outcome: Outcome::Malformed,
            reason: malformed.to_string().into(),
            claimed: None,
        })?;
        let refused = |outcome: Outcome| Refused {
            outcome,
            reason: "".into(),
            claimed: Some([unverified.pid(), unverified.out_trade_no(), unverified.trade_no()].map(str::to_owned)),
        };
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
        // What comes too late for this gateway's patience is settled all the same; its next attempt is a duplicate.
        let settled = match timeout(SETTLE_TIMEOUT, self.store.settle(settle)).await {
            Ok(settled) => settled,
            Err(_) => Err(StoreError::Overloaded),
        };
        match settled {
            Ok(settlement) => {
                self.log_settlement(settlement.outcome, settlement.credited, &claim, client);
                settlement.outcome
            }
            Err(error) => {
                let outcome = match error {
                    StoreError::Overloaded => Outcome::Overloaded,
                    _ => Outcome::StoreError,
                };
                if self.logs(outcome) {
                    let (order, trade) = (&claim.order_no, &claim.trade_no);
                    let text = t!("log.store_failed", outcome = outcome, order = order, trade = trade, error = error);
                    log::error!("{text}");
                }
                outcome
            }
        }
    }

    fn log_settlement(&self, outcome: Outcome, credited: Option<Credited>, claim: &Claim, client: IpAddr) {
        let Claim { merchant: pid, order_no: order, trade_no: trade, amount, .. } = claim;
        if let Some(Credited { telegram_id: user, credits }) = credited {
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
        if !self.logs(outcome) {
            return;
        }
        let text = t!(
            "log.verified",
            outcome = outcome,
            order = order,
            trade = trade,
            amount = amount,
            pid = pid,
            client = client
        );
        let level = match outcome {
            Outcome::Duplicate | Outcome::NotPaid => log::Level::Info,
            _ => log::Level::Warn,
        };
        log::log!(level, "{text}");
    }

    /// Whether there is room in the log for one more of this outcome; tells how many there was none for before.
    fn logs(&self, outcome: Outcome) -> bool {
        let unlogged = self.logged[outcome as usize].take(Timestamp::now());
        if let Some(count @ 1..) = unlogged {
            log::warn!("{}", t!("log.more_unlogged", outcome = outcome, count = count));
        }
        unlogged.is_some()
    }

    fn reject(&self, refused: Refused, receipt: Receipt, client: IpAddr) -> Outcome {
        let outcome = refused.outcome;
        if self.logs(outcome) {
            let shown = |at: usize| match &refused.claimed {
                Some(claimed) => claimed[at].chars().take(CLAIM_CHARS_LOGGED).collect(),
                None => "?".to_owned(),
            };
            let what = format!("{outcome} {}", refused.reason);
            let (what, pid, order) = (what.trim_end(), shown(0), shown(1));
            log::warn!("{}", t!("log.rejected", what = what, pid = pid, order = order, client = client));
        }
        self.store.reject(Rejection { outcome, reason: refused.reason.into(), claimed: refused.claimed, receipt });
        outcome
    }
}

/// So many records a second, and a count of those that there was no room for.
#[derive(Default)]
struct LogBudget {
    second: AtomicI64,
    used: AtomicU64,
    unlogged: AtomicU64,
}

impl LogBudget {
    /// Takes room for a record at the time `now`: how many went unlogged before it, or `None` where this one must.
    fn take(&self, now: Timestamp) -> Option<u64> {
        let second = now.ms().div_euclid(1000);
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.used.store(0, Ordering::Relaxed);
        }
        if self.used.fetch_add(1, Ordering::Relaxed) < LOGGED_PER_S {
            return Some(self.unlogged.swap(0, Ordering::Relaxed));
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_by_number() {
        let budget = LogBudget::default();
        let at = Timestamp::from_ms;
        let logged = (0..1000).filter(|_| budget.take(at(5_000)).is_some()).count();
        assert_eq!(logged, 50);
        assert_eq!(budget.take(at(6_000)), Some(950));
        assert_eq!(budget.take(at(6_001)), Some(0));
    }

    #[test]
    fn no_failure_contains_what_gateways_take_for_success() {
        for body in [FAIL, "not found\n"] {
            assert!(!body.contains("success") && !body.to_lowercase().contains("ok"), "{body}");
        }
    }
}
