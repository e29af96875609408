//! For `benches/hot_path.rs` only: settling without the queue, so that a batch has the size that is asked for.

use std::path::Path;

use rusqlite::Connection;

use super::settle::{Claimed, settle};
use super::{Creation, Receipt, Settle, checkpoint, schema, write};
use crate::clock::Timestamp;
use crate::money::Amount;
use crate::order::{NewOrder, SettledBy};
use crate::settlement::{Claim, LatePolicy, Policy};

const MERCHANT: &str = "1002";
/// How many buyers there are.
const USERS: usize = 50_000;

/// A database with orders to settle.
#[derive(Debug)]
pub(crate) struct Bench {
    db: Connection,
    amount: Amount,
    orders: usize,
    settled: usize,
}

impl Bench {
    pub(crate) fn new(path: &Path, orders: usize, amount: Amount) -> Self {
        let (db, _) = schema::open(path).expect("a new database");
        let mut bench = Self { db, amount, orders: 0, settled: 0 };
        bench.create(orders);
        bench
    }

    /// Settles the next `count` orders in one transaction; where there are not so many, all are settled and there are as many new ones.
    pub(crate) fn settle(&mut self, count: usize, now: Timestamp) {
        if self.settled + count > self.orders {
            self.create(self.orders);
        }
        let claims: Vec<_> = (self.settled..self.settled + count).map(|number| self.claim(number, now)).collect();
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
        let amount = self.amount;
        self.transaction(|db| {
            for number in numbers {
                let telegram_id = i64::try_from(1 + number * 7919 % USERS).expect("a small number");
                write::create_order(db, new_order(number, telegram_id, amount)).expect("a new order");
            }
        });
    }

    fn transaction(&self, work: impl FnOnce(&Connection)) {
        self.db.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        work(&self.db);
        self.db.prepare_cached("COMMIT").and_then(|mut commit| commit.execute([])).expect("room on the disk");
    }

    fn claim(&self, number: usize, now: Timestamp) -> Claimed {
        let settle = Settle {
            claim: Claim {
                merchant: MERCHANT.into(),
                order_no: order_no(number),
                trade_no: format!("20240101{number:012}"),
                amount: self.amount,
                paid: true,
                param: None,
            },
            source: SettledBy::Notify,
            policy: Policy { late: LatePolicy::Credit, is_proof: true },
            receipt: Receipt { received_at: now, client: None, method: "POST", payload: vec![b'x'; 230] },
        };
        Claimed { settle: settle.into(), tells_bot: false }
    }
}

fn order_no(number: usize) -> String {
    format!("BENCH{number:021}")
}

fn new_order(number: usize, telegram_id: i64, amount: Amount) -> Creation {
    let created_at = Timestamp::from_ms(1_700_000_000_000);
    NewOrder {
        order_no: order_no(number).parse().expect("an order's number"),
        merchant: MERCHANT.into(),
        telegram_id,
        package: Some("silver".into()),
        name: "VIP白银".into(),
        payment_type: "alipay".into(),
        amount,
        credits: 70,
        param: None,
        created_at,
        expires_at: created_at.plus_seconds(1800),
    }
    .into()
}
