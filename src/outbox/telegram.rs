//! The Bot API, as far as it is needed: sending a text, and telling why it could not be sent; asking whose token it is.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Telegram;
use crate::domain::clock::Clock;
use crate::domain::language::{Language, Localized, text};
use crate::domain::secret::MASK;
use crate::net::client::{Client, OutgoingError, Reply, excerpt};
use crate::net::rate_limit::{Rate, RateLimiter};

/// How long one message may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How far messages are apart: Telegram lets some 30 a second through.
const GAP: Duration = Duration::from_millis(40);
const PACE: Rate = Rate::new(1, GAP);
/// How long nothing is sent after a 429 that does not say for how long.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(5);
/// How long a 429 may ask for at most.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
/// How long nothing is sent when the token is not that of a bot.
pub(super) const BAD_TOKEN_PAUSE: Duration = Duration::from_mins(1);
/// How much of Telegram's own words is told.
const DESCRIPTION_CHARS_TOLD: usize = 200;

/// Sends messages for bots, at the pace that Telegram allows. A clone shares the pace.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    client: Client,
    clock: Clock,
    pace: Arc<RateLimiter>,
}

impl Sender {
    pub(crate) fn new(client: Client, clock: Clock) -> Self {
        Self { client, pace: Arc::new(RateLimiter::new(PACE, &clock)), clock }
    }

    /// The configured bot, if there is one.
    pub(crate) fn bot(&self, telegram: &Telegram) -> Option<Bot> {
        let token = telegram.token.as_ref()?.expose();
        let base = telegram.api_base.trim_end_matches('/');
        Some(Bot { sender: self.clone(), url: format!("{base}/bot{token}"), token: token.to_owned() })
    }

    /// Comes back when it is one's turn.
    async fn turn(&self) {
        self.clock.sleep_until(self.pace.reserve()).await;
    }
}

/// A bot that messages can be sent by. It cannot be printed: its token is in its URL.
pub(crate) struct Bot {
    sender: Sender,
    /// Of its methods, each a name below.
    url: String,
    token: String,
}

/// Why a message was not sent, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    /// Too many messages: nothing is to be sent for so long.
    #[error("retry_after: too many messages")]
    RetryAfter(Duration),
    /// The receiver does not want to hear of the bot.
    #[error("blocked: the receiver does not want messages of the bot")]
    Blocked,
    /// There is no such chat, or the message cannot be sent to it; Telegram's own words.
    #[error("bad_request: {0}")]
    BadRequest(String),
    /// The token is not that of a bot.
    #[error("bad_token: the token is not that of a bot")]
    BadToken,
    /// An answer that says nothing about the message.
    #[error("other: HTTP {0}")]
    Other(u16),
    /// There was no answer.
    #[error("unreachable: no whole answer came")]
    Unreachable(#[source] OutgoingError),
}

impl Localized for SendError {
    fn text(&self, language: Language) -> String {
        let text = match self {
            Self::RetryAfter(time) => text!(language, "telegram.retry_after", seconds = time.as_secs()),
            Self::Blocked => text!(language, "telegram.blocked"),
            Self::BadRequest(description) => text!(language, "telegram.bad_request", description = description),
            Self::BadToken => text!(language, "telegram.bad_token"),
            Self::Other(status) => text!(language, "telegram.other", status = status),
            Self::Unreachable(error) => text!(language, "telegram.unreachable", cause = error),
        };
        text.into_owned()
    }
}

#[derive(Serialize)]
struct Message<'a> {
    chat_id: i64,
    text: &'a str,
    link_preview_options: LinkPreview,
}

#[derive(Serialize)]
struct LinkPreview {
    is_disabled: bool,
}

/// What the Bot API answers, as far as it matters.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    ok: bool,
    description: String,
    parameters: Parameters,
}

/// What it answers to the question who we are.
#[derive(Deserialize)]
struct Identity {
    result: BotUser,
}

#[derive(Deserialize)]
struct BotUser {
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    retry_after: Option<u64>,
}

impl Bot {
    /// Sends a text, once.
    pub(crate) async fn send_message(&self, chat_id: i64, text: &str) -> Result<(), SendError> {
        let message = Message { chat_id, text, link_preview_options: LinkPreview { is_disabled: true } };
        self.sender.turn().await;
        let reply = self.sender.client.post_json(&format!("{}/sendMessage", self.url), &message, TIMEOUT).await;
        self.judge(&reply.map_err(SendError::Unreachable)?)
    }

    /// The bot's name, by which Telegram knows the token.
    pub(crate) async fn username(&self) -> Result<String, SendError> {
        let reply = self.sender.client.get(&format!("{}/getMe", self.url), TIMEOUT).await;
        let reply = reply.map_err(SendError::Unreachable)?;
        self.judge(&reply)?;
        let Ok(Identity { result }) = serde_json::from_slice(&reply.body) else {
            return Err(SendError::Other(reply.status));
        };
        Ok(excerpt(&result.username.replace(&self.token, MASK), DESCRIPTION_CHARS_TOLD))
    }

    fn judge(&self, reply: &Reply) -> Result<(), SendError> {
        // A proxy's page is no answer of Telegram's, and then the status has to do.
        let answer: Answer = serde_json::from_slice(&reply.body).unwrap_or_default();
        match reply.status {
            200 if answer.ok => Ok(()),
            400 => {
                // Whatever it is that answers may repeat what it was asked.
                let description = answer.description.replace(&self.token, MASK);
                Err(SendError::BadRequest(excerpt(&description, DESCRIPTION_CHARS_TOLD)))
            }
            401 | 404 => Err(SendError::BadToken),
            403 => Err(SendError::Blocked),
            429 => {
                let asked = answer.parameters.retry_after.map(Duration::from_secs).or(reply.retry_after);
                let time = asked.unwrap_or(RETRY_AFTER_DEFAULT);
                Err(SendError::RetryAfter(time.clamp(Duration::from_secs(1), RETRY_AFTER_MAX)))
            }
            status => Err(SendError::Other(status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::domain::clock::Timestamp;
    use crate::net::client::loopback::{Act, Loopback};

    const TOKEN: &str = "123456:AAsecret-token";

    fn bot(server: &Loopback) -> Bot {
        let toml = format!("[telegram]\ntoken = \"{TOKEN}\"\napi_base = \"{}\"", server.url(""));
        let config = Config::from_toml(&toml, Path::new("/")).unwrap();
        Sender::new(Client::new(), Clock::system()).bot(&config.telegram).unwrap()
    }

    #[tokio::test]
    async fn what_telegram_answers() {
        let seconds = |seconds| SendError::RetryAfter(Duration::from_secs(seconds));
        for (status, headers, body, expected) in [
            ("200 OK", "", r#"{"ok":true,"result":{"message_id":1}}"#, Ok(())),
            ("200 OK", "", r#"{"ok":false}"#, Err(SendError::Other(200))),
            ("200 OK", "", "<html>", Err(SendError::Other(200))),
            ("429 Too Many", "", r#"{"ok":false,"parameters":{"retry_after":7}}"#, Err(seconds(7))),
            ("429 Too Many", "Retry-After: 8\r\n", "{}", Err(seconds(8))),
            ("429 Too Many", "", "", Err(seconds(5))),
            ("429 Too Many", "", r#"{"parameters":{"retry_after":0}}"#, Err(seconds(1))),
            ("429 Too Many", "", r#"{"parameters":{"retry_after":999999}}"#, Err(seconds(3600))),
            ("403 Forbidden", "", r#"{"ok":false,"description":"Forbidden: blocked"}"#, Err(SendError::Blocked)),
            (
                "400 Bad Request",
                "",
                r#"{"ok":false,"description":"Bad Request: chat not found\n"}"#,
                Err(SendError::BadRequest("Bad Request: chat not found\\n".into())),
            ),
            ("401 Unauthorized", "", "{}", Err(SendError::BadToken)),
            ("404 Not Found", "", "{}", Err(SendError::BadToken)),
            ("302 Found", "Location: http://127.0.0.1:1/\r\n", "", Err(SendError::Other(302))),
            ("500 Oops", "", "", Err(SendError::Other(500))),
        ] {
            let server = Loopback::start(vec![Act::reply_with(status, headers, body)]).await;
            assert_eq!(bot(&server).send_message(1001, "hi").await, expected, "{status} {headers} {body}");
        }
    }

    #[tokio::test]
    async fn the_token_has_a_name() {
        for (status, body, expected) in [
            (
                "200 OK",
                r#"{"ok":true,"result":{"id":1,"is_bot":true,"username":"example_bot"}}"#,
                Ok("example_bot".into()),
            ),
            ("200 OK", r#"{"ok":true,"result":true}"#, Err(SendError::Other(200))),
            ("200 OK", "<html>", Err(SendError::Other(200))),
            ("401 Unauthorized", "{}", Err(SendError::BadToken)),
        ] {
            let server = Loopback::start(vec![Act::reply(status, body)]).await;
            assert_eq!(bot(&server).username().await, expected, "{status} {body}");
            let request = server.requests().remove(0);
            assert!(request.starts_with(&format!("GET /bot{TOKEN}/getMe HTTP/1.1\r\n")), "{request}");
        }
    }

    #[tokio::test]
    async fn the_text_goes_to_the_chat() {
        let server = Loopback::start(vec![Act::reply("200 OK", r#"{"ok":true}"#)]).await;
        bot(&server).send_message(1001, "<b>&é").await.unwrap();
        let request = server.requests().remove(0);
        assert!(request.starts_with(&format!("POST /bot{TOKEN}/sendMessage HTTP/1.1\r\n")), "{request}");
        let body = request.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(body, r#"{"chat_id":1001,"text":"<b>&é","link_preview_options":{"is_disabled":true}}"#);
    }

    #[tokio::test]
    async fn no_error_tells_the_token() {
        let echo = format!(r#"{{"description":"/bot{TOKEN}/sendMessage"}}"#);
        for act in [Act::Close, Act::reply("400 Bad Request", &echo), Act::reply("404 Not Found", &echo)] {
            let server = Loopback::start(vec![act]).await;
            let error = bot(&server).send_message(1001, "hi").await.unwrap_err();
            assert!(!format!("{error} {error:?} {}", error.text(Language::Chinese)).contains("secret"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn messages_keep_their_distance() {
        let clock = Clock::by_hand(Timestamp::from_ms(1_700_000_000_000));
        let sender = Sender::new(Client::new(), clock.clone());
        let began = clock.instant();
        for number in 0..5 {
            sender.clone().turn().await;
            assert_eq!(clock.instant() - began, number * GAP, "{number}");
        }
        clock.pass(Duration::from_secs(1));
        sender.turn().await;
        assert_eq!(clock.instant() - began, 4 * GAP + Duration::from_secs(1), "after a pause there is no wait");
    }
}
