//! Hostile clients on real sockets, while honest callbacks keep coming: each of these has its answer within a second.
//!
//! A case names what strangers do; [`under_attack`] is the rest. Strangers have addresses of their own in 127.0.0.0/8, and the
//! gateway has another one; 127.0.0.1 is a trusted proxy, and no limit for one client holds for it.

mod connections;
mod flood;
mod framing;

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::*;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PROXY: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// How long an honest callback may take, whatever others do.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How much memory the service may ever have taken, in KiB.
const MEMORY_KIB_MAX: u64 = 100 * 1024;
/// How many connections one stranger opens.
const CROWD: usize = 2000;

/// How many callbacks of an honest stream are under way at once, and how long each sender pauses behind an answer.
const SENDERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(20);
/// More than a case has time for.
const ORDERS: usize = 12_000;

/// A steady stream of honest callbacks, one for each of many fresh orders, over kept connections and new ones. [`Honest::end`]
/// ends it, and asserts that each callback was answered `success`, and in time.
pub struct Honest {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    senders: Vec<JoinHandle<Vec<Answer>>>,
}

/// What became of one honest callback.
struct Answer {
    order: String,
    body: Option<String>,
    took: Duration,
}

impl Honest {
    /// Pays these orders, one after the other.
    pub fn start(from: Ipv4Addr, to: SocketAddr, orders: &[String]) -> Self {
        let (over, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let senders = orders.chunks(orders.len().div_ceil(SENDERS)).enumerate();
        let senders = senders.map(|(number, orders)| {
            let (over, sent, orders) = (Arc::clone(&over), Arc::clone(&sent), orders.to_vec());
            // Gateways differ in this: some have a connection for each callback.
            let keeps = number % 2 == 0;
            std::thread::spawn(move || {
                let mut kept = None;
                let pay = |order: String| {
                    let started = Instant::now();
                    let form = Notification::of(&order).form();
                    let mut client =
                        kept.take().unwrap_or_else(|| Client::over(connect_from(from, to).expect("a connection")));
                    let body = client.try_send(post(&form)).map(|answer| answer.body);
                    kept = keeps.then_some(client).filter(|_| body.is_some());
                    let took = started.elapsed();
                    sent.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                    Answer { order, body, took }
                };
                orders.into_iter().take_while(|_| !over.load(Ordering::Relaxed)).map(pay).collect()
            })
        });
        let senders = senders.collect();
        Self { over, sent, senders }
    }

    /// Waits until so many more callbacks were answered.
    pub fn go_on(&self, count: usize) {
        let goal = self.sent.load(Ordering::Relaxed) + count;
        wait_until("the honest callbacks are answered", || self.sent.load(Ordering::Relaxed) >= goal);
    }

    /// Ends the stream; the orders that it paid.
    #[track_caller]
    pub fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let answers: Vec<Answer> = self.senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        assert!(answers.len() < ORDERS, "the stream has run dry");
        for Answer { order, body, took } in &answers {
            assert_eq!(body.as_deref(), Some("success"), "{order}, after {took:?}");
            assert!(*took < ANSWER_MAX, "{order}: {took:?}");
        }
        answers.into_iter().map(|answer| answer.order).collect()
    }
}

/// What a case has to do with: the service under attack, and the callbacks that go on meanwhile.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    service: &'a Service,
    honest: &'a Honest,
}

impl Scene<'_> {
    /// A connection from this address.
    fn client(&self, from: Ipv4Addr) -> Client {
        Client::over(connect_from(from, self.service.address).unwrap())
    }

    /// Many connections from this address. Some may be closed at once, which is no error here.
    fn crowd(&self, from: Ipv4Addr, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| connect_from(from, self.service.address).unwrap()).collect()
    }
}

/// The size of the service in memory, in KiB: `VmHWM` is the largest so far.
fn memory_kib(service: &Service, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs `attack` while honest callbacks keep coming. They all have to be answered in time, what they pay for credited, the
/// service's memory bounded; and when it is over, the service stops as it always does.
#[track_caller]
fn under_attack(attack: impl FnOnce(&Scene)) {
    under_attack_with(CONFIG, attack);
}

#[track_caller]
fn under_attack_with(config: &str, attack: impl FnOnce(&Scene)) {
    // Side by side, two of these would be twice what either of them means.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if !allow_descriptors(3 * CROWD as u64) {
        return;
    }
    let sandbox = Sandbox::with_config(config);
    let orders = sandbox.create_database_with_orders(ORDERS);
    let service = sandbox.serve();
    let honest = Honest::start(GATEWAY, service.address, &orders);
    honest.go_on(SENDERS);
    attack(&Scene { sandbox: &sandbox, service: &service, honest: &honest });
    honest.go_on(5 * SENDERS);
    let paid = honest.end();
    let memory = memory_kib(&service, "VmHWM");
    eprintln!("{} honest callbacks, {memory} KiB", paid.len());
    assert!(memory < MEMORY_KIB_MAX, "{memory} KiB");
    assert_eq!(sandbox.count("SELECT count(*) FROM orders WHERE status = 'paid'"), i64::try_from(paid.len()).unwrap());
    assert_eq!(sandbox.credits(1001), 70 * i64::try_from(paid.len()).unwrap());
    service.stop();
}

/// Sends as much of `bytes` as the other end takes, which may close the connection at any time.
fn offer(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = takes(stream, bytes);
}

/// Whether the other end takes all of `bytes`.
fn takes(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, WouldBlock};
    match stream.write_all(bytes) {
        Ok(()) => true,
        Err(error) => {
            assert!(matches!(error.kind(), BrokenPipe | ConnectionReset | WouldBlock), "{error}");
            false
        }
    }
}
