//! The steady stream of honest callbacks.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::support::*;

/// How long an honest callback may take, whatever others do.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// How many callbacks are under way at once, and how long each sender pauses behind an answer.
pub const SENDERS: usize = 4;
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked how long the service's threads had to wait for a processor.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(50);

/// A steady stream of honest callbacks, one for each of many fresh orders, over kept connections and new ones. [`Honest::end`]
/// ends it, and asserts that each callback was answered `success`, and in time.
pub struct Honest {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    orders: usize,
    senders: Vec<JoinHandle<Vec<Answer>>>,
    sampler: JoinHandle<Vec<Sample>>,
}

/// What became of one honest callback.
struct Answer {
    order: String,
    body: Option<String>,
    started: Instant,
    took: Duration,
    /// How long its sender was ready to run, and something else ran.
    stood_still: Duration,
}

/// For how long each thread of the service has been ready to run in all, while something else ran.
struct Sample {
    at: Instant,
    stood_still: HashMap<OsString, Duration>,
}

/// The kernel's account of it.
fn stood_still(task: impl AsRef<Path>) -> Duration {
    let account = std::fs::read_to_string(task.as_ref().join("schedstat")).unwrap_or_default();
    Duration::from_nanos(account.split(' ').nth(1).and_then(|ns| ns.parse().ok()).unwrap_or_default())
}

impl Honest {
    /// Pays these orders at the service that is `pid`, a few at a time.
    pub fn start(from: Ipv4Addr, to: SocketAddr, pid: Pid, orders: &[String]) -> Self {
        let (over, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let senders = orders.chunks(orders.len().div_ceil(SENDERS)).enumerate();
        let senders = senders.map(|(number, orders)| {
            let (over, sent, orders) = (Arc::clone(&over), Arc::clone(&sent), orders.to_vec());
            // Gateways differ in this: some have a connection for each callback.
            let keeps = number % 2 == 0;
            std::thread::spawn(move || {
                let mut kept = None;
                let pay = |order: String| {
                    let (started, stood_before) = (Instant::now(), stood_still("/proc/thread-self"));
                    let form = Notification::of(&order).form();
                    let connect = || Client::over(connect_from(from, to).expect("a connection"));
                    let mut client = kept.take().unwrap_or_else(connect);
                    let body = client.try_send(post(&form)).map(|answer| answer.body);
                    kept = keeps.then_some(client).filter(|_| body.is_some());
                    let took = started.elapsed();
                    let stood_still = stood_still("/proc/thread-self").saturating_sub(stood_before);
                    sent.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                    Answer { order, body, started, took, stood_still }
                };
                orders.into_iter().take_while(|_| !over.load(Ordering::Relaxed)).map(pay).collect()
            })
        });
        let senders = senders.collect();
        let until = Arc::clone(&over);
        let sampler = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !until.load(Ordering::Relaxed) {
                let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
                let stood_still = tasks.map(|task| (task.file_name(), stood_still(task.path())));
                samples.push(Sample { at: Instant::now(), stood_still: stood_still.collect() });
                std::thread::sleep(SAMPLE_INTERVAL);
            }
            samples
        });
        Self { over, sent, orders: orders.len(), senders, sampler }
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
        let samples = self.sampler.join().unwrap();
        assert!(answers.len() < self.orders, "the stream has run dry");
        for answer in &answers {
            let Answer { order, body, took, .. } = answer;
            assert_eq!(body.as_deref(), Some("success"), "{order}, after {took:?}");
            // What the machine gave to others, such as another test's compiler, is not the service's doing.
            let elsewhere =
                if *took < ANSWER_MAX { Duration::ZERO } else { answer.stood_still + longest_wait(&samples, answer) };
            assert!(*took < ANSWER_MAX + elsewhere, "{order}: {took:?}, {elsewhere:?} of it elsewhere");
        }
        answers.into_iter().map(|answer| answer.order).collect()
    }
}

/// How long one of the service's threads had to wait for a processor while this was to be answered.
fn longest_wait(samples: &[Sample], answer: &Answer) -> Duration {
    let end = answer.started + answer.took;
    let before = samples.iter().rev().find(|sample| sample.at <= answer.started);
    let after = samples.iter().find(|sample| sample.at >= end).or(samples.last());
    let (Some(before), Some(after)) = (before, after) else { return Duration::ZERO };
    let waits = after
        .stood_still
        .iter()
        .map(|(task, total)| total.saturating_sub(before.stood_still.get(task).copied().unwrap_or_default()));
    waits.max().unwrap_or_default()
}
