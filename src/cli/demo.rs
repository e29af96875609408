//! `demo`: the whole way of a payment in a sandbox of its own, one line a step.

use std::net::SocketAddr;

use hyper::Method;
use rust_i18n::t;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::callback::{self, Callback, Connection};
use super::config::random_key;
use super::failure::Exit;
use super::{output, parse_language, users};
use crate::checkout::{DEFAULT_PAYMENT_TYPE, Goods, Wish, creation};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::epay::SignedCallback;
use crate::language::Language;
use crate::order::{Order, User};
use crate::secret::Secret;
use crate::service::Service;
use crate::store::Store;

const PID: &str = "demo";
const PACKAGE: &str = "silver";
const TELEGRAM_ID: i64 = 1001;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The language to tell it in: zh or en
    #[arg(long, default_value = "zh", value_parser = parse_language)]
    language: Language,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let directory = tempfile::Builder::new().prefix("webhookctl-demo-").tempdir()?;
    let key = random_key()?;
    let text = format!(
        "language = \"{}\"\n[[merchant]]\npid = \"{PID}\"\nkey = \"{key}\"\nsandbox = true\n\
         [[package]]\nid = \"{PACKAGE}\"\nname = \"VIP白银\"\nprice = \"36.00\"\ncredits = 70\n",
        arguments.language
    );
    let config = Config::from_toml(&text, directory.path())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = Service::open(config.clone()).await?;
    let store = service.store().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(service.run(listener, async { drop(stopped.await) }));

    let mut demo = Demo { address, key: Secret::new(key), store, passed: true };
    demo.tell(true, &t!("demo.service", address = address, directory = directory.path().display()))?;
    demo.tell(true, &t!("demo.merchant", pid = PID))?;
    demo.play(&config).await?;

    // The service may have ended by itself: its own error says why.
    let _ = stop.send(());
    running.await??;
    let passed = demo.passed;
    output::line(&if passed { t!("demo.passed") } else { t!("demo.failed") })?;
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

struct Demo {
    address: SocketAddr,
    key: Secret,
    store: Store,
    passed: bool,
}

impl Demo {
    async fn play(&mut self, config: &Config) -> anyhow::Result<()> {
        let order = self.create_order(config).await?;
        let forged = self.create_order(config).await?;
        let terms = &order.terms;
        let user = t!("demo.order", order = terms.order_no, user = TELEGRAM_ID, amount = terms.amount);
        self.tell(self.credits().await? == 0, &user)?;

        let paid = Self::callback(&order, &self.key);
        let body = self.send(&paid).await?;
        let credits = self.credits().await?;
        self.tell(body == "success" && credits == 70, &t!("demo.callback", body = body, credits = credits))?;

        let body = self.send(&paid).await?;
        let credits = self.credits().await?;
        self.tell(body == "success" && credits == 70, &t!("demo.duplicate", body = body, credits = credits))?;

        let body = self.send(&Self::callback(&forged, &Secret::new("a forger's guess"))).await?;
        let credits = self.credits().await?;
        self.tell(body == "fail" && credits == 70, &t!("demo.forgery", body = body, credits = credits))?;

        let user = self.store.user(TELEGRAM_ID).await?;
        let expected = User { credits: 70, orders_paid: 1, telegram_id: TELEGRAM_ID };
        let shown = user.as_ref().map(users::summary).unwrap_or_default();
        self.tell(user == Some(expected), &shown)
    }

    fn tell(&mut self, as_it_should: bool, step: &str) -> anyhow::Result<()> {
        self.passed &= as_it_should;
        output::line(&format!("{} {step}", if as_it_should { "✓" } else { "✗" }))
    }

    async fn create_order(&self, config: &Config) -> anyhow::Result<Order> {
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
        Ok(self.store.create_order(creation(wish, config, Timestamp::now())?).await?.order)
    }

    fn callback(order: &Order, key: &Secret) -> Callback {
        Callback { signed: SignedCallback::v1(callback::paid(order), key), method: Method::POST }
    }

    async fn send(&self, callback: &Callback) -> anyhow::Result<String> {
        let (answer, _) = Connection::open(self.address).await?.send(callback).await?;
        Ok(answer.body)
    }

    async fn credits(&self) -> anyhow::Result<i64> {
        Ok(self.store.user(TELEGRAM_ID).await?.map_or(0, |user| user.credits))
    }
}
