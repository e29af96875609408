//! Callbacks that prove nothing, by the thousand: what they may cost, and whom.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// How many threads send a flood.
const FLOODERS: usize = 4;

/// How many answers there were of each kind: status, body.
type Tally = BTreeMap<(u16, String), usize>;

/// Sends `count` requests as fast as they are answered, and counts the answers.
fn flood(scene: &Scene, from: Ipv4Addr, count: usize, request: impl Fn(usize) -> String + Sync) -> Tally {
    let next = AtomicUsize::new(0);
    let send = || {
        let mut tally = Tally::new();
        let mut kept: Option<Client> = None;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return tally;
            }
            let mut client = kept.take().unwrap_or_else(|| scene.client(from));
            let answer = client.send(request(number));
            let closes = answer.headers.get("connection").is_some_and(|value| value == "close");
            kept = (!closes).then_some(client);
            *tally.entry((answer.status, answer.body)).or_default() += 1;
        }
    };
    std::thread::scope(|threads| {
        let senders: Vec<_> = (0..FLOODERS).map(|_| threads.spawn(send)).collect();
        senders.into_iter().map(|sender| sender.join().unwrap()).fold(Tally::new(), |mut all, tally| {
            for (answer, count) in tally {
                *all.entry(answer).or_default() += count;
            }
            all
        })
    })
}

/// A callback that nobody signed, longer than what is kept of it, and different each time.
fn forged(number: usize) -> String {
    Notification::of(&format!("FORGED{number}")).with("param", &"x".repeat(5000)).signed_with("guess").form()
}

/// How many bytes the log has of all that is no settlement.
fn logged_bytes(scene: &Scene) -> usize {
    let log = scene.sandbox.log();
    log.lines().filter(|line| !line.contains(" - settled：")).map(str::len).sum()
}

/// How large the database is, with its write-ahead log.
fn database_bytes(scene: &Scene) -> u64 {
    let file = scene.sandbox.database_file();
    let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |file| file.len());
    size(&file) + size(&file.with_extension("db-wal"))
}

/// How many of an address's are kept at once, and how many of them each second afterwards.
const KEPT: usize = 10_000;
const KEPT_PER_S: usize = 10;
const FLOOD: usize = KEPT + 2000;
const FORGED: &str = " - WARNING - bad_signature：";

#[test]
fn forged_callbacks_of_one_address_cost_next_to_nothing() {
    under_attack(|scene| {
        let database_before = database_bytes(scene);
        let started = Instant::now();
        let tally = flood(scene, STRANGER, FLOOD, |number| post(&forged(number)));
        let seconds = usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
        assert_eq!(tally, Tally::from([((200, "fail".into()), FLOOD)]));
        scene.honest.go_on(SENDERS);
        // Counted by their numbers: of the rows themselves, the newest ones are kept.
        let kept = usize::try_from(scene.sandbox.count("SELECT max(id) FROM rejections")).unwrap();
        assert!((KEPT..=KEPT + KEPT_PER_S * seconds).contains(&kept), "{kept} in {seconds} s");
        let named = scene.sandbox.log().matches(FORGED).count();
        assert!((50..=50 + seconds / 5 + 1).contains(&named), "{named} in {seconds} s");
        assert!(logged_bytes(scene) < 32 * 1024, "{}", logged_bytes(scene));
        let grown = database_bytes(scene).saturating_sub(database_before);
        assert!(grown < 80 * 1024 * 1024, "{grown} bytes");
        // All the others were counted, and that is told.
        wait_until("the log says how many there were", || counted(scene, "bad_signature") + named == FLOOD);
    });
}

/// How many the log has counted instead of naming them.
fn counted(scene: &Scene, outcome: &str) -> usize {
    let log = scene.sandbox.log();
    let counts = log.lines().filter_map(|line| line.split_once("此前另有 ")?.1.split_once(" 条 "));
    counts.filter(|(_, rest)| rest.starts_with(outcome)).map(|(count, _)| count.parse::<usize>().unwrap()).sum()
}

#[test]
fn a_forgers_neighbours_are_still_believed() {
    under_attack(|scene| {
        let short = |number: usize| Notification::of(&format!("FORGED{number}")).signed_with("guess").form();
        let tally = flood(scene, GATEWAY, FLOOD, |number| post(&short(number)));
        assert_eq!(tally, Tally::from([((200, "fail".into()), FLOOD)]));
        // The honest stream comes from this very address. Its connections, too, are shared where a proxy stands before us.
        let mut client = scene.client(PROXY);
        let order = scene.sandbox.order(1003);
        let sent_by = |form: &str| post(form).replace("Host: x", "Host: x\r\nX-Forwarded-For: 127.0.0.2");
        assert_eq!(client.send(sent_by(&short(0))).body, "fail");
        assert_eq!(client.send(sent_by(&Notification::of(&order).form())).body, "success");
        assert_eq!(client.send(sent_by(&short(0))).body, "fail", "and an honest callback is no licence for a forger");
    });
}

#[test]
fn forged_callbacks_of_thousands_of_addresses_fill_no_disk() {
    under_attack(|scene| {
        let sender =
            |number: usize| format!("Host: x\r\nX-Forwarded-For: 10.{}.{}.7", number / 250 % 250, number % 250);
        let request = |number: usize| post(&forged(number)).replace("Host: x", &sender(number));
        let tally = flood(scene, PROXY, FLOOD, request);
        assert_eq!(tally, Tally::from([((200, "fail".into()), FLOOD)]));
        scene.honest.go_on(SENDERS);
        let kept = scene.sandbox.count("SELECT count(*) FROM rejections");
        assert!(kept <= i64::try_from(KEPT).unwrap(), "{kept}");
        assert!(database_bytes(scene) < 80 * 1024 * 1024, "{} bytes", database_bytes(scene));
        assert!(logged_bytes(scene) < 32 * 1024, "{}", logged_bytes(scene));
    });
}

#[test]
fn forged_callbacks_of_every_kind_are_seldom_logged() {
    under_attack(|scene| {
        let tally = flood(scene, STRANGER, 1000, |number| match number % 4 {
            0 => post("x=1&x=2"),
            1 => post(&Notification::of("X").with("pid", "9999").form()),
            2 => post(&forged(number)),
            _ => {
                format!("GET /payment/notify?{} HTTP/1.1\r\nHost: x\r\n\r\n", Notification::of("X").form_with_sign(""))
            }
        });
        assert_eq!(tally, Tally::from([((200, "fail".into()), 1000)]));
        assert!(logged_bytes(scene) < 64 * 1024, "{}", logged_bytes(scene));
    });
}

#[test]
fn a_valid_callback_sent_again_and_again_is_always_answered_and_seldom_logged() {
    under_attack(|scene| {
        let order = scene.sandbox.order(1003);
        let form = Notification::of(&order).form();
        let started = Instant::now();
        let tally = flood(scene, STRANGER, 2000, |_| post(&form));
        let seconds = usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
        assert_eq!(tally, Tally::from([((200, "success".into()), 2000)]));
        let named = scene.sandbox.log().matches(" - INFO - duplicate：").count();
        assert!((100..=100 + 2 * seconds).contains(&named), "{named} in {seconds} s");
        assert_eq!(scene.sandbox.credits(1003), 70);
    });
}
