//! What others answer: gateways, Telegram, and whoever stands at our own public address.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Check, State, Subject};
use crate::channel::epay::client::{Gateway, GatewayError};
use crate::config::{DatabaseUrl, Merchant, Telegram};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::language::{LocalizedText, localized};
use crate::domain::order::OrderNo;
use crate::net::client::{Client, OutgoingError, Reply, excerpt};
use crate::outbox::telegram::{SendError, Sender};
use crate::store::sqlite::maintenance::DatabaseFile;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(8);
/// How long it may take until a callback that arrived is in the database, and how often it is looked for.
const KEPT_TIMEOUT: Duration = Duration::from_secs(3);
const KEPT_PAUSE: Duration = Duration::from_millis(50);
/// V2 signatures are good for 300 s either way.
const OFFSET_MS_MAX: u64 = 300_000;
/// More than this is not the network, and will be more.
const OFFSET_MS_USUAL: u64 = 30_000;
/// How much of a foreign answer is told.
const ANSWER_CHARS_TOLD: usize = 60;

/// Asks a gateway about an order that cannot be there: it knows the key, and no such order. And by how many milliseconds our clock
/// is ahead of its.
pub(super) async fn gateway(client: Client, merchant: Merchant) -> (Check, Option<i64>) {
    let pid = &merchant.pid;
    let check = |state, text: LocalizedText| Check::new(Subject::Gateway, state, text).of(pid);
    let Some(url) = &merchant.gateway_url else {
        return (check(State::Skipped, localized!("doctor.no_gateway_url")), None);
    };
    let Some(gateway) = Gateway::new(client.clone(), Clock::system(), url, pid, &merchant.credentials) else {
        return (check(State::Skipped, localized!("doctor.no_private_key")), None);
    };
    let order_no = OrderNo::generate(Timestamp::now());
    let (answer, offset) = tokio::join!(gateway.query_within(&order_no, None, TIMEOUT), offset_ms(&client, url));
    let check = match answer {
        Err(GatewayError::UnknownOrder) => check(State::Fine, localized!("doctor.gateway_fine")),
        Ok(_) => check(State::Problem, localized!("doctor.gateway_knows_all")),
        Err(GatewayError::Unreachable(error)) => {
            check(State::Problem, localized!("doctor.gateway_unreachable", cause = in_plain_words(&error)))
        }
        Err(error @ (GatewayError::Refused { .. } | GatewayError::Unverified)) => {
            check(State::Problem, localized!("doctor.gateway_refuses", cause = error))
        }
        Err(error @ (GatewayError::RateLimited(_) | GatewayError::Failed { .. })) => {
            check(State::Warning, localized!("doctor.gateway_in_trouble", cause = error))
        }
        Err(error) => check(State::Problem, localized!("doctor.gateway_strange", cause = error)),
    };
    (check, offset)
}

/// By how many milliseconds our clock is ahead of the one in the `Date` of whoever answers at `url`; negative where it is behind.
async fn offset_ms(client: &Client, url: &str) -> Option<i64> {
    let before = Timestamp::now();
    // The smallest page that every gateway has.
    let reply = client.get(&format!("{}/api.php", url.trim_end_matches('/')), TIMEOUT).await.ok()?;
    Some(offset_of(before, Timestamp::now(), reply.date?))
}

/// The least that fits: the date was written between the two times, and leaves the milliseconds out.
fn offset_of(before: Timestamp, after: Timestamp, date: Timestamp) -> i64 {
    let (earliest, latest) = (date.ms(), date.ms() + 999);
    if before.ms() > latest {
        before.ms() - latest
    } else if after.ms() < earliest {
        after.ms() - earliest
    } else {
        0
    }
}

/// The machine's clock by that gateway whose clock is nearest to it: not all of them are right.
pub(super) fn clock(offsets: impl Iterator<Item = i64>) -> Check {
    let Some(offset) = offsets.min_by_key(|offset| offset.unsigned_abs()) else {
        return Check::new(Subject::Clock, State::Skipped, localized!("doctor.clock_unknown"));
    };
    let (size, seconds) = (offset.unsigned_abs(), offset.unsigned_abs() / 1000);
    if size <= OFFSET_MS_USUAL {
        return Check::new(Subject::Clock, State::Fine, localized!("doctor.clock_fine", seconds = seconds));
    }
    let state = if size <= OFFSET_MS_MAX { State::Warning } else { State::Problem };
    let text = if offset > 0 {
        localized!("doctor.clock_ahead", seconds = seconds)
    } else {
        localized!("doctor.clock_behind", seconds = seconds)
    };
    Check::new(Subject::Clock, state, text)
}

/// Asks Telegram which bot the token is of.
pub(super) async fn telegram(client: Client, telegram: Telegram) -> Check {
    let check = |state, text: LocalizedText| Check::new(Subject::Telegram, state, text);
    let Some(bot) = Sender::new(client, Clock::system()).bot(&telegram) else {
        return check(State::Skipped, localized!("doctor.telegram_none"));
    };
    let wanted = &telegram.bot_username;
    match bot.username().await {
        Ok(found) if !wanted.is_empty() && !wanted.eq_ignore_ascii_case(&found) => {
            check(State::Warning, localized!("doctor.telegram_other_bot", found = found, wanted = wanted))
        }
        Ok(found) => check(State::Fine, localized!("doctor.telegram_fine", found = found)),
        Err(SendError::BadToken) => check(State::Problem, localized!("doctor.telegram_bad_token")),
        Err(SendError::Unreachable(error)) => {
            check(State::Problem, localized!("doctor.telegram_unreachable", cause = in_plain_words(&error)))
        }
        Err(error) => check(State::Warning, localized!("doctor.telegram_in_trouble", cause = error)),
    }
}

/// Sends a callback that proves nothing to our own public address, and looks for it among those that this service refused: no other
/// server answers by writing into our database.
pub(super) async fn notify_url(client: Client, url: String, database: DatabaseUrl) -> Check {
    let check = |state, text: LocalizedText| Check::new(Subject::NotifyUrl, state, text).of(&url);
    // No merchant's, so that nothing is done about it.
    let order_no = OrderNo::generate(Timestamp::now());
    let asked = format!(
        "{url}?pid=doctor&trade_no={order_no}&out_trade_no={order_no}&type=alipay&name=doctor&money=0.01\
         &trade_status=TRADE_SUCCESS&sign=00000000000000000000000000000000&sign_type=MD5"
    );
    let reply = match client.get(&asked, TIMEOUT).await {
        Ok(reply) => reply,
        Err(error) => {
            let cause = in_plain_words(&error);
            return check(State::Problem, localized!("doctor.notify_unreachable", cause = cause));
        }
    };
    if reply.status == 200 && reply.body.trim_ascii() == b"fail" {
        return if is_kept(&database, order_no.as_str()).await {
            check(State::Fine, localized!("doctor.notify_fine"))
        } else {
            check(State::Problem, localized!("doctor.notify_other_database"))
        };
    }
    check(State::Problem, answered_by_another(&reply))
}

/// What an answer means that is none of ours.
fn answered_by_another(reply: &Reply) -> LocalizedText {
    let status = reply.status;
    match status {
        200 => {
            let answer = excerpt(String::from_utf8_lossy(&reply.body).trim(), ANSWER_CHARS_TOLD);
            localized!("doctor.notify_other_server", answer = answer)
        }
        300..=399 => {
            // What it was asked with is ours.
            let to = reply.location.as_deref().unwrap_or_default();
            let to = excerpt(to.split('?').next().unwrap_or_default(), ANSWER_CHARS_TOLD * 2);
            localized!("doctor.notify_redirect", status = status, to = to)
        }
        401 | 403 => localized!("doctor.notify_forbidden", status = status),
        404 => localized!("doctor.notify_not_found"),
        502..=504 => localized!("doctor.notify_proxy", status = status),
        _ => localized!("doctor.notify_strange", status = status),
    }
}

async fn is_kept(database: &DatabaseUrl, order_no: &str) -> bool {
    let deadline = Instant::now() + KEPT_TIMEOUT;
    loop {
        // A database that is locked at this moment may not be in the next.
        if DatabaseFile::of(database).has_refused(order_no.to_owned()).await.unwrap_or(false) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(KEPT_PAUSE).await;
    }
}

/// Why nobody answered, with the remedy where the cause has one of its own.
fn in_plain_words(error: &OutgoingError) -> LocalizedText {
    match error {
        OutgoingError::NotConnected(cause) if cause.contains("certificate") => {
            localized!("doctor.bad_certificate", cause = cause)
        }
        OutgoingError::NotConnected(cause) if cause.contains("lookup") || cause.contains("Name or service") => {
            localized!("doctor.no_such_host", cause = cause)
        }
        error => LocalizedText::of("unreachable", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::language::{Language, Localized};
    use crate::net::client::tests::{client_of_another_authority, start_tls_server};

    #[test]
    fn the_clock_is_off_by_no_more_than_is_certain() {
        let at = Timestamp::from_ms;
        for (before, after, date, offset) in [
            (10_500, 10_600, 10_000, 0),
            (10_999, 11_100, 10_000, 0),
            (9_500, 10_000, 10_000, 0),
            (400_999, 401_200, 10_000, 390_000),
            (1_000, 2_000, 10_000, -8_000),
        ] {
            assert_eq!(offset_of(at(before), at(after), at(date)), offset, "{before} {after} {date}");
        }
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_named_as_the_cause() {
        let port = start_tls_server(2);
        let url = format!("https://localhost:{port}/payment/notify");
        let database = DatabaseUrl::Sqlite("/nonexistent/x.db".into());
        let check = notify_url(client_of_another_authority(), url, database).await;
        assert_eq!(check.state, State::Problem);
        assert!(check.text.text(Language::English).contains("fullchain.pem"), "{check:?}");
    }

    #[test]
    fn a_name_that_nobody_knows_is_named_as_the_cause() {
        let cause = "failed to lookup address information: Name or service not known";
        let error = OutgoingError::NotConnected(cause.into());
        let told = in_plain_words(&error).text(Language::English);
        assert_ne!(told, error.text(Language::English));
        assert!(told.contains(cause), "{told}");
    }

    #[test]
    fn the_nearest_gateways_clock_counts() {
        for (offsets, state) in [
            (&[][..], State::Skipped),
            (&[900_000, -29_000], State::Fine),
            (&[-31_000], State::Warning),
            (&[300_001, -400_000], State::Problem),
        ] {
            assert_eq!(clock(offsets.iter().copied()).state, state, "{offsets:?}");
        }
    }
}
