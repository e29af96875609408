//! A simulation of the service: the real store on real files, the rounds of the real loops, and all that may happen to them, as a seed
//! decides. The clock is moved by hand, and Telegram, the bot and the gateway are played in this process.
//!
//! Part of the unit tests, because it looks into the store. After each write the books are compared with those of a small model
//! that was written by the contract. `seeds` has the seeds that once found something; `WEBHOOKCTL_SIM_SEED` runs a single
//! one and tells all of it, and `scripts/soak` runs as many as there is time for.

mod acts;
mod books;
mod callbacks;
mod every_step;
mod model;
mod ops;
mod outside;
mod planted;
mod process;
mod random;
mod rounds;
mod run;
mod workload;
mod world;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::domain::outcome::{NotificationOutcome, Unanswered};
use run::Tally;
use workload::run_seed;

/// How many seeds each run of the tests has.
const SEEDS: u64 = 200;
const THREADS: usize = 2;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn seeds_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sim/seeds")
}

/// A line of the file is a seed, and behind a `#` what it found.
fn seeds_kept() -> Vec<u64> {
    let text = fs::read_to_string(seeds_file()).unwrap();
    let seeds = text.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|seed| !seed.is_empty());
    seeds.map(|seed| seed.parse().unwrap_or_else(|_| panic!("{seed} is no seed"))).collect()
}

/// Keeps a seed that has found something, so that it is run first from now on.
fn keep(seed: u64, found: &str) {
    if seeds_kept().contains(&seed) {
        return;
    }
    let text = fs::read_to_string(seeds_file()).unwrap();
    let found = found.lines().next().unwrap_or_default();
    fs::write(seeds_file(), format!("{text}{seed} # {found}\n")).unwrap();
}

/// Runs a seed; a report where it finds something.
fn run_one(seed: u64) -> Result<Tally, String> {
    match runtime().block_on(run_seed(seed, None)) {
        Ok((_, tally)) => Ok(tally),
        Err((log, broken)) => Err(format!(
            "{}\n\nseed {seed}: {}\nAgain: WEBHOOKCTL_SIM_SEED={seed} cargo test --lib sim::",
            log.join("\n"),
            broken.0
        )),
    }
}

/// Runs seeds on all threads until there are no more of them; what was done, and the reports.
fn run_all(seeds: impl Iterator<Item = u64> + Send) -> (Tally, u64, Vec<String>) {
    let seeds = Mutex::new(seeds);
    let done = Mutex::new((Tally::default(), 0, Vec::new()));
    let too_many = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !too_many.load(Ordering::Relaxed) {
                    let next = seeds.lock().unwrap().next();
                    let Some(seed) = next else { return };
                    let ended = run_one(seed);
                    let mut done = done.lock().unwrap();
                    done.1 += 1;
                    match ended {
                        Ok(tally) => done.0 += tally,
                        Err(report) => {
                            keep(seed, report.split(&format!("seed {seed}: ")).last().unwrap_or_default());
                            done.2.push(report);
                        }
                    }
                    too_many.store(done.2.len() >= 3, Ordering::Relaxed);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

#[test]
fn whatever_happens_the_books_are_right() {
    if let Ok(seed) = env::var("WEBHOOKCTL_SIM_SEED") {
        let seed = seed.parse().expect("WEBHOOKCTL_SIM_SEED is a number");
        match runtime().block_on(run_seed(seed, None)) {
            Ok((log, tally)) => println!("{}\nseed {seed}: {tally:?}", log.join("\n")),
            Err((log, broken)) => panic!("{}\n\nseed {seed}: {}", log.join("\n"), broken.0),
        }
        return;
    }
    let (tally, seeds, reports) = run_all(seeds_kept().into_iter().chain(0..SEEDS));
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
    println!("{seeds} seeds: {tally:?}");
    // It would be easy to find nothing where nothing happens.
    assert!(tally.steps > 40 * seeds && tally.failures > seeds && tally.crashes > seeds, "{tally:?}");
    let are_busy =
        ["telegram", "event", "gateway", "operator"].iter().all(|whom| tally.contacts.get(whom) > Some(&seeds));
    assert!(are_busy, "{tally:?}");
    let never = NotificationOutcome::all().filter(|outcome| !tally.outcomes.contains_key(outcome.name()));
    let unanswered: Vec<_> = Unanswered::ALL.iter().map(|&why| NotificationOutcome::Unanswered(why)).collect();
    assert_eq!(never.collect::<Vec<_>>(), unanswered, "{tally:?}");
}

#[test]
fn a_seed_always_does_the_same() {
    for seed in [1, 2, 3] {
        let first = runtime().block_on(run_seed(seed, None)).unwrap_or_else(|(_, broken)| panic!("{}", broken.0));
        let second = runtime().block_on(run_seed(seed, None)).unwrap_or_else(|(_, broken)| panic!("{}", broken.0));
        assert_eq!(first, second, "{seed}");
    }
}

/// By `scripts/soak`: as many seeds as there is time for, from one that nobody has seen.
#[test]
#[ignore = "takes as long as it is given"]
fn soak() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}")));
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    // Short enough to be read out.
    let start = number("WEBHOOKCTL_SOAK_START").unwrap_or(u64::from_le_bytes(random) % 1_000_000_000_000);
    let seeds_max = number("WEBHOOKCTL_SOAK_SEEDS").unwrap_or(u64::MAX);
    let time = number("WEBHOOKCTL_SOAK_SECONDS").map_or(Duration::MAX, Duration::from_secs);
    let started = Instant::now();
    println!("from seed {start}");
    let mut told_at = Instant::now();
    let mut given = 0;
    let fresh = std::iter::from_fn(move || {
        if told_at.elapsed() > Duration::from_mins(1) {
            println!("{given} seeds after {} s", started.elapsed().as_secs());
            told_at = Instant::now();
        }
        let goes_on = given < seeds_max && started.elapsed() < time;
        given += u64::from(goes_on);
        goes_on.then(|| start + given - 1)
    });
    let (tally, seeds, reports) = run_all(seeds_kept().into_iter().chain(fresh));
    for report in &reports {
        println!("{report}\n");
    }
    println!(
        "{seeds} seeds in {} s: {} steps, {} failures injected, {} crashes, {} findings",
        started.elapsed().as_secs(),
        tally.steps,
        tally.failures,
        tally.crashes,
        reports.len()
    );
    assert!(reports.is_empty());
}
