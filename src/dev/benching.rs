//! For `benches/hot_path.rs` only: the steps on the way of a payment, each by itself.

use std::path::Path;

use crate::channel::epay::{CallbackFields, Credentials, Notification, SignedCallback, Unverified, encode};
use crate::domain::clock::Timestamp;
use crate::domain::order::{OrderStatus, PaymentState};
use crate::domain::outcome::Outcome;
use crate::domain::secret::Secret;
use crate::domain::settlement::{Claim, LatePolicy, Payable, Policy, decide};
use crate::store;

const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";
const NOW_MS: i64 = 1_700_000_000_000;

/// A callback as a gateway sends it.
#[derive(Debug)]
pub struct Callback {
    payload: Vec<u8>,
    credentials: Credentials,
}

impl Default for Callback {
    fn default() -> Self {
        let fields = CallbackFields {
            pid: "1002".into(),
            trade_no: "2024010122001400001234567890".into(),
            out_trade_no: "01JD0000000000000000000001".into(),
            payment_type: "alipay".into(),
            name: "VIP白银".into(),
            money: "36.00".into(),
            trade_status: "TRADE_SUCCESS".into(),
            param: None,
        };
        let key = Secret::new(KEY);
        let payload = encode(SignedCallback::v1(fields, &key).fields()).into_bytes();
        Self { payload, credentials: Credentials::V1 { key, key_previous: None } }
    }
}

impl Callback {
    /// From bytes to something that may be believed.
    pub fn verify(&self) -> bool {
        self.notification().payment == PaymentState::Paid
    }

    fn notification(&self) -> Notification {
        let unverified = Unverified::parse(&self.payload).expect("it can be read in one way");
        unverified.verify(&self.credentials, Timestamp::from_ms(NOW_MS)).expect("it is signed")
    }
}

/// A claim with the order that it pays.
#[derive(Debug)]
pub struct Case {
    claim: Claim,
    order: Payable,
}

impl Default for Case {
    fn default() -> Self {
        let claim = Callback::default().notification().claim();
        let order = Payable {
            merchant: claim.merchant.clone(),
            amount: claim.amount.expect("it is readable"),
            param: None,
            expires_at: Timestamp::from_ms(NOW_MS + 1),
            stored_status: OrderStatus::Pending,
            trade_no: None,
            settled_by: None,
            paid_outside: false,
            hold: None,
        };
        Self { claim, order }
    }
}

impl Case {
    /// The decision.
    pub fn decide(&self) -> bool {
        let policy = Policy { late: LatePolicy::Credit, can_ask: false };
        let decision = decide(&self.claim, Some(&self.order), false, policy, Timestamp::from_ms(NOW_MS));
        decision.outcome == Outcome::Settled
    }
}

/// A database with orders to settle.
#[derive(Debug)]
pub struct Books(store::sqlite::bench::Bench);

impl Books {
    /// A new database in this directory, with so many orders to settle.
    pub fn new(directory: &Path, orders: usize) -> Self {
        Self(store::sqlite::bench::Bench::new(&directory.join("bench.db"), orders))
    }

    /// Settles the next `count` orders in one transaction, and commits it to the disk.
    pub fn settle(&mut self, count: usize) {
        self.0.settle(count, Timestamp::from_ms(NOW_MS));
    }
}
