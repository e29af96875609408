//! Locks and wake-ups between threads.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks a mutex, also one that a panicking thread held: no lock here is held over a half-made change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that any number of threads change, and that one thread waits for.
///
/// A notification is a system call, so [`Guard::notify`] makes one only while that thread sleeps.
#[derive(Default)]
pub(crate) struct Monitor<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Default)]
struct State<T> {
    value: T,
    is_asleep: bool,
}

/// The locked value.
pub(crate) struct Guard<'a, T> {
    state: MutexGuard<'a, State<T>>,
    changed: &'a Condvar,
}

impl<T> Monitor<T> {
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        Guard { state: lock(&self.state), changed: &self.changed }
    }
}

impl<T> Guard<'_, T> {
    /// Unlocks, and wakes the thread that is in [`Guard::wait`].
    pub(crate) fn notify(mut self) {
        if std::mem::take(&mut self.state.is_asleep) {
            let changed = self.changed;
            drop(self);
            changed.notify_one();
        }
    }

    /// Unlocks, and wakes the thread that is in [`Guard::wait`] or [`Guard::pause_while`].
    pub(crate) fn interrupt(mut self) {
        self.state.is_asleep = true;
        self.notify();
    }

    /// Waits for a notification, `timeout` at most; for ever without one. A wait may end without either.
    pub(crate) fn wait(mut self, timeout: Option<Duration>) -> Self {
        self.state.is_asleep = true;
        self.state = match timeout {
            Some(timeout) => self.changed.wait_timeout(self.state, timeout).unwrap_or_else(PoisonError::into_inner).0,
            None => self.changed.wait(self.state).unwrap_or_else(PoisonError::into_inner),
        };
        self.state.is_asleep = false;
        self
    }

    /// Waits for `time` while `condition` holds. Only [`Guard::interrupt`] has the condition looked at again.
    pub(crate) fn pause_while(self, time: Duration, condition: impl Fn(&T) -> bool) {
        drop(self.changed.wait_timeout_while(self.state, time, |state| condition(&state.value)));
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.state.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.state.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_thread_hears_of_every_change() {
        let numbers = Monitor::<Vec<u32>>::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut seen = Vec::new();
                while seen.len() < 1000 {
                    let mut guard = numbers.lock();
                    while guard.is_empty() {
                        guard = guard.wait(None);
                    }
                    seen.append(&mut guard);
                }
                seen
            });
            for number in 0..1000 {
                let mut guard = numbers.lock();
                guard.push(number);
                guard.notify();
            }
            assert_eq!(waiting.join().unwrap(), (0..1000).collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_value_outlives_a_panic_of_the_thread_that_locked_it() {
        let value = Monitor::<u32>::default();
        let panicked = std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                *value.lock() = 7;
                let _locked = value.lock();
                panic!("as this test wants");
            });
            panicking.join().is_err()
        });
        assert!(panicked);
        assert_eq!(*value.lock(), 7);
    }
}
