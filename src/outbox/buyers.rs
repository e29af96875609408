//! Buyers hear of their orders by Telegram.

use std::time::Duration;

use super::telegram::{BAD_TOKEN_PAUSE, Bot, SendError, Sender};
use super::{Courier, Verdict};
use crate::config::{Current, Texts};
use crate::domain::language::{Language, Localized};
use crate::domain::notices::NoticeKind;
use crate::net::backoff::Backoff;
use crate::store::{Channel, Delivery, News, StoreError};

/// Brings buyers what is due to them.
pub(crate) struct Buyers {
    config: Current,
    sender: Sender,
}

/// The bot, and what it says.
pub(crate) struct Route {
    bot: Bot,
    texts: Texts,
    language: Language,
}

impl Buyers {
    pub(crate) fn new(config: Current, sender: Sender) -> Self {
        Self { config, sender }
    }
}

impl Courier for Buyers {
    const CHANNEL: Channel = Channel::Telegram;
    const KEEPS_TRYING: Duration = Duration::from_hours(24);
    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_mins(5) };
    const FAILURE: NoticeKind = NoticeKind::MessageFailed;
    type Route = Route;

    fn language(&self) -> Language {
        self.config.load().language
    }

    async fn route(&self) -> Result<Option<Route>, StoreError> {
        let config = self.config.load();
        let bot = self.sender.bot(&config.telegram);
        Ok(bot.map(|bot| Route { bot, texts: config.telegram.texts.clone(), language: config.language }))
    }

    async fn deliver(&self, route: &Route, delivery: &Delivery) -> Verdict {
        let text = text(route, delivery);
        match route.bot.send_message(delivery.order.terms.telegram_id, &text).await {
            Ok(()) => Verdict::Sent,
            Err(error) => verdict(&error, route.language),
        }
    }
}

fn text(route: &Route, delivery: &Delivery) -> String {
    let texts = route.texts.of(delivery.language.unwrap_or(route.language));
    let template = match delivery.news {
        News::Settled => &texts.settled,
        News::Review => &texts.review,
        News::Refunded => &texts.refunded,
    };
    let terms = &delivery.order.terms;
    template.fill(|place| match place {
        "order_no" => terms.order_no.to_string(),
        "name" => terms.name.clone(),
        "amount" => terms.amount.to_string(),
        "credits" => terms.credits.to_string(),
        "balance" => delivery.balance.to_string(),
        // The configuration takes no others.
        _ => String::new(),
    })
}

fn verdict(error: &SendError, language: Language) -> Verdict {
    let text = error.text(language);
    match error {
        SendError::RetryAfter(time) => Verdict::Pause { time: *time, level: log::Level::Warn, error: text },
        SendError::BadToken => Verdict::Pause { time: BAD_TOKEN_PAUSE, level: log::Level::Error, error: text },
        SendError::Blocked | SendError::BadRequest(_) => Verdict::Final { error: text },
        SendError::Other(_) | SendError::Unreachable(_) => Verdict::Again { error: text, after: None },
    }
}
