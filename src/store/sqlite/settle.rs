//! Settling: each claim is decided on what the ones before it left, and what follows from many is written together.
//!
//! The rows of a whole batch go into each table by a few statements. A claim that names an order or a payment which an
//! earlier one has just settled waits until that is written, and sees it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use super::insert::Insert;
use super::ledger::{self, Entry};
use super::outbox::{self, Tidings};
use super::{Settle, Settlement, StoreError, read, reconciliation};
use crate::domain::clock::Timestamp;
use crate::domain::ledger::EntryKind;
use crate::domain::money::Amount;
use crate::domain::order::{Hold, NewOrder, OrderStatus, SettledBy};
use crate::domain::outcome::Outcome;
use crate::domain::settlement::{Alert, Effect, Payable, decide};
use crate::store::{Credited, News};

/// A claim in the queue.
#[derive(Debug)]
pub(super) struct Claimed {
    /// Shared with whoever waits, so that it is theirs to free.
    pub(super) settle: Arc<Settle>,
    /// Whether the bot is to hear of it as well.
    pub(super) tells_bot: bool,
}

/// Decides claims in their order, and writes what follows from them with their receipts.
pub(super) fn settle(db: &Connection, claims: &[&Claimed]) -> Result<Vec<Settlement>, StoreError> {
    let mut found = Lookups::prepare(db)?;
    let mut rows = Rows::default();
    let mut settled = Settled::default();
    let mut settlements = Vec::with_capacity(claims.len());
    for claimed in claims {
        if settled.concerns(&claimed.settle) {
            rows.write(db)?;
            settled = Settled::default();
        }
        settlements.push(settle_one(db, &mut found, claimed, &mut rows, &mut settled)?);
    }
    rows.write(db)?;
    Ok(settlements)
}

fn settle_one<'a>(
    db: &Connection,
    found: &mut Lookups,
    claimed: &'a Claimed,
    rows: &mut Rows<'a>,
    settled: &mut Settled<'a>,
) -> Result<Settlement, StoreError> {
    let Claimed { settle, tells_bot } = claimed;
    let claim = &settle.claim;
    let now = settle.receipt.received_at;
    let order = found.order(&claim.order_no)?;
    let trade_used = match &order {
        Some(order) if order.payable.trade_no.is_none() || order.payable.trade_no != claim.trade_no => {
            found.order_settled_by(settle)?.is_some_and(|other| other != order.id)
        }
        // The payment is this order's own, or there is no order.
        _ => false,
    };
    let decision = decide(claim, order.as_ref().map(|order| &order.payable), trade_used, settle.policy, now);
    let mut settlement =
        Settlement { outcome: decision.outcome, credited: None, order_amount: None, changed_order: false };
    // Another merchant's order is not this claim's, and `decide` has seen to it that it has no effect.
    let own_order = order.filter(|order| order.payable.merchant == claim.merchant);
    if let Some(order) = &own_order {
        settlement.order_amount = Some(order.payable.amount);
        match decision.effect {
            Effect::None => {}
            Effect::Settle => {
                rows.payments.push(Payment {
                    order_id: order.id,
                    trade_no: claim.trade_no.as_deref(),
                    source: settle.source,
                    at_ms: now.ms(),
                    paid_outside: false,
                });
                rows.credit(order.id, order.telegram_id, order.credits, now);
                rows.news.push(Tidings { order_id: order.id, news: News::Settled, tells_bot: *tells_bot, at: now });
                settled.note(settle);
                settlement.changed_order = true;
                settlement.credited = Some(Credited { telegram_id: order.telegram_id, credits: order.credits });
            }
            Effect::Adopt => {
                let changed = db
                    .prepare_cached(
                        "UPDATE orders SET trade_no = ? WHERE id = ? AND status = 'paid' AND settled_by = 'manual'
                             AND trade_no IS NULL AND paid_outside = 0",
                    )?
                    .execute(params![claim.trade_no, order.id])?;
                expect_changed(changed)?;
                settlement.changed_order = true;
            }
            Effect::Review(reason) => {
                let changed = db
                    .prepare_cached(
                        "UPDATE orders SET status = 'review', review_reason = ?
                         WHERE id = ? AND (status = 'pending' OR status = 'cancelled')",
                    )?
                    .execute(params![reason.name(), order.id])?;
                expect_changed(changed)?;
                rows.news.push(Tidings { order_id: order.id, news: News::Review, tells_bot: *tells_bot, at: now });
                settlement.changed_order = true;
            }
            Effect::Ask => reconciliation::ask_soon(db, order.id, &order.payable.merchant, now)?,
        }
    }
    rows.keep_receipt(settle, decision.outcome, decision.alert, own_order.map(|order| order.id));
    Ok(settlement)
}

/// An order that a person settles, with what the receipt of that says.
pub(super) struct SettleByHand<'a> {
    pub(super) order_id: i64,
    pub(super) terms: &'a NewOrder,
    /// The payment that is proved to be the order's.
    pub(super) trade_no: Option<&'a str>,
    pub(super) paid_outside: bool,
    pub(super) reason: &'a str,
    pub(super) at: Timestamp,
    pub(super) tells_bot: bool,
}

/// Pays one order by a person's decision, whatever it is waiting for.
pub(super) fn settle_by_hand(db: &Connection, decision: &SettleByHand) -> Result<(), StoreError> {
    let SettleByHand { order_id, terms, trade_no, paid_outside, reason, at, tells_bot } = *decision;
    let mut rows = Rows::default();
    rows.payments.push(Payment { order_id, trade_no, source: SettledBy::Manual, at_ms: at.ms(), paid_outside });
    rows.credit(order_id, terms.telegram_id, terms.credits, at);
    rows.news.push(Tidings { order_id, news: News::Settled, tells_bot, at });
    rows.receipts.push(Kept {
        received_at_ms: at.ms(),
        source: SettledBy::Manual.name(),
        outcome: Outcome::Settled.name(),
        merchant: &terms.merchant,
        order_no: terms.order_no.as_str(),
        trade_no: trade_no.unwrap_or_default(),
        order_id: Some(order_id),
        client: None,
        method: "manual",
        payload: reason.as_bytes(),
        amount_fen: None,
        alert: None,
    });
    rows.write(db)
}

/// The orders and payments that claims of this batch have settled, where that is not written yet.
#[derive(Default)]
struct Settled<'a> {
    orders: HashSet<&'a str>,
    payments: HashSet<(&'a str, &'a str)>,
}

impl<'a> Settled<'a> {
    fn note(&mut self, settle: &'a Settle) {
        self.orders.insert(&settle.claim.order_no);
        self.payments.insert((&settle.claim.merchant, settle.claim.trade_no()));
    }

    fn concerns(&self, settle: &Settle) -> bool {
        let claim = &settle.claim;
        self.orders.contains(claim.order_no.as_str())
            || self.payments.contains(&(claim.merchant.as_str(), claim.trade_no()))
    }
}

/// An order that a claim names.
struct Found {
    id: i64,
    telegram_id: i64,
    credits: i64,
    payable: Payable,
}

impl Found {
    fn of(row: &Row) -> rusqlite::Result<Self> {
        let status = row.get_ref(7)?.as_str().map_err(rusqlite::Error::from)?;
        Ok(Self {
            id: row.get(0)?,
            telegram_id: row.get(1)?,
            credits: row.get(2)?,
            payable: Payable {
                merchant: row.get(3)?,
                amount: read::expect(4, Amount::from_fen(row.get(4)?))?,
                param: row.get(5)?,
                expires_at: Timestamp::from_ms(row.get(6)?),
                stored_status: read::expect(7, OrderStatus::from_name(status))?,
                trade_no: row.get(8)?,
                settled_by: read::named(row, 9, SettledBy::from_name)?,
                paid_outside: row.get(10)?,
                hold: read::named(row, 11, Hold::from_name)?,
            },
        })
    }
}

/// What every decision has to look up.
struct Lookups<'db> {
    order: CachedStatement<'db>,
    payment: CachedStatement<'db>,
}

impl<'db> Lookups<'db> {
    fn prepare(db: &'db Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            order: db.prepare_cached(
                "SELECT id, telegram_id, credits, merchant, amount_fen, param, expires_at_ms, status, trade_no,
                     settled_by, paid_outside, hold
                 FROM orders WHERE order_no = ?",
            )?,
            payment: db.prepare_cached("SELECT id FROM orders WHERE merchant = ? AND trade_no = ?")?,
        })
    }

    fn order(&mut self, order_no: &str) -> rusqlite::Result<Option<Found>> {
        self.order.query_row([order_no], Found::of).optional()
    }

    fn order_settled_by(&mut self, settle: &Settle) -> rusqlite::Result<Option<i64>> {
        self.payment.query_row(params![settle.claim.merchant, settle.claim.trade_no], |row| row.get(0)).optional()
    }
}

/// What is to be written.
#[derive(Default)]
struct Rows<'a> {
    payments: Vec<Payment<'a>>,
    credits: Vec<Entry<'static>>,
    news: Vec<Tidings>,
    receipts: Vec<Kept<'a>>,
}

struct Payment<'a> {
    order_id: i64,
    trade_no: Option<&'a str>,
    source: SettledBy,
    at_ms: i64,
    paid_outside: bool,
}

struct Kept<'a> {
    received_at_ms: i64,
    source: &'static str,
    outcome: &'static str,
    merchant: &'a str,
    order_no: &'a str,
    trade_no: &'a str,
    order_id: Option<i64>,
    client: Option<String>,
    method: &'static str,
    payload: &'a [u8],
    amount_fen: Option<i64>,
    alert: Option<&'static str>,
}

static RECEIPTS: LazyLock<Insert> = LazyLock::new(|| {
    let into = "INSERT INTO receipts \
                (received_at_ms, source, outcome, merchant, order_no, trade_no, order_id, client, method, payload, amount_fen, \
                alert)";
    Insert::new(into, "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", "")
});

impl<'a> Rows<'a> {
    fn credit(&mut self, order_id: i64, telegram_id: i64, credits: i64, now: Timestamp) {
        let order_id = Some(order_id);
        self.credits.push(Entry { telegram_id, kind: EntryKind::Order, credits, order_id, reason: None, at: now });
    }

    fn keep_receipt(&mut self, settle: &'a Settle, outcome: Outcome, alert: Option<Alert>, order_id: Option<i64>) {
        let Settle { claim, receipt, .. } = settle;
        self.receipts.push(Kept {
            received_at_ms: receipt.received_at.ms(),
            source: settle.source.name(),
            outcome: outcome.name(),
            merchant: &claim.merchant,
            order_no: &claim.order_no,
            trade_no: claim.trade_no(),
            order_id,
            client: receipt.client.as_ref().map(IpAddr::to_string),
            method: receipt.method,
            payload: &receipt.payload,
            amount_fen: claim.amount.map(Amount::fen),
            alert: alert.map(Alert::name),
        });
    }

    fn write(&mut self, db: &Connection) -> Result<(), StoreError> {
        mark_paid(db, &self.payments)?;
        ledger::enter(db, &self.credits)?;
        outbox::tell(db, &self.news)?;
        RECEIPTS.run(db, &self.receipts, |row| {
            [
                &row.received_at_ms,
                &row.source,
                &row.outcome,
                &row.merchant,
                &row.order_no,
                &row.trade_no,
                &row.order_id,
                &row.client,
                &row.method,
                &row.payload,
                &row.amount_fen,
                &row.alert,
            ]
        })?;
        *self = Self::default();
        Ok(())
    }
}

fn mark_paid(db: &Connection, payments: &[Payment]) -> Result<(), StoreError> {
    if payments.is_empty() {
        return Ok(());
    }
    let mut update = db.prepare_cached(
        "UPDATE orders SET status = 'paid', trade_no = ?1, settled_by = ?2, paid_at_ms = ?3, paid_outside = ?5
         WHERE id = ?4 AND (status = 'pending' OR status = 'review' AND ?2 = 'manual')",
    )?;
    for Payment { order_id, trade_no, source, at_ms, paid_outside } in payments {
        expect_changed(update.execute(params![trade_no, source.name(), at_ms, order_id, paid_outside])?)?;
    }
    Ok(())
}

/// The decision was made on this very row, inside this transaction: anything else is a bug, and must not credit.
fn expect_changed(orders: usize) -> Result<(), StoreError> {
    if orders == 1 { Ok(()) } else { Err(StoreError::failed("the order changed while it was settled")) }
}
