//! What the service does of its own accord and what it offers to the bot: reconciliation, texts to buyers, events, the local API.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Serialize, Serializer};

use super::check::Check;
use super::file;
use crate::domain::language::{Language, localized, text};
use crate::domain::secret::Secret;

/// How many questions an unpaid order may cause at most.
const QUESTIONS_MAX: usize = 32;
/// What a secret for signing events begins with, as Standard Webhooks writes it.
const EVENT_SECRET_PREFIX: &str = "whsec_";
/// How many bytes such a secret may have, as Standard Webhooks says.
const EVENT_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// How long a text to a buyer may be: Telegram takes 4,096 characters.
const TEXT_CHARS_MAX: usize = 2000;

/// `[reconcile]`: how the gateways are asked about unpaid orders.
#[derive(Clone, Debug, Serialize)]
pub struct Reconcile {
    /// When an order that is still unpaid is asked about, in seconds after its creation; none for never.
    pub schedule_s: Vec<u32>,
    /// How many questions one gateway is asked at the same time.
    pub concurrency: u32,
    /// How many questions one gateway is asked in a minute.
    pub per_minute: u32,
}

/// `[telegram.texts.zh]` and `[telegram.texts.en]`: what buyers are told.
#[derive(Clone, Debug, Serialize)]
pub struct Texts {
    /// To buyers who speak Chinese.
    pub zh: LanguageTexts,
    /// To buyers who speak English.
    pub en: LanguageTexts,
}

/// The texts of one language.
#[derive(Clone, Debug, Serialize)]
pub struct LanguageTexts {
    /// The order is paid, and the credits are there.
    pub settled: Template,
    /// Money came that a person has to look at.
    pub review: Template,
    /// The money went back, and the credits are gone.
    pub refunded: Template,
}

impl Texts {
    /// The texts of `language`.
    pub fn of(&self, language: Language) -> &LanguageTexts {
        match language {
            Language::Chinese => &self.zh,
            Language::English => &self.en,
        }
    }
}

/// A text with places for what is known of an order, such as `{credits}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// What a text may have a place for.
    pub const PLACES: [&'static str; 5] = ["order_no", "name", "amount", "credits", "balance"];

    /// Takes a text, unless it has a place for something unknown: then that is the error.
    fn parse(text: &str) -> Result<Self, String> {
        for rest in text.split('{').skip(1) {
            let place = rest.split_once('}').map(|(place, _)| place);
            if !place.is_some_and(|place| Self::PLACES.contains(&place)) {
                return Err(place.unwrap_or(rest).chars().take(32).collect());
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The text with each place filled in; a value is never looked at for places.
    pub fn fill(&self, value_of: impl Fn(&str) -> String) -> String {
        let mut parts = self.0.split('{');
        let mut filled = parts.next().unwrap_or_default().to_owned();
        for (place, text) in parts.filter_map(|part| part.split_once('}')) {
            filled.push_str(&value_of(place));
            filled.push_str(text);
        }
        filled
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// `[api]`: the local HTTP API for the bot.
#[derive(Clone, Debug, Serialize)]
pub struct Api {
    /// Where it listens.
    pub listen: ApiListen,
    /// What a request has to carry as its bearer token.
    pub token: Secret,
}

/// Where the local API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiListen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ApiListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for ApiListen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `[events]`: where the bot hears of orders.
#[derive(Clone, Debug, Serialize)]
pub struct Events {
    /// The bot's URL.
    pub url: String,
    /// What events are signed with: `whsec_` and base64, as Standard Webhooks writes it.
    pub secret: Secret,
}

impl Events {
    /// The bytes that events are signed with.
    pub(crate) fn signing_key(&self) -> Vec<u8> {
        decode_event_secret(self.secret.expose()).unwrap_or_default()
    }
}

fn decode_event_secret(text: &str) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(text.strip_prefix(EVENT_SECRET_PREFIX).unwrap_or(text)).ok()?;
    EVENT_SECRET_BYTES.contains(&bytes.len()).then_some(bytes)
}

impl Check<'_> {
    pub(super) fn reconcile(&mut self, written: file::Reconcile) -> Reconcile {
        let schedule = &written.schedule_s;
        let grows = schedule.windows(2).all(|pair| pair[0] < pair[1]);
        if schedule.len() > QUESTIONS_MAX || !grows || schedule.first() == Some(&0) {
            self.error::<()>("reconcile.schedule_s", localized!("config.bad_schedule", max = QUESTIONS_MAX));
        }
        for (key, value) in
            [("reconcile.concurrency", written.concurrency), ("reconcile.per_minute", written.per_minute)]
        {
            if value == 0 {
                self.error::<()>(key, localized!("config.not_positive"));
            }
        }
        Reconcile { schedule_s: written.schedule_s, concurrency: written.concurrency, per_minute: written.per_minute }
    }

    pub(super) fn texts(&mut self, written: file::Texts) -> Option<Texts> {
        Some(Texts {
            zh: self.language_texts(Language::Chinese, written.zh)?,
            en: self.language_texts(Language::English, written.en)?,
        })
    }

    fn language_texts(&mut self, language: Language, written: file::LanguageTexts) -> Option<LanguageTexts> {
        let mut template = |name: &str, written: Option<String>| {
            let default = || text!(language, format!("message.{name}")).into_owned();
            self.template(&format!("telegram.texts.{language}.{name}"), &written.unwrap_or_else(default))
        };
        let (settled, review, refunded) = (
            template("settled", written.settled),
            template("review", written.review),
            template("refunded", written.refunded),
        );
        Some(LanguageTexts { settled: settled?, review: review?, refunded: refunded? })
    }

    fn template(&mut self, key: &str, text: &str) -> Option<Template> {
        if text.trim().is_empty() || text.chars().count() > TEXT_CHARS_MAX {
            return self.error(key, localized!("config.bad_text_length", max = TEXT_CHARS_MAX));
        }
        match Template::parse(text) {
            Ok(template) => Some(template),
            Err(place) => {
                let known = Template::PLACES.map(|place| format!("{{{place}}}")).join(", ");
                self.error(key, localized!("config.unknown_place", place = place, known = known))
            }
        }
    }

    pub(super) fn api(&mut self, written: file::Api) -> Option<Api> {
        let token = self.secret("api.token", written.token, written.token_file);
        let Some(listen) = written.listen else {
            if token.is_some() {
                self.warn("api.listen", localized!("config.api_off"));
            }
            return None;
        };
        let listen = if let Some(path) = listen.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            ApiListen::Unix(self.path(path))
        } else {
            match SocketAddr::from_str(&listen) {
                Ok(address) => ApiListen::Tcp(address),
                Err(_) => return self.error("api.listen", localized!("config.bad_api_listen", value = listen)),
            }
        };
        if matches!(listen, ApiListen::Tcp(address) if !address.ip().is_loopback()) {
            self.warn("api.listen", localized!("config.api_is_public"));
        }
        match token {
            Some(token) => Some(Api { listen, token }),
            None if self.has_error_about("api.token") => None,
            None => self.error("api.token_file", localized!("config.api_token_missing")),
        }
    }

    pub(super) fn events(&mut self, written: file::Events) -> Option<Events> {
        let secret = self.secret("events.secret", written.secret, written.secret_file);
        let Some(url) = written.url else {
            if secret.is_some() {
                self.warn("events.url", localized!("config.events_off"));
            }
            return None;
        };
        let url = self.url("events.url", Some(url), true);
        match secret {
            Some(secret) if decode_event_secret(secret.expose()).is_some() => Some(Events { url: url?, secret }),
            Some(_) => self.error("events.secret", localized!("config.bad_event_secret")),
            None if self.has_error_about("events.secret") => None,
            None => self.error("events.secret_file", localized!("config.event_secret_missing")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_in_and_values_are_not_read() {
        let template = Template::parse("{name}: {credits} credits, now {balance}.").unwrap();
        let filled = template.fill(|place| match place {
            "name" => "{credits}".into(),
            "credits" => "70".into(),
            _ => "71".into(),
        });
        assert_eq!(filled, "{credits}: 70 credits, now 71.");
    }

    #[test]
    fn a_place_for_something_unknown_is_named() {
        for (text, place) in [("{kredits}", "kredits"), ("a {", ""), ("{ credits}", " credits"), ("{{credits}", "")] {
            assert_eq!(Template::parse(text), Err(place.to_owned()), "{text}");
        }
    }
}
