//! `/payment/notify`: a gateway tells of a payment.
//!
//! Where the merchant wants the gateway's own word as well, it is asked for before the settlement, within the time that the gateway
//! waits for our answer. Without it the receipt is kept, `fail` is answered, and reconciliation asks again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::BODY;
use super::limits::Forgers;
use super::notification_log::{NotificationLog, Refused, shortened};
use crate::channel::epay::client::Verdict;
use crate::channel::epay::{self, Malformed, Notification, Unverified, VerifyError};
use crate::config::{Config, Current, Proof};
use crate::domain::clock::Timestamp;
use crate::domain::language::Localized;
use crate::domain::money::Amount;
use crate::domain::order::{PaymentState, SettledBy};
use crate::domain::outcome::{ClaimedFields, NotificationOutcome, Rejected, Unanswered};
use crate::domain::settlement::{Claim, ClaimProof, Policy};
use crate::logging;
use crate::net::response::{Response, TEXT, respond};
use crate::payments::gateways::Gateways;
use crate::store::{Cause, Receipt, Rejection, Settle, Store, StoreError};

pub(crate) const PATH: &str = "/payment/notify";

/// What a gateway takes for delivered. It looks for this text in the body and for nothing else, often whatever the status.
const SUCCESS: &str = "success";
/// What it takes for not delivered; so must every other body that it could see.
pub(super) const FAIL: &str = "fail";

/// How long a settlement may take: the shortest timeout seen at gateways is 5 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long the gateway may take to answer our question; what is left of the time is for the settlement.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);
/// How many notifications that prove nothing are taken for hints at the same time; all others are not even that.
const HINTS_MAX: usize = 4;
/// How many bytes of a rejected payload are kept; an honest notification has a few hundred.
const REJECTED_PAYLOAD_BYTES_MAX: usize = 4096;
/// How often it is told how many records the log had no room for.
const UNLOGGED_REPORT_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) struct Notify {
    config: Current,
    store: Store,
    gateways: Arc<Gateways>,
    hints: Arc<Semaphore>,
    log: Arc<NotificationLog>,
    forgers: Forgers,
    /// Settlements that their gateways no longer wait for.
    late: TaskTracker,
}

/// A notification that is to be believed, with its merchant's rules as they were when it came.
struct Believed {
    notification: Notification,
    proof: Proof,
    query_above: Option<Amount>,
    policy: Policy,
}

/// Why a notification is not to be believed.
struct Reason {
    outcome: Rejected,
    more: Option<Malformed>,
}

impl From<Rejected> for Reason {
    fn from(outcome: Rejected) -> Self {
        Self { outcome, more: None }
    }
}

impl Notify {
    pub(crate) fn new(config: Current, store: Store, gateways: Arc<Gateways>) -> Self {
        let hints = Arc::new(Semaphore::new(HINTS_MAX));
        Self {
            config,
            store,
            gateways,
            hints,
            log: Arc::default(),
            forgers: Forgers::default(),
            late: TaskTracker::new(),
        }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, client: IpAddr) -> Response {
        let is_post = *request.method() == Method::POST;
        let (head, body) = request.into_parts();
        let body = match BODY.read(body).await {
            Ok(body) => body,
            Err(error) => return respond(error.status(), TEXT, FAIL),
        };
        // The two are never merged: a gateway signs one of them.
        let payload = if is_post && !body.is_empty() { body } else { head.uri.query().unwrap_or_default().into() };
        let receipt = Receipt {
            received_at: self.gateways.clock().now(),
            client: Some(client),
            method: if is_post { "POST" } else { "GET" },
            payload,
        };
        match self.take(receipt, client).await {
            NotificationOutcome::Unanswered(_) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, FAIL),
            NotificationOutcome::Decided(outcome) if outcome.is_success() => respond(StatusCode::OK, TEXT, SUCCESS),
            NotificationOutcome::Decided(_) | NotificationOutcome::Rejected(_) => respond(StatusCode::OK, TEXT, FAIL),
        }
    }

    /// What becomes of a notification.
    pub(crate) async fn take(&self, receipt: Receipt, client: IpAddr) -> NotificationOutcome {
        // One configuration for all of it: a reload in between must not mix two.
        let config = self.config.load();
        let judged = self.judge(&config, &receipt, client);
        match judged {
            Err(reason) => self.reject(&config, reason, receipt, client),
            Ok(believed) => {
                drop(config);
                self.settle(believed, receipt, client).await
            }
        }
    }

    /// Decides whether to believe it, by what it says alone; the order of the checks is the public contract's.
    fn judge(&self, config: &Config, receipt: &Receipt, client: IpAddr) -> Result<Believed, Reason> {
        let unverified = Unverified::parse(&receipt.payload)
            .map_err(|malformed| Reason { more: Some(malformed), ..Rejected::Malformed.into() })?;
        let merchant = config.merchant(unverified.pid()).ok_or(Rejected::UnknownMerchant)?;
        if !merchant.allow_ips.is_empty() && !merchant.allow_ips.contains(client) {
            return Err(Rejected::AddressNotAllowed.into());
        }
        let notification =
            unverified.verify(&merchant.credentials, receipt.received_at).map_err(|error| match error {
                VerifyError::BadSignature => Rejected::BadSignature,
                VerifyError::Stale => Rejected::Stale,
            })?;
        if notification.by_previous_key {
            self.log.previous_key(&notification.pid, receipt.received_at);
        }
        Ok(Believed {
            notification,
            proof: merchant.proof,
            query_above: merchant.query_above,
            policy: Policy { late: config.orders.late, can_ask: merchant.can_be_asked() },
        })
    }

    /// Where callbacks are only hints, even one that proves nothing has its order asked about soon: one gateway signs in a way
    /// that nobody knows. Whoever guesses an order's number achieves a question, every few seconds at most.
    fn take_hint(&self, config: &Config, refused: &Refused, now: Timestamp) {
        let ClaimedFields { merchant: Some(pid), order_no: Some(order_no), .. } = &refused.claimed else { return };
        if !matches!(refused.outcome, Rejected::BadSignature | Rejected::Stale) {
            return;
        }
        if config.merchant(pid).is_none_or(|merchant| merchant.proof != Proof::Query) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.hints).try_acquire_owned() else { return };
        let (store, order_no, pid) = (self.store.clone(), order_no.clone(), pid.clone());
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = store.ask_soon(order_no, pid, now).await {
                log::debug!("{error}");
            }
        });
    }

    async fn settle(&self, believed: Believed, receipt: Receipt, client: IpAddr) -> NotificationOutcome {
        let Believed { notification, proof, query_above, policy } = believed;
        let mut claim = notification.claim();
        let mut settling = Box::pin({
            let (store, gateways, log) = (self.store.clone(), Arc::clone(&self.gateways), Arc::clone(&self.log));
            async move {
                if proof != Proof::Signature {
                    confirm(&mut claim, proof, query_above, &store, &gateways).await;
                }
                let settle = Arc::new(Settle { claim, source: SettledBy::Notify, policy, receipt });
                let settled = store.settle(Arc::clone(&settle)).await;
                let outcome = match &settled {
                    Ok(settlement) => NotificationOutcome::Decided(settlement.outcome),
                    Err(StoreError::Overloaded) => NotificationOutcome::Unanswered(Unanswered::Overloaded),
                    Err(_) => NotificationOutcome::Unanswered(Unanswered::StoreError),
                };
                log.settlement(outcome, &settled, &settle.claim, client);
                outcome
            }
        });
        if let Ok(outcome) = timeout(SETTLE_TIMEOUT, &mut settling).await {
            return outcome;
        }
        // Too late for this gateway's patience, but not for the buyer: its next attempt will be a duplicate.
        self.log.late_settlement(SETTLE_TIMEOUT);
        self.late.spawn(settling);
        NotificationOutcome::Unanswered(Unanswered::Overloaded)
    }

    fn reject(
        &self,
        config: &Config,
        Reason { outcome, more }: Reason,
        mut receipt: Receipt,
        client: IpAddr,
    ) -> NotificationOutcome {
        let named = NotificationOutcome::Rejected(outcome);
        if !self.forgers.may_cost_more(client) {
            self.log.leave_out(named);
            return named;
        }
        let glimpse = |key| Some(shortened(&epay::glimpse(&receipt.payload, key)?).to_owned());
        let claimed = ClaimedFields {
            merchant: glimpse("pid"),
            order_no: glimpse("out_trade_no"),
            trade_no: glimpse("trade_no"),
        };
        let refused = Refused { outcome, reason: more.map_or_else(String::new, |more| more.to_string()), claimed };
        self.take_hint(config, &refused, receipt.received_at);
        self.log.rejection(&refused, client, || diagnosis(config, &refused, &receipt.payload));
        let Refused { reason, claimed, .. } = refused;
        let payload_bytes = receipt.payload.len();
        receipt.payload.truncate(REJECTED_PAYLOAD_BYTES_MAX);
        receipt.payload.shrink_to_fit();
        self.store.reject(Rejection { outcome, reason, claimed, receipt, payload_bytes });
        named
    }

    /// Waits until the last records are written; the store is closed by then, and has answered all that it was asked.
    pub(super) async fn finish(&self) {
        self.late.close();
        self.late.wait().await;
        self.log.report_unlogged();
    }

    /// Tells now and then how many records the log had no room for.
    pub(super) async fn report_unlogged(&self) {
        loop {
            self.gateways.clock().sleep(UNLOGGED_REPORT_INTERVAL).await;
            self.log.report_unlogged();
        }
    }
}

/// The known wrong way in which a refused notification is signed, for the log.
fn diagnosis(config: &Config, refused: &Refused, payload: &[u8]) -> Option<String> {
    let pid = refused.claimed.merchant.as_deref().filter(|_| refused.outcome == Rejected::BadSignature)?;
    config.diagnose(pid, payload).map(|diagnosis| diagnosis.text(logging::language()))
}

/// Asks the gateway itself about the payment that a notification claims, where the merchant's rules want that.
///
/// The claim then says what the gateway says, and is without proof where the gateway does not say that the order is paid.
async fn confirm(claim: &mut Claim, proof: Proof, query_above: Option<Amount>, store: &Store, gateways: &Gateways) {
    if claim.payment != PaymentState::Paid {
        return;
    }
    let order = match store.order(&claim.order_no).await {
        Ok(Some(order)) if order.terms.merchant == claim.merchant => order,
        // There is no order to ask about, and nothing that a settlement could change.
        Ok(_) => return,
        Err(_) => {
            claim.proof = ClaimProof::Missing;
            return;
        }
    };
    let is_small = |limit: Amount| claim.amount.is_some_and(|amount| amount.max(order.terms.amount) <= limit);
    if proof == Proof::SignatureAndQuery && query_above.is_some_and(is_small) {
        return;
    }
    let answer = match (&claim.trade_no, order.paid_at) {
        (Some(trade_no), Some(_)) if order.trade_no.as_ref() == Some(trade_no) => return,
        // The order's own answer would be about the payment that settled it.
        (Some(trade_no), Some(_)) => {
            gateways.ask_about_payment(&order, trade_no, Cause::Notify, QUESTION_TIMEOUT).await
        }
        (_, _) => gateways.ask(&order, Cause::Notify, QUESTION_TIMEOUT).await,
    };
    let (payment, trade_no, amount) = match answer {
        Ok((Verdict::Paid { trade_no, amount }, _)) => (PaymentState::Paid, trade_no, amount),
        Ok((Verdict::Refunded { trade_no, amount }, _)) => (PaymentState::Refunded, trade_no, amount),
        _ => {
            claim.proof = ClaimProof::Missing;
            return;
        }
    };
    claim.payment = payment;
    claim.trade_no = Some(trade_no);
    claim.proof = ClaimProof::Gateway;
    // A merchant who wants the signature as well gets both amounts compared with the order's.
    if proof == Proof::Query || claim.amount == Some(order.terms.amount) {
        claim.amount = Some(amount);
    }
}
