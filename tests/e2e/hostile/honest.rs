//! The steady stream of honest callbacks.
//!
//! A number of seconds says nothing: the machine may be slow, or busy with something else. So the time that an answer took is
//! accounted for. Each callback may wait for the disk, for a processor that others have, and for a limited amount of the service's
//! own work. Time that is none of these was spent waiting for a stranger.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::support::*;

/// How much the service may do between a callback and its answer, counted in plain requests: a few turns of all connections.
const REQUESTS_BETWEEN_MAX: u32 = 30_000;
/// How much of an answer's time may remain unaccounted for. A stranger can hold a connection for at least 10 s.
const UNACCOUNTED_MAX: Duration = Duration::from_secs(2);
/// How many callbacks are under way at once, and how long each sender pauses behind an answer.
pub const SENDERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(20);

/// A steady stream of honest callbacks, one for each of many fresh orders, over kept connections and new ones. [`Honest::end`]
/// ends it, and asserts that each callback was answered `success`, and that none waited for a stranger.
pub struct Honest {
    over: Arc<AtomicBool>,
    answered: Arc<[AtomicUsize; SENDERS]>,
    senders: Vec<JoinHandle<Vec<Answer>>>,
    disk: Disk,
    cost: Duration,
}

/// What became of one honest callback.
struct Answer {
    order: String,
    body: Option<String>,
    took: Duration,
    /// What passed meanwhile.
    spent: Spent,
}

/// Time that is accounted for.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// By the service's threads, on a processor.
    service_ran: Duration,
    /// By the service's threads, ready to run while something else ran.
    service_stood_still: Duration,
    /// By the sender, likewise.
    sender_stood_still: Duration,
    /// By the disk, for one small write after the other.
    disk: Duration,
}

/// The kernel's account of a task: how long it ran, and how long it was ready to run while something else ran.
fn account(task: impl AsRef<Path>) -> (Duration, Duration) {
    let account = std::fs::read_to_string(task.as_ref().join("schedstat")).unwrap_or_default();
    let mut times = account.split(' ').map(|ns| Duration::from_nanos(ns.parse().unwrap_or_default()));
    (times.next().unwrap_or_default(), times.next().unwrap_or_default())
}

impl Spent {
    fn so_far(service: Pid, disk: &Disk) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{service}/task")).into_iter().flatten().flatten();
        let accounts = tasks.map(|task| account(task.path()));
        let (service_ran, service_stood_still) =
            accounts.fold((Duration::ZERO, Duration::ZERO), |all, one| (all.0 + one.0, all.1 + one.1));
        let (_, sender_stood_still) = account("/proc/thread-self");
        Self { service_ran, service_stood_still, sender_stood_still, disk: disk.busy() }
    }

    fn since(self, before: Self) -> Self {
        Self {
            service_ran: self.service_ran.saturating_sub(before.service_ran),
            service_stood_still: self.service_stood_still.saturating_sub(before.service_stood_still),
            sender_stood_still: self.sender_stood_still.saturating_sub(before.sender_stood_still),
            disk: self.disk.saturating_sub(before.disk),
        }
    }

    fn all(self) -> Duration {
        self.service_ran + self.service_stood_still + self.sender_stood_still + self.disk
    }
}

/// How long the disk takes for a small durable write, measured all the time beside the service.
#[derive(Clone)]
struct Disk {
    busy: Arc<Mutex<(Duration, Option<Instant>)>>,
    over: Arc<AtomicBool>,
}

impl Disk {
    fn watch(directory: &Path) -> Self {
        let mut file = File::create(directory.join("written-beside-the-service")).unwrap();
        let (busy, over) = (Arc::<Mutex<(Duration, Option<Instant>)>>::default(), Arc::<AtomicBool>::default());
        let watch = Self { busy: Arc::clone(&busy), over: Arc::clone(&over) };
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let started = Instant::now();
                busy.lock().unwrap().1 = Some(started);
                file.write_all(b"x").and_then(|()| file.sync_data()).unwrap();
                let mut busy = busy.lock().unwrap();
                *busy = (busy.0 + started.elapsed(), None);
                drop(busy);
                std::thread::sleep(PAUSE);
            }
        });
        watch
    }

    /// How long it has taken in all, with the write that is under way.
    fn busy(&self) -> Duration {
        let (all, since) = *self.busy.lock().unwrap();
        all + since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// How much processor time a plain request costs the service, here and now.
fn cost_of_a_request(service: Pid, to: SocketAddr, disk: &Disk) -> Duration {
    const COUNT: u32 = 500;
    let mut client = Client::connect(to);
    let before = Spent::so_far(service, disk);
    for _ in 0..COUNT {
        assert_eq!(client.get("/payment/status").status, 200);
    }
    Spent::so_far(service, disk).since(before).service_ran / COUNT
}

/// A sender of callbacks.
struct Sender {
    from: Ipv4Addr,
    to: SocketAddr,
    service: Pid,
    disk: Disk,
    /// Gateways differ in this: some have a connection for each callback.
    keeps: bool,
    kept: Option<Client>,
}

impl Sender {
    fn pay(&mut self, order: &str) -> Answer {
        let (began, before) = (Instant::now(), Spent::so_far(self.service, &self.disk));
        let request = post(&Notification::of(order).form());
        let body = loop {
            let connect = || Client::over(connect_from(self.from, self.to).expect("a connection"));
            let is_used = self.kept.is_some();
            let mut client = self.kept.take().unwrap_or_else(connect);
            let answer = client.try_send(&request);
            self.kept = self.keeps.then_some(client).filter(|_| answer.is_some());
            match answer {
                // A disk that takes its time is no stranger's doing, and gateways send again.
                Some(answer) if answer.status == 503 => {}
                // Closed in the pause, which is long on a busy machine.
                None if is_used => {}
                answer => break answer.map(|answer| answer.body),
            }
        };
        let took = began.elapsed();
        let spent = Spent::so_far(self.service, &self.disk).since(before);
        Answer { order: order.to_owned(), body, took, spent }
    }
}

impl Honest {
    /// Pays these orders at the service that is `pid`, and keeps its files in `directory`, a few orders at a time.
    pub fn start(from: Ipv4Addr, to: SocketAddr, pid: Pid, directory: &Path, orders: &[String]) -> Self {
        let disk = Disk::watch(directory);
        let cost = cost_of_a_request(pid, to, &disk);
        let over = Arc::<AtomicBool>::default();
        let answered = Arc::<[AtomicUsize; SENDERS]>::default();
        let senders = orders.chunks(orders.len().div_ceil(SENDERS)).enumerate();
        let senders = senders.map(|(number, orders)| {
            let (over, answered, orders) = (Arc::clone(&over), Arc::clone(&answered), orders.to_vec());
            let keeps = number % 2 == 0;
            let mut sender = Sender { from, to, service: pid, disk: disk.clone(), keeps, kept: None };
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                // Where an attack takes so long that all are paid, the gateway says so once more.
                for order in orders.iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    answers.push(sender.pay(order));
                    answered[number].fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
                answers
            })
        });
        let senders = senders.collect();
        Self { over, answered, senders, disk, cost }
    }

    /// Waits until so many more callbacks were answered, and each sender has had its share of them.
    pub fn go_on(&self, count: usize) {
        let answered = || self.answered.each_ref().map(|answered| answered.load(Ordering::Relaxed));
        let before = answered();
        let has_share = |(now, before): (usize, usize)| now - before >= count.div_ceil(SENDERS);
        wait_until("the honest callbacks are answered", || answered().into_iter().zip(before).all(has_share));
    }

    /// Ends the stream; the orders that it paid.
    #[track_caller]
    pub fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let answers: Vec<Answer> = self.senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
        self.disk.over.store(true, Ordering::Relaxed);
        let processors = u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap();
        for Answer { order, body, took, spent } in &answers {
            assert_eq!(body.as_deref(), Some("success"), "{order}, after {took:?}");
            // What the service did before its answer was noticed here is not counted.
            let work = spent.service_ran.saturating_sub(spent.sender_stood_still * processors);
            let work_max = self.cost * REQUESTS_BETWEEN_MAX;
            assert!(
                work <= work_max,
                "{order}: {work:?} of work for others, of {work_max:?} at most; {took:?}, {spent:?}"
            );
            let unaccounted = took.saturating_sub(spent.all());
            assert!(unaccounted <= UNACCOUNTED_MAX, "{order}: {unaccounted:?} of {took:?} waiting, {spent:?}");
        }
        let mut orders: Vec<_> = answers.into_iter().map(|answer| answer.order).collect();
        orders.sort_unstable();
        orders.dedup();
        orders
    }
}
