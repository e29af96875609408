//! `orders create`: an order, and where its buyer can pay.

use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::sync::Arc;

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;

use super::{parse_amount, show};
use crate::cli::{gateways, output, parse_language};
use crate::config::{CREDITS_MAX, Config, Current, faults_of_gateway_text};
use crate::domain::failure::LocalizedError;
use crate::domain::language::{Language, Localized, localized};
use crate::domain::money::Amount;
use crate::payments::checkout::{Cashier, Checkout, CheckoutError, DEFAULT_PAYMENT_TYPE, Goods, Wish, is_payment_type};
use crate::process::exit::{Exit, eprint, usage};
use crate::store::{Opening, Store};

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["package", "amount"]))]
pub(in crate::cli) struct Create {
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
    /// The buyer's language, zh or en, for messages to them
    #[arg(long, value_name = "LANGUAGE", value_parser = parse_language)]
    language: Option<Language>,
    /// The buyer's address, where it is known: some gateways want it
    #[arg(long, value_name = "IP")]
    client_ip: Option<IpAddr>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Create, config: &Config) -> anyhow::Result<Exit> {
    let json = arguments.json;
    let wish = arguments.wish()?;
    // Before anything is created: a wish that cannot be granted must not make a database.
    crate::payments::checkout::creation(wish.clone(), config, crate::domain::clock::Timestamp::now())
        .map_err(impossible)?;
    let store = Store::open(config, Opening::Create).await?;
    let config = Current::new(config.clone());
    let gateways = Arc::new(gateways(&config, &store));
    let created = Cashier::new(&config, &store, &gateways).create(wish).await;
    store.close().await?;
    let Checkout { order, remark, .. } = created.map_err(impossible)?;
    if let Some(remark) = remark {
        eprint(&remark.text(config.load().language));
    }
    show(&order, json, config.load().language)?;
    if let Some(page) = order.pay_page.filter(|_| !json && io::stdout().is_terminal()) {
        print_qr_code(&page.url)?;
    }
    Ok(Exit::Done)
}

/// A wish that cannot be granted is a wrong use of the command.
fn impossible(error: CheckoutError) -> anyhow::Error {
    match error {
        CheckoutError::Impossible(text) => usage(text),
        CheckoutError::Store(error) => error.into(),
    }
}

impl Create {
    fn wish(self) -> anyhow::Result<Wish> {
        let goods = Goods::of(self.package, self.amount.zip(self.credits), self.name);
        let goods = goods.ok_or_else(|| usage(localized!("cli.package_or_amount")))?;
        Ok(Wish {
            telegram_id: self.telegram_id,
            goods,
            payment_type: self.payment_type,
            merchant: self.merchant,
            param: self.param,
            language: self.language,
            client_ip: self.client_ip,
            idempotency: None,
        })
    }
}

/// For a phone to scan off the screen. Light on dark, as most terminals are.
fn print_qr_code(text: &str) -> anyhow::Result<()> {
    // What is too long for a code is still there as a link.
    let Ok(code) = QrCode::new(text) else { return Ok(()) };
    output::line(&code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

fn parse_payment_type(text: &str) -> Result<String, LocalizedError> {
    is_payment_type(text).then(|| text.to_owned()).ok_or_else(|| localized!("cli.bad_payment_type").into())
}

fn parse_text_to_gateway(text: &str) -> Result<String, LocalizedError> {
    match faults_of_gateway_text(text).into_iter().next() {
        Some(fault) => Err(fault.into()),
        None => Ok(text.to_owned()),
    }
}
