//! Users' credits: granted, spent, and listed. A request may be repeated without doing more.

use serde::Serialize;

use super::{AccountError, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::ledger::EntryKind;
use crate::domain::order::User;

/// Identity of a request: one that comes again is not carried out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Idempotency {
    /// The key that the bot chose.
    pub key: String,
    /// The content of the request: the same key with another fingerprint is a mistake of the bot's.
    pub fingerprint: String,
}

/// Credits from a person's hand, or taken away where negative.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The user.
    pub telegram_id: i64,
    /// How many, not zero.
    pub credits: i64,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// Credits that a user spends.
#[derive(Clone, Debug)]
pub(crate) struct Spend {
    /// The user.
    pub telegram_id: i64,
    /// How many, one or more.
    pub credits: i64,
    /// What for, in the bot's words.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
    /// Key of the request, so that it happens once.
    pub idempotency: Idempotency,
}

/// The effect of a request of the bot, now or when it came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Booked {
    /// The number of the ledger entry.
    pub entry: i64,
    /// The user's credits after it.
    pub credits_after: i64,
    /// Whether it had happened before.
    pub repeated: bool,
}

/// A change of a user's balance.
#[derive(Clone, Debug, Serialize)]
pub struct LedgerEntry {
    /// When.
    pub created_at: Timestamp,
    /// The change.
    pub credits: i64,
    /// Its kind.
    pub kind: EntryKind,
    /// The order that was paid.
    pub order_no: Option<String>,
    /// Why, in a person's words.
    pub reason: Option<String>,
}

impl Store {
    /// Changes a user's balance by a person's decision.
    pub async fn grant(&self, grant: Grant) -> Result<User, AccountError> {
        on_engine!(self, engine => engine.grant(grant).await)
    }

    /// Changes a user's balance at the bot's request, once.
    pub(crate) async fn grant_once(&self, grant: Grant, idempotency: Idempotency) -> Result<Booked, AccountError> {
        on_engine!(self, engine => engine.grant_once(grant, idempotency).await)
    }

    /// Takes credits off a user's balance at the bot's request, once, and never more than there are.
    pub(crate) async fn spend(&self, spend: Spend) -> Result<Booked, AccountError> {
        on_engine!(self, engine => engine.spend(spend).await)
    }

    /// A user with their credits.
    pub async fn user(&self, telegram_id: i64) -> Result<Option<User>, StoreError> {
        on_engine!(self, engine => engine.user(telegram_id).await)
    }

    /// The newest changes of a user's balance.
    pub async fn ledger(&self, telegram_id: i64, limit: u32) -> Result<Vec<LedgerEntry>, StoreError> {
        on_engine!(self, engine => engine.ledger(telegram_id, limit).await)
    }
}
