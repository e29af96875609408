//! Orders whose buyers wait: the gateway may be asked whether they are paid, now and then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::order::{Order, OrderNo};
use crate::sync::lock;

/// Has an order's gateway asked whether it is paid. It returns at once: what comes of the question is found in the store.
pub(crate) type Ask = Arc<dyn Fn(Order) + Send + Sync>;

/// How long an order that was asked about is not asked about again, however often its page is looked at.
const PAUSE: Duration = Duration::from_mins(1);
/// How many orders are remembered. Beyond so many in one [`PAUSE`], nothing more is asked: gateways have enough to answer.
const REMEMBERED_MAX: usize = 1024;

pub(super) struct Questions {
    ask: Ask,
    /// When each order was asked about.
    asked: Mutex<HashMap<OrderNo, Instant>>,
}

impl Questions {
    pub(super) fn new(ask: Ask) -> Self {
        Self { ask, asked: Mutex::default() }
    }

    /// Asks about the order, unless that was done a moment ago.
    pub(super) fn ask(&self, order: Order, now: Instant) {
        if self.is_due(&order.terms.order_no, now) {
            (self.ask)(order);
        }
    }

    fn is_due(&self, order_no: &OrderNo, now: Instant) -> bool {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        let mut asked = lock(&self.asked);
        if asked.get(order_no).is_some_and(is_recent) {
            return false;
        }
        if asked.len() >= REMEMBERED_MAX {
            asked.retain(|_, at| is_recent(at));
        }
        let has_room = asked.len() < REMEMBERED_MAX;
        if has_room {
            asked.insert(order_no.clone(), now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order_no(number: usize) -> OrderNo {
        format!("N{number}").parse().unwrap()
    }

    #[test]
    fn an_order_is_asked_about_once_a_minute() {
        let questions = Questions::new(Arc::new(|_| {}));
        let start = Instant::now();
        for (seconds, number, due) in [(0, 1, true), (1, 1, false), (1, 2, true), (59, 1, false), (60, 1, true)] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(questions.is_due(&order_no(number), now), due, "{number} after {seconds} s");
        }
    }

    #[test]
    fn what_is_remembered_has_a_limit_and_makes_room_with_time() {
        let questions = Questions::new(Arc::new(|_| {}));
        let start = Instant::now();
        for number in 0..REMEMBERED_MAX {
            assert!(questions.is_due(&order_no(number), start));
        }
        let one_more = order_no(REMEMBERED_MAX);
        assert!(!questions.is_due(&one_more, start + PAUSE / 2));
        assert!(questions.is_due(&one_more, start + PAUSE));
        assert_eq!(questions.asked.lock().unwrap().len(), 1);
    }
}
