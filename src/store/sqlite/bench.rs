//! For `benches/hot_path.rs` only: settling without the queue, so that a batch has the size that is asked for.

use std::path::Path;

use rusqlite::Connection;

use super::settle::{Claimed, settle};
use super::{checkpoint, schema, write};
use crate::domain::clock::Timestamp;
use crate::store::fixtures;

const CREATED_MS: i64 = 1_700_000_000_000;
/// How long a callback is.
const PAYLOAD_BYTES: usize = 230;
/// How many buyers there are.
const USERS: usize = 50_000;

/// A database with orders to settle.
#[derive(Debug)]
pub(crate) struct Bench {
    db: Connection,
    orders: usize,
    settled: usize,
}

impl Bench {
    pub(crate) fn new(path: &Path, orders: usize) -> Self {
        let (db, _) = schema::open(path, schema::SchemaRule::Exact).expect("a new database");
        let mut bench = Self { db, orders: 0, settled: 0 };
        bench.create(orders);
        bench
    }

    /// Settles the next `count` orders in one transaction; where there are not so many, all are settled and there are as many new ones.
    pub(crate) fn settle(&mut self, count: usize, now: Timestamp) {
        if self.settled + count > self.orders {
            self.create(self.orders);
        }
        let claims: Vec<_> = (self.settled..self.settled + count).map(|number| Self::claim(number, now)).collect();
        self.settled += count;
        self.transaction(|db| {
            let settlements = settle(db, &claims.iter().collect::<Vec<_>>()).expect("they can be settled");
            assert!(settlements.iter().all(|settlement| settlement.credited.is_some()));
        });
        checkpoint::after_commit(&self.db, true);
    }

    fn create(&mut self, count: usize) {
        let numbers = self.orders..self.orders + count;
        self.orders += count;
        let now = Timestamp::from_ms(CREATED_MS);
        self.transaction(|db| {
            for number in numbers {
                let telegram_id = i64::try_from(1 + number * 7919 % USERS).expect("a small number");
                let order = fixtures::order(&order_no(number), telegram_id, now);
                write::create_order(db, order.into()).expect("a new order");
            }
        });
    }

    fn transaction(&self, work: impl FnOnce(&Connection)) {
        self.db.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        work(&self.db);
        self.db.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).expect("room on the disk");
    }

    fn claim(number: usize, now: Timestamp) -> Claimed {
        let mut settle = fixtures::paid(&order_no(number), &format!("20240101{number:012}"), now);
        settle.receipt.payload = vec![b'x'; PAYLOAD_BYTES];
        Claimed { settle: settle.into(), tells_bot: false }
    }
}

fn order_no(number: usize) -> String {
    format!("BENCH{number:021}")
}
