//! The text of a failure for people.

use std::error::Error;
use std::io;

use super::exit::UsageError;
use super::start::{Already, NotStarted};
use crate::channel::epay::client::GatewayError;
use crate::config::ConfigError;
use crate::domain::failure::LocalizedError;
use crate::domain::language::{Language, Localized};
use crate::net::client::OutgoingError;
use crate::outbox::telegram::SendError;
use crate::payments::checkout::CheckoutError;
use crate::payments::gateways::AskError;
use crate::payments::manual::SettleError;
use crate::payments::refund::RefundError;
use crate::store::sqlite::maintenance::BackupError;
use crate::store::{AccountError, DecisionError, FilesChanged, OpenError, StoreError};

/// The text of an error with its causes, in a language. An error that is not [`Localized`] is told by its `Display`.
pub(crate) fn text_of(error: &anyhow::Error, language: Language) -> String {
    let mut texts = Vec::new();
    for cause in error.chain() {
        if let Some(part) = part_of(cause) {
            texts.push(part.text(language));
        } else if let Some(whole) = whole_of(cause) {
            texts.push(whole.text(language));
            break;
        } else {
            texts.push(cause.to_string());
        }
    }
    texts.join(": ")
}

/// An error whose causes have texts of their own.
fn part_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a dyn Localized> {
    // The failure of a system call may carry one of ours.
    let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let carried = carried.and_then(|carried| carried.downcast_ref::<LocalizedError>());
    carried
        .map(|failure| failure as &dyn Localized)
        .or_else(|| as_localized::<LocalizedError>(error))
        .or_else(|| as_localized::<BackupError>(error))
}

/// An error whose text tells its causes.
fn whole_of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a dyn Localized> {
    let casts: [Cast; 16] = [
        as_localized::<Already>,
        as_localized::<AccountError>,
        as_localized::<AskError>,
        as_localized::<CheckoutError>,
        as_localized::<ConfigError>,
        as_localized::<DecisionError>,
        as_localized::<FilesChanged>,
        as_localized::<GatewayError>,
        as_localized::<NotStarted>,
        as_localized::<OpenError>,
        as_localized::<OutgoingError>,
        as_localized::<RefundError>,
        as_localized::<SendError>,
        as_localized::<SettleError>,
        as_localized::<StoreError>,
        as_localized::<UsageError>,
    ];
    casts.iter().find_map(|cast| cast(error))
}

/// Looks whether an error is of one type.
type Cast = for<'e> fn(&'e (dyn Error + 'static)) -> Option<&'e dyn Localized>;

fn as_localized<'a, E: Error + Localized + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a dyn Localized> {
    error.downcast_ref::<E>().map(|error| error as &dyn Localized)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::domain::failure::{OrFailure, failure};
    use crate::domain::language::{LocalizedText, localized, text};
    use crate::process::exit::usage;

    fn is_chinese(text: &str) -> bool {
        text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c))
    }

    /// One of each kind that people are told of.
    fn errors() -> Vec<anyhow::Error> {
        let refused = GatewayError::Refused { code: -2, message: "no".into() };
        let text = || localized!("manager.gone_meanwhile");
        let config = || ConfigError::of(Some("/x.toml".into()), "listen", localized!("config.not_positive"));
        vec![
            failure!("manager.gone_meanwhile"),
            Already(text()).into(),
            AccountError::KeyReused.into(),
            AskError::from(refused.clone()).into(),
            BackupError::Interrupted.into(),
            CheckoutError::Impossible(text()).into(),
            config().into(),
            DecisionError::NoSuchOrder("ORDER1".into()).into(),
            NotStarted { exit: 1, cause: text(), log: vec!["a line".into()] }.into(),
            OpenError::Missing(PathBuf::from("/x.db")).into(),
            OutgoingError::ConnectTimedOut.into(),
            refused.clone().into(),
            RefundError::Refused(refused.clone()).into(),
            RefundError::StillPaid.into(),
            RefundError::StillUnclear(refused.into()).into(),
            SendError::RetryAfter(Duration::from_secs(7)).into(),
            SendError::Unreachable(OutgoingError::TimedOut).into(),
            SettleError::GatewaySaysNo { order_no: "ORDER1".into(), answer: "unpaid".into() }.into(),
            StoreError::Overloaded.into(),
            usage(text()),
        ]
    }

    #[test]
    fn an_errors_own_text_is_a_code_and_english_and_people_are_told_in_their_language() {
        for error in errors() {
            let own = format!("{error:#}");
            let code = own.split(": ").next().unwrap_or_default();
            assert!(!code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{own}");
            assert!(own.is_ascii(), "{own}");
            let [chinese, english] = [Language::Chinese, Language::English].map(|language| text_of(&error, language));
            assert!(is_chinese(&chinese), "{own}: {chinese}");
            assert!(!is_chinese(&english) && !english.starts_with(&format!("{code}: ")), "{own}: {english}");
        }
    }

    #[test]
    fn a_chain_is_told_in_one_language_and_no_cause_twice() {
        for &language in Language::ALL {
            let error = Err::<(), _>(RefundError::Refused(GatewayError::UnknownOrder));
            let error = error.or_failure(|| localized!("log.api_listen_failed")).unwrap_err();
            let cause = GatewayError::UnknownOrder.text(language);
            let [whole, refused] =
                [text!(language, "log.api_listen_failed"), text!(language, "refund.refused", cause = cause)];
            assert_eq!(text_of(&error, language), format!("{whole}: {refused}"));
            // A foreign error says what it says.
            let error = Err::<(), _>(io::Error::other("disk")).or_failure(|| localized!("log.api_listen_failed"));
            assert_eq!(text_of(&error.unwrap_err(), language), format!("{whole}: disk"));
            // An error of ours may come by way of a system call's.
            let carried = io::Error::other(LocalizedError::from(localized!("config.no_file")));
            assert_eq!(text_of(&carried.into(), language), text!(language, "config.no_file"));
            let copied = BackupError::from(OpenError::Missing(PathBuf::from("/x.db")));
            let missing = text!(language, "store.missing", path = "/x.db");
            assert_eq!(text_of(&copied.into(), language), format!("{}: {missing}", text!(language, "backup.failed")));
        }
    }

    #[test]
    fn a_peers_words_are_told_as_they_are() {
        let cause = LocalizedText::verbatim("refused", "ihre Worte");
        let error = NotStarted { exit: 1, cause, log: Vec::new() }.into();
        assert!(Language::ALL.iter().all(|&language| text_of(&error, language) == "ihre Worte"));
    }
}
