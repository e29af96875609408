//! `users show`, `users grant`.

use super::output;
use crate::config::{CREDITS_MAX, Config};
use crate::domain::clock::Timestamp;
use crate::domain::failure::LocalizedError;
use crate::domain::language::{Language, localized, text};
use crate::domain::order::User;
use crate::process::exit::Exit;
use crate::store::{AccountError, Grant, LedgerEntry, Opening, Store};

/// How much of a user's history is shown.
const HISTORY_ENTRIES: u32 = 20;

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Show a user's credits and their history
    Show {
        /// The user's Telegram id
        telegram_id: i64,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a user credits, or take some away with a negative number
    Grant {
        /// The user's Telegram id
        telegram_id: i64,
        /// How many credits
        #[arg(allow_negative_numbers = true, value_parser = parse_credits)]
        credits: i64,
        /// Why: it is kept with the entry
        #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
        reason: String,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<Exit> {
    let opening = if matches!(command, Command::Show { .. }) { Opening::ReadOnly } else { Opening::Existing };
    let store = Store::open(config, opening).await?;
    let (user, json) = match command {
        Command::Show { telegram_id, json } => {
            (store.user(telegram_id).await?.ok_or(AccountError::NoSuchUser(telegram_id))?, json)
        }
        Command::Grant { telegram_id, credits, reason, json } => {
            let grant = Grant { telegram_id, credits, reason, at: Timestamp::now() };
            (store.grant(grant).await?, json)
        }
    };
    if json {
        output::json(&user)?;
    } else {
        let history = store.ledger(user.telegram_id, HISTORY_ENTRIES).await?;
        show(&user, &history, config.language)?;
    }
    store.close().await?;
    Ok(Exit::Done)
}

/// A user in one line.
pub(super) fn summary(user: &User, language: Language) -> String {
    let User { telegram_id, credits, orders_paid } = user;
    text!(language, "user.summary", user = telegram_id, credits = credits, orders = orders_paid).into_owned()
}

fn show(user: &User, history: &[LedgerEntry], language: Language) -> anyhow::Result<()> {
    output::line(&summary(user, language))?;
    let rows: Vec<_> = history
        .iter()
        .map(|entry| {
            let why = entry.order_no.as_deref().or(entry.reason.as_deref()).unwrap_or_default();
            let kind = text!(language, format!("user.{}", entry.kind)).into_owned();
            [entry.created_at.to_local().to_string(), format!("{:+}", entry.credits), kind, why.to_owned()]
        })
        .collect();
    output::columns(&rows)
}

pub(super) fn parse_reason(text: &str) -> Result<String, LocalizedError> {
    let reason = text.trim();
    if reason.is_empty() { Err(LocalizedError::from(localized!("cli.no_reason"))) } else { Ok(reason.to_owned()) }
}

fn parse_credits(text: &str) -> Result<i64, LocalizedError> {
    let credits: Option<i64> = text.parse().ok();
    credits
        .filter(|credits| *credits != 0 && credits.unsigned_abs() <= CREDITS_MAX.unsigned_abs())
        .ok_or_else(|| localized!("cli.bad_grant", max = CREDITS_MAX).into())
}
