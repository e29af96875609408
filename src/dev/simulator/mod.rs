//! A pretend gateway: speaks as a PHP epay gateway does, takes no money, and does wrong on request.
//!
//! For tests, first steps and the demo. A merchant's orders come in over [`api`] or the buyer's [`page`]; whoever opens the page
//! and presses the button has paid, and [`delivery`] tells the merchant, again and again until it answers `success`. What goes
//! wrong on the way is in [`fault`]; the same seed makes the same things go wrong. [`control`] is for a test, which has no hand
//! to press a button with.
//!
//! The orders ([`book`]), the reading of requests ([`request`]) and the making of replies and callbacks ([`reply`],
//! [`callback`]) know nothing of sockets; [`http`] and [`delivery`] know little else.

mod api;
mod book;
mod callback;
mod control;
mod delivery;
mod event;
mod fault;
mod http;
mod merchant;
mod page;
mod refusal;
mod reply;
mod request;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::epay::Form;
use crate::domain::clock::Timestamp;
use crate::domain::language::Language;
use crate::domain::money::Amount;
use crate::sync::lock;
use book::{Book, Trade};
pub(crate) use callback::ATTEMPTS_MAX;
pub(crate) use event::Event;
use fault::{Dice, Question};
pub(crate) use fault::{Fault, FaultAsked, Faults, Probability};
pub(crate) use merchant::{LeftOut, Merchant};
use refusal::Refusal;
pub(crate) use reply::PayAnswer;

/// How many callbacks are under way at the same time.
const SENDING_MAX: usize = 64;

/// How the pretend gateway behaves.
pub(crate) struct Settings {
    /// The language of pages, refusals and events.
    pub(crate) language: Language,
    /// What decides what goes wrong when it only may.
    pub(crate) seed: u64,
    /// What goes wrong, until [`control`] says otherwise.
    pub(crate) faults: Faults,
    /// How callbacks are sent: GET or POST.
    pub(crate) method: Method,
    /// What a merchant is given to show to the buyer.
    pub(crate) answer: PayAnswer,
    /// How long a minute of the retry pattern takes.
    pub(crate) minute: Duration,
    /// How many times a callback is sent at most that is not answered `success`: 1 to 5.
    pub(crate) attempts: u8,
    /// How long a slow reply takes.
    pub(crate) slow: Duration,
    /// Orders are paid by themselves after so long, and with this probability.
    pub(crate) auto_pay: Option<(Duration, Probability)>,
    /// Hears of everything that happens. It is called in the middle of things, so it must not wait.
    pub(crate) on_event: Box<dyn Fn(Event) + Send + Sync>,
}

impl Default for Settings {
    /// A gateway that does everything right, and tells nobody.
    fn default() -> Self {
        Self {
            language: Language::Chinese,
            seed: 0,
            faults: Faults::default(),
            method: Method::GET,
            answer: PayAnswer::PayUrl,
            minute: Duration::from_mins(1),
            attempts: ATTEMPTS_MAX,
            slow: Duration::from_secs(3),
            auto_pay: None,
            on_event: Box::new(|_| {}),
        }
    }
}

/// A pretend gateway.
pub(crate) struct Simulator {
    merchants: Vec<Merchant>,
    settings: Settings,
    // Both are held for the look or the change alone, never while anything is waited for.
    faults: Mutex<Faults>,
    book: Mutex<Book>,
    /// How many requests there were that named no known order.
    strange_requests: AtomicU64,
    sending: Semaphore,
    /// Callbacks to come, and orders that will be paid by themselves.
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A request, as far as it matters here.
struct Asked<'a> {
    method: &'a Method,
    path: &'a str,
    query: &'a [u8],
    body: &'a [u8],
    /// Our own base URL, as the client knows it.
    base: &'a str,
    now: Timestamp,
}

/// What is to be done about a request.
#[derive(Debug)]
enum Reaction {
    Page(StatusCode, String),
    Json(StatusCode, Value),
    /// See another page, by GET.
    Redirect(String),
    /// The connection ends.
    Reset,
    /// Send the order's callback now, and say what came of it.
    SendCallback(u64),
}

impl Simulator {
    /// A gateway at which these merchants have accounts.
    pub(crate) fn new(merchants: Vec<Merchant>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            merchants,
            faults: Mutex::new(settings.faults.clone()),
            settings,
            book: Mutex::default(),
            strange_requests: AtomicU64::new(0),
            sending: Semaphore::new(SENDING_MAX),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// What to do about a request, and how long to hold the answer back.
    fn react(self: &Arc<Self>, asked: &Asked) -> (Reaction, Duration) {
        if let Some(action) = asked.path.strip_prefix("/simulate/") {
            return (self.control(action, asked), Duration::ZERO);
        }
        if let Some(endpoint) = api::Endpoint::of(asked.path, asked.query) {
            return self.api(endpoint, asked);
        }
        let reaction = match asked.path {
            "/submit.php" => self.submit(asked),
            path => match path.strip_prefix("/pay/") {
                Some(trade_no) => self.pay_page(trade_no, asked),
                None => page::error(StatusCode::NOT_FOUND, "404", self.settings.language),
            },
        };
        let occasion = self.strange_requests.fetch_add(1, Ordering::Relaxed);
        (reaction, self.delay(Occasion::strange(occasion)))
    }

    fn merchant(&self, form: &Form) -> Result<&Merchant, Refusal> {
        let pid = request::require(form, "pid")?;
        self.merchants.iter().find(|merchant| merchant.pid == pid).ok_or(Refusal::UnknownMerchant)
    }

    /// Another merchant's id, for lies: a real one if there is one.
    fn other_pid(&self, pid: &str) -> String {
        let other = self.merchants.iter().find(|merchant| merchant.pid != pid);
        other.map_or_else(|| format!("{pid}9"), |merchant| merchant.pid.clone())
    }

    /// Makes an order, or finds the one that was made of the same fields.
    fn create(
        self: &Arc<Self>,
        pid: &str,
        purchase: request::Purchase,
        clientip: &str,
        now: Timestamp,
    ) -> Result<Trade, Refusal> {
        let (trade, is_new) = {
            let mut book = self.book();
            let (trade, is_new) = book.create(pid, purchase, clientip, now)?;
            (trade.clone(), is_new)
        };
        if is_new {
            self.tell(Event::Created {
                pid: pid.to_owned(),
                out_trade_no: trade.purchase.out_trade_no.clone(),
                trade_no: trade.trade_no.clone(),
                money: trade.purchase.money,
            });
            self.pay_by_itself(trade.order);
        }
        Ok(trade)
    }

    fn pay_by_itself(self: &Arc<Self>, order: u64) {
        let Some((after, probability)) = self.settings.auto_pay else { return };
        if !self.dice().happens(Question::AutoPay, probability, order, 0) {
            return;
        }
        self.spawn(Arc::clone(self).pay_later(order, after));
    }

    async fn pay_later(self: Arc<Self>, order: u64, after: Duration) {
        tokio::time::sleep(after).await;
        // Whoever was faster has paid it, or closed it: both are their right.
        let _ = self.pay_order(order, None);
    }

    /// Pays an order, as the button on its page does; the merchant hears of it. Paying again changes nothing.
    fn pay_order(self: &Arc<Self>, order: u64, money: Option<Amount>) -> Result<(), Refusal> {
        let trade = {
            let mut book = self.book();
            if !book.pay(order, money, Timestamp::now())? {
                return Ok(());
            }
            book.get(order).clone()
        };
        self.tell(Event::Paid { out_trade_no: trade.purchase.out_trade_no.clone(), money: trade.money() });
        if !self.happens(Fault::Never, Occasion { order, number: 0 }) {
            self.spawn(Arc::clone(self).deliver(order));
        }
        Ok(())
    }

    /// Runs a task until it ends, or the gateway does.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            let _ended = stopping.run_until_cancelled(task).await;
        });
    }

    fn tell(&self, event: Event) {
        (self.settings.on_event)(event);
    }

    fn dice(&self) -> Dice {
        Dice { seed: self.settings.seed }
    }

    /// Whether a fault comes over something.
    fn happens(&self, fault: Fault, occasion: Occasion) -> bool {
        let probability = lock(&self.faults).probability(fault);
        self.dice().happens(Question::Fault(fault), probability, occasion.order, occasion.number)
    }

    fn delay(&self, occasion: Occasion) -> Duration {
        if self.happens(Fault::Slow, occasion) { self.settings.slow } else { Duration::ZERO }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

/// Something that a fault may come over: the how many-th thing about which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Occasion {
    order: u64,
    number: u64,
}

impl Occasion {
    /// Something that is about no known order.
    fn strange(number: u64) -> Self {
        Self { order: u64::MAX, number }
    }
}
