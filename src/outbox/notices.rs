//! The operator hears of trouble by Telegram: many troubles are one message, and no more than one a minute.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::telegram::{BAD_TOKEN_PAUSE, Bot, SendError, Sender};
use crate::config::Current;
use crate::domain::clock::Clock;
use crate::domain::jitter::Jitter;
use crate::domain::language::{Language, text};
use crate::domain::money::Amount;
use crate::domain::notices::{Notice, NoticeKind, Notices};
use crate::logging::log_text;
use crate::net::backoff::Backoff;
use crate::net::client::excerpt;
use crate::store::{Store, StoreError, Trouble};

/// Under this name the newest receipt is remembered that the operator has been told of.
const CURSOR: &str = "admin_told_receipt";
/// How often receipts are looked through.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the first trouble waits for others that come with it.
const BUNDLE_TIME: Duration = Duration::from_secs(2);
/// How far messages are apart.
const PAUSE: Duration = Duration::from_mins(1);
/// How far attempts are apart when Telegram cannot be reached.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(2), longest: Duration::from_mins(5) };
/// How many receipts without trouble are looked through again after a restart, at most.
const RECEIPTS_UNNOTED_MAX: i64 = 1000;
/// How much is told of one notice.
const DETAIL_CHARS_TOLD: usize = 200;

/// Tells the operator of trouble, if there is one who wants to hear of it, until `stop`.
pub(crate) async fn tell_admin(mut watch: Watch, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    while stop.run_until_cancelled(watch.clock.sleep(pause)).await.is_some() {
        pause = watch.round(&stop).await;
    }
}

/// Who hears of trouble, and by which bot.
struct Admin {
    bot: Bot,
    chat_id: i64,
    language: Language,
}

/// Looks for trouble that the operator has not been told of.
pub(crate) struct Watch {
    notices: Notices,
    config: Current,
    store: Store,
    sender: Sender,
    clock: Clock,
    jitter: Jitter,
    /// Receipts up to this one are no trouble, or the operator knows of it; none while that is only remembered.
    looked_until: Option<i64>,
    failures: u32,
}

/// What there is to tell, up to a receipt.
struct Report {
    until: i64,
    trouble: Vec<Trouble>,
    notices: Vec<(NoticeKind, Notice)>,
}

impl Watch {
    pub(crate) fn new(notices: Notices, config: Current, store: Store, sender: Sender, clock: Clock) -> Self {
        let jitter = Jitter::default();
        Self { notices, config, store, sender, clock, jitter, looked_until: None, failures: 0 }
    }

    /// Has its pauses depend on this source.
    #[cfg(test)]
    pub(crate) fn jittered_by(self, jitter: Jitter) -> Self {
        Self { jitter, ..self }
    }

    fn admin(&self) -> Option<Admin> {
        let config = self.config.load();
        let chat_id = config.telegram.admin_chat_id;
        let bot = self.sender.bot(&config.telegram).filter(|_| chat_id != 0)?;
        Some(Admin { bot, chat_id, language: config.language })
    }

    /// Tells what there is to tell; how long it is until the next round.
    pub(crate) async fn round(&mut self, stop: &CancellationToken) -> Duration {
        let Some(admin) = self.admin() else { return LOOK_EVERY };
        match self.try_round(&admin, stop).await {
            Ok(pause) => pause,
            Err(error) => {
                log::warn!("{}", log_text!("notice.store_failed", cause = error));
                // Not a moment later: it would be logged as often.
                PAUSE
            }
        }
    }

    async fn try_round(&mut self, admin: &Admin, stop: &CancellationToken) -> Result<Duration, StoreError> {
        if self.look().await?.is_none() {
            return Ok(LOOK_EVERY);
        }
        if stop.run_until_cancelled(self.clock.sleep(BUNDLE_TIME)).await.is_none() {
            return Ok(LOOK_EVERY);
        }
        let Some(report) = self.look().await? else { return Ok(LOOK_EVERY) };
        match admin.bot.send_message(admin.chat_id, &report.text(admin.language)).await {
            Ok(()) => self.told(&report).await,
            Err(error @ (SendError::Blocked | SendError::BadRequest(_))) => {
                log::warn!("{}", log_text!("notice.dropped", cause = error));
                self.told(&report).await
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                log::warn!("{}", log_text!("notice.not_sent", cause = error));
                Ok(match error {
                    SendError::RetryAfter(time) => time,
                    SendError::BadToken => BAD_TOKEN_PAUSE,
                    _ => BACKOFF.after(self.failures, &self.jitter),
                })
            }
        }
    }

    /// What there is to tell, if anything.
    async fn look(&mut self) -> Result<Option<Report>, StoreError> {
        let newest = self.store.newest_receipt().await?;
        let told_until = self.store.recall(CURSOR).await?.and_then(|told| told.parse::<i64>().ok());
        let Some(told_until) = told_until else {
            // What came before anybody wanted to hear of it is history.
            self.remember(newest).await?;
            return Ok(None);
        };
        let after = self.looked_until.map_or(told_until, |looked| looked.max(told_until));
        let trouble = if newest > after { self.store.trouble(after, newest).await? } else { Vec::new() };
        if trouble.is_empty() {
            self.looked_until = Some(newest);
            if newest - told_until > RECEIPTS_UNNOTED_MAX {
                self.remember(newest).await?;
            }
        }
        let notices = self.notices.waiting();
        let is_empty = trouble.is_empty() && notices.is_empty();
        Ok((!is_empty).then_some(Report { until: newest, trouble, notices }))
    }

    async fn told(&mut self, report: &Report) -> Result<Duration, StoreError> {
        self.failures = 0;
        self.notices.told(&report.notices);
        // In this process it counts at once: a store that fails now must not make it tell the same every minute.
        self.looked_until = Some(report.until);
        self.remember(report.until).await?;
        Ok(PAUSE)
    }

    async fn remember(&self, receipt: i64) -> Result<(), StoreError> {
        self.store.remember(CURSOR, Some(receipt.to_string())).await
    }
}

impl Report {
    fn text(&self, language: Language) -> String {
        let mut lines = vec![text!(language, "notice.title").into_owned()];
        for Trouble { kind, count, order_no, due, paid } in &self.trouble {
            let order = excerpt(order_no, DETAIL_CHARS_TOLD);
            let mut line = text!(language, format!("notice.{kind}"), count = count, order = order).into_owned();
            let amount = |amount: &Option<Amount>| amount.map_or_else(|| "?".to_owned(), |amount| amount.to_string());
            line.push_str(&if due.is_some() {
                text!(language, "notice.due_and_paid", due = amount(due), paid = amount(paid))
            } else {
                text!(language, "notice.paid", paid = amount(paid))
            });
            lines.push(line);
        }
        for (kind, Notice { count, detail }) in &self.notices {
            let detail = excerpt(detail, DETAIL_CHARS_TOLD);
            lines.push(text!(language, format!("notice.{kind}"), count = count, detail = detail).into_owned());
        }
        lines.push(text!(language, "notice.advice").into_owned());
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::Outcome;
    use crate::domain::settlement::Alert;
    use crate::store::TroubleKind;

    #[test]
    fn every_kind_of_trouble_has_a_text() {
        let alerts = Alert::ALL.iter().map(|&alert| TroubleKind::Alert(alert));
        let kinds: Vec<_> = Outcome::ALERTED.into_iter().map(TroubleKind::Outcome).chain(alerts).collect();
        let due = Amount::from_fen(3600);
        let paid = Amount::from_fen(360);
        let trouble = |&kind: &TroubleKind| Trouble { kind, count: 3, order_no: "ORDER\n1".into(), due, paid };
        let notice = Notice { count: 2, detail: "a detail".into() };
        let report = Report {
            until: 1,
            trouble: kinds.iter().map(trouble).collect(),
            notices: NoticeKind::ALL.iter().map(|kind| (*kind, notice.clone())).collect(),
        };
        let text = report.text(Language::English);
        assert!(!text.contains("notice."), "{text}");
        assert_eq!(text.lines().count(), 2 + kinds.len() + NoticeKind::ALL.len(), "{text}");
        assert_eq!(text.matches("ORDER\\n1").count(), kinds.len(), "{text}");
        assert_eq!(text.matches("36.00").count(), kinds.len(), "{text}");
        assert_eq!(text.matches("3.60").count(), kinds.len(), "{text}");
    }
}
