//! The proof that the books are right: every settled order against its credits, its receipt and its message, every balance against
//! its entries.
//!
//! It trusts nothing that the schema promises: a trigger or an index may have been dropped, a row changed by another program. So
//! each table is read in the order of its orders, and they are laid side by side: one pass, whatever indexes there are, and memory
//! for one order at a time. It only reads, and all from one snapshot, so that a database which is written to meanwhile looks still.

mod books;

use std::iter::Peekable;
use std::path::Path;

use rusqlite::{Connection, Row};

use super::{Deviation, SchemaDifference, Store, StoreError, blocking, schema};
use crate::config::DatabaseUrl;
use crate::domain::named::named_enum;
use books::{Entry, Message, OrderRow, ReceiptRow, examine};

/// How many findings of a check are named; all are counted.
const FINDINGS_NAMED_MAX: usize = 1000;
/// After how many orders the progress is told.
const PROGRESS_ORDERS: u64 = 10_000;

named_enum! {
    /// What is proved.
    CheckName {
        /// The file is whole, by the database engine's own check, which looks at constraints as well.
        Integrity = "integrity",
        /// Tables, indexes and triggers are those of this program.
        Schema = "schema",
        /// What is referred to is there.
        References = "references",
        /// Each settled order has one credit entry, of its credits and for its user.
        CreditOnce = "credit_once",
        /// Each credit entry has its order, and that is settled.
        CreditHasOrder = "credit_has_order",
        /// Each settled order has one kept receipt that settled it, and no other order has any.
        ReceiptKept = "receipt_kept",
        /// Each refunded order has one entry that takes its credits back, and no other order has any.
        RefundOnce = "refund_once",
        /// Each user's balance is the sum of their entries.
        Balance = "balance",
        /// No payment settles two orders.
        TradeOnce = "trade_once",
        /// Each settled order has its message.
        MessageQueued = "message_queued",
        /// Nobody paid an order twice, as far as nobody has said that it is taken care of.
        PaidAgain = "paid_again",
    }
}

named_enum! {
    /// What is wrong with a row.
    Fault {
        /// The engine says so.
        Damaged = "damaged",
        /// Part of the schema that this program does not make.
        SchemaForeign = "schema_foreign",
        /// Part of the schema that is not there.
        SchemaMissing = "schema_missing",
        /// Part of the schema that is another than it was.
        SchemaChanged = "schema_changed",
        /// Refers to a row that is not there.
        Dangling = "dangling",
        /// Settled, without credits.
        NoCredit = "no_credit",
        /// Credited more than once.
        CreditedTwice = "credited_twice",
        /// Credited with other credits than it was sold for.
        WrongCredits = "wrong_credits",
        /// Credited to another user than its buyer.
        WrongUser = "wrong_user",
        /// Credits for an order that is not settled.
        CreditForUnsettled = "credit_for_unsettled",
        /// Settled, and no receipt says by what.
        NoReceipt = "no_receipt",
        /// More than one receipt says that it settled the order.
        ReceiptTwice = "receipt_twice",
        /// The receipt is of another source, payment or merchant than the order says.
        ReceiptDiffers = "receipt_differs",
        /// A receipt says that it settled an order that is not settled.
        ReceiptForUnsettled = "receipt_for_unsettled",
        /// Refunded, and the credits are still there.
        NotTakenBack = "not_taken_back",
        /// The credits were taken back more than once, or not as many as were given.
        TakenBackWrongly = "taken_back_wrongly",
        /// Credits taken back for an order that is not refunded.
        TakenBackUnrefunded = "taken_back_unrefunded",
        /// The balance is not the sum of the entries.
        BalanceDiffers = "balance_differs",
        /// The payment has settled another order, too.
        TradeReused = "trade_reused",
        /// There is no message to the buyer.
        NoMessage = "no_message",
        /// The buyer paid twice.
        PaidTwice = "paid_twice",
    }
}

/// A row that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What is wrong with it.
    pub fault: Fault,
    /// The table that it is in; for the schema, `sqlite_schema`.
    pub table: &'static str,
    /// Its key in that table, or the name of the part of the schema.
    pub row: String,
    /// What else is worth knowing: numbers that differ, the order's number.
    pub detail: String,
}

/// One check, and what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// What is proved.
    pub name: CheckName,
    /// How many rows are wrong.
    pub findings: u64,
    /// Which rows; the first of them, where there are very many.
    pub rows: Vec<Finding>,
}

/// What an audit says of a database.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    /// Every check, with or without findings.
    pub checks: Vec<Check>,
    /// How many orders there are.
    pub orders: u64,
    /// How many of them are settled, or were and are refunded.
    pub settled: u64,
}

impl Audit {
    /// The one thing that can be said of a file which cannot be read.
    pub(crate) fn of_damaged(cause: String) -> Self {
        let check = Check { name: CheckName::Integrity, findings: 1, rows: vec![damaged(cause)] };
        Self { checks: vec![check], orders: 0, settled: 0 }
    }

    /// The one thing that can be said of a file of an older version whose schema is not that of its version.
    pub(super) fn of_other_schema(differences: &[SchemaDifference]) -> Self {
        let rows = differences.iter().take(FINDINGS_NAMED_MAX).map(differing).collect();
        let check = Check { name: CheckName::Schema, findings: differences.len() as u64, rows };
        Self { checks: vec![check], orders: 0, settled: 0 }
    }

    /// Whether this program opens the database: books may be wrong, the schema may not be another one.
    pub(crate) fn can_be_opened(&self) -> bool {
        self.checks.iter().all(|check| check.findings == 0 || check.name != CheckName::Schema)
    }

    /// How many rows are wrong.
    pub(crate) fn findings(&self) -> u64 {
        self.checks.iter().map(|check| check.findings).sum()
    }

    /// Whether the books are right, whatever buyers did: who pays twice is no fault of theirs.
    pub(crate) fn is_sound(&self) -> bool {
        self.checks.iter().all(|check| check.findings == 0 || check.name == CheckName::PaidAgain)
    }
}

impl Store {
    /// Proves the books of a database, reading only. `progress` hears now and then of how many orders out of how many were looked at.
    pub(crate) async fn audit(
        url: &DatabaseUrl,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Audit, StoreError> {
        let DatabaseUrl::Sqlite(path) = url.clone();
        blocking(move || audit(&path, progress)).await
    }
}

pub(super) fn audit(path: &Path, progress: impl FnMut(u64, u64)) -> Result<Audit, StoreError> {
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
        let mut damages = integrity.join().map_err(|_| StoreError::Closed)?;
        damages.append(&mut auditor.unreadable);
        for damage in damages {
            auditor.found(CheckName::Integrity, damaged(damage));
        }
        Ok(Audit { checks: auditor.checks, orders: auditor.orders, settled: auditor.settled })
    })
}

fn damaged(detail: String) -> Finding {
    Finding { fault: Fault::Damaged, table: "database", row: String::new(), detail }
}

fn differing(difference: &SchemaDifference) -> Finding {
    let SchemaDifference { deviation, kind, name, removal } = difference;
    let fault = match deviation {
        Deviation::Foreign => Fault::SchemaForeign,
        Deviation::Missing => Fault::SchemaMissing,
        Deviation::Changed => Fault::SchemaChanged,
    };
    let detail = removal.as_ref().map_or_else(|| kind.clone(), |removal| format!("{kind}: {removal}"));
    Finding { fault, table: "sqlite_schema", row: name.clone(), detail }
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
        let mut entries = ByOrder::new(entries.query_map([], keyed(Entry::of))?);
        let mut receipts = ByOrder::new(receipts.query_map([], keyed(ReceiptRow::of))?);
        let mut messages = ByOrder::new(messages.query_map([], keyed(Message::of))?);
        let mut orders = orders.query([])?;
        while let Some(row) = orders.next()? {
            let order = OrderRow::of(row)?;
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
