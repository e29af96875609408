//! The outcome table over real HTTP: what each notification is answered, what it changes, and what is kept of it.

use std::sync::{Arc, Barrier};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};

use crate::support::*;

const SUCCESS: (u16, &str) = (200, "success");
const FAIL: (u16, &str) = (200, "fail");

#[track_caller]
fn assert_answer(answer: &(u16, String), expected: (u16, &str)) {
    assert_eq!((answer.0, answer.1.as_str()), expected);
}

/// The notification is answered so, and named so in the log.
#[track_caller]
fn assert_outcome(service: &Service, form: &str, outcome: &str, expected: (u16, &str)) {
    let level = if matches!(outcome, "settled" | "duplicate" | "not_paid") { "INFO" } else { "WARNING" };
    let record = format!("webhookctl::notify - {level} - {outcome}");
    let before = service.log().iter().filter(|line| line.contains(&record)).count();
    assert_answer(&service.notify(form), expected);
    service.wait_for_logs(&record, before + 1);
}

fn receipts(sandbox: &Sandbox, outcome: &str) -> i64 {
    sandbox.count(&format!("SELECT count(*) FROM receipts WHERE outcome = '{outcome}'"))
}

#[test]
fn a_paid_order_is_credited_once_by_get_and_post() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let by_get = sandbox.order(1001);
    assert_answer(&service.notify(&Notification::of(&by_get).form()), SUCCESS);
    assert_eq!(sandbox.credits(1001), 70);
    let by_post = sandbox.order(1001);
    assert_answer(&service.post(&Notification::of(&by_post).form()), SUCCESS);
    assert_eq!(sandbox.credits(1001), 140);
    let order = sandbox.json(&["orders", "show", &by_post, "--json"]);
    assert_eq!(order["status"], "paid");
    assert_eq!(order["settled_by"], "notify");
    assert_eq!(order["trade_no"], format!("T{by_post}"));
    assert!(order["paid_at"].is_string());
    let kept: String = sandbox
        .database()
        .query_row("SELECT CAST(payload AS TEXT) FROM receipts ORDER BY id DESC LIMIT 1", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, Notification::of(&by_post).form());
    assert_eq!(sandbox.count("SELECT count(*) FROM outbox WHERE kind = 'settled'"), 2);
}

#[test]
fn every_outcome_that_keeps_a_receipt() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let check = |form: &str, outcome: &str, expected| {
        assert_outcome(&service, form, outcome, expected);
        assert_eq!(receipts(&sandbox, outcome), 1, "{outcome}");
    };
    let order = sandbox.order(1001);
    let paid = Notification::of(&order);

    check(&paid.clone().with("trade_status", "TRADE_CLOSED").form(), "not_paid", SUCCESS);
    assert_eq!(sandbox.status(&order), "pending");
    check(&Notification::of("NOSUCHORDER").form(), "unknown_order", FAIL);
    check(&paid.form(), "settled", SUCCESS);
    check(&paid.form(), "duplicate", SUCCESS);
    check(&paid.clone().with("trade_no", "OTHER").form(), "paid_again", SUCCESS);
    assert_eq!(sandbox.credits(1001), 70);

    let second = sandbox.order(1001);
    check(&Notification::of(&second).with("trade_no", &format!("T{order}")).form(), "trade_reused", FAIL);
    assert_eq!(sandbox.status(&second), "pending");
    check(&Notification::of(&second).with("money", "35.99").form(), "amount_mismatch", FAIL);
    service.wait_for_log("amount_mismatch 35.99 != 36.00");
    assert_eq!(sandbox.status(&second), "review");
    check(&Notification::of(&second).form(), "held", FAIL);
    assert_eq!(sandbox.status(&second), "review");
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn every_outcome_that_proves_nothing() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let paid = Notification::of(&order);
    let malformed = [
        String::new(),
        "%zz".into(),
        format!("{}&pid=1002", paid.form()),
        paid.clone().with("name", "a&b").form(),
        paid.clone().with("notify_url", "http://x").form(),
        paid.clone().without("pid").form(),
        paid.clone().with("out_trade_no", " ").form(),
        paid.unsigned_form(),
    ];
    for form in &malformed {
        assert_outcome(&service, form, "malformed", FAIL);
    }
    let unknown = paid.clone().with("pid", "9999").form();
    assert_outcome(&service, &unknown, "unknown_merchant", FAIL);
    let bad = [
        paid.form_with_sign("00000000000000000000000000000000"),
        paid.form_with_sign("xxx"),
        paid.clone().signed_with("wrong key").form(),
        paid.clone().signed_with("").form(),
        paid.form().replace("36", "37"),
        paid.form().replace("sign_type=MD5", "sign_type=RSA"),
    ];
    for form in &bad {
        assert_outcome(&service, form, "bad_signature", FAIL);
    }
    assert_eq!(sandbox.status(&order), "pending");
    assert_eq!(sandbox.credits(1001), 0);
    service.stop();
    let kept = |outcome: &str| sandbox.count(&format!("SELECT count(*) FROM rejections WHERE outcome = '{outcome}'"));
    assert_eq!(kept("malformed"), i64::try_from(malformed.len()).unwrap());
    assert_eq!(kept("unknown_merchant"), 1);
    assert_eq!(kept("bad_signature"), i64::try_from(bad.len()).unwrap());
    assert_eq!(sandbox.count("SELECT count(*) FROM receipts"), 0);
}

/// A signature proves the payment, whatever the gateway left out or wrote in its own way: a person has to see it.
#[test]
fn proved_money_that_does_not_fit_puts_its_order_before_a_person() {
    let config = format!("{CONFIG}\n[orders]\nlate = \"review\"\n");
    let sandbox = Sandbox::with_config(&config);
    let service = sandbox.serve();
    for (key, value, outcome, reason) in [
        ("trade_no", None, "held", "no_trade_no"),
        ("trade_no", Some(" "), "held", "no_trade_no"),
        ("money", None, "amount_mismatch ? != 36.00", "amount"),
        ("money", Some("36.001"), "amount_mismatch ? != 36.00", "amount"),
        ("money", Some("-36.00"), "amount_mismatch ? != 36.00", "amount"),
        ("money", Some("36.01"), "amount_mismatch 36.01 != 36.00", "amount"),
    ] {
        let order = sandbox.order(1001);
        let changed = Notification::of(&order);
        let changed = value.map_or_else(|| changed.clone().without(key), |value| changed.clone().with(key, value));
        assert_outcome(&service, &changed.form(), outcome, FAIL);
        assert_review(&sandbox, &order, reason);
    }
    let late = sandbox.order(1001);
    sandbox.database().execute("UPDATE orders SET expires_at_ms = created_at_ms WHERE order_no = ?", [&late]).unwrap();
    assert_outcome(&service, &Notification::of(&late).form(), "held", FAIL);
    assert_review(&sandbox, &late, "late");
    let cancelled = sandbox.order(1001);
    sandbox.json(&["orders", "cancel", &cancelled, "--reason", "gone", "--json"]);
    assert_outcome(&service, &Notification::of(&cancelled).form(), "held", FAIL);
    assert_review(&sandbox, &cancelled, "cancelled");
    assert_eq!(sandbox.credits(1001), 0);
}

#[track_caller]
fn assert_review(sandbox: &Sandbox, order: &str, reason: &str) {
    let shown = sandbox.json(&["orders", "show", order, "--json"]);
    assert_eq!((shown["status"].as_str(), shown["review_reason"].as_str()), (Some("review"), Some(reason)));
}

/// Other words than "paid": some are known not to be payments, and of all others somebody has to find out.
#[test]
fn a_status_that_nobody_knows_is_a_question_and_never_a_payment() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let with_status = |status: &str| Notification::of(&order).with("trade_status", status).form();
    for known in ["REFUND_SUCCESS", "SETTLEMENT_SUCCESS", "WAIT_BUYER_PAY"] {
        assert_outcome(&service, &with_status(known), "not_paid", SUCCESS);
    }
    assert_eq!(sandbox.count("SELECT count(*) FROM receipts WHERE alert IS NOT NULL"), 0);
    for unclear in [with_status("TRADE_FINISHED"), Notification::of(&order).without("trade_status").form()] {
        assert_outcome(&service, &unclear, "unconfirmed", FAIL);
    }
    assert_eq!(sandbox.count("SELECT count(*) FROM receipts WHERE alert = 'status_unclear'"), 2);
    assert_eq!((sandbox.status(&order).as_str(), sandbox.credits(1001)), ("pending", 0));
    assert_outcome(&service, &Notification::of(&order).form(), "settled", SUCCESS);
    // A settled order has no question left.
    assert_outcome(&service, &with_status("TRADE_FINISHED"), "not_paid", SUCCESS);
}

#[test]
fn a_long_rejected_payload_is_kept_in_part_with_its_length() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let form = Notification::of("X").with("name", &"x".repeat(10_000)).signed_with("guess").form();
    assert_answer(&service.post(&form), FAIL);
    service.stop();
    assert_eq!(sandbox.count("SELECT length(payload) FROM rejections"), 4096);
    assert_eq!(sandbox.count("SELECT payload_bytes FROM rejections"), i64::try_from(form.len()).unwrap());
}

#[test]
fn a_merchants_orders_are_settled_by_that_merchant_alone() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let foreign = Notification::of(&order).with("pid", OTHER_PID).signed_with(OTHER_KEY);
    assert_outcome(&service, &foreign.form(), "unknown_order", FAIL);
    let borrowed_key = Notification::of(&order).signed_with(OTHER_KEY);
    assert_outcome(&service, &borrowed_key.form(), "bad_signature", FAIL);
    // The same payment number at another merchant is another payment.
    assert_answer(&service.notify(&Notification::of(&order).with("trade_no", "T").form()), SUCCESS);
    let other = sandbox.order_of(OTHER_PID, 1001);
    let other = Notification::of(&other).with("pid", OTHER_PID).with("trade_no", "T").signed_with(OTHER_KEY);
    assert_answer(&service.notify(&other.form()), SUCCESS);
    assert_eq!(sandbox.credits(1001), 140);
}

#[test]
fn late_money_is_credited_or_reviewed_as_configured() {
    for (late, outcome, answer, status) in [("credit", "settled", SUCCESS, "paid"), ("review", "held", FAIL, "review")]
    {
        let config = format!("{CONFIG}\n[orders]\nexpire_after_s = 1\nlate = \"{late}\"\n");
        let sandbox = Sandbox::with_config(&config);
        let service = sandbox.serve();
        let order = sandbox.order(1001);
        // Expired by its own time, without waiting for it.
        sandbox.database().execute("UPDATE orders SET expires_at_ms = created_at_ms", []).unwrap();
        assert_eq!(sandbox.status(&order), "expired");
        assert_outcome(&service, &Notification::of(&order).form(), outcome, answer);
        assert_eq!(sandbox.status(&order), status);
    }
}

#[test]
fn a_cancelled_order_that_is_paid_goes_to_a_person() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    sandbox.database().execute("UPDATE orders SET status = 'cancelled'", []).unwrap();
    assert_outcome(&service, &Notification::of(&order).form(), "held", FAIL);
    assert_eq!(sandbox.status(&order), "review");
}

#[test]
fn a_refunded_order_is_not_credited_again_by_a_replay() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let paid = Notification::of(&order).form();
    assert_answer(&service.notify(&paid), SUCCESS);
    sandbox.database().execute("UPDATE orders SET status = 'refunded'", []).unwrap();
    assert_outcome(&service, &paid, "duplicate", SUCCESS);
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn a_hundred_concurrent_copies_get_a_hundred_successes_and_one_credit() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).form();
    let start = Arc::new(Barrier::new(100));
    let senders: Vec<_> = (0..100)
        .map(|_| {
            let (form, start, address) = (form.clone(), Arc::clone(&start), service.address);
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                start.wait();
                client.notify(&form)
            })
        })
        .collect();
    for sender in senders {
        assert_answer(&sender.join().unwrap(), SUCCESS);
    }
    assert_eq!(sandbox.credits(1001), 70);
    assert_eq!(receipts(&sandbox, "settled"), 1);
    assert_eq!(receipts(&sandbox, "duplicate"), 99);
    assert_eq!(sandbox.count("SELECT count(*) FROM ledger"), 1);
}

#[test]
fn blank_values_may_be_signed_or_left_out() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let signed = Notification::of(&sandbox.order(1001)).with("param", " ");
    assert_answer(&service.notify(&signed.form()), SUCCESS);
    let left_out = Notification::of(&sandbox.order(1001));
    let sign = left_out.sign();
    assert_answer(&service.notify(&left_out.with("param", " ").form_with_sign(&sign.to_uppercase())), SUCCESS);
    assert_eq!(sandbox.credits(1001), 140);
}

#[test]
fn what_gateways_do_to_a_notification_does_no_harm() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let changes: [(&str, &str); 6] = [
        ("money", "36"),
        ("money", "36.0000"),
        ("name", r"a&amp;\&quot;b\&quot;"),
        ("name", "product"),
        ("endtime", "2026-01-01 00:00:00"),
        ("param", "0"),
    ];
    for (key, value) in changes {
        let notification = Notification::of(&sandbox.order(1001)).with(key, value);
        assert_answer(&service.notify(&notification.form()), SUCCESS);
    }
    let without_sign_type = Notification::of(&sandbox.order(1001)).form().replace("&sign_type=MD5", "");
    assert_answer(&service.notify(&without_sign_type), SUCCESS);
    assert_eq!(sandbox.credits(1001), 7 * 70);
}

/// EPAY section 3: the buyer of one order chooses texts so that its signature also fits a payment of another.
#[test]
fn a_signature_cannot_be_recut_for_another_order() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let (mine, victim) = (sandbox.order(1001), sandbox.order(1002));
    let bought = Notification::of(&mine).with("name", &format!("x&out_trade_no={victim}&p="));
    let recut = Notification::of(&victim)
        .with("trade_no", &format!("T{mine}"))
        .with("name", "x")
        .with("p", &format!("&out_trade_no={mine}"));
    assert_eq!(bought.signing_string(), recut.signing_string());
    for form in [recut.form_with_sign(&bought.sign()), bought.form()] {
        assert_outcome(&service, &form, "malformed ambiguous_value", FAIL);
    }
    assert_eq!(sandbox.credits(1001) + sandbox.credits(1002), 0);
}

#[test]
fn a_body_and_a_query_string_are_never_merged() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).form();
    let (first, rest) = form.split_once('&').unwrap();
    let halves =
        format!("POST /payment/notify?{first} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{rest}", rest.len());
    assert_eq!(service.client().send(&halves).body, "fail");
    // A body decides alone, whatever the query string says.
    let both =
        format!("POST /payment/notify?pid=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{form}", form.len());
    assert_eq!(service.client().send(&both).body, "success");
    let empty_body = format!("POST /payment/notify?{form} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(service.client().send(&empty_body).body, "success");
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn what_was_sent_as_param_must_come_back_equal() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let arguments = ["orders", "create", "--telegram-id", "1001", "--package", "silver", "--merchant", PID, "--json"];
    let create =
        || sandbox.json(&[&arguments[..], &["--param", "user 7"]].concat())["order_no"].as_str().unwrap().to_owned();
    let (order, changed) = (create(), create());
    assert_answer(&service.notify(&Notification::of(&order).with("param", "user 7").form()), SUCCESS);
    assert_outcome(&service, &Notification::of(&changed).with("param", "user 8").form(), "held", FAIL);
    assert_review(&sandbox, &changed, "param");
    let told = sandbox.json(&["explain", &changed, "--json"]);
    assert_eq!(told["verdict"]["code"], "review_held");
    assert!(told["verdict"]["text"].as_str().unwrap().contains("param"), "{told}");
}

/// An order that was made before such texts were refused.
#[test]
fn a_param_that_the_gateway_escaped_is_known_again() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    sandbox.order(1001);
    let received = [
        r"it\&#039;s &lt;\&quot;7\&quot;&gt;",
        "it&#39;s &lt;&#34;7&#34;&gt;",
        "it&apos;s &lt;&quot;7&quot;&gt;",
        r#"it\'s <\"7\">"#,
    ];
    for (number, received) in received.into_iter().enumerate() {
        let order = format!("OLD{number}");
        sandbox
            .database()
            .execute(
                "INSERT INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, param, created_at_ms,
                     expires_at_ms)
                 VALUES (?, '1002', 1001, 'it''s', 'alipay', 3600, 70, ?, 0, 9999999999999)",
                [&order, "it's <\"7\">"],
            )
            .unwrap();
        let paid = Notification::of(&order).with("param", received).with("name", r"it\&#039;s");
        assert_answer(&service.notify(&paid.form()), SUCCESS);
    }
    assert_eq!(sandbox.credits(1001), 4 * 70);
}

#[test]
fn what_gateways_change_is_not_sent_and_the_character_is_named() {
    let config = format!("{CONFIG}[[package]]\nid = \"party\"\nname = \"VIP🎉\"\nprice = \"1.00\"\ncredits = 1\n");
    let sandbox = Sandbox::with_config(&config);
    let check = sandbox.run(&["config", "check"]);
    let printed = check.stdout + &check.stderr;
    assert!(printed.contains("package[party].name") && printed.contains("`🎉`"), "{printed}");
    // All else works.
    let service = sandbox.serve();
    assert_answer(&service.notify(&Notification::of(&sandbox.order(1001)).form()), SUCCESS);
    let base = ["orders", "create", "--telegram-id", "1001", "--merchant", PID];
    for (more, character) in [
        (&["--package", "party"][..], "`🎉`"),
        (&["--package", "silver", "--param", "it's"], "`'`"),
        (&["--package", "silver", "--param", "\"x\""], "`\"`"),
        (&["--package", "silver", "--param", "a<b"], "`<`"),
        (&["--package", "silver", "--param", "a>b"], "`>`"),
        (&["--package", "silver", "--param", r"a\b"], r"`\`"),
        (&["--package", "silver", "--param", " a"], "`U+0020`"),
        (&["--package", "silver", "--param", "a\u{3000}"], "`U+3000`"),
        (&["--package", "silver", "--param", "a&b"], "`&`"),
        (&["--amount", "1.00", "--credits", "1", "--name", "A\u{301d}\u{10330}"], "`\u{10330}`"),
    ] {
        let refused = sandbox.run(&[&base, more].concat());
        assert_ne!(refused.code, 0, "{more:?}");
        assert!(refused.stderr.contains(character), "{more:?}: {refused:?}");
    }
    assert_eq!(sandbox.count("SELECT count(*) FROM orders"), 1);
}

#[test]
fn allow_ips_counts_the_client_and_not_the_proxy() {
    let config = CONFIG.replacen("sandbox = true", "allow_ips = [\"203.0.113.0/24\"]", 1);
    let sandbox = Sandbox::with_config(&config);
    let service = sandbox.serve();
    let form = Notification::of(&sandbox.order(1001)).form();
    assert_outcome(&service, &form, "address_not_allowed", FAIL);
    let from = |address: &str| {
        let request = format!("GET /payment/notify?{form} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {address}\r\n\r\n");
        service.client().send(request).body
    };
    assert_eq!(from("198.51.100.1"), "fail");
    assert_eq!(from("203.0.113.9, 198.51.100.1"), "fail");
    assert_eq!(from("198.51.100.1, 203.0.113.9"), "success");
    let kept: String = sandbox.database().query_row("SELECT client FROM receipts", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, "203.0.113.9");
}

#[test]
fn an_untrusted_peer_cannot_choose_its_address() {
    let config = CONFIG.replacen("sandbox = true", "allow_ips = [\"203.0.113.9\"]", 1);
    let sandbox = Sandbox::with_config(&format!("trusted_proxies = []\n{config}"));
    let service = sandbox.serve();
    let form = Notification::of(&sandbox.order(1001)).form();
    let request = format!("GET /payment/notify?{form} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n");
    assert_eq!(service.client().send(request).body, "fail");
    assert_eq!(sandbox.credits(1001), 0);
}

#[test]
fn a_locked_database_is_answered_honestly_and_recovers() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).form();
    let other_program = sandbox.database();
    other_program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let unavailable = service.get("/payment/health");
    assert_eq!(unavailable.status, 503);
    assert_eq!(unavailable.body, r#"{"service":"payment-webhook-v1","status":"unavailable"}"#);
    assert_answer(&service.notify(&form), (503, "fail"));
    service.wait_for_log(" - ERROR - store_error");
    assert_eq!(service.get("/payment/health").status, 503);
    other_program.execute_batch("ROLLBACK").unwrap();
    assert_answer(&service.notify(&form), SUCCESS);
    assert_eq!(service.get("/payment/health").status, 200);
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn a_full_disk_is_answered_honestly_and_recovers() {
    let sandbox = Sandbox::new();
    let orders = sandbox.create_database_with_orders(500);
    // What a full disk is to a file: it cannot grow any further. 400 blocks of 512 bytes hold the database as it is.
    let program = env!("CARGO_BIN_EXE_webhookctl");
    let mut command = sandbox.command_of("sh");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -S -f 400; exec {program} serve")]);
    let service = Service::start(command);
    let mut unpaid = orders.iter();
    let refused = unpaid.find(|order| service.post(&Notification::of(order).form()) == (503, "fail".into()));
    let refused = refused.expect("the write-ahead log outgrows its limit");
    assert_eq!(service.get("/payment/health").status, 503, "a probe that writes nothing would be fine");
    service.wait_for_log(" - ERROR - store_error");

    let pid = service.pid().to_string();
    let lifted = std::process::Command::new("prlimit").args(["--fsize=unlimited", "--pid", &pid]).status().unwrap();
    assert!(lifted.success());
    assert_eq!(service.get("/payment/health").status, 200);
    for order in &orders {
        assert_answer(&service.post(&Notification::of(order).form()), SUCCESS);
    }
    assert_eq!(sandbox.status(refused), "paid");
    assert_eq!(sandbox.credits(1001), 500 * 70);
    assert_eq!(sandbox.count("SELECT count(*) FROM ledger"), 500);
}

#[test]
fn what_is_settled_after_the_gateway_lost_patience_is_logged_too() {
    // More than two batches hold, since each waits for the lock a while before it fails.
    const ORDERS: usize = 1200;
    if !allow_descriptors(2 * ORDERS as u64) {
        return;
    }
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let orders = sandbox.insert_orders(ORDERS);
    let other_program = sandbox.database();
    other_program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let requests: Vec<_> = orders.iter().map(|order| post(&Notification::of(order).form())).collect();
    let mut clients = send_at_once(&service, &requests);
    service.wait_for_log("数据库在 4 秒内没有回应");
    other_program.execute_batch("ROLLBACK").unwrap();
    for client in &mut clients {
        let answer = client.response().unwrap();
        assert!(matches!((answer.status, answer.body.as_str()), (503, "fail") | SUCCESS), "{answer:?}");
    }
    for order in &orders {
        assert_answer(&service.notify(&Notification::of(order).form()), SUCCESS);
    }
    // Settled late or by the second notification: there is one such line for each.
    service.wait_for_logs(" - settled：", ORDERS);
    let credited = i64::try_from(ORDERS).unwrap() * 70;
    assert_eq!(sandbox.credits(1001), credited);
}

/// Sends each request over a connection of its own, without waiting for answers.
fn send_at_once(service: &Service, requests: &[String]) -> Vec<Client> {
    let address = service.address;
    let senders: Vec<_> = requests
        .chunks(requests.len().div_ceil(16))
        .map(|chunk| {
            let chunk = chunk.to_vec();
            std::thread::spawn(move || {
                let send = |request: &String| {
                    let mut client = Client::connect(address);
                    client.write(request);
                    client
                };
                chunk.iter().map(send).collect::<Vec<_>>()
            })
        })
        .collect();
    senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
}

#[test]
fn too_many_at_once_are_told_to_come_again() {
    const CONNECTIONS: usize = 2500;
    if !allow_descriptors(2 * CONNECTIONS as u64) {
        return;
    }
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).form();
    let other_program = sandbox.database();
    other_program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut clients = send_at_once(&service, &vec![post(&form); CONNECTIONS]);
    service.wait_for_log("等待写入的请求太多");
    other_program.execute_batch("ROLLBACK").unwrap();
    for client in &mut clients {
        let answer = client.response().unwrap();
        assert!(matches!((answer.status, answer.body.as_str()), (503, "fail") | SUCCESS), "{answer:?}");
    }
    assert_answer(&service.notify(&form), SUCCESS);
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn v2_notifications_need_the_platforms_signature_and_a_fresh_timestamp() {
    let sandbox = Sandbox::with_config(
        "listen = \"127.0.0.1:0\"\n[[merchant]]\npid = \"1002\"\nprotocol = \"v2\"\n\
         platform_public_key_file = \"platform.pem\"\n\
         [[package]]\nid = \"silver\"\nname = \"VIP\"\nprice = \"36.00\"\ncredits = 70\n",
    );
    std::fs::write(sandbox.path("platform.pem"), include_str!("../keys/v2_platform_public.pem")).unwrap();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let pem = include_str!("../keys/v2_platform_private.pem");
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = RsaKeyPair::from_pkcs8(&BASE64.decode(base64).unwrap()).unwrap();
    let signed = |notification: &Notification| {
        let mut signature = vec![0; key.public().modulus_len()];
        let text = notification.signing_string();
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
        notification.form_with_sign(&BASE64.encode(signature)).replace("sign_type=MD5", "sign_type=RSA")
    };
    let at = |seconds: u64| Notification::of(&order).with("timestamp", &seconds.to_string());

    assert_outcome(&service, &signed(&at(now - 400)), "stale", FAIL);
    assert_outcome(&service, &signed(&at(now + 4000)), "stale", FAIL);
    assert_outcome(&service, &signed(&Notification::of(&order)), "stale", FAIL);
    // No downgrade: the older signature proves nothing for this merchant, whatever key it is made with.
    assert_outcome(&service, &at(now).signed_with("").form(), "bad_signature", FAIL);
    let changed = signed(&at(now)).replace("36", "37");
    assert_outcome(&service, &changed, "bad_signature", FAIL);
    assert_eq!(sandbox.credits(1001), 0);
    assert_answer(&service.notify(&signed(&at(now))), SUCCESS);
    assert_answer(&service.notify(&signed(&at(now - 200))), SUCCESS);
    assert_eq!(sandbox.credits(1001), 70);
}
