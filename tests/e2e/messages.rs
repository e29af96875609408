//! Messages to buyers and to the operator, by a Telegram that is not always well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};

use nix::sys::signal::Signal;

use crate::stand_in::*;
use crate::support::*;

const TOKEN: &str = "123456:AAsecret-token";
const SENT: &str = r#"{"ok":true,"result":{}}"#;

fn config(telegram: &StandIn, more: &str) -> String {
    let base = telegram.url();
    format!("{CONFIG}[log]\nlevel = \"debug\"\n[telegram]\ntoken = \"{TOKEN}\"\napi_base = \"{base}\"\n{more}\n")
}

fn telegram() -> StandIn {
    StandIn::start(|_| Reply::of(200, SENT))
}

fn pay(service: &Service, order: &str) {
    assert_eq!(service.notify(&Notification::of(order).form()), (200, "success".into()));
}

fn due(sandbox: &Sandbox) -> i64 {
    sandbox.count("SELECT count(*) FROM outbox WHERE state = 'due'")
}

fn text(request: &Request) -> String {
    request.json()["text"].as_str().unwrap().to_owned()
}

/// What Telegram does to an order's first message, by the order's number; later ones arrive.
fn first_answer(order: usize) -> Reply {
    match order % 6 {
        0 => Reply::of(429, r#"{"ok":false,"parameters":{"retry_after":1}}"#),
        1 => Reply::of(500, ""),
        2 => Reply::of(403, r#"{"ok":false,"description":"Forbidden: bot was blocked by the user"}"#),
        3 => Reply::of(400, r#"{"ok":false,"description":"Bad Request: chat not found"}"#),
        4 => Reply::Close,
        _ => Reply::of(200, SENT),
    }
}

fn is_final(order: usize) -> bool {
    matches!(order % 6, 2 | 3)
}

#[test]
fn each_message_arrives_once_or_twice_whatever_telegram_does_and_whoever_is_killed() {
    const ORDERS: usize = 24;
    // How often an order's message came, and how often it was answered as sent.
    let seen: Arc<Mutex<BTreeMap<usize, (usize, usize)>>> = Arc::default();
    let counts = Arc::clone(&seen);
    let telegram = StandIn::start_refusing(
        // Few enough that no message meets one after the other: its pauses double.
        |connection| matches!(connection, 3 | 10 | 17),
        move |request| {
            assert_eq!(request.path, format!("/bot{TOKEN}/sendMessage"));
            let text = text(request);
            let order = text.split_once("BULK").unwrap().1[..6].parse().unwrap();
            let mut counts = counts.lock().unwrap();
            let (came, sent) = counts.entry(order).or_default();
            *came += 1;
            let answer = if *came == 1 || is_final(order) { first_answer(order) } else { Reply::of(200, SENT) };
            *sent += usize::from(matches!(answer, Reply::Answer(200, ..)));
            answer
        },
    );
    let sandbox = Sandbox::with_config(&config(&telegram, ""));
    let orders = sandbox.create_database_with_orders(ORDERS);
    let mut service = sandbox.serve();
    for order in &orders {
        pay(&service, order);
    }
    for enough in [8, 20] {
        telegram.wait_for(enough);
        service.signal(Signal::SIGKILL);
        service.wait();
        // The lease of what was under way is over, too.
        sandbox.database().execute("UPDATE outbox SET due_at_ms = 0 WHERE state = 'due'", []).unwrap();
        service = sandbox.serve();
    }
    wait_until("nothing is due", || due(&sandbox) == 0);
    service.stop();

    let seen = seen.lock().unwrap();
    for (number, order) in orders.iter().enumerate() {
        let (came, sent) = seen[&number];
        let state: (String, Option<String>) = sandbox
            .database()
            .query_row(
                "SELECT state, error FROM outbox WHERE order_id = (SELECT id FROM orders WHERE order_no = ?)",
                [order],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        if is_final(number) {
            assert!((1..=2).contains(&came), "{order}: {came}");
            assert_eq!(state.0, "failed", "{order}");
            assert!(state.1.unwrap().contains(if number % 6 == 2 { "屏蔽" } else { "chat not found" }));
        } else {
            assert!((1..=2).contains(&sent), "{order}: {sent}");
            assert_eq!(state, ("sent".into(), None), "{order}");
        }
    }
    assert!(sandbox.log().contains("BULK000002"), "what is final is logged");
    assert!(!sandbox.log().contains("secret"), "the token is in no log");

    let failed = sandbox.json(&["messages", "list", "--state", "failed", "--json"]);
    assert_eq!(failed.as_array().unwrap().len(), ORDERS / 3);
    assert_eq!(failed[0]["order_no"], orders[21]);
    let outcome = sandbox.run(&["messages", "retry", "--failed"]);
    assert_eq!((outcome.code, outcome.stdout.trim()), (0, "将立即发送：8"));
    assert_eq!(due(&sandbox), 8);
}

#[test]
fn a_buyer_is_told_in_their_language() {
    let telegram = telegram();
    let sandbox =
        Sandbox::with_config(&config(&telegram, "[telegram.texts.en]\nsettled = \"{credits} of {name}: {balance}\""));
    let service = sandbox.serve();
    let (chinese, english) = (sandbox.order(1001), sandbox.order(1002));
    sandbox.database().execute("UPDATE users SET language = 'en' WHERE telegram_id = 1002", []).unwrap();
    pay(&service, &chinese);
    pay(&service, &english);
    let mut messages: Vec<_> = telegram.wait_for(2).iter().map(Request::json).collect();
    messages.sort_by_key(|message| message["chat_id"].as_i64());
    assert_eq!(messages[0]["chat_id"], 1001);
    let expected = format!("✅ 支付成功！VIP白银 已到账 70 积分，当前余额 70。\n订单 {chinese}，金额 ¥36.00。");
    assert_eq!(messages[0]["text"], expected);
    assert_eq!(messages[1]["chat_id"], 1002);
    assert_eq!(messages[1]["text"], "70 of VIP白银: 70");
    assert_eq!(messages[1]["link_preview_options"]["is_disabled"], true);
}

#[test]
fn a_flood_of_trouble_is_one_message_to_the_operator() {
    const ORDERS: usize = 40;
    let came = Mutex::new(0);
    let telegram = StandIn::start(move |request| {
        let mut came = came.lock().unwrap();
        *came += usize::from(request.json()["chat_id"] == 99);
        // The first one does not get through.
        if request.json()["chat_id"] == 99 && *came == 1 { Reply::of(502, "") } else { Reply::of(200, SENT) }
    });
    let sandbox = Sandbox::with_config(&config(&telegram, "admin_chat_id = 99"));
    let orders = sandbox.create_database_with_orders(ORDERS);
    let service = sandbox.serve();
    let told = || {
        sandbox.count("SELECT coalesce(max(CAST(value AS INTEGER)), -1) FROM memory WHERE name = 'admin_told_receipt'")
    };
    wait_until("it is known from where on trouble is told", || told() == 0);
    let mut client = service.client();
    for order in &orders {
        assert_eq!(client.notify(&Notification::of(order).with("money", "1.00").form()).1, "fail");
    }
    wait_until("the operator is told", || told() == i64::try_from(ORDERS).unwrap());
    let to_operator: Vec<_> =
        telegram.requests().iter().filter(|request| request.json()["chat_id"] == 99).map(text).collect();
    let [_, whole] = to_operator.try_into().unwrap();
    assert!(whole.contains("金额与订单不符：40 次") && whole.contains("（应付 ¥36.00，实付 ¥1.00）"), "{whole}");
    assert!(whole.contains(&orders[ORDERS - 1]), "{whole}");
}

#[test]
fn a_wrong_token_stops_the_channel_and_loses_nothing() {
    let telegram = StandIn::start(|_| Reply::of(401, r#"{"ok":false,"description":"Unauthorized"}"#));
    let sandbox = Sandbox::with_config(&config(&telegram, ""));
    let orders = sandbox.create_database_with_orders(30);
    let service = sandbox.serve();
    for order in &orders {
        pay(&service, order);
    }
    service.wait_for_log(" - ERROR - telegram");
    service.stop();
    assert!(telegram.requests().len() <= 8, "only what was under way together is tried");
    assert_eq!(due(&sandbox), 30);
    assert_eq!(sandbox.count("SELECT max(attempts) FROM outbox"), 0);
    assert_eq!(sandbox.log().matches("Telegram 不认识这个机器人").count(), 1);
}

#[test]
fn a_token_that_a_reload_brings_is_used() {
    let telegram = telegram();
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let order = sandbox.order(1001);
    assert_eq!(daemon.notify(&Notification::of(&order).form()).1, "success");
    let outcome = sandbox.run(&["messages", "list"]);
    assert!(outcome.stdout.contains(&order) && outcome.stdout.contains("待发送"), "{outcome:?}");
    assert!(outcome.stderr.contains("telegram.token_file"), "{outcome:?}");
    sandbox.configure(&config(&telegram, ""));
    assert_eq!(sandbox.run(&["reload"]).code, 0);
    assert!(text(&telegram.wait_for(1)[0]).contains(&order));
}

/// A Telegram that answers when it is told to.
fn slow_telegram() -> (StandIn, mpsc::Sender<()>) {
    let (let_go, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let telegram = StandIn::start(move |_| {
        wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        Reply::of(200, SENT)
    });
    (telegram, let_go)
}

#[test]
fn a_stop_waits_for_the_message_under_way() {
    let (telegram, let_go) = slow_telegram();
    let sandbox = Sandbox::with_config(&config(&telegram, ""));
    let mut service = sandbox.serve();
    pay(&service, &sandbox.order(1001));
    telegram.wait_for(1);
    service.signal(Signal::SIGTERM);
    service.wait_for_log("SIGTERM");
    let_go.send(()).unwrap();
    assert_eq!(service.wait().code(), Some(0));
    assert_eq!(sandbox.count("SELECT count(*) FROM outbox WHERE state = 'sent' AND attempts = 1"), 1);
}

#[test]
fn a_restart_sends_nothing_twice() {
    let (telegram, let_go) = slow_telegram();
    let sandbox = Sandbox::with_config(&config(&telegram, ""));
    let daemon = sandbox.start();
    let first = sandbox.order(1001);
    assert_eq!(daemon.notify(&Notification::of(&first).form()).1, "success");
    telegram.wait_for(1);
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    let_go.send(()).unwrap();
    wait_until("the old process notes it", || due(&sandbox) == 0);
    let second = sandbox.order(1002);
    assert_eq!(daemon.notify(&Notification::of(&second).form()).1, "success");
    let_go.send(()).unwrap();
    wait_until("the new process sends", || due(&sandbox) == 0);
    let texts: Vec<_> = telegram.requests().iter().map(text).collect();
    assert!(matches!(&texts[..], [one, two] if one.contains(&first) && two.contains(&second)), "{texts:?}");
}

#[test]
fn retrying_needs_to_know_what() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    for (arguments, code) in [
        (&["messages", "retry"][..], 2),
        (&["messages", "retry", "--failed", "--all-due"], 2),
        (&["messages", "retry", "--order", "NOSUCH"], 1),
        (&["messages", "retry", "--id", "7"], 1),
        (&["messages", "list", "--order", "NOSUCH"], 1),
        (&["messages", "list", "--state", "gone"], 2),
        (&["messages", "retry", "--all-due"], 0),
        (&["events", "replay", "--since", "soon"], 2),
        (&["events", "replay", "--failed"], 0),
    ] {
        assert_eq!(sandbox.run(arguments).code, code, "{arguments:?}");
    }
    assert_eq!(sandbox.json(&["messages", "retry", "--failed", "--json"])["due"], 0);
    assert_eq!(sandbox.json(&["messages", "list", "--json"]), serde_json::json!([]));
}
