//! A user's credits: shown, spent, given.

use hyper::StatusCode;
use serde::Serialize;

use super::fields::{Fields, required};
use super::problem::Problem;
use super::request::Asked;
use super::{Api, json};
use crate::config::CREDITS_MAX;
use crate::domain::language::localized;
use crate::net::response::Response;
use crate::store::{AccountError, Booked, Grant, Spend};

/// How long a reason may be, in characters.
const REASON_CHARS_MAX: usize = 200;

/// What a change of a balance asks for, with its keys in alphabetical order.
#[derive(Debug, Serialize)]
struct Change {
    credits: i64,
    reason: Option<String>,
}

/// What it did, with its keys in alphabetical order.
#[derive(Serialize)]
struct Changed {
    credits: i64,
    entry: i64,
    repeated: bool,
    telegram_id: i64,
}

impl Api {
    pub(super) async fn show_user(&self, telegram_id: &str) -> Result<Response, Problem> {
        let telegram_id = user_of_path(telegram_id)?;
        let user = self.store.user(telegram_id).await?.ok_or(AccountError::NoSuchUser(telegram_id))?;
        Ok(json(StatusCode::OK, &user))
    }

    pub(super) async fn spend(&self, telegram_id: &str, asked: &Asked) -> Result<Response, Problem> {
        let telegram_id = user_of_path(telegram_id)?;
        let change = Change::parse(&asked.body, 1)?;
        let idempotency = asked.idempotency(&change);
        let (credits, reason) = (change.credits, change.reason);
        let spend = Spend { telegram_id, credits, reason, at: self.clock.now(), idempotency };
        changed(telegram_id, -credits, self.store.spend(spend).await)
    }

    pub(super) async fn grant(&self, telegram_id: &str, asked: &Asked) -> Result<Response, Problem> {
        let telegram_id = user_of_path(telegram_id)?;
        let change = Change::parse(&asked.body, -CREDITS_MAX)?;
        let idempotency = asked.idempotency(&change);
        let (credits, reason) = (change.credits, required("reason", change.reason)?);
        let grant = Grant { telegram_id, credits, reason, at: self.clock.now() };
        changed(telegram_id, credits, self.store.grant_once(grant, idempotency).await)
    }
}

fn changed(telegram_id: i64, change: i64, booked: Result<Booked, AccountError>) -> Result<Response, Problem> {
    match booked {
        Ok(Booked { entry, credits_after, repeated }) => {
            let credits = credits_after;
            Ok(json(StatusCode::OK, &Changed { credits, entry, repeated, telegram_id }))
        }
        Err(AccountError::OutOfBounds { credits, .. }) if change < 0 => {
            Err(Problem::insufficient_credits(telegram_id, credits))
        }
        Err(error) => Err(error.into()),
    }
}

/// The user whom a path is about.
fn user_of_path(text: &str) -> Result<i64, Problem> {
    // Plain digits: one user has one path.
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    let telegram_id = text.parse().ok().filter(|_| plain);
    telegram_id.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "no_such_user", localized!("api.bad_telegram_id")))
}

impl Change {
    fn parse(body: &[u8], credits_min: i64) -> Result<Self, Problem> {
        let mut fields = Fields::parse(body, &["credits", "reason"])?;
        let credits = required("credits", fields.integer("credits", credits_min..=CREDITS_MAX)?)?;
        if credits == 0 {
            return Err(Problem::bad_request("invalid_field", localized!("api.no_change")));
        }
        let reason =
            fields.text("reason", || localized!("api.expected_reason", max = REASON_CHARS_MAX), read_reason)?;
        Ok(Self { credits, reason })
    }
}

fn read_reason(text: &str) -> Option<String> {
    let reason = text.trim();
    let fits = (1..=REASON_CHARS_MAX).contains(&reason.chars().count()) && !reason.chars().any(char::is_control);
    fits.then(|| reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_one_path() {
        assert_eq!(user_of_path("1001").unwrap(), 1001);
        assert_eq!(user_of_path("9223372036854775807").unwrap(), i64::MAX);
        for text in ["0", "01001", "+1001", "-1001", "1e3", "", "x", "9223372036854775808"] {
            assert_eq!(user_of_path(text).unwrap_err().code(), "no_such_user", "{text:?}");
        }
    }

    #[test]
    fn equal_changes_have_one_canonical_form() {
        let canonical = |body: &str| serde_json::to_string(&Change::parse(body.as_bytes(), 1).unwrap()).unwrap();
        assert_eq!(canonical(r#"{"reason":" a ","credits":3}"#), canonical("{\"credits\": 3, \"reason\": \"a\"}"));
        assert_eq!(canonical(r#"{"credits":3,"reason":null}"#), canonical(r#"{"credits":3}"#));
        assert_ne!(canonical(r#"{"credits":3}"#), canonical(r#"{"credits":4}"#));
    }

    #[test]
    fn changes_out_of_range_are_refused() {
        for (body, credits_min, code) in [
            ("{}", 1, "missing_field"),
            (r#"{"credits":0}"#, 1, "invalid_field"),
            (r#"{"credits":-1}"#, 1, "invalid_field"),
            (r#"{"credits":0}"#, -CREDITS_MAX, "invalid_field"),
            (r#"{"credits":1000000001}"#, 1, "invalid_field"),
            (r#"{"credits":1,"reason":" "}"#, 1, "invalid_field"),
            (r#"{"credits":1,"reason":"a\nb"}"#, 1, "invalid_field"),
            (&format!(r#"{{"credits":1,"reason":"{}"}}"#, "x".repeat(201)), 1, "invalid_field"),
        ] {
            assert_eq!(Change::parse(body.as_bytes(), credits_min).unwrap_err().code(), code, "{body}");
        }
    }
}
