//! Alerts to the operator that leave no receipt: any part raises them, and the outbox tells them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::named::named_enum;

use crate::sync::lock;

/// How much is kept of the detail of a notice.
const DETAIL_CHARS_MAX: usize = 200;

named_enum! {
    /// Alerts that leave no receipt.
    NoticeKind {
        /// A gateway does not accept our key.
        GatewayRefused = "gateway_refused",
        /// A buyer was not told.
        MessageFailed = "message_failed",
        /// The bot was not told.
        EventFailed = "event_failed",
        /// The bot wants no more events.
        EventsDisabled = "events_disabled",
    }
}

/// Alerts that wait to be told. A clone shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notices(Arc<Mutex<HashMap<NoticeKind, Notice>>>);

/// How often one thing happened, and what was said the last time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notice {
    /// How often it happened.
    pub count: u32,
    /// The detail of the last time.
    pub detail: String,
}

impl Notices {
    /// The operator is to hear of this; of many of one kind, how many there were and the last detail.
    pub(crate) fn tell(&self, kind: NoticeKind, detail: &str) {
        let mut waiting = self.lock();
        let notice = waiting.entry(kind).or_insert_with(|| Notice { count: 0, detail: String::new() });
        notice.count = notice.count.saturating_add(1);
        notice.detail = detail.chars().take(DETAIL_CHARS_MAX).collect();
    }

    /// The notices that wait to be told.
    pub(crate) fn waiting(&self) -> Vec<(NoticeKind, Notice)> {
        let waiting = self.lock();
        NoticeKind::ALL.iter().filter_map(|kind| Some((*kind, waiting.get(kind)?.clone()))).collect()
    }

    /// These have been told; what came since stays.
    pub(crate) fn told(&self, told: &[(NoticeKind, Notice)]) {
        let mut waiting = self.lock();
        for (kind, told) in told {
            if let Some(notice) = waiting.get_mut(kind) {
                notice.count = notice.count.saturating_sub(told.count);
                if notice.count == 0 {
                    waiting.remove(kind);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NoticeKind, Notice>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_notices_is_a_count_and_its_last_detail() {
        let notices = Notices::default();
        for n in 0..1000 {
            notices.tell(NoticeKind::MessageFailed, &format!("order {n}"));
        }
        notices.tell(NoticeKind::GatewayRefused, &"x".repeat(5000));
        let waiting = notices.waiting();
        assert_eq!(waiting[0].1.detail.len(), DETAIL_CHARS_MAX);
        assert_eq!(waiting[1], (NoticeKind::MessageFailed, Notice { count: 1000, detail: "order 999".into() }));

        notices.tell(NoticeKind::MessageFailed, "later");
        notices.told(&waiting);
        let left = (NoticeKind::MessageFailed, Notice { count: 1, detail: "later".into() });
        assert_eq!(notices.waiting(), [left]);
    }
}
