//! `messages list`, `messages retry`.

use super::deliveries::{self, List};
use crate::config::Config;
use crate::domain::language::text;
use crate::domain::order::OrderNo;
use crate::process::exit::{Exit, eprint};
use crate::store::{Channel, DeliveryFilter, DeliveryState, Opening, Store};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List messages to buyers, the newest first
    List(List),
    /// Send messages again: their time begins anew
    Retry(Retry),
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["order", "id", "failed", "all_due"]))]
pub(super) struct Retry {
    /// Those of this order, whatever became of them
    #[arg(long, value_name = "NO")]
    order: Option<OrderNo>,
    /// The one of this number, whatever became of it
    #[arg(long, value_name = "N")]
    id: Option<i64>,
    /// All that failed
    #[arg(long)]
    failed: bool,
    /// All that wait for their time: now
    #[arg(long)]
    all_due: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<Exit> {
    let language = config.language;
    let opening = if matches!(command, Command::List(_)) { Opening::ReadOnly } else { Opening::Existing };
    let store = Store::open(config, opening).await?;
    if config.telegram.token.is_none() {
        eprint(&text!(language, "deliveries.no_token"));
    }
    let exit = match command {
        Command::List(list) => deliveries::list(&store, Channel::Telegram, list, config.language).await,
        Command::Retry(retry) => {
            let filter = DeliveryFilter {
                state: match (retry.failed, retry.all_due) {
                    (true, _) => Some(DeliveryState::Failed),
                    (_, true) => Some(DeliveryState::Due),
                    _ => None,
                },
                order_no: deliveries::existing(&store, retry.order).await?,
                id: retry.id,
                since: None,
            };
            deliveries::again(&store, Channel::Telegram, filter, retry.json, config.language).await
        }
    }?;
    store.close().await?;
    Ok(exit)
}
