//! The service and the commands with a gateway: pay links, lost callbacks, proof by query, refunds.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::simulated_gateway::Gateway;
use crate::support::*;

/// A gateway, and a service whose first merchant has its account there.
pub struct Shop {
    pub sandbox: Sandbox,
    pub gateway: Gateway,
    merchant: &'static str,
    more: &'static str,
}

/// Asks soon and often, as no real service would.
pub const EAGER: &str =
    "[reconcile]\nschedule_s = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 60, 120]\nper_minute = 6000\nconcurrency = 16\n";

impl Shop {
    pub fn open(options: &[&str], merchant: &'static str, more: &'static str) -> Self {
        let sandbox = Sandbox::new();
        let gateway = Gateway::start(&sandbox, options);
        let shop = Self { sandbox, gateway, merchant, more };
        shop.configure("127.0.0.1:0", "127.0.0.1:9");
        shop
    }

    fn configure(&self, listen: &str, address: &str) {
        let Self { gateway, merchant, more, .. } = self;
        let host = gateway.address;
        self.sandbox.configure(&format!(
            "listen = \"{listen}\"\n[[merchant]]\npid = \"{PID}\"\nkey = \"{KEY}\"\nsandbox = true\ngateway_url = \"http://{host}/\"\n\
             notify_url = \"http://{address}/payment/notify\"\nreturn_url = \"http://{address}/payment/return\"\n{merchant}\n\
             [[package]]\nid = \"silver\"\nname = \"VIP白银\"\nprice = \"36.00\"\ncredits = 70\n{more}"
        ));
    }

    /// A running service, to which the gateway sends its callbacks; started again, it has the same port.
    pub fn serve(&self) -> Service {
        let service = self.sandbox.serve();
        let address = service.address.to_string();
        self.configure(&address, &address);
        service
    }

    pub fn faults(&self, form: &str) {
        assert_eq!(self.gateway.post("/simulate/faults", form).status, 200);
    }

    pub fn show(&self, order: &str) -> Value {
        self.sandbox.json(&["orders", "show", order, "--json"])
    }
}

#[test]
fn an_order_gets_a_pay_link_from_its_gateway() {
    let shop = Shop::open(&[], "", "");
    let order = shop.sandbox.order(1001);
    let url = shop.show(&order)["pay_url"].as_str().unwrap().to_owned();
    let page = url.strip_prefix(&format!("http://{}", shop.gateway.address)).expect(&url);
    assert!(shop.gateway.get(page).body.contains("36.00"));
    assert_eq!(shop.gateway.order(&order)["money"], "36.00");
    let shown = shop.sandbox.run(&["orders", "show", &order]);
    assert!(shown.stdout.contains(&url), "{shown:?}");
}

#[test]
fn without_an_answer_the_order_is_there_and_its_link_leads_to_the_gateways_own_page() {
    let shop = Shop::open(&["--fault", "error-500"], "", "");
    let created = shop.sandbox.run(&["orders", "create", "--telegram-id", "1001", "--package", "silver", "--json"]);
    assert_eq!(created.code, 0, "{created:?}");
    assert!(created.stderr.contains("submit.php") || !created.stderr.is_empty(), "{created:?}");
    let order: Value = serde_json::from_str(&created.stdout).unwrap();
    let url = order["pay_url"].as_str().unwrap();
    let link = url.strip_prefix(&format!("http://{}", shop.gateway.address)).expect(url);
    assert!(link.starts_with("/submit.php?"), "{link}");
    assert!(!url.contains(KEY));
    shop.faults("");
    assert!(shop.gateway.get(link).body.contains("36.00"), "the gateway believes the signature");
}

#[test]
fn an_offline_link_asks_nobody() {
    let shop = Shop::open(&[], "pay_page = \"link\"", "");
    let order = shop.sandbox.order(1001);
    assert!(shop.show(&order)["pay_url"].as_str().unwrap().contains("/submit.php?"));
    assert_eq!(shop.gateway.get("/simulate/orders").body.trim(), "[]");
}

#[test]
fn an_order_paid_without_any_callback_is_credited_by_reconciliation() {
    let shop = Shop::open(&["--fault", "never"], "", EAGER);
    let _service = shop.serve();
    let (paid, unpaid) = (shop.sandbox.order(1001), shop.sandbox.order(1002));
    shop.gateway.pay(&paid);
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    let order = shop.show(&paid);
    assert_eq!((&order["settled_by"], &order["status"]), (&json!("reconcile"), &json!("paid")));
    assert_eq!(
        shop.sandbox.count("SELECT count(*) FROM receipts WHERE source = 'reconcile' AND outcome = 'settled'"),
        1
    );
    assert_eq!(shop.sandbox.count("SELECT count(*) FROM outbox WHERE kind = 'settled'"), 1);
    // A late callback changes nothing.
    let late = shop.gateway.json("/simulate/callback", &format!("out_trade_no={paid}"));
    assert_eq!(late["answer"], "success");
    assert_eq!((shop.sandbox.credits(1001), shop.sandbox.status(&unpaid).as_str()), (70, "pending"));
    let kept = fs::read(shop.sandbox.database_file()).unwrap();
    assert!(!kept.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "the key is not kept");
    assert!(!shop.sandbox.log().contains(KEY));
}

#[test]
fn what_was_paid_while_the_service_was_down_is_found_at_once() {
    // Nothing else of the schedule comes within the test's patience.
    let shop = Shop::open(&["--fault", "never"], "", "[reconcile]\nschedule_s = [1, 86400]\n");
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    let due = "SELECT count(*) FROM reconciliation WHERE due_at_ms < unixepoch() * 1000";
    wait_until("due", || shop.sandbox.count(due) == 1);
    let _service = shop.serve();
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
}

#[test]
fn a_gateway_that_lies_or_fails_costs_nothing_but_another_question() {
    let shop = Shop::open(&["--fault", "never", "--slow", "0.1"], "", EAGER);
    let _service = shop.serve();
    for (paid, fault) in
        [(true, "lie-pid"), (false, "lie-status"), (true, "error-500"), (true, "reset"), (true, "rate-limit")]
    {
        shop.faults("");
        let order = shop.sandbox.order(1001);
        shop.faults(&format!("fault=never&fault={fault}"));
        if paid {
            shop.gateway.pay(&order);
        }
        let answers = format!(
            "SELECT count(*) FROM answers JOIN orders ON orders.id = order_id WHERE order_no = '{order}' AND answer <> 'unpaid'"
        );
        wait_until(fault, || shop.sandbox.count(&answers) > 0);
        assert_eq!(shop.sandbox.status(&order), "pending", "{fault}");
        if !paid {
            shop.gateway.pay(&order);
        }
        if fault == "rate-limit" {
            // The gateway wants to be left alone for a while: the callback comes first.
            shop.gateway.json("/simulate/callback", &format!("out_trade_no={order}"));
        }
        shop.faults("fault=never");
        wait_until(fault, || shop.sandbox.status(&order) == "paid");
    }
    assert_eq!(shop.sandbox.credits(1001), 5 * 70);
}

#[test]
fn the_command_reconciles_now_and_tells_what_it_found() {
    let shop = Shop::open(&["--fault", "never"], "", "");
    let (paid, _unpaid) = (shop.sandbox.order(1001), shop.sandbox.order(1002));
    let nothing = shop.sandbox.json(&["reconcile", "--json"]);
    assert_eq!(nothing, json!({ "asked": 2, "dry_run": false, "findings": { "unpaid": 2 }, "orders": [] }));
    shop.gateway.pay(&paid);
    let dry = shop.sandbox.json_of(&["reconcile", "--dry-run", "--json"], 10);
    assert_eq!(dry["orders"], json!([{ "finding": "paid", "order_no": paid }]));
    assert_eq!(shop.sandbox.credits(1001), 0);
    let found = shop.sandbox.run(&["reconcile", "--since", "1h"]);
    assert_eq!(found.code, 10, "{found:?}");
    assert!(found.stdout.contains(&paid), "{found:?}");
    assert_eq!(shop.sandbox.credits(1001), 70);
    assert_eq!(shop.sandbox.run(&["reconcile"]).code, 0);
    let bad = shop.sandbox.run(&["reconcile", "--since", "yesterday"]);
    assert_eq!(bad.code, 2, "{bad:?}");
    shop.faults("fault=error-500");
    assert_eq!(shop.sandbox.run(&["reconcile"]).code, 1);
}

#[test]
fn a_callback_counts_only_with_the_gateways_own_word_where_the_merchant_wants_it() {
    for proof in ["proof = \"signature+query\"", "proof = \"query\""] {
        let shop = Shop::open(&["--fault", "never"], proof, EAGER);
        let service = shop.serve();
        let order = shop.sandbox.order(1001);
        // Signed well, perhaps by somebody who has the key: the gateway knows better.
        let (_, body) = service.notify(&Notification::of(&order).form());
        assert_eq!((body.as_str(), shop.sandbox.credits(1001)), ("fail", 0), "{proof}");
        assert_eq!(shop.sandbox.count("SELECT count(*) FROM receipts WHERE outcome = 'unconfirmed'"), 1, "{proof}");
        shop.gateway.pay(&order);
        let (_, body) = service.notify(&Notification::of(&order).form());
        // Reconciliation may have been first, with the gateway's number of the payment.
        assert_eq!(body, "success", "{proof}");
        assert_eq!(shop.sandbox.credits(1001), 70, "{proof}");
        let (_, body) = service.notify(&Notification::of("NOSUCHORDER").form());
        assert_eq!(body, "fail");
    }
}

#[test]
fn a_gateway_that_does_not_answer_leaves_the_job_to_reconciliation() {
    let shop = Shop::open(&["--fault", "never", "--slow", "30"], "proof = \"signature+query\"", EAGER);
    let service = shop.serve();
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    shop.faults("fault=never&fault=slow");
    let (_, body) = service.notify(&Notification::of(&order).form());
    assert_eq!(body, "fail");
    assert_eq!(shop.sandbox.count("SELECT count(*) FROM receipts WHERE outcome = 'unconfirmed'"), 1);
    shop.faults("fault=never");
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
}

#[test]
fn a_buyer_who_comes_back_has_the_gateway_asked() {
    let shop = Shop::open(&["--fault", "never"], "", "[reconcile]\nschedule_s = [86400]\n");
    let service = shop.serve();
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    let page = format!("/payment/return?{}", Notification::of(&order).form());
    assert_eq!(service.get(&page).status, 200);
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    // Nobody who comes with a wrong signature causes a question.
    let other = shop.sandbox.order(1002);
    let queries = || shop.gateway.order(&other)["queries"].as_u64();
    service.get(&format!("/payment/return?{}", Notification::of(&other).form_with_sign(&"0".repeat(32))));
    service.get(&format!("/payment/return?{}", Notification::of(&order).form()));
    assert_eq!(queries(), Some(0));
}

#[test]
fn small_amounts_may_be_settled_by_the_signature_alone() {
    let shop = Shop::open(&["--fault", "never"], "proof = \"signature+query\"\nquery_above = \"36.00\"", "");
    let service = shop.serve();
    let order = shop.sandbox.order(1001);
    let (_, body) = service.notify(&Notification::of(&order).form());
    assert_eq!((body.as_str(), shop.sandbox.credits(1001)), ("success", 70));
}

#[test]
fn where_callbacks_are_hints_even_a_forged_one_makes_us_ask_and_never_credits() {
    let more = "[reconcile]\nschedule_s = [86400]\n";
    let shop = Shop::open(&["--fault", "never"], "proof = \"query\"", more);
    let service = shop.serve();
    let (paid, unpaid) = (shop.sandbox.order(1001), shop.sandbox.order(1002));
    shop.gateway.pay(&paid);
    for order in [&paid, &unpaid] {
        let (_, body) = service.notify(&Notification::of(order).form_with_sign(&"0".repeat(32)));
        assert_eq!(body, "fail");
    }
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    wait_until("asked", || shop.gateway.order(&unpaid)["queries"].as_u64() > Some(0));
    assert_eq!(shop.sandbox.credits(1002), 0);
}

#[test]
fn a_refund_goes_through_the_gateway_and_takes_the_credits_back_once() {
    let shop = Shop::open(&[], "", "");
    let service = shop.serve();
    let order = shop.sandbox.order(1001);
    let refund = ["orders", "refund", &order, "--reason", "unhappy", "--json"];
    assert_eq!(shop.sandbox.run(&refund).code, 1, "not paid yet");
    shop.gateway.pay(&order);
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    let done = shop.sandbox.json(&refund);
    assert_eq!((&done["credits"], &done["proved"]), (&json!(0), &json!(true)), "{done}");
    assert_eq!(done["order"]["status"], "refunded");
    assert_eq!(shop.gateway.query(&order)["status"].as_str(), Some("2"));
    let again = shop.sandbox.run(&refund);
    assert_eq!(again.code, 1, "{again:?}");
    assert_eq!(shop.gateway.wait_for_events("refund", &order, 1).len(), 1, "nothing was sent twice");
    assert_eq!(shop.sandbox.count("SELECT count(*) FROM ledger WHERE kind = 'refund'"), 1);
    assert_eq!(shop.sandbox.count("SELECT count(*) FROM outbox WHERE kind = 'refunded'"), 1);
    // A replayed callback credits nothing.
    let replayed = shop.gateway.json("/simulate/callback", &format!("out_trade_no={order}"));
    assert_eq!((&replayed["answer"], shop.sandbox.credits(1001)), (&json!("success"), 0));
    drop(service);
}

#[test]
fn a_refund_whose_answer_was_lost_is_finished_by_asking_first() {
    let shop = Shop::open(&[], "", "");
    let _service = shop.serve();
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    // The gateway gives the money back, and its answer is lost.
    shop.faults("fault=reset");
    let refund = ["orders", "refund", &order, "--reason", "unhappy", "--json"];
    let unclear = shop.sandbox.run(&refund);
    assert_eq!((unclear.code, shop.sandbox.credits(1001)), (1, 70), "{unclear:?}");
    assert_eq!(shop.sandbox.count("SELECT count(*) FROM refunds WHERE state = 'unclear'"), 1);
    shop.faults("");
    let done = shop.sandbox.json(&refund);
    assert_eq!((&done["credits"], &done["proved"]), (&json!(0), &json!(true)), "{done}");
    assert_eq!(shop.gateway.wait_for_events("refund", &order, 1).len(), 1);
}

#[test]
fn what_was_spent_is_not_refunded_by_mistake() {
    let shop = Shop::open(&[], "", "");
    let _service = shop.serve();
    let order = shop.sandbox.order(1001);
    shop.gateway.pay(&order);
    wait_until("credited", || shop.sandbox.credits(1001) == 70);
    shop.sandbox.run(&["users", "grant", "1001", "-50", "--reason", "spent"]);
    let refused = shop.sandbox.run(&["orders", "refund", &order, "--reason", "x"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert_eq!(shop.gateway.query(&order)["status"].as_str(), Some("1"), "the gateway was not asked");
    let forced = shop.sandbox.json(&["orders", "refund", &order, "--reason", "x", "--even-if-spent", "--json"]);
    assert_eq!(forced["credits"], -50);
}

#[test]
fn a_person_settles_or_cancels_what_is_in_review() {
    let shop = Shop::open(&["--fault", "never"], "", "");
    let service = shop.serve();
    let orders = [shop.sandbox.order(1001), shop.sandbox.order(1002)];
    for order in &orders {
        service.notify(&Notification::of(order).with("money", "35.99").form());
        assert_eq!(shop.sandbox.status(order), "review");
    }
    // The gateway knows of no payment.
    let settled = shop.sandbox.json(&["orders", "settle", &orders[0], "--reason", "one fen", "--force", "--json"]);
    assert_eq!((&settled["settled_by"], &settled["status"]), (&json!("manual"), &json!("paid")));
    assert_eq!(shop.sandbox.credits(1001), 70);
    let (_, body) = service.notify(&Notification::of(&orders[0]).with("money", "35.99").form());
    assert_eq!(
        (body.as_str(), shop.sandbox.credits(1001)),
        ("success", 70),
        "a duplicate of the payment that was settled"
    );
    assert_eq!(shop.sandbox.run(&["orders", "settle", &orders[0], "--reason", "again"]).code, 1);
    let cancelled = shop.sandbox.json(&["orders", "cancel", &orders[1], "--reason", "fraud", "--json"]);
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(shop.sandbox.credits(1002), 0);
    assert_eq!(shop.sandbox.run(&["orders", "settle", &orders[1], "--reason", " "]).code, 2, "a reason is needed");
}

/// A V2 merchant's whole life at the gateway: everything asked and answered is signed.
#[test]
fn a_v2_merchant_is_served_as_well() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys");
    let sandbox = Sandbox::new();
    let configure = |listen: &str, gateway: &str| {
        sandbox.configure(&format!(
            "listen = \"{listen}\"\n[[merchant]]\npid = \"{PID}\"\nprotocol = \"v2\"\nproof = \"signature+query\"\n\
             platform_public_key_file = \"{keys}/v2_platform_public.pem\"\n\
             private_key_file = \"{keys}/v2_merchant_private.pem\"\ngateway_url = \"http://{gateway}/\"\n\
             notify_url = \"http://{listen}/payment/notify\"\nreturn_url = \"http://{listen}/payment/return\"\n\
             [[package]]\nid = \"silver\"\nname = \"VIP白银\"\nprice = \"36.00\"\ncredits = 70\n{EAGER}"
        ));
    };
    configure("127.0.0.1:0", "127.0.0.1:9");
    let platform_key = format!("{keys}/v2_platform_private.pem");
    let gateway = Gateway::start(&sandbox, &["--platform-private-key-file", &platform_key]);
    let address = gateway.address.to_string();
    configure("127.0.0.1:0", &address);
    let service = sandbox.serve();
    configure(&service.address.to_string(), &address);

    let (called_back, lost, cancelled) = (sandbox.order(1001), sandbox.order(1002), sandbox.order(1003));
    let url = sandbox.json(&["orders", "show", &called_back, "--json"])["pay_url"].as_str().unwrap().to_owned();
    assert!(url.starts_with(&format!("http://{address}/")), "{url}");
    gateway.pay(&called_back);
    wait_until("credited", || sandbox.credits(1001) == 70);
    assert_eq!(gateway.post("/simulate/faults", "fault=never").status, 200);
    gateway.pay(&lost);
    wait_until("reconciled", || sandbox.credits(1002) == 70);
    sandbox.json(&["orders", "cancel", &cancelled, "--reason", "changed their mind", "--json"]);
    assert_eq!(
        gateway.post("/simulate/pay", &format!("out_trade_no={cancelled}")).status,
        409,
        "closed at the gateway"
    );
    let refunded = sandbox.json(&["orders", "refund", &called_back, "--reason", "unhappy", "--json"]);
    assert_eq!((&refunded["credits"], &refunded["proved"]), (&json!(0), &json!(true)), "{refunded}");
}

/// Two hundred orders, most of them paid, at a gateway where everything goes wrong now and then, and a service that is killed.
#[test]
fn every_paid_order_is_credited_once_whatever_goes_wrong() {
    const ORDERS: usize = 200;
    let shop = Shop::open(&["--fault", "all=0.15", "--slow", "0.2"], "", EAGER);
    let mut service = shop.serve();
    shop.faults("");
    let orders: Vec<String> = (0..ORDERS).map(|n| shop.sandbox.order(5000 + i64::try_from(n).unwrap())).collect();
    shop.faults("fault=all%3D0.15");
    let is_paid = |n: usize| !n.is_multiple_of(5);
    for (n, order) in orders.iter().enumerate() {
        if is_paid(n) {
            shop.gateway.pay(order);
        }
        if n % (ORDERS / 5) == ORDERS / 10 {
            service.signal(Signal::SIGKILL);
            service.wait();
            service = shop.sandbox.serve();
        }
    }
    let paid = orders.iter().enumerate().filter(|(n, _)| is_paid(*n)).count();
    let count = |sql: &str| usize::try_from(shop.sandbox.count(sql)).unwrap();
    wait_until("most are through", || count("SELECT count(*) FROM orders WHERE status <> 'pending'") > paid * 3 / 4);
    // Then the gateway recovers, as they do.
    shop.faults("fault=never");
    // A wrong amount puts an order before a person, as it should; all else ends paid.
    let open = "SELECT count(*) FROM orders WHERE status = 'pending'";
    wait_until("all are through", || count(open) == ORDERS - paid);
    for (n, order) in orders.iter().enumerate() {
        let status = shop.sandbox.status(order);
        let in_review = status == "review";
        if in_review {
            shop.sandbox.json(&["orders", "settle", order, "--reason", "the gateway's panel says paid", "--json"]);
        }
        assert_eq!(status == "paid" || in_review, is_paid(n), "{order}: {status}");
        let credits = if is_paid(n) { 70 } else { 0 };
        assert_eq!(shop.sandbox.credits(5000 + i64::try_from(n).unwrap()), credits, "{order}");
    }
    assert_eq!(count("SELECT count(*) FROM ledger WHERE kind = 'order'"), paid);
}
