//! The configuration as a person writes it: the tables and keys of the file, before anything is checked.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{Essentials, Finding};
use crate::domain::language::{Language, localized};

/// How many broken lines are looked past: a file with more of them is none of ours.
const BROKEN_LINES_MAX: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) listen: String,
    pub(super) language: String,
    pub(super) trusted_proxies: Vec<String>,
    pub(super) database: Database,
    pub(super) log: Log,
    pub(super) service: Service,
    pub(super) merchant: Vec<Merchant>,
    pub(super) package: Vec<Package>,
    pub(super) orders: Orders,
    pub(super) reconcile: Reconcile,
    pub(super) telegram: Telegram,
    pub(super) api: Api,
    pub(super) events: Events,
}

impl File {
    /// Whether a key or token stands in it, and not only the name of a file that has one.
    pub(super) fn holds_secrets(&self) -> bool {
        let of_merchants =
            self.merchant.iter().any(|merchant| merchant.key.is_some() || merchant.key_previous.is_some());
        of_merchants || self.telegram.token.is_some() || self.api.token.is_some() || self.events.secret.is_some()
    }
}

impl Default for File {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:5002".into(),
            language: "zh".into(),
            trusted_proxies: vec!["127.0.0.1".into()],
            database: Database::default(),
            log: Log::default(),
            service: Service::default(),
            merchant: Vec::new(),
            package: Vec::new(),
            orders: Orders::default(),
            reconcile: Reconcile::default(),
            telegram: Telegram::default(),
            api: Api::default(),
            events: Events::default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Database {
    pub(super) url: String,
}

impl Default for Database {
    fn default() -> Self {
        Self { url: "sqlite:data/telegram_bot_v2.db".into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Log {
    pub(super) file: String,
    pub(super) level: String,
    pub(super) console: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { file: "logs/payment_webhook_v1.log".into(), level: "info".into(), console: true }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Service {
    pub(super) pid_file: String,
    pub(super) start_timeout_s: u32,
    pub(super) stop_timeout_s: u32,
}

impl Default for Service {
    fn default() -> Self {
        Self { pid_file: "data/webhookctl.pid".into(), start_timeout_s: 15, stop_timeout_s: 30 }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Merchant {
    pub(super) pid: String,
    pub(super) key: Option<String>,
    pub(super) key_file: Option<String>,
    pub(super) key_previous: Option<String>,
    pub(super) key_previous_file: Option<String>,
    pub(super) platform_public_key_file: Option<String>,
    pub(super) private_key_file: Option<String>,
    #[serde(default = "v1")]
    pub(super) protocol: String,
    pub(super) gateway_url: Option<String>,
    pub(super) notify_url: Option<String>,
    pub(super) return_url: Option<String>,
    #[serde(default = "pay_page")]
    pub(super) pay_page: String,
    #[serde(default = "signature")]
    pub(super) proof: String,
    pub(super) query_above: Option<String>,
    #[serde(default)]
    pub(super) allow_ips: Vec<String>,
    #[serde(default)]
    pub(super) sandbox: bool,
}

fn v1() -> String {
    "v1".into()
}

fn pay_page() -> String {
    "api".into()
}

fn signature() -> String {
    "signature".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) price: String,
    pub(super) credits: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Orders {
    pub(super) expire_after_s: u32,
    pub(super) late: String,
}

impl Default for Orders {
    fn default() -> Self {
        Self { expire_after_s: 1800, late: "credit".into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Reconcile {
    pub(super) schedule_s: Vec<u32>,
    pub(super) concurrency: u32,
    pub(super) per_minute: u32,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { schedule_s: vec![15, 60, 300, 1200, 3600, 21_600, 86_400], concurrency: 4, per_minute: 120 }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Api {
    pub(super) listen: Option<String>,
    pub(super) token: Option<String>,
    pub(super) token_file: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Events {
    pub(super) url: Option<String>,
    pub(super) secret: Option<String>,
    pub(super) secret_file: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Texts {
    pub(super) zh: LanguageTexts,
    pub(super) en: LanguageTexts,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LanguageTexts {
    pub(super) settled: Option<String>,
    pub(super) review: Option<String>,
    pub(super) refunded: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Telegram {
    pub(super) bot_username: String,
    pub(super) token: Option<String>,
    pub(super) token_file: Option<String>,
    pub(super) api_base: String,
    pub(super) admin_chat_id: i64,
    pub(super) texts: Texts,
}

impl Default for Telegram {
    fn default() -> Self {
        Self {
            bot_username: String::new(),
            token: None,
            token_file: None,
            api_base: "https://api.telegram.org".into(),
            admin_chat_id: 0,
            texts: Texts::default(),
        }
    }
}

/// The language that the file asks for, so that its errors can be told in it; the default where it cannot be read.
pub(super) fn language(text: &str) -> Language {
    let table = without_broken_lines(text);
    let written = table.get("language").and_then(Value::as_str);
    written.and_then(Language::from_name).unwrap_or(Language::Chinese)
}

/// As much as can be read of a file with mistakes in it.
pub(super) fn essentials(text: &str, directory: &Path) -> Essentials {
    let root = without_broken_lines(text);
    let value = |table: &str, key: &str| root.get(table)?.get(key);
    let path = |table: &str, key: &str, default: String| {
        let written = value(table, key).and_then(Value::as_str).filter(|path| !path.is_empty());
        directory.join(written.unwrap_or(&default))
    };
    let stop_timeout_s = value("service", "stop_timeout_s").and_then(Value::as_integer);
    let stop_timeout_s = stop_timeout_s.and_then(|seconds| seconds.try_into().ok()).filter(|&seconds| seconds > 0);
    let defaults = Service::default();
    let listen = root.get("listen").map_or(Some(File::default().listen), |listen| listen.as_str().map(str::to_owned));
    Essentials {
        pid_file: path("service", "pid_file", defaults.pid_file),
        stop_timeout_s: stop_timeout_s.unwrap_or(defaults.stop_timeout_s),
        language: language(text),
        listen: listen.and_then(|listen| listen.parse().ok()),
        log_file: path("log", "file", Log::default().file),
    }
}

/// What is left of a file when each line is taken out that is no TOML.
fn without_broken_lines(text: &str) -> Table {
    let mut text = text.to_owned();
    for _ in 0..BROKEN_LINES_MAX {
        let error: toml::de::Error = match text.parse() {
            Ok(table) => return table,
            Err(error) => error,
        };
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let end = text[at..].find('\n').map_or(text.len(), |end| at + end);
        // What was never closed is missed at the end of the file: then it is the last line that there is.
        let end = text[..end].trim_end().len();
        let start = text[..end].rfind('\n').map_or(0, |end| end + 1);
        text.replace_range(start..end, "");
    }
    Table::new()
}

pub(super) fn parse(text: &str) -> Result<File, Finding> {
    toml::from_str(text).map_err(|error| finding(&error, text))
}

fn finding(error: &toml::de::Error, text: &str) -> Finding {
    let before = error.span().map_or("", |span| &text[..span.start]);
    let line = before.matches('\n').count() + 1;
    let line_text = text.lines().nth(line - 1).unwrap_or_default();
    let message = error.message();
    let place = localized!("config.line", line = line);
    if let Some((_, expected)) = message.strip_prefix("invalid ").and_then(|what| what.split_once(", expected ")) {
        // Not the whole message: it repeats the value, which may be a secret.
        let text = if expected == "a string" {
            localized!("config.wrong_type", place = place, expected = localized!("config.text_in_quotes"))
        } else {
            localized!("config.wrong_type", place = place, expected = expected)
        };
        return Finding { key: key_of_line(line_text), text };
    }
    match UnknownKey::in_message(message) {
        Some(unknown) => Finding {
            key: unknown.key.to_owned(),
            text: match unknown.nearest() {
                Some(nearest) => localized!("config.unknown_key_near", place = place, nearest = nearest),
                None => localized!("config.unknown_key", place = place, known = unknown.known.join(", ")),
            },
        },
        None => Finding {
            key: match message.strip_prefix("missing field ") {
                Some(missing) => missing.trim_matches('`').to_owned(),
                None => key_of_line(line_text),
            },
            text: localized!("config.bad_toml", place = place, message = message),
        },
    }
}

/// The key of a line such as `listen = 1`.
fn key_of_line(line: &str) -> String {
    line.split_once('=').map_or("", |(key, _)| key.trim()).to_owned()
}

/// What serde says of a key that no struct has: the only place where it tells the known ones.
struct UnknownKey<'a> {
    key: &'a str,
    known: Vec<&'a str>,
}

impl<'a> UnknownKey<'a> {
    fn in_message(message: &'a str) -> Option<Self> {
        message.starts_with("unknown field ").then_some(())?;
        let mut names = quoted(message);
        Some(Self { key: names.next()?, known: names.collect() })
    }

    /// The known key that was probably meant.
    fn nearest(&self) -> Option<&'a str> {
        self.known
            .iter()
            .copied()
            .map(|known| (strsim::damerau_levenshtein(self.key, known), known))
            .filter(|(distance, known)| *distance <= 3.max(known.len() / 2))
            .min()
            .map(|(_, known)| known)
    }
}

fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_essentials_are_found_in_a_broken_file() {
        let directory = Path::new("/srv");
        let text = "listen = 5002x\n[service]\npid_file = \"run/p\"\nstop_timeout_s = 3\nstart_timeout_s = \"soon\"\n\
                    [[merchant]]\nkey = \n[log]\nfile = \"l\"\n[oops\n";
        let essentials = essentials(text, directory);
        assert_eq!(essentials.pid_file, Path::new("/srv/run/p"));
        assert_eq!(essentials.stop_timeout_s, 3);
        assert_eq!(essentials.log_file, Path::new("/srv/l"));
        assert_eq!(super::essentials("", directory).pid_file, Path::new("/srv/data/webhookctl.pid"));
        assert_eq!(language("language = \"en\"\n[broken"), Language::English);
        let garbage = "garbage here\nlanguage = \"en\"\n[[x]\n\"\"\"\n[service]\npid_file = \"p\"\n";
        assert_eq!(language(garbage), Language::English);
        let duplicated = "listen = \"127.0.0.1:1\"\nlisten = 1\n[service]\npid_file = \"p\"\n";
        let found = super::essentials(duplicated, directory);
        assert_eq!((found.pid_file.as_path(), found.listen), (Path::new("/srv/p"), "127.0.0.1:1".parse().ok()));
        assert!(without_broken_lines(&"x\n".repeat(1000)).is_empty());
    }
}
