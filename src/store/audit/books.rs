//! One order with all that is written about it: whether it fits together. Pure.

use std::collections::BTreeSet;

use super::{CheckName, Fault, Finding};
use crate::domain::decisions::OperatorDecision;
use crate::domain::ledger::EntryKind;
use crate::domain::order::{OrderStatus, SettledBy};
use crate::domain::outcome::Outcome;
use crate::domain::settlement::Alert;
use crate::store::News;

/// An order, as far as it has to fit the books.
#[derive(Clone, Debug)]
pub(in crate::store) struct OrderRow {
    pub(in crate::store) id: i64,
    pub(in crate::store) order_no: String,
    pub(in crate::store) merchant: String,
    pub(in crate::store) telegram_id: i64,
    pub(in crate::store) credits: i64,
    pub(in crate::store) status: String,
    pub(in crate::store) trade_no: Option<String>,
    pub(in crate::store) settled_by: Option<String>,
    pub(in crate::store) paid_outside: bool,
}

/// A change of a balance because of an order.
#[derive(Clone, Debug)]
pub(in crate::store) struct Entry {
    pub(in crate::store) id: i64,
    pub(in crate::store) telegram_id: i64,
    pub(in crate::store) kind: String,
    pub(in crate::store) credits: i64,
}

/// A receipt of an order.
#[derive(Clone, Debug)]
pub(in crate::store) struct ReceiptRow {
    pub(in crate::store) id: i64,
    pub(in crate::store) source: String,
    pub(in crate::store) outcome: String,
    pub(in crate::store) merchant: String,
    pub(in crate::store) trade_no: String,
    pub(in crate::store) alert: Option<String>,
}

/// A message to an order's buyer.
#[derive(Clone, Debug)]
pub(in crate::store) struct Message {
    pub(in crate::store) id: i64,
    pub(in crate::store) kind: String,
}

impl OrderRow {
    pub(in crate::store) fn is_settled(&self) -> bool {
        self.has(OrderStatus::Paid) || self.has(OrderStatus::Refunded)
    }

    fn has(&self, status: OrderStatus) -> bool {
        self.status == status.name()
    }

    fn finding(&self, fault: Fault) -> Finding {
        Finding { fault, table: "orders", row: self.id.to_string(), detail: self.order_no.clone() }
    }

    /// A finding about a row of another table that belongs to this order.
    fn finding_in(&self, table: &'static str, id: i64, fault: Fault) -> Finding {
        Finding { fault, table, row: id.to_string(), detail: self.order_no.clone() }
    }
}

/// Tells `found` of everything that does not fit.
pub(in crate::store) fn examine(
    order: &OrderRow,
    entries: &[Entry],
    receipts: &[ReceiptRow],
    messages: &[Message],
    found: &mut impl FnMut(CheckName, Finding),
) {
    examine_credit(order, entries, found);
    examine_refund(order, entries, found);
    examine_receipt(order, receipts, found);
    let has_message = |news: News| messages.iter().any(|message| message.kind == news.name());
    if order.is_settled() && !has_message(News::Settled)
        || order.has(OrderStatus::Refunded) && !has_message(News::Refunded)
    {
        found(CheckName::MessageQueued, order.finding(Fault::NoMessage));
    }
    for trade_no in paid_twice(order, receipts) {
        let detail = format!("{} {trade_no}", order.order_no);
        found(CheckName::PaidAgain, Finding { detail, ..order.finding(Fault::PaidTwice) });
    }
}

fn examine_credit(order: &OrderRow, entries: &[Entry], found: &mut impl FnMut(CheckName, Finding)) {
    let mut credits = entries.iter().filter(|entry| entry.kind == EntryKind::Order.name());
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
    let mut refunds = entries.iter().filter(|entry| entry.kind == EntryKind::Refund.name());
    if !order.has(OrderStatus::Refunded) {
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
    let mut settling = receipts.iter().filter(|receipt| receipt.outcome == Outcome::Settled.name());
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
    let mut adopted = receipts.iter().filter(|receipt| receipt.alert.as_deref() == Some(Alert::Adopted.name()));
    let is_by_this = |receipt: &ReceiptRow| {
        receipt.outcome == Outcome::Duplicate.name()
            && receipt.merchant == order.merchant
            && order.trade_no.as_deref() == Some(&receipt.trade_no)
    };
    settled.source == SettledBy::Manual.name()
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
    let mut again = &trades(Outcome::PaidAgain.name()) - &trades(OperatorDecision::Acknowledged.name());
    again.retain(|trade_no| order.trade_no.as_deref() != Some(*trade_no));
    again
}
