//! `orders settle`, `orders cancel`, `orders refund`: what a person decides about an order.

use serde_json::json;

use super::{open, show};
use crate::channel::epay::client::GatewayError;
use crate::cli::users::parse_reason;
use crate::cli::{gateways, output};
use crate::config::{Config, Current};
use crate::domain::clock::Timestamp;
use crate::domain::failure::LocalizedError;
use crate::domain::language::{localized, text};
use crate::domain::order::OrderNo;
use crate::payments::manual::{self, SettleOptions, SettledByHand};
use crate::payments::refund::{Manner, Refunded, refund};
use crate::process::exit::{Exit, eprint};
use crate::store::ByHand;

#[derive(clap::Args)]
pub(in crate::cli) struct Decision {
    /// The order's number
    order_no: OrderNo,
    /// Why: it is kept with the order
    #[arg(long, value_name = "TEXT", value_parser = parse_reason)]
    reason: String,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(in crate::cli) struct Settle {
    #[command(flatten)]
    decision: Decision,
    /// The gateway's number of the payment, where several wait; otherwise kept as a note
    #[arg(long, value_name = "NO", value_parser = parse_trade_no)]
    trade_no: Option<String>,
    /// The money came by another way than the gateway: it is not asked, and a payment that it reports later is one too many
    #[arg(long, conflicts_with = "trade_no")]
    paid_outside: bool,
    /// Settle although the gateway says that the order is not paid
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
pub(in crate::cli) struct Acknowledge {
    #[command(flatten)]
    decision: Decision,
    /// The gateway's number of one payment; by default all but the one that settled the order
    #[arg(long, value_name = "NO", value_parser = parse_trade_no)]
    trade_no: Option<String>,
}

#[derive(clap::Args)]
pub(in crate::cli) struct Refund {
    #[command(flatten)]
    decision: Decision,
    /// The money has gone back in another way: ask no gateway, only take the credits back
    #[arg(long)]
    by_hand: bool,
    /// Ask the gateway for the money again, although it is unclear what it did the last time
    #[arg(long, conflicts_with = "by_hand")]
    again: bool,
    /// Although the buyer has spent credits: their balance may go below zero
    #[arg(long)]
    even_if_spent: bool,
}

impl Decision {
    fn by_hand(&self) -> ByHand {
        ByHand { order_no: self.order_no.to_string(), reason: self.reason.clone(), at: Timestamp::now() }
    }
}

pub(super) async fn settle(arguments: Settle, config: &Config) -> anyhow::Result<Exit> {
    let language = config.language;
    let store = open(config).await?;
    let gateways = gateways(&Current::new(config.clone()), &store);
    let Settle { decision, trade_no, paid_outside, force } = arguments;
    let options = SettleOptions { trade_no, paid_outside, force };
    let settled = manual::settle(&gateways, &store, decision.by_hand(), options).await;
    store.close().await?;
    let SettledByHand { order, remark } = settled?;
    if let Some(cause) = remark {
        eprint(&text!(language, "manual.not_asked", cause = cause));
    }
    show(&order, decision.json, config.language)
}

pub(super) async fn acknowledge(arguments: Acknowledge, config: &Config) -> anyhow::Result<Exit> {
    let language = config.language;
    let store = open(config).await?;
    let trades = store.acknowledge(arguments.decision.by_hand(), arguments.trade_no).await?;
    store.close().await?;
    let order_no = &arguments.decision.order_no;
    if arguments.decision.json {
        output::json(&json!({ "order_no": order_no, "trade_nos": trades }))?;
    } else {
        output::line(&text!(language, "cli.acknowledged", order = order_no, trades = trades.join(", ")))?;
    }
    Ok(Exit::Done)
}

pub(super) async fn cancel(decision: Decision, config: &Config) -> anyhow::Result<Exit> {
    let language = config.language;
    let store = open(config).await?;
    let order = store.cancel(decision.by_hand()).await?;
    // Where the gateway can, it is told to take no payment for it any more. Money that comes all the same is put into review.
    let current = Current::new(config.clone());
    if let Some(gateway) = gateways(&current, &store).of(&order.terms.merchant) {
        match gateway.close(&order.terms.order_no).await {
            Ok(()) | Err(GatewayError::Unsupported | GatewayError::UnknownOrder) => {}
            Err(error) => eprint(&text!(language, "cli.not_closed", cause = error)),
        }
    }
    store.close().await?;
    show(&order, decision.json, config.language)
}

pub(super) async fn refund_order(arguments: Refund, config: &Config) -> anyhow::Result<Exit> {
    let language = config.language;
    let store = open(config).await?;
    let gateways = gateways(&Current::new(config.clone()), &store);
    let manner = Manner { by_hand: arguments.by_hand, even_if_spent: arguments.even_if_spent, again: arguments.again };
    let refunded = refund(&gateways, &store, arguments.decision.by_hand(), manner).await;
    let credits = match &refunded {
        Ok(Refunded { order, .. }) => store.user(order.terms.telegram_id).await?.map_or(0, |user| user.credits),
        Err(_) => 0,
    };
    store.close().await?;
    let Refunded { order, answer, proved } = refunded?;
    if arguments.decision.json {
        let view = order.view(Timestamp::now());
        output::json(&json!({ "answer": answer, "credits": credits, "order": view, "proved": proved }))?;
    } else {
        let terms = &order.terms;
        let (user, amount) = (terms.telegram_id, terms.amount);
        output::line(&text!(
            language,
            "refund.done",
            order = terms.order_no,
            amount = amount,
            user = user,
            credits = credits
        ))?;
        if !arguments.by_hand {
            output::line(&if proved {
                text!(language, "refund.proved")
            } else {
                text!(language, "refund.proves_nothing")
            })?;
        }
    }
    Ok(Exit::Done)
}

fn parse_trade_no(text: &str) -> Result<String, LocalizedError> {
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| text.to_owned()).ok_or_else(|| localized!("cli.bad_trade_no").into())
}
