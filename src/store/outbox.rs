//! The outbox: news of orders for their buyers and the bot, until delivered or given up.
//!
//! A row is written in the transaction that it tells of. A deliverer claims it first: the claim counts the attempt and
//! makes the row due again after a while, so a crash costs a delay and neither the message nor, in practice, a second one.

use std::time::Duration;

use super::{Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::language::Language;
use crate::domain::named::named_enum;
use crate::domain::order::Order;

named_enum! {
    /// Whom a row of the outbox is for.
    Channel {
        /// The buyer, by Telegram.
        Telegram = "telegram",
        /// The bot, by an event to its URL.
        Event = "event",
    }
}

named_enum! {
    /// What is told of an order.
    News {
        /// It is paid, and its credits are given.
        Settled = "settled",
        /// A person has to look at it.
        Review = "review",
        /// The money went back.
        Refunded = "refunded",
    }
}

named_enum! {
    /// How far a row of the outbox has come.
    DeliveryState {
        /// Waits for its time.
        Due = "due",
        /// Was delivered.
        Sent = "sent",
        /// Will not be delivered.
        Failed = "failed",
    }
}

/// A row of the outbox, with what there is to tell.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// Its number.
    pub id: i64,
    /// What happened.
    pub news: News,
    /// The order that it happened to.
    pub order: Order,
    /// The buyer's language, where it is known.
    pub language: Option<Language>,
    /// The buyer's credits now.
    pub balance: i64,
    /// When it happened.
    pub created_at: Timestamp,
    /// When the time that it has began: when it happened, or when a person last asked for it again.
    pub tried_since: Timestamp,
    /// When it is tried next.
    pub due_at: Timestamp,
    /// How often it was tried; in what [`Store::claim_due`] returns, with the attempt that it is claimed for.
    pub attempts: u32,
    /// How far it has come.
    pub state: DeliveryState,
    /// Why it failed the last time.
    pub error: Option<String>,
    /// When it was delivered or given up.
    pub finished_at: Option<Timestamp>,
}

/// What became of an attempt to deliver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It arrived.
    Sent,
    /// It is to be tried again then.
    Again { at: Timestamp, error: String },
    /// The delivery could not be tried. It is due at `at`, with as many attempts as before.
    NotNow { at: Timestamp, attempts_before: u32, error: String },
    /// It will never arrive.
    Failed { error: String },
}

/// Which rows of one channel.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeliveryFilter {
    /// Only those that have come so far.
    pub state: Option<DeliveryState>,
    /// Only those of this order.
    pub order_no: Option<String>,
    /// Only the one of this number.
    pub id: Option<i64>,
    /// Only those of what happened at this time or later.
    pub since: Option<Timestamp>,
}

impl Store {
    /// Takes at most `limit` rows whose time has come, and makes them due again after `lease`.
    pub(crate) async fn claim_due(
        &self,
        channel: Channel,
        now: Timestamp,
        lease: Duration,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        on_engine!(self, engine => engine.claim_due(channel, now, lease, limit).await)
    }

    /// When the next row of this channel has its time.
    pub(crate) async fn next_due(&self, channel: Channel) -> Result<Option<Timestamp>, StoreError> {
        on_engine!(self, engine => engine.next_due(channel).await)
    }

    /// Comes back when something may have come into the outbox from this process.
    pub(crate) fn outbox_growth(&self) -> tokio::sync::watch::Receiver<()> {
        on_engine!(self, engine => engine.outbox_growth())
    }

    /// Notes the result of an attempt.
    pub(crate) async fn attempted(&self, id: i64, attempt: Attempt, now: Timestamp) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.attempted(id, attempt, now).await)
    }

    /// Gives up rows that are due and have had their time since before `until`; how many.
    pub(crate) async fn give_up_older(
        &self,
        channel: Channel,
        until: Timestamp,
        error: String,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        on_engine!(self, engine => engine.give_up_older(channel, until, error, now).await)
    }

    /// The newest rows that fit the filter.
    pub(crate) async fn deliveries(
        &self,
        channel: Channel,
        filter: DeliveryFilter,
        limit: u32,
    ) -> Result<Vec<Delivery>, StoreError> {
        on_engine!(self, engine => engine.deliveries(channel, filter, limit).await)
    }

    /// Makes rows due now, whatever became of them, with all attempts before them; how many.
    pub(crate) async fn deliver_again(
        &self,
        channel: Channel,
        filter: DeliveryFilter,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        on_engine!(self, engine => engine.deliver_again(channel, filter, now).await)
    }

    /// Puts events into the outbox for news from before the bot had a URL; how many.
    pub(crate) async fn add_missing_events(&self, since: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
        on_engine!(self, engine => engine.add_missing_events(since, now).await)
    }
}
