//! `explain`: what an operator hears of "I paid and got nothing".

use std::cell::RefCell;

use serde_json::{Value, json};

use crate::support::*;

/// The story of a number, when `code` is its verdict: what was refused is kept a moment after it was answered.
#[track_caller]
fn story(sandbox: &Sandbox, number: &str, code: &str) -> Value {
    let told = RefCell::new(Value::Null);
    wait_until(code, || {
        let outcome = sandbox.run(&["explain", number, "--json"]);
        *told.borrow_mut() = serde_json::from_str(&outcome.stdout).unwrap();
        told.borrow()["verdict"]["code"] == code
    });
    told.into_inner()
}

fn kinds(told: &Value) -> Vec<&str> {
    told["events"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect()
}

/// Neither a key nor a signature is anywhere in what is printed or logged.
#[track_caller]
fn assert_no_secret(sandbox: &Sandbox, number: &str, signs: &[String]) {
    let printed = [sandbox.run(&["explain", number]).stdout, sandbox.run(&["explain", number, "--json"]).stdout];
    for text in printed.iter().chain([&sandbox.log()]) {
        for secret in signs.iter().map(String::as_str).chain([KEY, OTHER_KEY]) {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn a_paid_order_tells_its_whole_story_in_the_order_of_time() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let notification = Notification::of(&order);
    assert_eq!(service.notify(&notification.form()), (200, "success".into()));
    assert_eq!(service.post(&notification.form()), (200, "success".into()));

    let told = story(&sandbox, &order, "credited");
    assert_eq!(kinds(&told), ["created", "callback", "ledger", "message", "callback"]);
    let keys: Vec<_> = told.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["events", "order", "verdict"]);
    assert_eq!(told["order"]["status"], "paid");
    let details = &told["events"][1]["details"];
    assert_eq!(details["answered"], "success");
    assert_eq!(details["from"], "GET 127.0.0.1");
    assert_eq!(details["signed"], format!("{}***", notification.signing_string()));
    assert!(details["fields"].as_str().unwrap().contains("sign=*** sign_type=MD5"), "{details}");
    assert!(told["events"][4]["text"].as_str().unwrap().contains("duplicate"), "{told}");
    // The payment's number leads to the same order.
    assert_eq!(sandbox.json(&["explain", &format!("T{order}"), "--json"]), told);
    assert_no_secret(&sandbox, &order, &[notification.sign()]);

    let shown = sandbox.run(&["explain", &order]);
    let last = shown.stdout.lines().last().unwrap();
    assert!(shown.code == 0 && last.starts_with("→ ") && last.contains("70"), "{shown:?}");
}

#[test]
fn a_signature_that_fits_a_known_wrong_way_is_named_and_credits_nobody() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let mut signs = Vec::new();
    for (key, param, named) in [
        (format!("&key={KEY}"), "", "`&key=`"),
        (KEY.to_uppercase(), "", "大写"),
        (KEY.to_lowercase(), "", "小写"),
        (format!("{KEY}\n"), "", "空白"),
        (OTHER_KEY.to_owned(), "", OTHER_PID),
        (format!("&key={OTHER_KEY}"), "", OTHER_PID),
        (KEY.to_owned(), "uid ", "空白"),
    ] {
        let order = sandbox.order(1001);
        let notification = Notification::of(&order).signed_with(&key);
        // With a `param`, what is signed is its trimmed value, and what is sent is not.
        let trimmed = notification.clone().with("param", param.trim());
        let sign = if param.is_empty() { notification.sign() } else { trimmed.sign() };
        let form = if param.is_empty() { notification } else { notification.with("param", param) };
        assert_eq!(service.notify(&form.form_with_sign(&sign)), (200, "fail".into()));
        let told = story(&sandbox, &order, "signed_wrongly");
        let diagnosis = told["events"][1]["details"]["would_fit"].as_str().unwrap();
        assert!(diagnosis.contains(named), "{named}: {diagnosis}");
        assert!(told["verdict"]["text"].as_str().unwrap().contains(diagnosis), "{told}");
        service.wait_for_log(diagnosis);
        assert_eq!(sandbox.status(&order), "pending");
        assert_no_secret(&sandbox, &order, std::slice::from_ref(&sign));
        signs.push(sign);
    }
    assert_eq!(sandbox.count("SELECT count(*) FROM ledger"), 0);
}

#[test]
fn a_signature_that_fits_nothing_known_points_to_the_key_or_a_forger() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).signed_with("a forger's guess").form();
    assert_eq!(service.notify(&form), (200, "fail".into()));
    let told = story(&sandbox, &order, "bad_signature");
    assert_eq!(told["events"][1]["details"]["answered"], "fail");
    assert_eq!(told["events"][1]["details"].get("would_fit"), None);
}

#[test]
fn every_end_of_a_story_has_its_own_sentence() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = || sandbox.order(1001);
    let notify = |notification: Notification| service.notify(&notification.form());

    let untouched = order();
    story(&sandbox, &untouched, "nobody_to_ask");

    let short = order();
    notify(Notification::of(&short).with("money", "35.99"));
    let told = story(&sandbox, &short, "review_amount");
    assert!(told["verdict"]["text"].as_str().unwrap().contains(&format!("orders settle {short}")), "{told}");

    let cancelled = order();
    sandbox.json(&["orders", "cancel", &cancelled, "--reason", "gone", "--json"]);
    let told = story(&sandbox, &cancelled, "cancelled");
    assert_eq!(told["events"][1]["details"], json!({ "reason": "gone" }));
    notify(Notification::of(&cancelled));
    story(&sandbox, &cancelled, "review_held");

    let twice = order();
    notify(Notification::of(&twice));
    notify(Notification::of(&twice).with("trade_no", "SECOND"));
    let told = story(&sandbox, &twice, "paid_again");
    assert!(told["verdict"]["text"].as_str().unwrap().contains("SECOND"), "{told}");
    sandbox.json(&["orders", "acknowledge", &twice, "--reason", "sent back", "--json"]);
    story(&sandbox, &twice, "credited");

    let reused = order();
    notify(Notification::of(&reused).with("trade_no", &format!("T{twice}")));
    story(&sandbox, &reused, "trade_reused");

    let unpaid = order();
    notify(Notification::of(&unpaid).with("trade_status", "TRADE_CLOSED"));
    story(&sandbox, &unpaid, "said_unpaid");

    let malformed = order();
    service.notify(&format!("{}&pid=1002", Notification::of(&malformed).form()));
    story(&sandbox, &malformed, "refused");

    let refunded = order();
    notify(Notification::of(&refunded));
    sandbox.json(&["orders", "refund", &refunded, "--by-hand", "--reason", "asked for", "--json"]);
    let told = story(&sandbox, &refunded, "refunded");
    assert_eq!(kinds(&told).iter().filter(|kind| **kind == "ledger").count(), 2);

    notify(Notification::of("ELSEWHERE1").with("trade_no", "TE1"));
    for number in ["ELSEWHERE1", "TE1"] {
        let told = story(&sandbox, number, "unknown_order");
        assert_eq!(told["order"], Value::Null);
        assert!(told["verdict"]["text"].as_str().unwrap().contains("ELSEWHERE1"), "{told}");
    }
}

#[test]
fn a_number_of_which_nothing_is_known_says_where_to_look() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    let told = sandbox.json_of(&["explain", "NOSUCH1", "--json"], 1);
    assert_eq!(told["verdict"]["code"], "nothing_known");
    assert_eq!(told["events"], json!([]));
    let shown = sandbox.run(&["explain", "NOSUCH1"]);
    assert!(shown.code == 1 && shown.stdout.contains("notify_url"), "{shown:?}");
}

#[test]
fn what_a_stranger_sent_cannot_move_the_terminal() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).with("name", "\u{1b}[2J\nx\u{2028}").signed_with("k").form();
    service.notify(&form);
    story(&sandbox, &order, "bad_signature");
    let shown = sandbox.run(&["explain", &order]);
    assert!(!shown.stdout.contains(['\u{1b}', '\u{2028}']) && shown.stdout.contains("[2J"), "{shown:?}");
}
