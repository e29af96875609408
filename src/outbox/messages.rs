//! Messages to buyers: what is told of their orders, in their language, by Telegram.

use std::time::Duration;

use crate::config::Current;
use crate::language::Language;
use crate::store::{Channel, Delivery, News};
use crate::telegram::{SendError, Sender};

use super::{Courier, Notices, Verdict};

/// How long nothing is sent after Telegram has refused the token.
const BAD_TOKEN_PAUSE: Duration = Duration::from_mins(1);

/// Delivers messages to buyers.
pub(crate) struct Messages {
    config: Current,
    sender: Sender,
    notices: Notices,
}

impl Messages {
    pub(crate) fn new(config: &Current, sender: &Sender, notices: &Notices) -> Self {
        Self { config: config.clone(), sender: sender.clone(), notices: notices.clone() }
    }
}

impl Courier for Messages {
    const CHANNEL: Channel = Channel::Telegram;
    const PATIENCE: Duration = Duration::from_hours(24);
    const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));

    async fn is_on(&self) -> bool {
        self.config.load().telegram.token.is_some()
    }

    async fn deliver(&self, delivery: &Delivery) -> Verdict {
        let (bot, text) = {
            let config = self.config.load();
            let text = text_of(delivery, &config);
            (self.sender.bot(&config.telegram), text)
        };
        let Some(bot) = bot else { return Verdict::Pause(Duration::ZERO, "no token".into()) };
        match bot.send_message(delivery.order.terms.telegram_id, &text).await {
            Ok(()) => Verdict::Sent,
            Err(error @ SendError::RetryAfter(time)) => Verdict::Pause(time, error.to_string()),
            Err(error @ (SendError::Blocked | SendError::BadRequest(_))) => Verdict::Never(error.to_string()),
            Err(error @ SendError::BadToken) => {
                log::error!(target: super::TARGET, "{error}");
                Verdict::Pause(BAD_TOKEN_PAUSE, error.to_string())
            }
            Err(error @ (SendError::Other(_) | SendError::Unreachable(_))) => Verdict::Again(error.to_string()),
        }
    }

    fn gave_up(&self, delivery: &Delivery, error: &str) {
        self.notices.tell("undelivered", format!("{}: {error}", delivery.order.terms.order_no));
    }
}

/// What the buyer is told.
fn text_of(delivery: &Delivery, config: &crate::config::Config) -> String {
    let language: Language = delivery.language.unwrap_or(config.language);
    let texts = config.telegram.texts.of(language);
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
        // `Template` knows no other places.
        _ => String::new(),
    })
}
