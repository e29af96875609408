//! What waits for the writer: jobs with someone waiting for the answer, and rejections that nobody waits for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Rejection;
use super::job::Job;
use super::write::REJECTIONS_KEPT;
use crate::sync::Monitor;

/// How many jobs share a commit.
const BATCH_JOBS_MAX: usize = 256;
/// How many rejections are written beside jobs, so that a flood of them never holds up a payment, and how many by themselves.
const BATCH_REJECTIONS_MAX: usize = 64;
const IDLE_BATCH_REJECTIONS_MAX: usize = 1024;
/// How long rejections wait for company: they are in no hurry, and each commit costs a disk flush.
const REJECTIONS_LINGER: Duration = Duration::from_millis(50);

/// A bounded queue between any number of tasks and the one writer.
pub(super) struct Queue {
    waiting: Monitor<Waiting>,
    jobs_max: usize,
    /// See [`crate::store::Store::make_room`].
    makes_room: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    rejections: VecDeque<Rejection>,
    rejections_since: Option<Instant>,
    closed: bool,
}

/// What the writer does next.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) jobs: Vec<Job>,
    pub(super) rejections: Vec<Rejection>,
}

pub(super) enum Next {
    Batch(Batch),
    /// Nothing has come for the time that the writer was ready to wait.
    Idle,
    /// Nothing will come any more.
    Closed,
}

pub(super) enum PushError {
    Full,
    Closed,
}

impl Queue {
    pub(super) fn new(jobs_max: usize) -> Self {
        Self { waiting: Monitor::default(), jobs_max, makes_room: AtomicBool::new(false) }
    }

    pub(super) fn make_room(&self, yes: bool) {
        self.makes_room.store(yes, Ordering::Relaxed);
    }

    pub(super) fn makes_room(&self) -> bool {
        self.makes_room.load(Ordering::Relaxed)
    }

    pub(super) fn push(&self, job: Job) -> Result<(), PushError> {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(PushError::Closed);
        }
        if waiting.jobs.len() >= self.jobs_max {
            return Err(PushError::Full);
        }
        waiting.jobs.push_back(job);
        waiting.notify();
        Ok(())
    }

    pub(super) fn push_rejection(&self, rejection: Rejection) {
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return;
        }
        // The newest are kept: those that go were to be pruned anyway.
        if waiting.rejections.len() >= REJECTIONS_KEPT {
            waiting.rejections.pop_front();
        }
        waiting.rejections_since.get_or_insert_with(Instant::now);
        waiting.rejections.push_back(rejection);
        waiting.notify();
    }

    /// Whether a job waits.
    pub(super) fn has_jobs(&self) -> bool {
        !self.waiting.lock().jobs.is_empty()
    }

    /// Lets nothing more in; what is queued is still handed out.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.notify();
    }

    /// Waits for something to do: for `patience` at most, or for ever.
    pub(super) fn next(&self, patience: Option<Duration>) -> Next {
        let started = Instant::now();
        let mut waiting = self.waiting.lock();
        loop {
            let ripe_in = waiting.rejections_since.map(|since| REJECTIONS_LINGER.saturating_sub(since.elapsed()));
            let rejections_ripe =
                ripe_in == Some(Duration::ZERO) || waiting.rejections.len() >= BATCH_REJECTIONS_MAX || waiting.closed;
            if !waiting.jobs.is_empty() || (rejections_ripe && !waiting.rejections.is_empty()) {
                return Next::Batch(waiting.take_batch());
            }
            if waiting.closed {
                return Next::Closed;
            }
            let patience_left = patience.map(|patience| patience.saturating_sub(started.elapsed()));
            if patience_left == Some(Duration::ZERO) {
                return Next::Idle;
            }
            let wait = [ripe_in, patience_left].into_iter().flatten().min();
            waiting = waiting.wait(wait);
        }
    }
}

impl Waiting {
    fn take_batch(&mut self) -> Batch {
        let jobs = self.jobs.len().min(BATCH_JOBS_MAX);
        let rejections_max = if jobs > 0 { BATCH_REJECTIONS_MAX } else { IDLE_BATCH_REJECTIONS_MAX };
        let rejections = self.rejections.len().min(rejections_max);
        let batch = Batch {
            jobs: self.jobs.drain(..jobs).collect(),
            rejections: self.rejections.drain(..rejections).collect(),
        };
        if self.rejections.is_empty() {
            self.rejections_since = None;
        }
        batch
    }
}
