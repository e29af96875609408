//! Decisions of people and answers of gateways about orders.

use super::*;
use crate::domain::decisions::Refused;
use crate::domain::order::{Hold, PaymentState};

fn by_hand(order_no: &str) -> ByHand {
    ByHand { order_no: order_no.into(), reason: "because".into(), at: Timestamp::from_ms(NOW + 500) }
}

/// The gateway's answer about order A1 that puts it on hold.
fn refusal(error: DecisionError) -> Refused {
    match error {
        DecisionError::Refused { refused, .. } => refused,
        other => panic!("{other:?}"),
    }
}

fn answered(hold: Hold) -> Answered {
    Answered {
        order_no: "A1".into(),
        at: Timestamp::from_ms(NOW),
        cause: Cause::Reconcile,
        answer: hold.name().into(),
        detail: String::new(),
        hold: Some(hold),
    }
}

#[tokio::test]
async fn an_order_settled_by_hand_gets_the_number_of_its_one_payment_and_keeps_the_rest() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    store.create_order(new_order("A1", 1001)).await.unwrap();
    let before = store.settle_by_hand(by_hand("A1"), PaymentOfDecision::default()).await.unwrap();
    assert_eq!((before.trade_no.as_deref(), before.settled_by), (None, Some(SettledBy::Manual)));
    for (trade_no, outcome) in [("T1", Outcome::Duplicate), ("T1", Outcome::Duplicate), ("T2", Outcome::PaidAgain)] {
        assert_eq!(store.settle(settle("A1", trade_no)).await.unwrap().outcome, outcome, "{trade_no}");
    }
    let after = store.order("A1").await.unwrap().unwrap();
    assert_eq!(after.trade_no.as_deref(), Some("T1"));
    assert_eq!((after.settled_by, after.paid_at), (before.settled_by, before.paid_at));
    assert_eq!(store.user(1001).await.unwrap().unwrap().credits, 70);
    // The payment is this order's now, and settles no other.
    store.create_order(new_order("A2", 1001)).await.unwrap();
    assert_eq!(store.settle(settle("A2", "T1")).await.unwrap().outcome, Outcome::TradeReused);
    assert_eq!(fixture.count("SELECT count(*) FROM receipts WHERE alert = 'adopted'"), 1);
    let trouble = store.trouble(0, i64::MAX).await.unwrap();
    let told: Vec<_> = trouble.iter().map(|trouble| (trouble.kind.name(), trouble.count)).collect();
    assert_eq!(told, [("adopted", 1), ("paid_again", 1), ("trade_reused", 1)]);
    assert_eq!((trouble[0].due, trouble[0].paid), (Amount::from_fen(3600), Amount::from_fen(3600)));
    let DatabaseUrl::Sqlite(path) = url(&fixture.directory);
    let audit = audit::audit(&path, |_, _| ()).unwrap();
    assert!(audit.is_sound(), "{audit:?}");
}

#[tokio::test]
async fn money_that_came_another_way_adopts_nothing() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    store.create_order(new_order("A1", 1001)).await.unwrap();
    let outside = PaymentOfDecision { paid_outside: true, ..PaymentOfDecision::default() };
    assert!(store.settle_by_hand(by_hand("A1"), outside).await.unwrap().paid_outside);
    assert_eq!(store.settle(settle("A1", "T1")).await.unwrap().outcome, Outcome::PaidAgain);
    assert_eq!(store.order("A1").await.unwrap().unwrap().trade_no, None);
}

#[tokio::test]
async fn a_person_chooses_among_proved_payments_and_what_they_type_beside_is_a_note() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    for (order_no, trade_nos) in [("A1", &["T1", "T2"][..]), ("A2", &["T3"]), ("A3", &[])] {
        store.create_order(new_order(order_no, 1001)).await.unwrap();
        for trade_no in trade_nos {
            let mut wrong = settle(order_no, trade_no);
            wrong.claim.amount = Amount::from_fen(1);
            assert_eq!(store.settle(wrong).await.unwrap().outcome, Outcome::AmountMismatch);
        }
    }
    let typed = |trade_no: &str| PaymentOfDecision { typed: Some(trade_no.into()), ..PaymentOfDecision::default() };
    let refused = store.settle_by_hand(by_hand("A1"), PaymentOfDecision::default()).await.unwrap_err();
    assert_eq!(refusal(refused), Refused::ChoosePayment { trade_nos: vec!["T1".into(), "T2".into()] });
    let refused = store.settle_by_hand(by_hand("A1"), typed("T9")).await.unwrap_err();
    assert!(matches!(refusal(refused), Refused::ChoosePayment { .. }));
    assert_eq!(store.settle_by_hand(by_hand("A1"), typed("T1")).await.unwrap().trade_no.as_deref(), Some("T1"));
    let trouble = store.trouble(0, i64::MAX).await.unwrap();
    let second = trouble.iter().find(|trouble| trouble.kind.name() == "paid_again").unwrap();
    assert_eq!((second.due, second.paid), (Amount::from_fen(3600), Amount::from_fen(1)), "an alert tells both");
    assert_eq!(store.acknowledge(by_hand("A1"), None).await.unwrap(), ["T2"], "the other one is a second payment");
    let known = store.settle_by_hand(by_hand("A2"), PaymentOfDecision::default()).await.unwrap();
    assert_eq!(known.trade_no.as_deref(), Some("T3"));
    let taken = store.settle_by_hand(by_hand("A3"), typed("T1")).await.unwrap_err();
    assert!(matches!(refusal(taken), Refused::TradeReused { .. }));
    assert_eq!(store.settle_by_hand(by_hand("A3"), typed("T9")).await.unwrap().trade_no, None);
    assert_eq!(fixture.count("SELECT count(*) FROM receipts WHERE payload = CAST('because [trade_no T9]' AS BLOB)"), 1);
}

#[tokio::test]
async fn the_gateways_answer_holds_an_order_until_the_gateway_says_paid() {
    for (hold, outcome) in [(Hold::Frozen, Outcome::Unconfirmed), (Hold::Refunded, Outcome::Held)] {
        let fixture = Fixture::new().await;
        let store = &fixture.store;
        store.create_order(new_order("A1", 1001)).await.unwrap();
        store.keep_answer(answered(hold)).await.unwrap();
        let mut callback = settle("A1", "T1");
        callback.policy.can_ask = true;
        assert_eq!(store.settle(callback.clone()).await.unwrap().outcome, outcome);
        callback.claim.proof = ClaimProof::Gateway;
        let own_word = store.settle(callback).await.unwrap().outcome;
        assert_eq!(own_word, if hold == Hold::Frozen { Outcome::Settled } else { Outcome::Held });
    }
}

/// Another program may write the number of an adopted payment, and change nothing else.
#[tokio::test]
async fn the_schema_lets_a_settlement_change_only_by_an_adoption() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    for order_no in ["PAID", "HAND", "OUTSIDE"] {
        store.create_order(new_order(order_no, 1001)).await.unwrap();
    }
    store.settle(settle("PAID", "T1")).await.unwrap();
    store.settle_by_hand(by_hand("HAND"), PaymentOfDecision::default()).await.unwrap();
    let outside = PaymentOfDecision { paid_outside: true, ..PaymentOfDecision::default() };
    store.settle_by_hand(by_hand("OUTSIDE"), outside).await.unwrap();
    let change = |order_no: &str, set: &str| {
        fixture.stranger().execute(&format!("UPDATE orders SET {set} WHERE order_no = '{order_no}'"), []).is_ok()
    };
    for (order_no, set) in [
        ("PAID", "trade_no = 'T2'"),
        ("PAID", "trade_no = NULL"),
        ("PAID", "paid_outside = 1"),
        ("OUTSIDE", "trade_no = 'T2'"),
        ("OUTSIDE", "paid_outside = 0"),
        ("HAND", "trade_no = 'T2', paid_at_ms = 5"),
        ("HAND", "trade_no = 'T2', settled_by = 'notify'"),
        ("HAND", "trade_no = 'T1'"),
        ("HAND", "paid_outside = 1"),
    ] {
        assert!(!change(order_no, set), "{order_no}: {set}");
    }
    assert!(change("HAND", "trade_no = 'T2'"));
    assert!(!change("HAND", "trade_no = 'T3'"), "once");
}

#[tokio::test]
async fn a_refunded_payment_does_not_wait_for_a_decision_and_no_answer_undoes_it() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    store.create_order(new_order("A1", 1001)).await.unwrap();
    let mut refunded = settle("A1", "T1");
    (refunded.claim.payment, refunded.claim.proof) = (PaymentState::Refunded, ClaimProof::Gateway);
    assert_eq!(store.settle(refunded).await.unwrap().outcome, Outcome::Held);
    for hold in [Hold::Refunded, Hold::Frozen] {
        store.keep_answer(answered(hold)).await.unwrap();
        assert_eq!(store.order("A1").await.unwrap().unwrap().hold, Some(Hold::Refunded), "{hold}");
    }
    let trouble = store.trouble(0, i64::MAX).await.unwrap();
    assert_eq!(trouble.iter().map(|trouble| trouble.kind.name()).collect::<Vec<_>>(), ["refunded"]);
    let paid = PaymentOfDecision { proved: Some("T2".into()), ..PaymentOfDecision::default() };
    let order = store.settle_by_hand(by_hand("A1"), paid).await.unwrap();
    assert_eq!(order.trade_no.as_deref(), Some("T2"), "nothing to choose: T1 has gone back");
    assert_eq!(refusal(store.acknowledge(by_hand("A1"), None).await.unwrap_err()), Refused::NotPaidAgain);
}
