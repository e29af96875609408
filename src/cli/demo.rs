//! `demo`: the whole way of a payment in a sandbox of its own, one line a step.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::callback::{self, Callback, Connection};
use super::config::random_key;
use super::{gateways, output, parse_language, users};
use crate::channel::epay::SignedCallback;
use crate::config::{Config, Current};
use crate::dev::simulator::{Merchant, Settings, Simulator};
use crate::domain::language::{Language, text};
use crate::domain::order::{Order, User};
use crate::domain::secret::Secret;
use crate::net::client::Client;
use crate::payments::checkout::{Cashier, DEFAULT_PAYMENT_TYPE, Goods, Wish};
use crate::process::exit::Exit;
use crate::server::NOTIFY_PATH;
use crate::service::Service;
use crate::store::Store;

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether credits have come.
const PAUSE: Duration = Duration::from_millis(20);
const PID: &str = "demo";
const PACKAGE: &str = "silver";
const TELEGRAM_ID: i64 = 1001;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The language to tell it in: zh or en
    #[arg(long, default_value = "zh", value_parser = parse_language)]
    pub(super) language: Language,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let language = arguments.language;
    let directory = tempfile::Builder::new().prefix("webhookctl-demo-").tempdir()?;
    let key = random_key()?;
    let (gateway_listener, listener) =
        (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let (gateway, address) = (gateway_listener.local_addr()?, listener.local_addr()?);
    let text = format!(
        "language = \"{language}\"\n[[merchant]]\npid = \"{PID}\"\nkey = \"{key}\"\nsandbox = true\n\
         gateway_url = \"http://{gateway}/\"\nnotify_url = \"http://{address}{NOTIFY_PATH}\"\n\
         return_url = \"http://{address}/payment/return\"\n[reconcile]\nschedule_s = [1, 2, 3, 5, 8]\n\
         [[package]]\nid = \"{PACKAGE}\"\nname = \"VIP白银\"\nprice = \"36.00\"\ncredits = 70\n"
    );
    let config = Config::from_toml(&text, directory.path())?;
    let simulator =
        Simulator::new(vec![Merchant::v1(PID, Secret::new(key))], Settings { language, ..Settings::default() });
    let service = Service::open(config.clone()).await?;
    let store = service.store().clone();
    let stop = CancellationToken::new();
    let simulating = tokio::spawn(simulator.serve(gateway_listener, stop.clone().cancelled_owned()));
    let running = tokio::spawn(service.run(listener, stop.clone().cancelled_owned()));

    let current = Current::new(config);
    let gateways = Arc::new(gateways(&current, &store));
    let cashier = Cashier::new(&current, &store, &gateways);
    let mut demo = Demo { address, gateway, client: Client::new(), cashier, store, passed: true };
    demo.tell(true, &text!(language, "demo.gateway", address = gateway, pid = PID))?;
    demo.tell(true, &text!(language, "demo.service", address = address, directory = directory.path().display()))?;
    demo.play(language).await?;

    stop.cancel();
    simulating.await??;
    // The service may have ended by itself: its own error says why.
    running.await??;
    let passed = demo.passed;
    output::line(&if passed { text!(language, "demo.passed") } else { text!(language, "demo.failed") })?;
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

struct Demo {
    /// Where the service listens.
    address: SocketAddr,
    /// Where the pretend gateway listens.
    gateway: SocketAddr,
    client: Client,
    cashier: Cashier,
    store: Store,
    passed: bool,
}

impl Demo {
    async fn play(&mut self, language: Language) -> anyhow::Result<()> {
        let order = self.create_order().await?;
        let terms = &order.terms;
        let told = text!(language, "demo.order", order = terms.order_no, user = TELEGRAM_ID, amount = terms.amount);
        self.tell(self.credits().await? == 0, &told)?;
        let link = order.pay_page.as_ref().map(|page| page.url.as_str()).unwrap_or_default();
        self.tell(!link.is_empty(), &text!(language, "demo.pay_link", link = link))?;

        self.pay(&order).await?;
        let credits = self.wait_for_credits(70).await?;
        self.tell(credits == 70, &text!(language, "demo.callback", credits = credits))?;

        let answer = self.control("callback", &order).await?;
        let (repeated, credits) = (answer.contains("success"), self.credits().await?);
        self.tell(repeated && credits == 70, &text!(language, "demo.duplicate", credits = credits))?;

        let forged = self.create_order().await?;
        let body = self.forge(&forged).await?;
        let credits = self.credits().await?;
        self.tell(body == "fail" && credits == 70, &text!(language, "demo.forgery", body = body, credits = credits))?;

        let lost = self.create_order().await?;
        self.client.post_form(&self.url("simulate/faults"), &[("fault", "never")], PATIENCE).await?;
        self.pay(&lost).await?;
        let credits = self.wait_for_credits(140).await?;
        self.tell(credits == 140, &text!(language, "demo.reconciled", order = lost.terms.order_no, credits = credits))?;

        let user = self.store.user(TELEGRAM_ID).await?;
        let expected = User { credits: 140, orders_paid: 2, telegram_id: TELEGRAM_ID };
        let shown = user.as_ref().map(|user| users::summary(user, language)).unwrap_or_default();
        self.tell(user == Some(expected), &shown)
    }

    fn tell(&mut self, as_it_should: bool, step: &str) -> anyhow::Result<()> {
        self.passed &= as_it_should;
        output::line(&format!("{} {step}", if as_it_should { "✓" } else { "✗" }))
    }

    async fn create_order(&self) -> anyhow::Result<Order> {
        let wish = Wish {
            telegram_id: TELEGRAM_ID,
            goods: Goods::Package(PACKAGE.into()),
            payment_type: DEFAULT_PAYMENT_TYPE.into(),
            merchant: None,
            param: None,
            language: None,
            client_ip: None,
            idempotency: None,
        };
        Ok(self.cashier.create(wish).await?.order)
    }

    /// Pays at the pretend gateway, as a buyer would.
    async fn pay(&self, order: &Order) -> anyhow::Result<()> {
        self.control("pay", order).await.map(drop)
    }

    async fn control(&self, what: &str, order: &Order) -> anyhow::Result<String> {
        let form = [("out_trade_no", order.terms.order_no.as_str())];
        let reply = self.client.post_form(&self.url(&format!("simulate/{what}")), &form, PATIENCE).await?;
        Ok(String::from_utf8_lossy(&reply.body).into_owned())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.gateway)
    }

    /// Sends a callback signed with another key; what came back.
    async fn forge(&self, order: &Order) -> anyhow::Result<String> {
        let signed = SignedCallback::v1(callback::paid(order), &Secret::new("a forger's guess"));
        let (answer, _) =
            Connection::open(self.address).await?.send(&Callback { signed, method: Method::POST }).await?;
        Ok(answer.body)
    }

    /// The user's credits, when they are so many, or when patience ends.
    async fn wait_for_credits(&self, wanted: i64) -> anyhow::Result<i64> {
        let waiting = async {
            while self.credits().await? != wanted {
                sleep(PAUSE).await;
            }
            anyhow::Ok(())
        };
        if let Ok(result) = timeout(PATIENCE, waiting).await {
            result?;
        }
        self.credits().await
    }

    async fn credits(&self) -> anyhow::Result<i64> {
        Ok(self.store.user(TELEGRAM_ID).await?.map_or(0, |user| user.credits))
    }
}
