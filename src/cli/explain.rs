//! `explain`: the whole story of an order or a payment, ending in one plain sentence.

use std::collections::BTreeMap;

use anstyle::AnsiColor;
use serde::Serialize;

use super::output;
use crate::config::Config;
use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, text};
use crate::domain::order::OrderView;
use crate::payments::explain::{Event, EventKind, Explanation, VerdictCode};
use crate::process::exit::Exit;
use crate::store::{Opening, Store, Story};

/// How much of a value is shown to a person; `--json` has all of it.
const VALUE_CHARS_MAX: usize = 2000;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The order's number, or the gateway's number of a payment
    #[arg(value_name = "ORDER_NO|TRADE_NO")]
    number: String,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// A story as `--json` shows it; keys in alphabetical order.
#[derive(Serialize)]
struct View<'a> {
    events: Vec<EventView<'a>>,
    order: Option<OrderView<'a>>,
    verdict: VerdictView<'a>,
}

#[derive(Serialize)]
struct EventView<'a> {
    at: Timestamp,
    details: BTreeMap<&'static str, &'a str>,
    kind: EventKind,
    text: &'a str,
}

#[derive(Serialize)]
struct VerdictView<'a> {
    code: VerdictCode,
    text: &'a str,
}

impl<'a> View<'a> {
    fn of(told: &'a Explanation, now: Timestamp) -> Self {
        let event = |event: &'a Event| EventView {
            at: event.at,
            details: event.details.iter().map(|(name, value)| (*name, value.as_str())).collect(),
            kind: event.kind,
            text: &event.text,
        };
        Self {
            events: told.events.iter().map(event).collect(),
            order: told.order.as_ref().map(|order| order.view(now)),
            verdict: VerdictView { code: told.verdict.code, text: &told.verdict.text },
        }
    }
}

pub(super) async fn run(arguments: Arguments, config: &Config) -> anyhow::Result<Exit> {
    let store = Store::open(config, Opening::ReadOnly).await?;
    let mut stories = store.stories(arguments.number.clone()).await?;
    store.close().await?;
    let is_known = !stories.is_empty();
    if !is_known {
        // "Nothing is known" is an answer as well, with something to do.
        stories.push(Story::default());
    }
    let now = Timestamp::now();
    let told: Vec<_> = stories.into_iter().map(|story| Explanation::of(story, config, now)).collect();
    if arguments.json {
        let views: Vec<_> = told.iter().map(|told| View::of(told, now)).collect();
        match views.as_slice() {
            [only] => output::json(only)?,
            // Payments of two merchants may have one number.
            several => output::json(&several)?,
        }
    } else {
        for told in &told {
            print(&arguments.number, told, now, config.language)?;
        }
    }
    Ok(if is_known { Exit::Done } else { Exit::Failed })
}

fn print(number: &str, told: &Explanation, now: Timestamp, language: Language) -> anyhow::Result<()> {
    let headline = told.order.as_ref().map_or_else(
        || number.to_owned(),
        |order| format!("{}  {}", order.terms.order_no, text!(language, format!("status.{}", order.status(now)))),
    );
    output::coloured_line(AnsiColor::Cyan, &format!("● {headline}"))?;
    for event in &told.events {
        output::line(&output::escaped(&format!("{}  {}", event.at.to_local(), event.text)))?;
        let label = |name: &str| format!("    {}", text!(language, format!("explain.label_{name}")));
        let shown = |value: &str| value.chars().take(VALUE_CHARS_MAX).collect::<String>();
        let rows: Vec<_> = event.details.iter().map(|(name, value)| [label(name), shown(value)]).collect();
        output::columns(&rows)?;
    }
    let is_well = matches!(told.verdict.code, VerdictCode::Credited | VerdictCode::Refunded);
    let colour = if is_well { AnsiColor::Green } else { AnsiColor::Yellow };
    output::coloured_line(colour, &format!("→ {}", told.verdict.text))
}
