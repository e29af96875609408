//! `events list`, `events replay`.

use super::deliveries::{self, List};
use super::reconcile::parse_since;
use crate::config::Config;
use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, text};
use crate::domain::order::OrderNo;
use crate::outbox::EVENTS_DISABLED;
use crate::process::exit::{Exit, eprint};
use crate::store::{Channel, DeliveryFilter, DeliveryState, Opening, Store};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// List events for the bot, the newest first
    List(List),
    /// Send events again, also to a URL that wanted no more; without options, those that wait
    Replay(Replay),
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("which").args(["order", "id", "since", "failed"]))]
pub(super) struct Replay {
    /// Those of this order, whatever became of them
    #[arg(long, value_name = "NO")]
    order: Option<OrderNo>,
    /// The one of this number, whatever became of it
    #[arg(long, value_name = "N")]
    id: Option<i64>,
    /// All since then, also from before events were configured: 90m, 2h or 1d ago, or local time
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// All that failed
    #[arg(long)]
    failed: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<Exit> {
    let language = config.language;
    let opening = if matches!(command, Command::List(_)) { Opening::ReadOnly } else { Opening::Existing };
    let store = Store::open(config, opening).await?;
    if config.events.is_none() {
        eprint(&text!(language, "deliveries.no_events_url"));
    }
    let exit = match command {
        Command::List(list) => {
            let disabled = store.recall(EVENTS_DISABLED).await?;
            if disabled.is_some() && disabled == config.events.as_ref().map(|events| events.url.clone()) {
                eprint(&text!(language, "events.disabled"));
            }
            deliveries::list(&store, Channel::Event, list, config.language).await
        }
        Command::Replay(replay) => self::replay(&store, replay, config.language).await,
    }?;
    store.close().await?;
    Ok(exit)
}

async fn replay(store: &Store, arguments: Replay, language: Language) -> anyhow::Result<Exit> {
    let Replay { order, id, since, failed, json } = arguments;
    let names_none = order.is_none() && id.is_none() && since.is_none();
    let filter = DeliveryFilter {
        state: match (failed, names_none) {
            (true, _) => Some(DeliveryState::Failed),
            (false, true) => Some(DeliveryState::Due),
            (false, false) => None,
        },
        order_no: deliveries::existing(store, order).await?,
        id,
        since,
    };
    if let Some(since) = since {
        store.add_missing_events(since, Timestamp::now()).await?;
    }
    let exit = deliveries::again(store, Channel::Event, filter, json, language).await?;
    // Last: what is due begins to be sent with it.
    store.remember(EVENTS_DISABLED, None).await?;
    Ok(exit)
}
