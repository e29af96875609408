//! What the service remembers over a restart, and what the operator has to hear of.

use rusqlite::{Connection, OptionalExtension, named_params, params};

use super::{Store, StoreError};

/// Receipts that a person should hear of, by outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// The outcome's name.
    pub outcome: String,
    /// How many there were.
    pub count: u32,
    /// The order of the newest of them, as the gateway named it.
    pub order_no: String,
}

impl Store {
    /// What was remembered under this name.
    pub(crate) async fn recall(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        self.read(move |db| {
            db.prepare_cached("SELECT value FROM memory WHERE name = ?")?.query_row([name], |row| row.get(0)).optional()
        })
        .await
    }

    /// Remembers a value under a name; none to forget it.
    pub(crate) async fn remember(&self, name: &'static str, value: Option<String>) -> Result<(), StoreError> {
        self.write(move |db| {
            match value {
                Some(value) => db
                    .prepare_cached(
                        "INSERT INTO memory (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    )?
                    .execute(params![name, value])?,
                None => db.prepare_cached("DELETE FROM memory WHERE name = ?")?.execute([name])?,
            };
            Ok(())
        })
        .await
    }

    /// The number of the newest receipt.
    pub(crate) async fn newest_receipt(&self) -> Result<i64, StoreError> {
        self.read(|db| db.prepare_cached("SELECT coalesce(max(id), 0) FROM receipts")?.query_row([], |row| row.get(0)))
            .await
    }

    /// The trouble among the receipts after number `after` up to number `until`.
    pub(crate) async fn trouble(&self, after: i64, until: i64) -> Result<Vec<Trouble>, StoreError> {
        self.read(move |db| trouble(db, after, until)).await
    }
}

fn trouble(db: &Connection, after: i64, until: i64) -> rusqlite::Result<Vec<Trouble>> {
    // The bare column is that of the row with the greatest id: SQLite promises so beside max().
    db.prepare_cached(
        "SELECT outcome, count(*), order_no, max(id) FROM receipts
         WHERE id > :after AND id <= :until
             AND outcome IN ('amount_mismatch', 'held', 'paid_again', 'trade_reused', 'unknown_order')
         GROUP BY outcome ORDER BY outcome",
    )?
    .query_map(named_params! { ":after": after, ":until": until }, |row| {
        Ok(Trouble { outcome: row.get(0)?, count: row.get(1)?, order_no: row.get(2)? })
    })?
    .collect()
}
