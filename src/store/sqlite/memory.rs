//! Values that survive a restart, and the receipts that the operator has to hear of.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Sqlite, StoreError, read};
use crate::domain::money::Amount;
use crate::domain::outcome::Outcome;
use crate::store::{Trouble, TroubleKind};

impl Sqlite {
    pub(in crate::store) async fn recall(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        self.read(move |db| {
            db.prepare_cached("SELECT value FROM memory WHERE name = ?")?.query_row([name], |row| row.get(0)).optional()
        })
        .await
    }

    pub(in crate::store) async fn remember(&self, name: &'static str, value: Option<String>) -> Result<(), StoreError> {
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

    pub(in crate::store) async fn newest_receipt(&self) -> Result<i64, StoreError> {
        self.read(|db| db.prepare_cached("SELECT coalesce(max(id), 0) FROM receipts")?.query_row([], |row| row.get(0)))
            .await
    }

    pub(in crate::store) async fn trouble(&self, after: i64, until: i64) -> Result<Vec<Trouble>, StoreError> {
        self.read(move |db| trouble(db, after, until)).await
    }
}

fn trouble(db: &Connection, after: i64, until: i64) -> rusqlite::Result<Vec<Trouble>> {
    let names = Outcome::ALERTED.map(Outcome::name);
    // Bare columns are those of the row with the greatest id: SQLite promises so beside max().
    db.prepare_cached(
        "SELECT coalesce(alert, outcome) AS kind, count(*), receipts.order_no, orders.amount_fen, receipts.amount_fen,
             max(receipts.id)
         FROM receipts LEFT JOIN orders ON orders.id = receipts.order_id
         WHERE receipts.id > ? AND receipts.id <= ?
             AND (alert IS NOT NULL OR outcome IN (?, ?, ?, ?, ?))
         GROUP BY kind ORDER BY kind",
    )?
    .query_map(params![after, until, names[0], names[1], names[2], names[3], names[4]], |row| {
        let kind = read::expect(0, TroubleKind::from_name(row.get_ref(0)?.as_str()?))?;
        let amount = |column| row.get::<_, Option<i64>>(column).map(|fen| fen.and_then(Amount::from_fen));
        Ok(Trouble { kind, count: row.get(1)?, order_no: row.get(2)?, due: amount(3)?, paid: amount(4)? })
    })?
    .collect()
}
