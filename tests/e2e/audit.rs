//! `audit`: the books proved from outside, beside a running service.

use serde_json::{Value, json};

use crate::support::*;

fn check<'a>(audit: &'a Value, name: &str) -> &'a Value {
    audit["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

#[test]
fn books_that_are_right_audit_clean_beside_a_running_service() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let (paid, _pending) = (sandbox.order(1001), sandbox.order(1001));
    assert_eq!(service.notify(&Notification::of(&paid).form()), (200, "success".into()));
    assert_eq!(service.notify(&Notification::of(&paid).form()), (200, "success".into()));

    let audit = sandbox.json(&["audit", "--json"]);
    assert_eq!((&audit["findings"], &audit["orders"], &audit["settled"]), (&json!(0), &json!(2), &json!(1)));
    for check in audit["checks"].as_array().unwrap() {
        let keys: Vec<_> = check.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["findings", "name"], "{check}");
        assert_eq!(check["findings"], 0);
    }
    let told = sandbox.run(&["audit"]);
    assert_eq!(told.code, 0, "{told:?}");
    assert!(told.stdout.contains("✓") && !told.stdout.contains("✗"), "{told:?}");
}

#[test]
fn a_finding_names_its_row_and_ends_with_10() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    sandbox.database().execute("UPDATE users SET credits = 7", []).unwrap();
    let audit = sandbox.json_of(&["audit", "--json"], 10);
    assert_eq!(audit["findings"], 1);
    assert_eq!(
        check(&audit, "balance")["rows"],
        json!([{ "detail": "7 != 0", "fault": "balance_differs", "row": "1001", "table": "users" }])
    );
    let told = sandbox.run(&["audit"]);
    assert_eq!(told.code, 10);
    assert!(told.stdout.contains("users 1001") && told.stderr.contains("backup create"), "{told:?}");
    assert_eq!(sandbox.status(&order), "pending");
}

#[test]
fn an_order_that_was_paid_twice_is_shown_until_it_is_acknowledged() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    for trade_no in ["T1", "T2"] {
        let form = Notification::of(&order).with("trade_no", trade_no).form();
        assert_eq!(service.notify(&form), (200, "success".into()));
    }
    let audit = sandbox.json_of(&["audit", "--json"], 10);
    assert_eq!(check(&audit, "paid_again")["rows"][0]["detail"], format!("{order} T2"));
    let acknowledge = ["orders", "acknowledge", &order, "--reason", "sent back at the gateway", "--json"];
    assert_eq!(sandbox.json(&acknowledge), json!({ "order_no": order, "trade_nos": ["T2"] }));
    assert_eq!(sandbox.json(&["audit", "--json"])["findings"], 0);
    let again = sandbox.run(&acknowledge);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains(&order), "{again:?}");
}

#[test]
fn without_a_database_there_is_nothing_to_prove() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&["audit"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("telegram_bot_v2.db"), "{outcome:?}");
    assert!(!sandbox.database_file().exists());
}
