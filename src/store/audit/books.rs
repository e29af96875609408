//! One order with all that is written about it: whether it fits together. Pure.

use std::collections::BTreeSet;

use rusqlite::Row;

use super::{CheckName, Fault, Finding};

/// An order, as far as it has to fit the books.
#[derive(Clone, Debug)]
pub(super) struct OrderRow {
    pub(super) id: i64,
    pub(super) order_no: String,
    pub(super) merchant: String,
    pub(super) telegram_id: i64,
    pub(super) credits: i64,
    pub(super) status: String,
    pub(super) trade_no: Option<String>,
    pub(super) settled_by: Option<String>,
    pub(super) paid_outside: bool,
}

/// A change of a balance because of an order.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) id: i64,
    pub(super) telegram_id: i64,
    pub(super) kind: String,
    pub(super) credits: i64,
}

/// A receipt of an order.
#[derive(Clone, Debug)]
pub(super) struct ReceiptRow {
    pub(super) id: i64,
    pub(super) source: String,
    pub(super) outcome: String,
    pub(super) merchant: String,
    pub(super) trade_no: String,
    pub(super) alert: Option<String>,
}

/// A message to an order's buyer.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) id: i64,
    pub(super) kind: String,
}

impl OrderRow {
    pub(super) fn of(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self {
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

    pub(super) fn is_settled(&self) -> bool {
        matches!(self.status.as_str(), "paid" | "refunded")
    }

    fn finding(&self, fault: Fault) -> Finding {
        Finding { fault, table: "orders", row: self.id.to_string(), detail: self.order_no.clone() }
    }

    /// A finding about a row of another table that belongs to this order.
    fn finding_in(&self, table: &'static str, id: i64, fault: Fault) -> Finding {
        Finding { fault, table, row: id.to_string(), detail: self.order_no.clone() }
    }
}

impl Entry {
    pub(super) fn of(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(1)?, telegram_id: row.get(2)?, kind: row.get(3)?, credits: row.get(4)? })
    }
}

impl ReceiptRow {
    pub(super) fn of(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(1)?,
            source: row.get(2)?,
            outcome: row.get(3)?,
            merchant: row.get(4)?,
            trade_no: row.get(5)?,
            alert: row.get(6)?,
        })
    }
}

impl Message {
    pub(super) fn of(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(1)?, kind: row.get(2)? })
    }
}

/// Tells `found` of everything that does not fit.
pub(super) fn examine(
    order: &OrderRow,
    entries: &[Entry],
    receipts: &[ReceiptRow],
    messages: &[Message],
    found: &mut impl FnMut(CheckName, Finding),
) {
    examine_credit(order, entries, found);
    examine_refund(order, entries, found);
    examine_receipt(order, receipts, found);
    let has_message = |kind: &str| messages.iter().any(|message| message.kind == kind);
    if order.is_settled() && !has_message("settled") || order.status == "refunded" && !has_message("refunded") {
        found(CheckName::MessageQueued, order.finding(Fault::NoMessage));
    }
    for trade_no in paid_twice(order, receipts) {
        let detail = format!("{} {trade_no}", order.order_no);
        found(CheckName::PaidAgain, Finding { detail, ..order.finding(Fault::PaidTwice) });
    }
}

fn examine_credit(order: &OrderRow, entries: &[Entry], found: &mut impl FnMut(CheckName, Finding)) {
    let mut credits = entries.iter().filter(|entry| entry.kind == "order");
    if !order.is_settled() {
        for entry in credits {
            let finding = order.finding_in("ledger", entry.id, Fault::CreditForUnsettled);
            found(CheckName::CreditHasOrder, finding);
        }
        return;
    }
    let Some(entry) = credits.next() else {
        return found(CheckName::CreditOnce, order.finding(Fault::NoCredit));
    };
    for second in credits {
        found(CheckName::CreditOnce, order.finding_in("ledger", second.id, Fault::CreditedTwice));
    }
    if entry.credits != order.credits {
        found(CheckName::CreditOnce, order.finding_in("ledger", entry.id, Fault::WrongCredits));
    }
    if entry.telegram_id != order.telegram_id {
        found(CheckName::CreditOnce, order.finding_in("ledger", entry.id, Fault::WrongUser));
    }
}

fn examine_refund(order: &OrderRow, entries: &[Entry], found: &mut impl FnMut(CheckName, Finding)) {
    let mut refunds = entries.iter().filter(|entry| entry.kind == "refund");
    if order.status != "refunded" {
        for entry in refunds {
            found(CheckName::RefundOnce, order.finding_in("ledger", entry.id, Fault::TakenBackUnrefunded));
        }
        return;
    }
    let Some(entry) = refunds.next() else {
        return found(CheckName::RefundOnce, order.finding(Fault::NotTakenBack));
    };
    let is_wrong = entry.credits.checked_neg() != Some(order.credits) || entry.telegram_id != order.telegram_id;
    for wrong in Some(entry).filter(|_| is_wrong).into_iter().chain(refunds) {
        found(CheckName::RefundOnce, order.finding_in("ledger", wrong.id, Fault::TakenBackWrongly));
    }
}

fn examine_receipt(order: &OrderRow, receipts: &[ReceiptRow], found: &mut impl FnMut(CheckName, Finding)) {
    let mut settling = receipts.iter().filter(|receipt| receipt.outcome == "settled");
    if !order.is_settled() {
        for receipt in settling {
            let finding = order.finding_in("receipts", receipt.id, Fault::ReceiptForUnsettled);
            found(CheckName::ReceiptKept, finding);
        }
        return;
    }
    let Some(receipt) = settling.next() else {
        return found(CheckName::ReceiptKept, order.finding(Fault::NoReceipt));
    };
    for second in settling {
        found(CheckName::ReceiptKept, order.finding_in("receipts", second.id, Fault::ReceiptTwice));
    }
    let fits = order.settled_by.as_deref() == Some(&receipt.source)
        && order.merchant == receipt.merchant
        && (order.trade_no.as_deref().unwrap_or_default() == receipt.trade_no || has_adopted(order, receipt, receipts));
    if !fits {
        found(CheckName::ReceiptKept, order.finding_in("receipts", receipt.id, Fault::ReceiptDiffers));
    }
}

/// Whether the order, which a person settled without a payment's number, has got its number from this one payment since.
fn has_adopted(order: &OrderRow, settled: &ReceiptRow, receipts: &[ReceiptRow]) -> bool {
    let mut adopted = receipts.iter().filter(|receipt| receipt.alert.as_deref() == Some("adopted"));
    let is_by_this = |receipt: &ReceiptRow| {
        receipt.outcome == "duplicate"
            && receipt.merchant == order.merchant
            && order.trade_no.as_deref() == Some(&receipt.trade_no)
    };
    settled.source == "manual"
        && settled.trade_no.is_empty()
        && !order.paid_outside
        && adopted.next().is_some_and(is_by_this)
        && adopted.next().is_none()
}

/// The payments beyond the order's own, and of which nobody has said that they are taken care of. An older version called a payment
/// one too many that the order has adopted since.
fn paid_twice<'a>(order: &OrderRow, receipts: &'a [ReceiptRow]) -> BTreeSet<&'a str> {
    let trades = |outcome: &str| -> BTreeSet<&'a str> {
        let of_outcome = receipts.iter().filter(|receipt| receipt.outcome == outcome);
        of_outcome.map(|receipt| receipt.trade_no.as_str()).collect()
    };
    let mut again = &trades("paid_again") - &trades("acknowledged");
    again.retain(|trade_no| order.trade_no.as_deref() != Some(*trade_no));
    again
}
