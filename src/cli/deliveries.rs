//! What `messages` and `events` have in common: rows of the outbox, chosen, listed, and made due again.

use serde::Serialize;

use super::{chosen, output};
use crate::domain::clock::Timestamp;
use crate::domain::failure::{LocalizedError, failure};
use crate::domain::language::{Language, text};
use crate::domain::order::OrderNo;
use crate::process::exit::{Exit, eprint};
use crate::store::{Channel, Delivery, DeliveryFilter, DeliveryState, News, Store};

// Not a doc comment: clap would take it for the command's own.
// Which rows to list, and how.
#[derive(clap::Args)]
pub(super) struct List {
    /// Only those that have come so far: due, sent or failed
    #[arg(long, value_parser = parse_state)]
    state: Option<DeliveryState>,
    /// Only those of this order
    #[arg(long, value_name = "NO")]
    order: Option<OrderNo>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: u32,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// A row as `--json` shows it; its keys stand in alphabetical order.
#[derive(Serialize)]
struct View<'a> {
    attempts: u32,
    created_at: Timestamp,
    /// When it is tried next, if it is.
    due_at: Option<Timestamp>,
    error: Option<&'a str>,
    finished_at: Option<Timestamp>,
    id: i64,
    kind: News,
    order_no: &'a OrderNo,
    state: DeliveryState,
    telegram_id: i64,
}

impl<'a> View<'a> {
    fn of(delivery: &'a Delivery) -> Self {
        Self {
            attempts: delivery.attempts,
            created_at: delivery.created_at,
            due_at: (delivery.state == DeliveryState::Due).then_some(delivery.due_at),
            error: delivery.error.as_deref(),
            finished_at: delivery.finished_at,
            id: delivery.id,
            kind: delivery.news,
            order_no: &delivery.order.terms.order_no,
            state: delivery.state,
            telegram_id: delivery.order.terms.telegram_id,
        }
    }
}

/// How many rows were made due; keys in alphabetical order.
#[derive(Serialize)]
struct MadeDue {
    due: usize,
}

/// Lists the newest rows of a channel.
pub(super) async fn list(store: &Store, channel: Channel, arguments: List, language: Language) -> anyhow::Result<Exit> {
    let List { state, order, limit, json } = arguments;
    let order_no = existing(store, order).await?;
    let filter = DeliveryFilter { state, order_no, ..DeliveryFilter::default() };
    let deliveries = store.deliveries(channel, filter, limit).await?;
    if json {
        output::json(&deliveries.iter().map(View::of).collect::<Vec<_>>())?;
        return Ok(Exit::Done);
    }
    if deliveries.is_empty() {
        eprint(&text!(language, "deliveries.none"));
        return Ok(Exit::Done);
    }
    let labels = ["id", "order_no", "user", "kind", "state", "attempts", "time", "error"];
    let mut rows = vec![labels.map(|label| text!(language, format!("delivery.{label}")).into_owned())];
    rows.extend(deliveries.iter().map(|delivery| {
        let time = delivery.finished_at.unwrap_or(delivery.due_at);
        [
            delivery.id.to_string(),
            delivery.order.terms.order_no.to_string(),
            delivery.order.terms.telegram_id.to_string(),
            text!(language, format!("delivery.{}", delivery.news)).into_owned(),
            text!(language, format!("delivery.{}", delivery.state)).into_owned(),
            delivery.attempts.to_string(),
            time.to_local().to_string(),
            delivery.error.clone().unwrap_or_default(),
        ]
    }));
    output::columns(&rows)?;
    Ok(Exit::Done)
}

/// Makes rows of a channel due now, and tells how many.
pub(super) async fn again(
    store: &Store,
    channel: Channel,
    filter: DeliveryFilter,
    json: bool,
    language: Language,
) -> anyhow::Result<Exit> {
    let named = filter.id;
    let due = store.deliver_again(channel, filter, Timestamp::now()).await?;
    if let Some(id) = named.filter(|_| due == 0) {
        return Err(failure!("deliveries.no_such", id = id));
    }
    if json {
        output::json(&MadeDue { due })?;
    } else {
        output::line(&text!(language, "deliveries.made_due", count = due))?;
    }
    Ok(Exit::Done)
}

/// The number of an order that is there.
pub(super) async fn existing(store: &Store, order: Option<OrderNo>) -> anyhow::Result<Option<String>> {
    let Some(order_no) = order else { return Ok(None) };
    match store.order(order_no.as_str()).await? {
        Some(_) => Ok(Some(order_no.to_string())),
        None => Err(failure!("cli.no_such_order", order = order_no)),
    }
}

fn parse_state(text: &str) -> Result<DeliveryState, LocalizedError> {
    chosen(DeliveryState::from_name(text), DeliveryState::known)
}
