//! The steps on the way of a payment, each by itself: `cargo bench`.
//!
//! The settlements wait for the disk, as they do in the service.
#![allow(missing_docs, reason = "the macros make public functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use webhookctl::benching::{Books, Callback, Case};

/// How many orders are made ready at a time.
const ORDERS: usize = 100_000;

fn callbacks(c: &mut Criterion) {
    let callback = Callback::default();
    c.bench_function("parse and verify", |b| b.iter(|| black_box(&callback).verify()));
    let case = Case::default();
    c.bench_function("decide", |b| b.iter(|| black_box(&case).decide()));
}

fn settlements(c: &mut Criterion) {
    let mut group = c.benchmark_group("settle and commit");
    for count in [1, 64] {
        let directory =
            tempfile::Builder::new().prefix("bench").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut books = Books::new(directory.path(), ORDERS);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(count.to_string(), |b| {
            b.iter(|| books.settle(count));
        });
    }
}

criterion_group!(benches, callbacks, settlements);
criterion_main!(benches);
