//! `orders`: create, list, show; what a person decides about them is in `decide`.

mod create;
mod decide;

use super::{chosen, output};
use crate::config::Config;
use crate::domain::clock::Timestamp;
use crate::domain::failure::{LocalizedError, failure};
use crate::domain::language::{Language, localized, text};
use crate::domain::money::Amount;
use crate::domain::order::{Order, OrderNo, OrderStatus};
use crate::process::exit::{Exit, eprint};
use crate::store::{Opening, OrderFilter, Refund, Store};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Create an order; its user is created by their first one
    Create(create::Create),
    /// List orders, the newest first
    List {
        /// Only orders of this status
        #[arg(long, value_parser = parse_status)]
        status: Option<OrderStatus>,
        /// Only this user's orders
        #[arg(long, value_name = "ID")]
        telegram_id: Option<i64>,
        /// At most so many
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: u32,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one order
    Show {
        /// The order's number
        order_no: OrderNo,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Settle an unpaid order, or one in review, by your own decision
    Settle(decide::Settle),
    /// Call an unpaid order off, or one in review
    Cancel(decide::Decision),
    /// Note that you have taken care of an order that was paid twice
    Acknowledge(decide::Acknowledge),
    /// Give a paid order's money back, and take its credits back
    Refund(decide::Refund),
}

pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<Exit> {
    match command {
        Command::Create(arguments) => create::run(arguments, config).await,
        Command::List { status, telegram_id, limit, json } => {
            let store = Store::open(config, Opening::ReadOnly).await?;
            let filter = OrderFilter { status, telegram_id, limit, now: Timestamp::now() };
            let now = filter.now;
            let orders = store.orders(filter).await?;
            list(&orders, now, json, config.language)
        }
        Command::Show { order_no, json } => {
            let store = Store::open(config, Opening::ReadOnly).await?;
            let order = store.order(order_no.as_str()).await?;
            let order = order.ok_or_else(|| failure!("cli.no_such_order", order = order_no))?;
            let refund = store.refund(order_no.as_str()).await?;
            show_with_refund(&order, refund.as_ref(), json, config.language)
        }
        Command::Settle(arguments) => decide::settle(arguments, config).await,
        Command::Cancel(decision) => decide::cancel(decision, config).await,
        Command::Acknowledge(arguments) => decide::acknowledge(arguments, config).await,
        Command::Refund(arguments) => decide::refund_order(arguments, config).await,
    }
}

/// The database, for a command that decides something.
pub(super) async fn open(config: &Config) -> anyhow::Result<Store> {
    Ok(Store::open(config, Opening::Existing).await?)
}

fn show(order: &Order, json: bool, language: Language) -> anyhow::Result<Exit> {
    show_with_refund(order, None, json, language)
}

fn show_with_refund(order: &Order, refund: Option<&Refund>, json: bool, language: Language) -> anyhow::Result<Exit> {
    let now = Timestamp::now();
    if json {
        output::json(&order.view(now))?;
        return Ok(Exit::Done);
    }
    let terms = &order.terms;
    let mut rows = vec![
        ["order.order_no", terms.order_no.as_str()].map(str::to_owned),
        ["order.status".into(), status_name(order.status(now), language)],
        [
            "order.amount".into(),
            text!(language, "order.for_credits", amount = terms.amount, credits = terms.credits).into(),
        ],
        ["order.user".into(), terms.telegram_id.to_string()],
        ["order.name".into(), terms.name.clone()],
        ["order.merchant".into(), format!("{} ({})", terms.merchant, terms.payment_type)],
        ["order.created_at".into(), terms.created_at.to_local().to_string()],
    ];
    if let Some(reason) = order.view(now).review_reason {
        rows.push(["order.review_reason".into(), text!(language, format!("review_reason.{reason}")).into_owned()]);
    }
    if let Some(paid_at) = order.paid_at {
        rows.push(["order.paid_at".into(), paid_at.to_local().to_string()]);
    }
    if let Some(trade_no) = &order.trade_no {
        rows.push(["order.trade_no".into(), trade_no.clone()]);
    }
    if let Some(page) = order.open_pay_page(now) {
        rows.push(["order.pay_url".into(), page.url.clone()]);
    }
    if let Some(refund) = refund {
        let (state, since) = (refund.state, refund.requested_at.to_local());
        let answer = refund.answer.as_deref().unwrap_or_default();
        let told =
            text!(language, "order.refund_told", state = state, since = since, reason = refund.reason, answer = answer);
        rows.push(["order.refund".into(), told.into_owned()]);
    }
    for [label, _] in &mut rows {
        *label = text!(language, label.as_str()).into_owned();
    }
    output::columns(&rows)?;
    Ok(Exit::Done)
}

fn list(orders: &[Order], now: Timestamp, json: bool, language: Language) -> anyhow::Result<Exit> {
    if json {
        let views: Vec<_> = orders.iter().map(|order| order.view(now)).collect();
        output::json(&views)?;
        return Ok(Exit::Done);
    }
    if orders.is_empty() {
        eprint(&text!(language, "cli.no_orders"));
        return Ok(Exit::Done);
    }
    let labels = ["order_no", "status", "amount", "credits", "user", "created_at"];
    let mut rows = vec![labels.map(|label| text!(language, format!("order.{label}")).into_owned())];
    rows.extend(orders.iter().map(|order| {
        [
            order.terms.order_no.to_string(),
            status_name(order.status(now), language),
            order.terms.amount.to_string(),
            order.terms.credits.to_string(),
            order.terms.telegram_id.to_string(),
            order.terms.created_at.to_local().to_string(),
        ]
    }));
    output::columns(&rows)?;
    Ok(Exit::Done)
}

fn status_name(status: OrderStatus, language: Language) -> String {
    text!(language, format!("status.{status}")).into_owned()
}

fn parse_status(text: &str) -> Result<OrderStatus, LocalizedError> {
    chosen(OrderStatus::from_name(text), OrderStatus::known)
}

fn parse_amount(text: &str) -> Result<Amount, LocalizedError> {
    Amount::parse_price(text)
        .ok()
        .filter(|amount| amount.fen() > 0)
        .ok_or_else(|| localized!("config.bad_price", value = text).into())
}
