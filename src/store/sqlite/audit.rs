//! The audit of an SQLite database: its rows, read for [`books`](crate::store::audit::books).
//!
//! The audit trusts no promise of the schema: a trigger or an index may have been dropped, a row changed by another program. So
//! each table is read in the order of its orders, and they are laid side by side: one pass, whatever indexes there are, and memory
//! for one order at a time. It only reads, and all from one snapshot, so that a database which is written to meanwhile looks still.

use std::iter::Peekable;
use std::path::Path;

use rusqlite::{Connection, Row};

use super::{Failure, OpenError, StoreError, schema};
use crate::store::audit::books::{Entry, Message, OrderRow, ReceiptRow, examine};
use crate::store::audit::{Audit, Check, CheckName, FINDINGS_NAMED_MAX, Fault, Finding, damaged, differing};

/// After how many orders the progress is told.
const PROGRESS_ORDERS: u64 = 10_000;

pub(super) fn audit(path: &Path, progress: impl FnMut(u64, u64)) -> Result<Audit, OpenError> {
    let db = schema::open_for_audit(path)?;
    let beside = schema::open_for_audit(path)?;
    let snapshot = db.unchecked_transaction()?;
    let mut auditor = Auditor::default();
    // First: the other checks evaluate what the schema says, with nothing in force that could do harm.
    auditor.keep(|auditor| auditor.compare_schema(&snapshot));
    // The engine's own check takes as long as all others together, and there are two cores.
    std::thread::scope(|scope| {
        let integrity = scope.spawn(move || integrity(&beside));
        auditor.run(&snapshot, progress);
        let mut damages = integrity.join().map_err(|_| OpenError::Failed(Failure::new(StoreError::Closed)))?;
        damages.append(&mut auditor.unreadable);
        for damage in damages {
            auditor.found(CheckName::Integrity, damaged(damage));
        }
        Ok(Audit { checks: auditor.checks, orders: auditor.orders, settled: auditor.settled })
    })
}

/// What the engine's own check finds.
pub(super) fn integrity(db: &Connection) -> Vec<String> {
    let check = || -> rusqlite::Result<Vec<String>> {
        db.prepare("PRAGMA integrity_check")?.query_map([], |row| row.get(0))?.collect()
    };
    let mut told = check().unwrap_or_else(|error| vec![error.to_string()]);
    told.retain(|line| line != "ok");
    told
}

struct Auditor {
    checks: Vec<Check>,
    /// What the engine said where a table could not be read to its end.
    unreadable: Vec<String>,
    orders: u64,
    settled: u64,
}

impl Default for Auditor {
    fn default() -> Self {
        let checks = CheckName::ALL.iter().map(|&name| Check { name, findings: 0, rows: Vec::new() }).collect();
        Self { checks, unreadable: Vec::new(), orders: 0, settled: 0 }
    }
}

impl Auditor {
    fn found(&mut self, check: CheckName, finding: Finding) {
        let check = &mut self.checks[check as usize];
        check.findings += 1;
        if check.rows.len() < FINDINGS_NAMED_MAX {
            check.rows.push(finding);
        }
    }

    fn run(&mut self, db: &Connection, progress: impl FnMut(u64, u64)) {
        self.keep(|auditor| auditor.look_for_dangling(db));
        self.keep(|auditor| auditor.walk_orders(db, progress));
        self.keep(|auditor| auditor.add_up(db));
        self.keep(|auditor| auditor.look_for_reused_trades(db));
    }

    /// A page that cannot be read ends a check, and must not hide what the others find.
    fn keep(&mut self, check: impl FnOnce(&mut Self) -> rusqlite::Result<()>) {
        let result = check(self);
        self.unreadable.extend(result.err().map(|error| error.to_string()));
    }

    /// The schema against the one that this program makes, object by object.
    fn compare_schema(&mut self, db: &Connection) -> rusqlite::Result<()> {
        for difference in schema::differences(db, schema::VERSION)? {
            self.found(CheckName::Schema, differing(&difference));
        }
        Ok(())
    }

    /// References that no other check follows.
    fn look_for_dangling(&mut self, db: &Connection) -> rusqlite::Result<()> {
        const TABLES: [&str; 5] = ["orders", "answers", "refunds", "reconciliation", "idempotency"];
        for table in TABLES {
            // The pragma itself has these as a column's text, and a row without a number where there is none.
            let mut dangling = db.prepare("SELECT rowid, parent FROM pragma_foreign_key_check(?)")?;
            let rows = dangling.query_map([table], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get(1)?)))?;
            for row in rows {
                let (row, detail) = row?;
                let row = row.map_or_else(String::new, |row| row.to_string());
                self.found(CheckName::References, Finding { fault: Fault::Dangling, table, row, detail });
            }
        }
        Ok(())
    }

    /// Lays orders, entries, receipts and messages side by side.
    fn walk_orders(&mut self, db: &Connection, mut progress: impl FnMut(u64, u64)) -> rusqlite::Result<()> {
        let total: i64 = db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0))?;
        let total = u64::try_from(total).unwrap_or_default();
        let mut orders = db.prepare(
            "SELECT id, order_no, merchant, telegram_id, credits, status, trade_no, settled_by, paid_outside FROM orders
             ORDER BY id",
        )?;
        let mut entries = db.prepare(
            "SELECT order_id, id, telegram_id, kind, credits FROM ledger WHERE order_id IS NOT NULL ORDER BY order_id",
        )?;
        let mut receipts = db.prepare(
            "SELECT order_id, id, source, outcome, merchant, trade_no, alert FROM receipts WHERE order_id IS NOT NULL
             ORDER BY order_id",
        )?;
        let mut messages =
            db.prepare("SELECT order_id, id, kind FROM outbox WHERE channel = 'telegram' ORDER BY order_id")?;
        let mut entries = ByOrder::new(entries.query_map([], keyed(entry_of))?);
        let mut receipts = ByOrder::new(receipts.query_map([], keyed(receipt_of))?);
        let mut messages = ByOrder::new(messages.query_map([], keyed(message_of))?);
        let mut orders = orders.query([])?;
        while let Some(row) = orders.next()? {
            let order = order_of(row)?;
            let (entries, receipts, messages) = (entries.of(order.id)?, receipts.of(order.id)?, messages.of(order.id)?);
            self.orders += 1;
            self.settled += u64::from(order.is_settled());
            examine(&order, entries.own, receipts.own, messages.own, &mut |check, finding| self.found(check, finding));
            self.report_orphans(entries.orphans, receipts.orphans, messages.orphans);
            if self.orders.is_multiple_of(PROGRESS_ORDERS) {
                progress(self.orders, total);
            }
        }
        let (entries, receipts, messages) = (entries.rest()?, receipts.rest()?, messages.rest()?);
        self.report_orphans(&entries, &receipts, &messages);
        Ok(())
    }

    fn report_orphans(&mut self, entries: &[Entry], receipts: &[ReceiptRow], messages: &[Message]) {
        let finding =
            |table, id: i64| Finding { fault: Fault::Dangling, table, row: id.to_string(), detail: "orders".into() };
        for entry in entries {
            self.found(CheckName::CreditHasOrder, finding("ledger", entry.id));
        }
        for receipt in receipts {
            self.found(CheckName::References, finding("receipts", receipt.id));
        }
        for message in messages {
            self.found(CheckName::References, finding("outbox", message.id));
        }
    }

    /// Each balance against the sum of its entries. In 128 bits: what is wrong may be far too large.
    fn add_up(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let mut users = db.prepare("SELECT telegram_id, credits FROM users ORDER BY telegram_id")?;
        let mut entries = db.prepare("SELECT telegram_id, credits, id FROM ledger ORDER BY telegram_id")?;
        let mut entries = ByOrder::new(entries.query_map([], keyed(|row| Ok((row.get(1)?, row.get(2)?))))?);
        let orphan = |&(_, id): &(i64, i64)| Finding {
            fault: Fault::Dangling,
            table: "ledger",
            row: id.to_string(),
            detail: "users".into(),
        };
        let mut users = users.query([])?;
        while let Some(row) = users.next()? {
            let (user, balance): (i64, i64) = (row.get(0)?, row.get(1)?);
            let entries = entries.of(user)?;
            let sum: i128 = entries.own.iter().map(|&(credits, _)| i128::from(credits)).sum();
            for entry in entries.orphans {
                self.found(CheckName::Balance, orphan(entry));
            }
            if sum != i128::from(balance) {
                let detail = format!("{balance} != {sum}");
                let row = user.to_string();
                self.found(CheckName::Balance, Finding { fault: Fault::BalanceDiffers, table: "users", row, detail });
            }
        }
        for entry in &entries.rest()? {
            self.found(CheckName::Balance, orphan(entry));
        }
        Ok(())
    }

    fn look_for_reused_trades(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let mut trades = db.prepare(
            "SELECT merchant, trade_no, id FROM orders WHERE trade_no IS NOT NULL ORDER BY merchant, trade_no, id",
        )?;
        let mut trades = trades.query([])?;
        let mut before: Option<(String, String)> = None;
        while let Some(row) = trades.next()? {
            let trade: (String, String) = (row.get(0)?, row.get(1)?);
            if before.as_ref() == Some(&trade) {
                let (row, detail) = (row.get::<_, i64>(2)?.to_string(), trade.1.clone());
                self.found(CheckName::TradeOnce, Finding { fault: Fault::TradeReused, table: "orders", row, detail });
            }
            before = Some(trade);
        }
        Ok(())
    }
}

fn order_of(row: &Row) -> rusqlite::Result<OrderRow> {
    Ok(OrderRow {
        id: row.get(0)?,
        order_no: row.get(1)?,
        merchant: row.get(2)?,
        telegram_id: row.get(3)?,
        credits: row.get(4)?,
        status: row.get(5)?,
        trade_no: row.get(6)?,
        settled_by: row.get(7)?,
        paid_outside: row.get(8)?,
    })
}

fn entry_of(row: &Row) -> rusqlite::Result<Entry> {
    Ok(Entry { id: row.get(1)?, telegram_id: row.get(2)?, kind: row.get(3)?, credits: row.get(4)? })
}

fn receipt_of(row: &Row) -> rusqlite::Result<ReceiptRow> {
    Ok(ReceiptRow {
        id: row.get(1)?,
        source: row.get(2)?,
        outcome: row.get(3)?,
        merchant: row.get(4)?,
        trade_no: row.get(5)?,
        alert: row.get(6)?,
    })
}

fn message_of(row: &Row) -> rusqlite::Result<Message> {
    Ok(Message { id: row.get(1)?, kind: row.get(2)? })
}

/// The mapping of a row whose first column says what it belongs to.
fn keyed<T>(of: impl Fn(&Row) -> rusqlite::Result<T>) -> impl Fn(&Row) -> rusqlite::Result<(i64, T)> {
    move |row| Ok((row.get(0)?, of(row)?))
}

/// Rows in the order of what they belong to, handed out as the walk comes by.
struct ByOrder<I: Iterator, T> {
    rows: Peekable<I>,
    own: Vec<T>,
    orphans: Vec<T>,
}

/// What belongs to one order, and what was passed that belongs to none.
struct Group<'a, T> {
    own: &'a [T],
    orphans: &'a [T],
}

impl<T, I: Iterator<Item = rusqlite::Result<(i64, T)>>> ByOrder<I, T> {
    fn new(rows: I) -> Self {
        Self { rows: rows.peekable(), own: Vec::new(), orphans: Vec::new() }
    }

    fn of(&mut self, key: i64) -> rusqlite::Result<Group<'_, T>> {
        self.own.clear();
        self.orphans.clear();
        // An error is taken out as well: it ends the walk.
        while let Some(row) = self.rows.next_if(|row| row.as_ref().map_or(true, |(of, _)| *of <= key)) {
            let (of, value) = row?;
            if of == key { self.own.push(value) } else { self.orphans.push(value) }
        }
        Ok(Group { own: &self.own, orphans: &self.orphans })
    }

    /// What belongs to none.
    fn rest(self) -> rusqlite::Result<Vec<T>> {
        self.rows.take(FINDINGS_NAMED_MAX).map(|row| row.map(|(_, value)| value)).collect()
    }
}

#[cfg(test)]
mod tests;
