//! A simulation of settlement: the real store on real files, and everything that may happen to it, as a seed decides.
//!
//! Part of the unit tests, because it looks into the store. After each write the books are compared with those of a small model
//! that was written by the contract. `seeds` has the seeds that have found something.

mod books;
mod callbacks;
mod model;
mod ops;
mod random;
mod run;
mod workload;
mod world;

use workload::run_seed;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn first() {
    for seed in 0..300 {
        let started = std::time::Instant::now();
        match runtime().block_on(run_seed(seed, None)) {
            Ok((log, tally)) => println!("{seed}: {} {tally:?} {:?}", log.len(), started.elapsed()),
            Err((log, broken)) => {
                for line in log { println!("{line}"); }
                panic!("seed {seed}: {}", broken.0);
            }
        }
    }
}
