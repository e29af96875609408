//! What a person decides about an order: its gateway is asked first, and later payments find their order settled.

use serde_json::{Value, json};

use crate::gateway::Shop;
use crate::support::*;

fn settle(order: &str) -> [&str; 6] {
    ["orders", "settle", order, "--reason", "the bank says so", "--json"]
}

fn with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

fn outcomes(sandbox: &Sandbox, outcome: &str) -> i64 {
    sandbox.count(&format!("SELECT count(*) FROM receipts WHERE outcome = '{outcome}'"))
}

fn adopted(sandbox: &Sandbox) -> i64 {
    sandbox.count("SELECT count(*) FROM receipts WHERE alert = 'adopted'")
}

impl Shop {
    /// Has the gateway send its callback; what it was answered.
    fn callback(&self, order: &str) -> Value {
        self.gateway.json("/simulate/callback", &format!("out_trade_no={order}"))["answer"].clone()
    }

    fn trade_no(&self, order: &str) -> String {
        self.gateway.order(order)["trade_no"].as_str().unwrap().to_owned()
    }
}

#[test]
fn the_payment_of_an_order_that_was_settled_by_hand_becomes_its_own_once() {
    let shop = Shop::open(&["--fault", "never"], "", "");
    let service = shop.serve();
    let order = shop.sandbox.order(1001);
    let settled = shop.sandbox.json(&with(&settle(&order), &["--force"]));
    assert_eq!((&settled["settled_by"], &settled["trade_no"]), (&json!("manual"), &Value::Null));
    assert_eq!(shop.sandbox.credits(1001), 70);

    shop.gateway.pay(&order);
    let other_amount = Notification::of(&order).with("trade_no", "TOTHER").with("money", "35.99");
    assert_eq!(service.notify(&other_amount.form()).1, "success");
    assert_eq!(outcomes(&shop.sandbox, "paid_again"), 1, "only the exact amount is adopted");
    assert_eq!(shop.callback(&order), "success");
    assert_eq!((outcomes(&shop.sandbox, "duplicate"), adopted(&shop.sandbox)), (1, 1));
    let shown = shop.show(&order);
    assert_eq!(shown["trade_no"], shop.trade_no(&order));
    assert_eq!((&shown["settled_by"], &shown["paid_at"]), (&json!("manual"), &settled["paid_at"]));
    // The same again is a plain duplicate, and another payment is one too many.
    assert_eq!(shop.callback(&order), "success");
    assert_eq!((outcomes(&shop.sandbox, "duplicate"), adopted(&shop.sandbox)), (2, 1));
    assert_eq!(service.notify(&Notification::of(&order).form()).1, "success");
    assert_eq!((outcomes(&shop.sandbox, "paid_again"), shop.sandbox.credits(1001)), (2, 70));
    let acknowledge = ["orders", "acknowledge", &order, "--reason", "sent back", "--json"];
    shop.sandbox.json(&acknowledge);
    assert_eq!(shop.sandbox.run(&["audit"]).code, 0);
    let told = shop.sandbox.run(&["explain", &order]).stdout;
    assert!(told.contains("认领"), "{told}");
}

#[test]
fn money_that_came_another_way_leaves_nothing_to_adopt() {
    let shop = Shop::open(&["--fault", "never"], "", "");
    let _service = shop.serve();
    let order = shop.sandbox.order(1001);
    let settled = shop.sandbox.json(&with(&settle(&order), &["--paid-outside"]));
    assert_eq!(settled["status"], "paid");
    assert_eq!(shop.gateway.order(&order)["queries"], 0, "the gateway is not asked");
    shop.gateway.pay(&order);
    assert_eq!(shop.callback(&order), "success");
    assert_eq!((outcomes(&shop.sandbox, "paid_again"), adopted(&shop.sandbox)), (1, 0));
    assert_eq!((&shop.show(&order)["trade_no"], shop.sandbox.credits(1001)), (&Value::Null, 70));
    assert_eq!(shop.sandbox.run(&["audit"]).code, 10);
    // The gateway knows of a payment of this order, and it is not the one that the refund is about.
    let refund = ["orders", "refund", &order, "--reason", "x", "--json"];
    let refused = shop.sandbox.run(&refund);
    assert!(refused.code == 1 && refused.stderr.contains("--by-hand"), "{refused:?}");
    assert_eq!(shop.gateway.query(&order)["status"].as_str(), Some("1"), "the gateway was not asked for it");
    assert_eq!((shop.sandbox.status(&order).as_str(), shop.sandbox.credits(1001)), ("paid", 70));
    let by_hand = shop.sandbox.json(&with(&refund, &["--by-hand"]));
    assert_eq!((&by_hand["order"]["status"], shop.sandbox.credits(1001)), (&json!("refunded"), 0));
    let both = shop.sandbox.run(&with(&settle(&order), &["--paid-outside", "--trade-no", "T1"]));
    assert_eq!(both.code, 2, "{both:?}");
}

#[test]
fn an_order_is_settled_by_hand_against_the_gateways_word_only_by_force() {
    let shop = Shop::open(&["--fault", "never"], "", "");
    let keep_back = |order: &str, state: &str| {
        let form = format!("out_trade_no={order}&state={state}");
        assert_eq!(shop.gateway.post("/simulate/keep-back", &form).status, 200);
    };
    let refund = |order: &str| {
        let form = format!("pid={PID}&key={KEY}&out_trade_no={order}&money=36.00");
        assert_eq!(shop.gateway.json("/api.php?act=refund", &form)["code"], 0);
    };
    for (user, said) in [(1001, "unpaid"), (1002, "refunded"), (1003, "frozen"), (1004, "pre_authorised")] {
        let order = shop.sandbox.order(user);
        match said {
            "unpaid" => {}
            "refunded" => {
                shop.gateway.pay(&order);
                refund(&order);
            }
            state => keep_back(&order, state),
        }
        let refused = shop.sandbox.run(&settle(&order));
        assert_eq!(refused.code, 1, "{said}: {refused:?}");
        assert!(refused.stderr.contains(said) && refused.stderr.contains("--force"), "{said}: {refused:?}");
        // Money that went back is something to look at.
        let status = if said == "refunded" { "review" } else { "pending" };
        assert_eq!((shop.sandbox.status(&order).as_str(), shop.sandbox.credits(user)), (status, 0), "{said}");
        // A number that somebody types is a note: anybody could have made it up.
        let forced = shop.sandbox.json(&with(&settle(&order), &["--force", "--trade-no", "TYPED"]));
        assert_eq!((&forced["status"], &forced["trade_no"]), (&json!("paid"), &Value::Null), "{said}");
        assert_eq!(shop.sandbox.credits(user), 70, "{said}");
    }
    let notes = "SELECT count(*) FROM receipts WHERE source = 'manual' AND CAST(payload AS TEXT) LIKE '%TYPED%'";
    assert_eq!(shop.sandbox.count(notes), 4);
    assert_eq!(shop.sandbox.run(&["audit"]).code, 0);
}

#[test]
fn an_order_that_the_gateway_calls_paid_is_settled_as_paid_by_that_payment() {
    let shop = Shop::open(&["--fault", "never"], "", "");
    let _service = shop.serve();
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    let settled = shop.sandbox.json(&settle(&order));
    assert_eq!(
        (&settled["settled_by"], settled["trade_no"].as_str()),
        (&json!("manual"), Some(&*shop.trade_no(&order)))
    );
    assert_eq!(shop.callback(&order), "success");
    assert_eq!((outcomes(&shop.sandbox, "duplicate"), adopted(&shop.sandbox)), (1, 0));
    assert_eq!(shop.sandbox.run(&["audit"]).code, 0);
}

#[test]
fn of_several_payments_that_wait_a_person_chooses_one_and_the_others_are_too_many() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    for (trade_no, money) in [("TA", "35.99"), ("TB", "36.00"), ("TB", "36.00")] {
        let form = Notification::of(&order).with("trade_no", trade_no).with("money", money).form();
        assert_eq!(service.notify(&form), (200, "fail".into()));
    }
    for more in [&[][..], &["--trade-no", "TC"]] {
        let refused = sandbox.run(&with(&settle(&order), more));
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(["TA", "TB", "--trade-no"].iter().all(|word| refused.stderr.contains(word)), "{refused:?}");
    }
    assert_eq!((sandbox.status(&order).as_str(), sandbox.credits(1001)), ("review", 0));
    let settled = sandbox.json(&with(&settle(&order), &["--trade-no", "TB"]));
    assert_eq!((&settled["trade_no"], &settled["review_reason"]), (&json!("TB"), &Value::Null));
    assert_eq!(sandbox.credits(1001), 70);
    let audit = sandbox.json_of(&["audit", "--json"], 10);
    assert!(audit.to_string().contains(&format!("{order} TA")), "{audit}");
    assert_eq!(service.notify(&Notification::of(&order).with("trade_no", "TB").form()).1, "success");
    let acknowledged = sandbox.json(&["orders", "acknowledge", &order, "--reason", "sent back", "--json"]);
    assert_eq!(acknowledged["trade_nos"], json!(["TA"]));
    assert_eq!(sandbox.run(&["audit"]).code, 0);
}

/// Money for such an order would need a person, so nobody is sent to pay it.
#[test]
fn an_order_that_cannot_be_paid_any_more_has_no_pay_link() {
    let shop = Shop::open(&[], "", "");
    let service = shop.serve();
    let [paid, cancelled, refunded, review, open] = [1, 2, 3, 4, 5].map(|user| shop.sandbox.order(user));
    for order in [&paid, &refunded] {
        shop.gateway.pay(order);
        wait_until("paid", || shop.sandbox.status(order) == "paid");
    }
    shop.sandbox.json(&["orders", "cancel", &cancelled, "--reason", "x", "--json"]);
    shop.sandbox.json(&["orders", "refund", &refunded, "--reason", "x", "--json"]);
    service.notify(&Notification::of(&review).with("money", "1.00").form());
    for (order, status) in [(&paid, "paid"), (&cancelled, "cancelled"), (&refunded, "refunded"), (&review, "review")] {
        let shown = shop.show(order);
        assert_eq!((shown["status"].as_str(), &shown["pay_url"]), (Some(status), &Value::Null));
        let page = format!("http://{}/", shop.gateway.address);
        let printed = shop.sandbox.run(&["orders", "show", order]).stdout;
        assert!(!printed.contains(&page), "{printed}");
    }
    assert!(shop.show(&open)["pay_url"].is_string());
}
