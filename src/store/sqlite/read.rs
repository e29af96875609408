//! Every statement that reads, and the one mapping from rows to orders.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, named_params, types::Type};

use super::OrderFilter;
use crate::domain::clock::Timestamp;
use crate::domain::ledger::EntryKind;
use crate::domain::money::Amount;
use crate::domain::order::{
    Hold, NewOrder, Order, OrderNo, OrderStatus, PayKind, PayPage, ReviewReason, SettledBy, User,
};
use crate::store::LedgerEntry;

pub(super) const ORDER_COLUMNS: &str = "id, order_no, merchant, telegram_id, package, name, type, amount_fen, credits, param, \
                             created_at_ms, expires_at_ms, status, trade_no, settled_by, paid_at_ms, pay_kind, pay_url, \
                             paid_outside, review_reason, hold";
/// How many these are.
pub(super) const ORDER_COLUMNS_COUNT: usize = 21;

/// A value that no version of this program writes.
#[derive(Debug, thiserror::Error)]
#[error("unexpected value")]
struct Unexpected;

pub(super) fn expect<T>(column: usize, value: Option<T>) -> rusqlite::Result<T> {
    value.ok_or_else(|| rusqlite::Error::FromSqlConversionFailure(column, Type::Null, Box::new(Unexpected)))
}

/// A value that is stored by its name, or NULL.
pub(super) fn named<T>(row: &Row, column: usize, from_name: impl Fn(&str) -> Option<T>) -> rusqlite::Result<Option<T>> {
    let name = row.get_ref(column)?.as_str_or_null()?;
    name.map(|name| expect(column, from_name(name))).transpose()
}

pub(super) fn order_of(row: &Row) -> rusqlite::Result<(i64, Order)> {
    let timestamp = |column: usize| row.get(column).map(Timestamp::from_ms);
    let text = |column: usize| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
    let paid_at: Option<i64> = row.get(15)?;
    let pay_page = match (row.get_ref(16)?.as_str_or_null()?, row.get(17)?) {
        (Some(kind), Some(url)) => Some(PayPage { kind: expect(16, PayKind::from_name(kind))?, url }),
        _ => None,
    };
    let order = Order {
        terms: NewOrder {
            order_no: expect(1, text(1)?.parse::<OrderNo>().ok())?,
            merchant: row.get(2)?,
            telegram_id: row.get(3)?,
            package: row.get(4)?,
            name: row.get(5)?,
            payment_type: row.get(6)?,
            amount: expect(7, Amount::from_fen(row.get(7)?))?,
            credits: row.get(8)?,
            param: row.get(9)?,
            created_at: timestamp(10)?,
            expires_at: timestamp(11)?,
        },
        pay_page,
        stored_status: expect(12, OrderStatus::from_name(text(12)?))?,
        trade_no: row.get(13)?,
        settled_by: named(row, 14, SettledBy::from_name)?,
        paid_at: paid_at.map(Timestamp::from_ms),
        paid_outside: row.get(18)?,
        review_reason: named(row, 19, ReviewReason::from_name)?,
        hold: named(row, 20, Hold::from_name)?,
    };
    Ok((row.get(0)?, order))
}

pub(super) fn order_with_id(db: &Connection, order_no: &str) -> rusqlite::Result<Option<(i64, Order)>> {
    db.prepare_cached(&format!("SELECT {ORDER_COLUMNS} FROM orders WHERE order_no = ?"))?
        .query_row([order_no], order_of)
        .optional()
}

pub(super) fn order_by_id(db: &Connection, order_id: i64) -> rusqlite::Result<Order> {
    db.prepare_cached(&format!("SELECT {ORDER_COLUMNS} FROM orders WHERE id = ?"))?
        .query_row([order_id], |row| order_of(row).map(|(_, order)| order))
}

pub(super) fn order(db: &Connection, order_no: &str) -> rusqlite::Result<Option<Order>> {
    Ok(order_with_id(db, order_no)?.map(|(_, order)| order))
}

/// The order that this merchant's payment has settled.
pub(super) fn order_settled_by(db: &Connection, merchant: &str, trade_no: &str) -> rusqlite::Result<Option<OrderNo>> {
    let order_no: Option<String> = db
        .prepare_cached("SELECT order_no FROM orders WHERE merchant = ? AND trade_no = ?")?
        .query_row([merchant, trade_no], |row| row.get(0))
        .optional()?;
    order_no.map(|order_no| expect(0, order_no.parse().ok())).transpose()
}

pub(super) fn orders(db: &Connection, filter: &OrderFilter) -> rusqlite::Result<Vec<Order>> {
    let mut conditions = Vec::new();
    let now = filter.now.ms();
    let stored_status = filter.status.map(|status| match status {
        OrderStatus::Expired => OrderStatus::Pending.name(),
        status => status.name(),
    });
    let mut values: Vec<(&str, &dyn ToSql)> = vec![(":limit", &filter.limit)];
    if let Some(status) = &stored_status {
        conditions.push("status = :status");
        values.push((":status", status));
    }
    match filter.status {
        Some(OrderStatus::Pending) => conditions.push("expires_at_ms > :now"),
        Some(OrderStatus::Expired) => conditions.push("expires_at_ms <= :now"),
        _ => {}
    }
    if matches!(filter.status, Some(OrderStatus::Pending | OrderStatus::Expired)) {
        values.push((":now", &now));
    }
    if let Some(telegram_id) = &filter.telegram_id {
        conditions.push("telegram_id = :telegram_id");
        values.push((":telegram_id", telegram_id));
    }
    let condition = if conditions.is_empty() { "TRUE".into() } else { conditions.join(" AND ") };
    db.prepare_cached(&format!("SELECT {ORDER_COLUMNS} FROM orders WHERE {condition} ORDER BY id DESC LIMIT :limit"))?
        .query_map(values.as_slice(), |row| order_of(row).map(|(_, order)| order))?
        .collect()
}

pub(super) fn user(db: &Connection, telegram_id: i64) -> rusqlite::Result<Option<User>> {
    db.prepare_cached(
        "SELECT credits, (SELECT count(*) FROM orders WHERE orders.telegram_id = users.telegram_id AND status = 'paid')
         FROM users WHERE telegram_id = ?",
    )?
    .query_row([telegram_id], |row| Ok(User { credits: row.get(0)?, orders_paid: row.get(1)?, telegram_id }))
    .optional()
}

/// Entries that belong to orders are found by those: `ledger_by_user` has the others only, see `schema_v3.sql`.
pub(super) fn ledger(db: &Connection, telegram_id: i64, limit: u32) -> rusqlite::Result<Vec<LedgerEntry>> {
    db.prepare_cached(
        "SELECT ledger.created_at_ms, ledger.credits, kind, order_no, reason, ledger.id
         FROM orders JOIN ledger ON ledger.order_id = orders.id AND ledger.telegram_id = orders.telegram_id
         WHERE orders.telegram_id = :telegram_id
         UNION ALL
         SELECT created_at_ms, credits, kind, NULL, reason, id FROM ledger
         WHERE telegram_id = :telegram_id AND order_id IS NULL
         ORDER BY 6 DESC LIMIT :limit",
    )?
    .query_map(named_params! { ":telegram_id": telegram_id, ":limit": limit }, ledger_entry_of)?
    .collect()
}

/// What an order did to its buyer's balance, in the order in which it did it.
pub(super) fn ledger_of_order(db: &Connection, order_id: i64) -> rusqlite::Result<Vec<LedgerEntry>> {
    db.prepare_cached(
        "SELECT ledger.created_at_ms, ledger.credits, kind, order_no, reason
         FROM ledger JOIN orders ON orders.id = ledger.order_id WHERE ledger.order_id = ? ORDER BY ledger.id",
    )?
    .query_map([order_id], ledger_entry_of)?
    .collect()
}

fn ledger_entry_of(row: &Row) -> rusqlite::Result<LedgerEntry> {
    Ok(LedgerEntry {
        created_at: Timestamp::from_ms(row.get(0)?),
        credits: row.get(1)?,
        kind: expect(2, EntryKind::from_name(row.get_ref(2)?.as_str()?))?,
        order_no: row.get(3)?,
        reason: row.get(4)?,
    })
}
