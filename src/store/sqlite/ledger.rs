//! Entries of the ledger, and the balances that they move: the only place that writes either.
//!
//! The schema has a trigger that does the second part, for other programs; see `schema::LEFT_TO_US`.

use std::sync::LazyLock;

use rusqlite::{Connection, params};

use super::insert::Insert;
use super::{AccountError, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::ledger::EntryKind;

/// A change of a user's balance.
pub(super) struct Entry<'a> {
    pub(super) telegram_id: i64,
    pub(super) kind: EntryKind,
    pub(super) credits: i64,
    pub(super) order_id: Option<i64>,
    pub(super) reason: Option<&'a str>,
    pub(super) at: Timestamp,
}

static INSERT: LazyLock<Insert> = LazyLock::new(|| {
    let into = "INSERT INTO ledger (telegram_id, kind, credits, order_id, reason, created_at_ms)";
    Insert::new(into, "(?, ?, ?, ?, ?, ?)", "")
});

/// Makes entries, and moves the balances.
pub(super) fn enter(db: &Connection, entries: &[Entry]) -> Result<(), StoreError> {
    let rows: Vec<_> = entries.iter().map(|entry| (entry, entry.kind.name(), entry.at.ms())).collect();
    INSERT.run(db, &rows, |(entry, kind, at_ms)| {
        [&entry.telegram_id, kind, &entry.credits, &entry.order_id, &entry.reason, at_ms]
    })?;
    if !entries.is_empty() {
        let mut update = db.prepare_cached("UPDATE users SET credits = credits + ? WHERE telegram_id = ?")?;
        for Entry { telegram_id, credits, .. } in entries {
            if update.execute(params![credits, telegram_id])? != 1 {
                return Err(StoreError::failed(AccountError::NoSuchUser(*telegram_id)));
            }
        }
    }
    Ok(())
}
