//! Events to the bot: signed, repeated as they were, and no more of them to a URL that wants none.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

use crate::stand_in::*;
use crate::support::*;

const SECRET: &str = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn config(url: &str) -> String {
    format!("{CONFIG}[events]\nurl = \"{url}\"\nsecret = \"whsec_{SECRET}\"\n")
}

fn pay(service: &Service, order: &str) {
    assert_eq!(service.notify(&Notification::of(order).form()), (200, "success".into()));
}

/// Answers the first requests so, and all others with 204.
fn bot(first: Vec<Reply>) -> StandIn {
    let count = AtomicUsize::new(0);
    StandIn::start(move |_| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        first.get(number).cloned().unwrap_or(Reply::of(204, ""))
    })
}

fn due(sandbox: &Sandbox) -> i64 {
    sandbox.count("SELECT count(*) FROM outbox WHERE channel = 'event' AND state = 'due'")
}

/// Verifies as Standard Webhooks says.
#[track_caller]
fn assert_signed(request: &Request) {
    let (id, timestamp) = (&request.headers["webhook-id"], &request.headers["webhook-timestamp"]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(timestamp.parse::<u64>().unwrap().abs_diff(now) < 300, "{timestamp}");
    let signature = request.headers["webhook-signature"].strip_prefix("v1,").unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(SECRET).unwrap());
    let signed = format!("{id}.{timestamp}.{}", request.body);
    hmac::verify(&key, signed.as_bytes(), &BASE64.decode(signature).unwrap()).expect("it verifies");
    assert_eq!(request.headers["content-type"], "application/json");
}

#[test]
fn an_event_is_signed_and_repeated_as_it_was() {
    let bot = bot(vec![Reply::of(500, "")]);
    let sandbox = Sandbox::with_config(&config(&format!("{}/hook", bot.url())));
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    pay(&service, &order);
    let requests = bot.wait_for(2);
    wait_until("it is noted", || due(&sandbox) == 0);
    for request in &requests {
        assert_eq!(request.path, "/hook");
        assert_eq!(request.headers["webhook-id"], format!("evt_{order}_settled"));
        assert_signed(request);
    }
    assert_eq!(requests[0].body, requests[1].body);
    let event = requests[0].json();
    assert_eq!(event["type"], "order.settled");
    assert_eq!(event["timestamp"], event["data"]["paid_at"]);
    assert_eq!(event["data"], sandbox.json(&["orders", "show", &order, "--json"]));
    let listed = sandbox.json(&["events", "list", "--json"]);
    assert_eq!((&listed[0]["state"], &listed[0]["attempts"]), (&"sent".into(), &2.into()));
    let keys: Vec<_> = listed[0].as_object().unwrap().keys().cloned().collect();
    assert!(keys.is_sorted(), "{keys:?}");
}

#[test]
fn each_kind_of_news_is_an_event() {
    let bot = bot(Vec::new());
    let sandbox = Sandbox::with_config(&config(&bot.url()));
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    assert_eq!(service.notify(&Notification::of(&order).with("money", "1.00").form()).1, "fail");
    let event = bot.wait_for(1)[0].json();
    assert_eq!((&event["type"], &event["data"]["status"]), (&"order.review".into(), &"review".into()));
    assert_eq!(event["data"]["order_no"], order);
}

#[test]
fn a_url_that_is_gone_gets_nothing_more_until_a_replay() {
    let bot = bot(vec![Reply::of(410, "")]);
    let sandbox = Sandbox::with_config(&config(&bot.url()));
    let service = sandbox.serve();
    let first = sandbox.order(1001);
    pay(&service, &first);
    service.wait_for_log(" - ERROR - event");
    let second = sandbox.order(1002);
    pay(&service, &second);
    let outcome = sandbox.run(&["events", "list"]);
    assert!(outcome.stderr.contains("events replay"), "{outcome:?}");
    assert_eq!(due(&sandbox), 2);
    // Over a restart, too.
    service.stop();
    let service = sandbox.serve();
    assert_eq!(due(&sandbox), 2);
    assert_eq!(sandbox.json(&["events", "replay", "--json"])["due"], 2);
    wait_until("both are delivered", || due(&sandbox) == 0);
    service.stop();
    let ids: Vec<_> = bot.requests().iter().map(|request| request.headers["webhook-id"].clone()).collect();
    assert_eq!(ids.len(), 3, "one was refused, and nothing was sent before the replay: {ids:?}");
    assert!(ids[1..].contains(&format!("evt_{first}_settled")) && ids[1..].contains(&format!("evt_{second}_settled")));
}

#[test]
fn another_url_is_not_the_one_that_is_gone() {
    let (gone, other) = (bot(vec![Reply::of(410, "")]), bot(Vec::new()));
    let sandbox = Sandbox::with_config(&config(&gone.url()));
    let daemon = sandbox.start();
    let order = sandbox.order(1001);
    assert_eq!(daemon.notify(&Notification::of(&order).form()).1, "success");
    wait_until("it is remembered", || sandbox.count("SELECT count(*) FROM memory WHERE name = 'events_disabled'") == 1);
    sandbox.configure(&config(&other.url()));
    assert_eq!(sandbox.run(&["reload"]).code, 0);
    assert_signed(&other.wait_for(1)[0]);
    wait_until("it is delivered", || due(&sandbox) == 0);
    assert_eq!(sandbox.count("SELECT count(*) FROM memory WHERE name = 'events_disabled'"), 0);
}

#[test]
fn a_redirect_is_a_failure_and_is_not_followed() {
    let elsewhere = bot(Vec::new());
    let location = format!("Location: {}/\r\n", elsewhere.url());
    let bot = StandIn::start(move |_| Reply::with(307, &location, ""));
    let sandbox = Sandbox::with_config(&config(&bot.url()));
    let service = sandbox.serve();
    pay(&service, &sandbox.order(1001));
    // The second attempt shows that the first one is over.
    bot.wait_for(2);
    let listed = sandbox.json(&["events", "list", "--json"]);
    assert_eq!(listed[0]["state"], "due");
    assert!(listed[0]["error"].as_str().unwrap().contains("307"), "{listed}");
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn what_happened_before_there_was_a_bot_can_be_replayed() {
    let bot = bot(Vec::new());
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let order = sandbox.order(1001);
    assert_eq!(daemon.notify(&Notification::of(&order).form()).1, "success");
    assert_eq!(sandbox.count("SELECT count(*) FROM outbox WHERE channel = 'event'"), 0);
    let outcome = sandbox.run(&["events", "list"]);
    assert!(outcome.stderr.contains("events.url"), "{outcome:?}");
    sandbox.configure(&config(&bot.url()));
    assert_eq!(sandbox.run(&["reload"]).code, 0);
    assert_eq!(sandbox.json(&["events", "replay", "--since", "1h", "--json"])["due"], 1);
    // What comes after the reload needs no replay.
    let later = sandbox.order(1002);
    assert_eq!(daemon.notify(&Notification::of(&later).form()).1, "success");
    let ids: Vec<_> = bot.wait_for(2).iter().map(|request| request.headers["webhook-id"].clone()).collect();
    for order in [order, later] {
        assert!(ids.contains(&format!("evt_{order}_settled")), "{ids:?}");
    }
}
