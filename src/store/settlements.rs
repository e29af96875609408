//! Settling: a claim, with its receipt, becomes an outcome in one transaction.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::SettledBy;
use crate::domain::outcome::{ClaimedFields, Outcome, Rejected};
use crate::domain::settlement::{Claim, Policy};

/// A claim to settle by, with the receipt that is kept of it.
#[derive(Clone, Debug)]
pub struct Settle {
    /// The claim.
    pub claim: Claim,
    /// Kind of its source.
    pub source: SettledBy,
    /// The operator's rules for it.
    pub policy: Policy,
    /// Its receipt.
    pub receipt: Receipt,
}

/// A notification as it arrived.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// When it arrived.
    pub received_at: Timestamp,
    /// Who sent it, as far as trusted proxies tell.
    pub client: Option<IpAddr>,
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The query string or body, byte by byte.
    pub payload: Vec<u8>,
}

/// The durable result of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Its name.
    pub outcome: Outcome,
    /// The credits given; `None` unless this claim settled its order.
    pub credited: Option<Credited>,
    /// The price of the merchant's order, where there is one.
    pub order_amount: Option<Amount>,
    /// Whether the order is another than before: paid, or in review.
    pub changed_order: bool,
}

/// Credits that a user got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credited {
    /// The user.
    pub telegram_id: i64,
    /// The number of credits.
    pub credits: i64,
}

/// A notification that proved nothing.
#[derive(Debug)]
pub(crate) struct Rejection {
    /// Its name.
    pub outcome: Rejected,
    /// Why, in a word.
    pub reason: String,
    /// The fields to find it by.
    pub claimed: ClaimedFields,
    /// The part of it that is kept.
    pub receipt: Receipt,
    /// How long its payload was.
    pub payload_bytes: usize,
}

impl Store {
    /// Settles an order by a proven source's claim, once, and keeps the receipt. This is the one way to credit an order.
    pub async fn settle(&self, settle: impl Into<Arc<Settle>>) -> Result<Settlement, StoreError> {
        on_engine!(self, engine => engine.settle(settle.into(), self.tells_bot()).await)
    }

    /// Keeps a notification that proved nothing, when there is time for it; never waits.
    pub(crate) fn reject(&self, rejection: Rejection) {
        on_engine!(self, engine => engine.reject(rejection));
    }
}
