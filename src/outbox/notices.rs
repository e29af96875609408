//! Notices to the operator: trouble, told to `admin_chat_id`, bundled so that a flood is one message.
//!
//! What notifications caused is read from their receipts, after the last one that was told of, so that no crash loses it and
//! the way of a payment pays nothing for it. What else goes wrong is collected in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rust_i18n::t;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::TARGET;
use crate::config::Current;
use crate::store::{Store, StoreError, Trouble};
use crate::telegram::{SendError, Sender};

/// Under which name the last receipt is remembered that was told of.
const TOLD: &str = "admin_told_receipt";
/// How often it is looked for trouble.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How long there is silence after a notice, in which trouble is collected.
const SILENCE: Duration = Duration::from_mins(1);
/// How many receipts without trouble may have to be read again after a restart.
const REMEMBER_EVERY: i64 = 5000;
/// How much of a detail is told.
const DETAIL_CHARS_MAX: usize = 200;

/// Trouble that no receipt tells of, by its kind.
#[derive(Clone, Default)]
pub(crate) struct Notices(Arc<Mutex<BTreeMap<&'static str, Noticed>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Noticed {
    count: u32,
    /// Of the newest.
    detail: String,
}

impl Notices {
    /// Has the operator hear of trouble; `kind` is one of a few fixed words.
    pub(crate) fn tell(&self, kind: &'static str, detail: String) {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let noticed = kinds.entry(kind).or_insert_with(|| Noticed { count: 0, detail: String::new() });
        noticed.count = noticed.count.saturating_add(1);
        noticed.detail = detail.chars().take(DETAIL_CHARS_MAX).collect();
    }

    fn peek(&self) -> BTreeMap<&'static str, Noticed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what was told; what came in the meantime stays.
    fn forget(&self, told: &BTreeMap<&'static str, Noticed>) {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, told) in told {
            if let Some(noticed) = kinds.get_mut(kind) {
                noticed.count = noticed.count.saturating_sub(told.count);
            }
        }
        kinds.retain(|_, noticed| noticed.count > 0);
    }
}

/// Tells the operator until it is told to stop.
pub(crate) async fn tell_operator(
    config: Current,
    store: Store,
    sender: Sender,
    notices: Notices,
    stop: CancellationToken,
) {
    let mut teller = Teller { config, store, sender, notices, remembered: None, seen: 0 };
    let mut wait = LOOK_INTERVAL;
    while stop.run_until_cancelled(sleep(wait)).await.is_some() {
        wait = match teller.look().await {
            Ok(wait) => wait,
            Err(error) => {
                log::warn!(target: TARGET, "{}", t!("log.outbox_failed", error = error));
                LOOK_INTERVAL
            }
        };
    }
}

struct Teller {
    config: Current,
    store: Store,
    sender: Sender,
    notices: Notices,
    /// The receipt that a restart would go on after.
    remembered: Option<i64>,
    /// The newest receipt that was looked at.
    seen: i64,
}

impl Teller {
    /// Tells of trouble, if there is any and anybody to tell; how long to wait then.
    async fn look(&mut self) -> Result<Duration, StoreError> {
        let newest = self.store.newest_receipt().await?;
        self.begin(newest).await?;
        let (bot, chat_id) = {
            let config = self.config.load();
            (self.sender.bot(&config.telegram), config.telegram.admin_chat_id)
        };
        let trouble = self.store.trouble(self.seen, newest).await?;
        let noticed = self.notices.peek();
        let Some(bot) = bot.filter(|_| chat_id != 0) else {
            // Nobody to tell: who is configured later hears of what happens then.
            self.notices.forget(&noticed);
            return self.go_on_after(newest, false).await;
        };
        if trouble.is_empty() && noticed.is_empty() {
            return self.go_on_after(newest, false).await;
        }
        match bot.send_message(chat_id, &text_of(&trouble, &noticed)).await {
            Ok(()) => {}
            // It will not be otherwise the next time.
            Err(error @ (SendError::Blocked | SendError::BadRequest(_))) => {
                log::warn!(target: TARGET, "{}", t!("log.notice_failed", error = error));
            }
            Err(SendError::RetryAfter(time)) => return Ok(time),
            Err(error) => {
                log::warn!(target: TARGET, "{}", t!("log.notice_failed", error = error));
                return Ok(SILENCE);
            }
        }
        self.notices.forget(&noticed);
        self.go_on_after(newest, true).await?;
        Ok(SILENCE)
    }

    /// Where the last process stopped; in a new database, with what comes from now on.
    async fn begin(&mut self, newest: i64) -> Result<(), StoreError> {
        if self.remembered.is_some() {
            return Ok(());
        }
        let told = self.store.recall(TOLD).await?.and_then(|told| told.parse().ok());
        self.seen = told.unwrap_or(newest);
        if told.is_none() {
            self.store.remember(TOLD, Some(newest.to_string())).await?;
        }
        self.remembered = Some(self.seen);
        Ok(())
    }

    async fn go_on_after(&mut self, receipt: i64, durably: bool) -> Result<Duration, StoreError> {
        self.seen = receipt;
        if durably || receipt - self.remembered.unwrap_or(0) > REMEMBER_EVERY {
            self.store.remember(TOLD, Some(receipt.to_string())).await?;
            self.remembered = Some(receipt);
        }
        Ok(LOOK_INTERVAL)
    }
}

fn text_of(trouble: &[Trouble], noticed: &BTreeMap<&'static str, Noticed>) -> String {
    let of_receipts = trouble.iter().map(|trouble| {
        let what = t!(format!("notice.{}", trouble.outcome));
        t!("notice.line", count = trouble.count, what = what, detail = trouble.order_no).into_owned()
    });
    let others = noticed.iter().map(|(kind, noticed)| {
        let what = t!(format!("notice.{kind}"));
        t!("notice.line", count = noticed.count, what = what, detail = noticed.detail).into_owned()
    });
    let lines: Vec<_> = of_receipts.chain(others).collect();
    format!("{}\n{}", t!("notice.head"), lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_is_one_line_and_what_comes_meanwhile_stays() {
        let notices = Notices::default();
        for n in 0..1000 {
            notices.tell("undelivered", format!("order {n}"));
        }
        let told = notices.peek();
        assert_eq!(told["undelivered"], Noticed { count: 1000, detail: "order 999".into() });
        notices.tell("undelivered", "order 1000".into());
        notices.forget(&told);
        assert_eq!(notices.peek()["undelivered"], Noticed { count: 1, detail: "order 1000".into() });
    }
}
