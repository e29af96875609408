use std::path::Path;

use toml::{Table, Value};

use crate::config::{Config, ConfigError, Document};
use crate::domain::language::{Language, Localized};

/// Where the files lie that a configuration may name.
const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys");

/// What stands for the secrets that are not shown: fit for all of them.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What a secret has in it that a message must not repeat: a text of any other kind may stand there by chance.
const CANARY: &str = "hunter2";
/// How long a number is that does not stand in a message by chance.
const NUMBER_DIGITS_MIN: usize = 8;

/// A configuration that is accepted is shown so that it can be read again, and then is the same; what is needed to
/// stop the service is read alike by the way that looks past mistakes. One that is not accepted has every mistake
/// told with its key or line, and no secret told.
///
/// # Panics
///
/// Where that does not hold of `data`.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let directory = Path::new(DIRECTORY);
    let document = Document::of(text, directory);
    let essentials = document.essentials();
    let language = document.language();
    match document.load(&|_| None) {
        Ok(loaded) => {
            let config = loaded.config;
            assert_eq!(essentials.pid_file, config.service.pid_file);
            assert_eq!(essentials.stop_timeout_s, config.service.stop_timeout_s);
            assert_eq!(essentials.listen, Some(config.listen));
            assert_eq!(essentials.log_file, config.log.file);
            assert_eq!(language, config.language);
            shown_and_read_again(&config);
        }
        Err(error) => mistakes(&error, text),
    }
}

fn shown_and_read_again(config: &Config) {
    let shown = toml::to_string(config).expect("what is in force can be shown");
    let mut table: Table = shown.parse().expect("what is shown is TOML");
    let mut secrets = 0;
    let masked = |table: &mut Table, key: &str| match table.get_mut(key) {
        Some(value) if value.as_str() == Some("***") => {
            *value = SECRET.into();
            1
        }
        Some(value) => panic!("{key} is shown: {value}"),
        None => 0,
    };
    for (name, key) in [("telegram", "token"), ("api", "token"), ("events", "secret")] {
        if let Some(Value::Table(table)) = table.get_mut(name) {
            secrets += masked(table, key);
        }
    }
    if let Some(Value::Array(merchants)) = table.get_mut("merchant") {
        for merchant in merchants.iter_mut().filter_map(Value::as_table_mut) {
            secrets += masked(merchant, "key") + masked(merchant, "key_previous");
        }
    }
    let again = match Config::from_toml(&table.to_string(), Path::new("/elsewhere")) {
        Ok(again) => again,
        Err(error) => panic!("{shown}{error}"),
    };
    assert_eq!(toml::to_string(&again).expect("it was shown before"), shown);
    // A mask is no secret.
    assert_eq!(Config::from_toml(&shown, Path::new("/elsewhere")).is_ok(), secrets == 0, "{shown}");
}

fn mistakes(error: &ConfigError, text: &str) {
    assert!(!error.findings.is_empty(), "{text}");
    let told = format!("{error}\n{}", error.text(Language::Chinese));
    for finding in &error.findings {
        let [chinese, english] = [Language::Chinese, Language::English].map(|language| finding.text.text(language));
        let names_line = english.contains("line ") && chinese.contains("第 ");
        assert!(!english.is_empty() && (!finding.key.is_empty() || names_line), "{told}");
    }
    for secret in text.lines().filter_map(secret_of) {
        // What stands elsewhere in the file, too, may be told from there.
        assert!(text.matches(secret).count() > 1 || !told.contains(secret), "{told}");
    }
}

/// What a line such as `key = "…"` has for a secret: a text, or a number where the quotes were forgotten.
fn secret_of(line: &str) -> Option<&str> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim();
    let is_number = value.len() >= NUMBER_DIGITS_MIN && value.bytes().all(|b| b.is_ascii_digit());
    let text = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).filter(|text| text.contains(CANARY));
    let is_secret = matches!(key.trim(), "key" | "key_previous" | "token" | "secret");
    text.or(is_number.then_some(value)).filter(|_| is_secret)
}
