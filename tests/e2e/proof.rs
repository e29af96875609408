//! The gateway's answers are state: what it said of a payment counts more than a callback that somebody sends again.

use serde_json::{Value, json};

use crate::gateway::Shop;
use crate::support::*;

/// Nothing of the schedule comes within the test's patience.
const NEVER_ASKS: &str = "[reconcile]\nschedule_s = [86400]\n";

fn outcomes(sandbox: &Sandbox, outcome: &str) -> i64 {
    sandbox.count(&format!("SELECT count(*) FROM receipts WHERE outcome = '{outcome}'"))
}

impl Shop {
    fn replay(&self, order: &str) -> Value {
        self.gateway.json("/simulate/callback", &format!("out_trade_no={order}"))["answer"].clone()
    }

    fn keep_back(&self, order: &str, state: &str) {
        let state = if state.is_empty() { String::new() } else { format!("&state={state}") };
        assert_eq!(self.gateway.post("/simulate/keep-back", &format!("out_trade_no={order}{state}")).status, 200);
    }

    fn finding(&self, order: &str, code: i32) -> Value {
        let report = self.sandbox.json_of(&["reconcile", "--json"], code);
        let findings = report["orders"].as_array().unwrap();
        findings.iter().find(|found| found["order_no"] == order).map_or(Value::Null, |found| found["finding"].clone())
    }
}

#[test]
fn a_payment_that_the_gateway_calls_refunded_is_not_credited_by_a_replay() {
    let shop = Shop::open(&["--fault", "never"], "", NEVER_ASKS);
    let _service = shop.serve();
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    let refund = format!("pid={PID}&key={KEY}&out_trade_no={order}&money=36.00");
    assert_eq!(shop.gateway.json("/api.php?act=refund", &refund)["code"], 0);
    assert_eq!(shop.finding(&order, 10), "refunded");
    assert_eq!(shop.replay(&order), "fail");
    let shown = shop.show(&order);
    assert_eq!((&shown["status"], &shown["review_reason"]), (&json!("review"), &json!("refunded")));
    assert_eq!(
        (outcomes(&shop.sandbox, "held"), shop.sandbox.credits(1001)),
        (2, 0),
        "by the answer, and by the replay"
    );
}

#[test]
fn money_that_the_gateway_keeps_back_is_credited_once_it_is_paid() {
    for state in ["frozen", "pre_authorised"] {
        let shop = Shop::open(&["--fault", "never"], "", NEVER_ASKS);
        let _service = shop.serve();
        let order = shop.sandbox.order(1001);
        shop.gateway.pay(&order);
        shop.keep_back(&order, state);
        shop.sandbox.run(&["reconcile"]);
        assert_eq!(shop.sandbox.count(&format!("SELECT count(*) FROM answers WHERE answer = '{state}'")), 1);
        assert_eq!(shop.replay(&order), "fail", "{state}");
        assert_eq!((outcomes(&shop.sandbox, "unconfirmed"), shop.sandbox.status(&order).as_str()), (1, "pending"));
        assert_eq!(shop.sandbox.json(&["explain", &order, "--json"])["verdict"]["code"], "on_hold", "{state}");

        shop.keep_back(&order, "");
        // The replay has caused a question, which may be first.
        shop.sandbox.run(&["reconcile"]);
        wait_until("credited", || shop.sandbox.credits(1001) == 70);
        assert_eq!(shop.replay(&order), "success", "{state}");
        assert_eq!((outcomes(&shop.sandbox, "settled"), shop.sandbox.credits(1001)), (1, 70), "{state}");
        assert_eq!(shop.sandbox.run(&["audit"]).code, 0);
    }
}

#[test]
fn another_amount_that_only_the_gateway_tells_of_is_put_before_a_person() {
    let shop = Shop::open(&["--fault", "never"], "", NEVER_ASKS);
    let order = shop.sandbox.order(1001);
    assert_eq!(shop.gateway.post("/simulate/pay", &format!("out_trade_no={order}&money=35.00")).status, 200);
    assert_eq!(shop.finding(&order, 10), "amount_mismatch");
    let shown = shop.show(&order);
    assert_eq!((&shown["status"], &shown["review_reason"]), (&json!("review"), &json!("amount")));
    let told = "SELECT count(*) FROM receipts WHERE outcome = 'amount_mismatch' AND source = 'reconcile' AND amount_fen = 3500";
    assert_eq!((shop.sandbox.count(told), shop.sandbox.credits(1001)), (1, 0));
    // The same answer again is no second review.
    assert_eq!(shop.sandbox.count("SELECT count(*) FROM outbox WHERE kind = 'review'"), 1);
}

#[test]
fn a_status_that_nobody_knows_has_the_gateway_asked() {
    let shop = Shop::open(&["--fault", "never"], "", NEVER_ASKS);
    let service = shop.serve();
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    let unclear = Notification::of(&order).with("trade_status", "TRADE_FINISHED").form();
    assert_eq!(service.notify(&unclear), (200, "success".into()));
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    assert_eq!(shop.show(&order)["settled_by"], "reconcile");
}

/// The backup may be older than the order's settlement, its refund, or what a person gave in its place.
#[test]
fn after_a_restore_an_unpaid_order_needs_the_gateways_word() {
    let shop = Shop::open(&["--fault", "never"], "", NEVER_ASKS);
    let order = shop.sandbox.order(1001);
    assert_eq!(shop.sandbox.run(&["backup", "create", "copy"]).code, 0);
    assert_eq!(shop.sandbox.run(&["backup", "restore", "copy"]).code, 0);
    // So that the question after the restore finds nothing.
    let service = shop.serve();
    wait_until("asked", || shop.sandbox.count("SELECT count(*) FROM answers WHERE answer = 'unpaid'") > 0);
    assert_eq!(service.notify(&Notification::of(&order).form()), (200, "fail".into()));
    assert_eq!((outcomes(&shop.sandbox, "unconfirmed"), shop.sandbox.credits(1001)), (1, 0));
    let fresh = shop.sandbox.order(1002);
    assert_eq!(service.notify(&Notification::of(&fresh).form()), (200, "success".into()), "made after the restore");

    shop.gateway.pay(&order);
    shop.sandbox.run(&["reconcile"]);
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    let trade_no = shop.show(&order)["trade_no"].as_str().unwrap().to_owned();
    assert_eq!(service.notify(&Notification::of(&order).with("trade_no", &trade_no).form()), (200, "success".into()));
    assert_eq!((shop.sandbox.credits(1001), shop.sandbox.run(&["audit"]).code), (70, 0));
}

#[test]
fn after_a_restore_a_person_decides_where_no_gateway_can_be_asked() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    assert_eq!(sandbox.run(&["backup", "restore", "copy"]).code, 0);
    let service = sandbox.serve();
    assert_eq!(service.notify(&Notification::of(&order).form()), (200, "fail".into()));
    let shown = sandbox.json(&["orders", "show", &order, "--json"]);
    assert_eq!((&shown["status"], &shown["review_reason"]), (&json!("review"), &json!("too_old")));
    assert_eq!((outcomes(&sandbox, "held"), sandbox.credits(1001)), (1, 0));
    let settled = sandbox.json(&["orders", "settle", &order, "--reason", "the bank says so", "--json"]);
    assert_eq!((&settled["trade_no"], sandbox.credits(1001)), (&json!(format!("T{order}")), 70));
}
