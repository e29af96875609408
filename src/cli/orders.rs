//! `orders create`, `orders list`, `orders show`.

use anyhow::anyhow;
use rust_i18n::t;

use super::failure::{Exit, eprint, usage};
use super::output;
use crate::clock::Timestamp;
use crate::config::{CREDITS_MAX, Config, Package, faults_of_gateway_text};
use crate::money::Amount;
use crate::order::{NewOrder, Order, OrderNo, OrderStatus};
use crate::store::{OrderFilter, Store};

/// The payment method where none is named.
pub(super) const DEFAULT_PAYMENT_TYPE: &str = "alipay";

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Create an order; its user is created by their first one
    Create(Create),
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
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["package", "amount"]))]
pub(super) struct Create {
    /// The buyer's Telegram id
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    telegram_id: i64,
    /// The package to buy
    #[arg(long, value_name = "ID", conflicts_with = "credits")]
    package: Option<String>,
    /// The price in yuan, such as 36.00, where it is no package
    #[arg(long, value_name = "YUAN", value_parser = parse_amount, requires = "credits", allow_negative_numbers = true)]
    amount: Option<Amount>,
    /// The credits that the buyer gets, where it is no package
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=CREDITS_MAX), requires = "amount", allow_negative_numbers = true)]
    credits: Option<i64>,
    /// The product's name at the gateway, where it is no package
    #[arg(long, value_name = "TEXT", value_parser = parse_text_to_gateway, conflicts_with = "package")]
    name: Option<String>,
    /// The payment method: alipay, wxpay, qqpay, usdt, …
    #[arg(long = "type", value_name = "TYPE", default_value = DEFAULT_PAYMENT_TYPE, value_parser = parse_payment_type)]
    payment_type: String,
    /// The merchant's pid; needed where there are several
    #[arg(long, value_name = "PID")]
    merchant: Option<String>,
    /// Sent to the gateway as `param`; it must come back equal
    #[arg(long, value_name = "TEXT", value_parser = parse_text_to_gateway)]
    param: Option<String>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<Exit> {
    match command {
        Command::Create(create) => self::create(create, config).await,
        Command::List { status, telegram_id, limit, json } => {
            let store = Store::open_existing(&config.database.url).await?;
            let filter = OrderFilter { status, telegram_id, limit, now: Timestamp::now() };
            let now = filter.now;
            let orders = store.orders(filter).await?;
            list(&orders, now, json)
        }
        Command::Show { order_no, json } => {
            let store = Store::open_existing(&config.database.url).await?;
            let order = store.order(order_no.as_str()).await?;
            let order = order.ok_or_else(|| anyhow!(t!("cli.no_such_order", order = order_no).into_owned()))?;
            show(&order, json)
        }
    }
}

async fn create(arguments: Create, config: &Config) -> anyhow::Result<Exit> {
    let json = arguments.json;
    let order = new_order(arguments, config, Timestamp::now())?;
    let store = Store::open(&config.database.url).await?;
    let order = store.create_order(order).await?.order;
    store.close().await?;
    show(&order, json)
}

impl Create {
    /// An order of a package, with nothing special about it.
    pub(super) fn of_package(telegram_id: i64, package: &str) -> Self {
        Self {
            telegram_id,
            package: Some(package.to_owned()),
            amount: None,
            credits: None,
            name: None,
            payment_type: DEFAULT_PAYMENT_TYPE.to_owned(),
            merchant: None,
            param: None,
            json: false,
        }
    }
}

/// What is asked for, as an order under the configured merchants and packages.
pub(super) fn new_order(arguments: Create, config: &Config, now: Timestamp) -> anyhow::Result<NewOrder> {
    let merchant = choose_merchant(config, arguments.merchant.as_deref())?;
    let package = arguments.package.as_deref().map(|id| find_package(config, id)).transpose()?;
    let (amount, credits, name) = if let Some(package) = package {
        (package.price, package.credits, package.name.clone())
    } else {
        let terms = arguments.amount.zip(arguments.credits);
        let (amount, credits) = terms.ok_or_else(|| usage(t!("cli.package_or_amount")))?;
        let name = arguments.name.unwrap_or_else(|| t!("cli.product_name", credits = credits).into_owned());
        (amount, credits, name)
    };
    Ok(NewOrder {
        order_no: OrderNo::generate(now),
        merchant,
        telegram_id: arguments.telegram_id,
        package: package.map(|package| package.id.clone()),
        name,
        payment_type: arguments.payment_type,
        amount,
        credits,
        param: arguments.param,
        created_at: now,
        expires_at: now.plus_seconds(config.orders.expire_after_s),
    })
}

fn choose_merchant(config: &Config, named: Option<&str>) -> anyhow::Result<String> {
    let known = || config.merchants.iter().map(|merchant| merchant.pid.as_str()).collect::<Vec<_>>().join(", ");
    match (named, config.merchants.as_slice()) {
        (Some(pid), _) if config.merchant(pid).is_some() => Ok(pid.to_owned()),
        (None, [only]) => Ok(only.pid.clone()),
        (_, []) => Err(usage(t!("cli.no_merchant"))),
        (Some(pid), _) => Err(usage(t!("cli.unknown_merchant", pid = pid, known = known()))),
        (None, _) => Err(usage(t!("cli.which_merchant", known = known()))),
    }
}

fn find_package<'a>(config: &'a Config, id: &str) -> anyhow::Result<&'a Package> {
    config.package(id).ok_or_else(|| {
        let known: Vec<_> = config.packages.iter().map(|package| package.id.as_str()).collect();
        usage(t!("cli.unknown_package", id = id, known = known.join(", ")))
    })
}

fn show(order: &Order, json: bool) -> anyhow::Result<Exit> {
    let now = Timestamp::now();
    if json {
        output::json(&order.view(now))?;
        return Ok(Exit::Done);
    }
    let terms = &order.terms;
    let mut rows = vec![
        ["order.order_no", terms.order_no.as_str()].map(str::to_owned),
        ["order.status".into(), status_name(order.status(now))],
        ["order.amount".into(), t!("order.for_credits", amount = terms.amount, credits = terms.credits).into()],
        ["order.user".into(), terms.telegram_id.to_string()],
        ["order.name".into(), terms.name.clone()],
        ["order.merchant".into(), format!("{} ({})", terms.merchant, terms.payment_type)],
        ["order.created_at".into(), terms.created_at.to_local().to_string()],
    ];
    if let Some(paid_at) = order.paid_at {
        rows.push(["order.paid_at".into(), paid_at.to_local().to_string()]);
    }
    if let Some(trade_no) = &order.trade_no {
        rows.push(["order.trade_no".into(), trade_no.clone()]);
    }
    for [label, _] in &mut rows {
        *label = t!(label.as_str()).into_owned();
    }
    output::columns(&rows)?;
    Ok(Exit::Done)
}

fn list(orders: &[Order], now: Timestamp, json: bool) -> anyhow::Result<Exit> {
    if json {
        let views: Vec<_> = orders.iter().map(|order| order.view(now)).collect();
        output::json(&views)?;
        return Ok(Exit::Done);
    }
    if orders.is_empty() {
        eprint(&t!("cli.no_orders"));
        return Ok(Exit::Done);
    }
    let labels = ["order_no", "status", "amount", "credits", "user", "created_at"];
    let mut rows = vec![labels.map(|label| t!(format!("order.{label}")).into_owned())];
    rows.extend(orders.iter().map(|order| {
        [
            order.terms.order_no.to_string(),
            status_name(order.status(now)),
            order.terms.amount.to_string(),
            order.terms.credits.to_string(),
            order.terms.telegram_id.to_string(),
            order.terms.created_at.to_local().to_string(),
        ]
    }));
    output::columns(&rows)?;
    Ok(Exit::Done)
}

fn status_name(status: OrderStatus) -> String {
    t!(format!("status.{status}")).into_owned()
}

fn parse_status(text: &str) -> Result<OrderStatus, String> {
    OrderStatus::from_name(text).ok_or_else(|| t!("cli.not_one_of", known = OrderStatus::known()).into_owned())
}

fn parse_amount(text: &str) -> Result<Amount, String> {
    Amount::parse_price(text)
        .ok()
        .filter(|amount| amount.fen() > 0)
        .ok_or_else(|| t!("config.bad_price", value = text).into_owned())
}

fn parse_payment_type(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    fits.then(|| text.to_owned()).ok_or_else(|| t!("cli.bad_payment_type").into_owned())
}

fn parse_text_to_gateway(text: &str) -> Result<String, String> {
    match faults_of_gateway_text(text).into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(text.to_owned()),
    }
}
