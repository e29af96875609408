//! An order and its payment, for the tests of whatever uses the store, and for the benches.

use super::{Receipt, Settle};
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::{NewOrder, PaymentState, SettledBy};
use crate::domain::settlement::{Claim, ClaimProof, LatePolicy, Policy};

/// The database at `url`, created where there is none; bot events are not written.
#[cfg(test)]
pub(crate) async fn open(url: &crate::config::DatabaseUrl) -> Result<super::Store, super::OpenError> {
    super::Store::open_at(url, super::Opening::Create, false).await
}

/// 36.00 yuan for 70 credits, for half an hour from `created_at`.
pub(crate) fn order(order_no: &str, telegram_id: i64, created_at: Timestamp) -> NewOrder {
    NewOrder {
        order_no: order_no.parse().expect("an order's number"),
        merchant: "1002".into(),
        telegram_id,
        package: Some("silver".into()),
        name: "VIP白银".into(),
        payment_type: "alipay".into(),
        amount: Amount::from_fen(3600).expect("a price"),
        credits: 70,
        param: None,
        created_at,
        expires_at: created_at.plus_seconds(1800),
    }
}

/// The merchant's gateway proves that the order is paid by `trade_no`, in a notification that arrives at `at`.
pub(crate) fn paid(order_no: &str, trade_no: &str, at: Timestamp) -> Settle {
    Settle {
        claim: Claim {
            merchant: "1002".into(),
            order_no: order_no.into(),
            trade_no: Some(trade_no.into()),
            amount: Some(Amount::from_fen(3600).expect("a price")),
            payment: PaymentState::Paid,
            param: None,
            proof: ClaimProof::Signature,
        },
        source: SettledBy::Notify,
        policy: Policy { late: LatePolicy::Credit, can_ask: false },
        receipt: receipt(at),
    }
}

/// A notification as it arrived at `at`.
pub(crate) fn receipt(at: Timestamp) -> Receipt {
    Receipt { received_at: at, client: Some([203, 0, 113, 7].into()), method: "GET", payload: b"a=1&b=%FF".to_vec() }
}
