//! SIGKILL at any moment: whatever was acknowledged is there afterwards, and it is there once.
//!
//! `scripts/crash-test KILLS` does the same to the release build, as often as it is told.

use std::collections::HashSet;
use std::env;
use std::fmt::Debug;
use std::io::Write;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::*;

/// How often the service is killed where nobody asks for more.
const KILLS: usize = 5;
const SENDERS: usize = 8;
const CREDITS_PER_ORDER: i64 = 70;
/// The latest moment of a kill, counted from the first answer; the senders have something to send for longer.
const KILL_WITHIN: Duration = Duration::from_millis(60);
/// So many in a hundred kills hit a service that is only just starting, with the log of the one before to replay.
const KILLS_AT_START_PERCENT: u32 = 15;

#[test]
fn what_was_acknowledged_is_there_once_after_every_kill() {
    let kills = asked("WEBHOOKCTL_CRASH_KILLS").unwrap_or(KILLS);
    let seed = asked("WEBHOOKCTL_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    let orders_per_kill = asked("WEBHOOKCTL_CRASH_ORDERS").unwrap_or(200);
    // Shown where the test fails, or where its output is asked for.
    println!("seed {seed}");
    let began = Instant::now();
    let mut run = Run::new(kills, orders_per_kill, seed);
    for kill in 0..kills {
        run.kill_under_load(kill);
        run.prove();
        run.send_everything_again(kill);
    }
    let Run { callbacks, acknowledged, lost, doubled, kills_at_start, .. } = &run;
    let (callbacks, acknowledged) = (callbacks.load(Ordering::Relaxed), acknowledged.len());
    println!("kills  at start  callbacks  acknowledged  lost  doubled  seconds  seed");
    println!(
        "{kills:>5}  {kills_at_start:>8}  {callbacks:>9}  {acknowledged:>12}  {lost:>4}  {doubled:>7}  {:>7}  {seed}",
        began.elapsed().as_secs(),
    );
    assert_eq!((*lost, *doubled), (0, 0), "seed {seed}");
    assert!(acknowledged > 0);
}

/// What `scripts/crash-test` asks for.
fn asked<T: FromStr<Err: Debug>>(variable: &str) -> Option<T> {
    env::var(variable).ok().map(|value| value.parse().unwrap())
}

/// Many kills of one service, on one database.
struct Run {
    sandbox: Sandbox,
    orders: Vec<String>,
    orders_per_kill: usize,
    random: fastrand::Rng,
    /// Which orders' payments a `success` was received for.
    acknowledged: HashSet<usize>,
    callbacks: AtomicU64,
    kills_at_start: u64,
    /// Acknowledged, and not settled.
    lost: u64,
    /// Credited more than once.
    doubled: i64,
}

impl Run {
    fn new(kills: usize, orders_per_kill: usize, seed: u64) -> Self {
        let sandbox = Sandbox::new();
        let orders = sandbox.create_database_with_orders(kills * orders_per_kill);
        Self {
            sandbox,
            orders,
            orders_per_kill,
            random: fastrand::Rng::with_seed(seed),
            acknowledged: HashSet::new(),
            callbacks: AtomicU64::new(0),
            kills_at_start: 0,
            lost: 0,
            doubled: 0,
        }
    }

    /// Several connections send the callbacks of this kill's orders, some twice, some again from earlier; then the service dies.
    fn kill_under_load(&mut self, kill: usize) {
        if self.random.u32(..100) < KILLS_AT_START_PERCENT {
            self.kills_at_start += 1;
            let mut starting = Process::spawn(self.sandbox.command(&["serve"]).stderr(std::process::Stdio::null()));
            std::thread::sleep(Duration::from_micros(self.random.u64(..100_000)));
            starting.signal(Signal::SIGKILL);
            starting.wait();
        }
        let mut service = self.sandbox.serve();
        let fresh = self.orders_of(kill);
        let (answered, first_answer) = mpsc::channel();
        let died = Duration::from_micros(self.random.u64(..=u64::try_from(KILL_WITHIN.as_micros()).unwrap()));
        let seeds: Vec<u64> = (0..SENDERS).map(|_| self.random.u64(..)).collect();
        let this: &Self = self;
        let acknowledged: Vec<usize> = std::thread::scope(|scope| {
            let senders: Vec<_> = seeds
                .into_iter()
                .enumerate()
                .map(|(sender, seed)| {
                    let (answered, address) = (answered.clone(), service.address);
                    let mut random = fastrand::Rng::with_seed(seed);
                    let mine: Vec<usize> = fresh.clone().skip(sender).step_by(SENDERS).collect();
                    scope.spawn(move || {
                        let mut client = Client::connect(address);
                        let mut acknowledged = Vec::new();
                        let mut mine = mine.into_iter();
                        loop {
                            // A gateway repeats itself, and so do these: what is sent is a new one, or any of before.
                            let is_repeated = random.u32(..10) == 0;
                            let next = if is_repeated { None } else { mine.next() };
                            let order = next.unwrap_or_else(|| random.usize(..fresh.end));
                            match this.send(&mut client, order, random.bool()) {
                                Some(answer) => assert_eq!(answer.body, "success", "{order}"),
                                None => return acknowledged,
                            }
                            acknowledged.push(order);
                            let _ = answered.send(());
                        }
                    })
                })
                .collect();
            first_answer.recv_timeout(PATIENCE).unwrap();
            std::thread::sleep(died);
            service.signal(Signal::SIGKILL);
            service.wait();
            senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
        });
        self.acknowledged.extend(acknowledged);
    }

    /// Sends an order's callback. The service may be killed at any moment of it: only a whole answer counts.
    fn send(&self, client: &mut Client, order: usize, by_post: bool) -> Option<Response> {
        let form = Notification::of(&self.orders[order]).form();
        let request =
            if by_post { post(&form) } else { format!("GET /payment/notify?{form} HTTP/1.1\r\nHost: x\r\n\r\n") };
        self.callbacks.fetch_add(1, Ordering::Relaxed);
        client.stream.write_all(request.as_bytes()).ok()?;
        client.response()
    }

    fn orders_of(&self, kill: usize) -> std::ops::Range<usize> {
        kill * self.orders_per_kill..(kill + 1) * self.orders_per_kill
    }

    /// Looks at what the dead service has left behind, before anything is sent again.
    fn prove(&mut self) {
        let audit = self.sandbox.json(&["audit", "--json"]);
        assert_eq!(audit["findings"], 0, "{audit}");
        let database = self.sandbox.database();
        let mut paid = database.prepare("SELECT order_no FROM orders WHERE status = 'paid'").unwrap();
        let paid: HashSet<String> = paid.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        let lost = self.acknowledged.iter().filter(|order| !paid.contains(&self.orders[**order]));
        self.lost += u64::try_from(lost.count()).unwrap();
        // By what the buyers have, not by what the tables' own constraints see to.
        let credits: i64 = database.query_row("SELECT sum(credits) FROM users", [], |row| row.get(0)).unwrap();
        self.doubled += (credits / CREDITS_PER_ORDER - i64::try_from(paid.len()).unwrap()).abs();
        assert_eq!(credits % CREDITS_PER_ORDER, 0);
    }

    /// As the gateways do: for each of this kill's orders until it is acknowledged.
    fn send_everything_again(&mut self, kill: usize) {
        let service = self.sandbox.serve();
        let mut client = service.client();
        for order in self.orders_of(kill) {
            let by_post = self.random.bool();
            let answer = self.send(&mut client, order, by_post).unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "success"));
            self.acknowledged.insert(order);
        }
        // Its end is a kill as well: the next round begins with what this one has left.
        drop(service);
        self.prove();
    }
}
