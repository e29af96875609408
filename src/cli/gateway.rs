//! `gateway simulate`: a pretend gateway for tests and first steps.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::start::parse_seconds;
use super::trigger::SendMethod;
use super::{chosen, output};
use crate::channel::epay::PrivateKey;
use crate::config::{ConfigError, Loaded};
use crate::dev::simulator::{
    ATTEMPTS_MAX, Event, Fault, FaultAsked, LeftOut, Merchant, PayAnswer, Probability, Settings, Simulator,
};
use crate::domain::failure::{LocalizedError, OrFailure, failure};
use crate::domain::language::{Language, localized, text};
use crate::domain::secret::Secret;
use crate::process::exit::{Exit, eprint, usage};

/// How many events may wait to be printed; where more do, some are not.
const EVENTS_MAX: usize = 10_000;
/// How long the last events may take to be printed.
const LAST_WORDS: Duration = Duration::from_secs(1);

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Run a pretend gateway: it takes orders, no money, and sends callbacks; wrong ones if you like
    #[command(after_help = CONTROL_HELP)]
    Simulate(Simulate),
}

const CONTROL_HELP: &str = "\
The gateway is at submit.php, mapi.php, api.php and api/pay/…; set gateway_url to the URL that the first line names.

For tests, on the same address:
  POST /simulate/pay       out_trade_no=…[&money=…]   pay as a buyer would
  POST /simulate/callback  out_trade_no=…             send the callback of a paid order again, now
  POST /simulate/keep-back out_trade_no=…[&state=…]   keep its money: frozen, pre_authorised; without a state: give it out
  POST /simulate/faults    fault=NAME=P&fault=…       change the faults; an empty body: none
  GET  /simulate/orders                               every order, as JSON

Faults: late, duplicate, concurrent, never, wrong-amount, wrong-pid, bad-sign (callbacks); slow, error-500, reset, rate-limit \
(the API; reset: callbacks, too); lie-pid, lie-money, lie-status (replies to queries).";

#[derive(clap::Args)]
pub(super) struct Simulate {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8088")]
    listen: SocketAddr,
    /// Let others than this machine in: anyone who gets there pays without money
    #[arg(long)]
    public: bool,
    /// A V1 merchant to use instead of those in the configuration
    #[arg(long, requires = "key_file")]
    pid: Option<String>,
    /// The file of that merchant's key
    #[arg(long, value_name = "FILE", requires = "pid")]
    key_file: Option<PathBuf>,
    /// The gateway's own private key, which V2 merchants need
    #[arg(long, value_name = "FILE", conflicts_with = "pid")]
    platform_private_key_file: Option<PathBuf>,
    /// How callbacks are sent
    #[arg(long, value_enum, default_value_t = SendMethod::Get)]
    method: SendMethod,
    #[arg(
        long,
        value_name = "KIND",
        default_value_t = PayAnswer::PayUrl,
        value_parser = parse_answer,
        help = "What new orders are answered with: payurl, qrcode or urlscheme"
    )]
    answer: PayAnswer,
    /// How long a minute of the retry pattern takes, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    minute: Duration,
    /// How many times a callback is sent that nobody answers `success`: at once, after 1, 3, 19 and 55 minutes
    #[arg(long, value_name = "N", default_value_t = ATTEMPTS_MAX, value_parser = clap::value_parser!(u8).range(1..=i64::from(ATTEMPTS_MAX)))]
    attempts: u8,
    /// Something to do wrong, always or with a probability from 0 to 1; `all` for everything
    #[arg(long = "fault", value_name = "NAME[=PROBABILITY]", value_parser = parse_fault)]
    faults: Vec<FaultAsked>,
    /// How long a slow reply takes, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    slow: Duration,
    /// Where all that is left to chance begins; the same number does the same again
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Pay each order by itself after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    auto_pay: Option<Duration>,
    /// How probable it is that an order pays itself
    #[arg(long, value_name = "PROBABILITY", requires = "auto_pay", value_parser = parse_probability)]
    pay_ratio: Option<Probability>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    command: Command,
    loaded: impl FnOnce() -> Result<Loaded, ConfigError>,
    language: Language,
) -> anyhow::Result<Exit> {
    let Command::Simulate(arguments) = command;
    if !arguments.listen.ip().is_loopback() && !arguments.public {
        return Err(usage(localized!("simulate.not_loopback", address = arguments.listen)));
    }
    let merchants = merchants(&arguments, loaded, language)?;
    if merchants.is_empty() {
        return Err(usage(localized!("simulate.no_merchant")));
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let cannot_listen = || localized!("log.bind_failed", address = arguments.listen);
    let listener = TcpListener::bind(arguments.listen).await.or_failure(cannot_listen)?;
    let url = format!("http://{}/", listener.local_addr()?);
    output::line(&if arguments.json {
        json!({ "event": "listening", "url": url }).to_string()
    } else {
        text!(language, "simulate.listening", url = url).into_owned()
    })?;
    let seed = arguments.seed.map_or_else(getrandom::u64, Ok)?;
    if arguments.seed.is_none() {
        eprint(&text!(language, "simulate.seed", seed = seed));
    }
    let (events, printer) = printer(arguments.json, language);
    let settings = Settings {
        language,
        seed,
        faults: arguments.faults.into_iter().collect(),
        method: arguments.method.into(),
        answer: arguments.answer,
        minute: arguments.minute,
        attempts: arguments.attempts,
        slow: arguments.slow,
        auto_pay: arguments.auto_pay.map(|after| (after, arguments.pay_ratio.unwrap_or(Probability::ALWAYS))),
        on_event: events,
    };
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Simulator::new(merchants, settings).serve(listener, shutdown).await?;
    // All that could tell of events is gone by now, so the printer ends; unless nobody reads what it prints.
    let _ = printer.recv_timeout(LAST_WORDS);
    Ok(Exit::Done)
}

/// Those that the gateway will have accounts for.
fn merchants(
    arguments: &Simulate,
    loaded: impl FnOnce() -> Result<Loaded, ConfigError>,
    language: Language,
) -> anyhow::Result<Vec<Merchant>> {
    if let (Some(pid), Some(file)) = (&arguments.pid, &arguments.key_file) {
        let key = read(file)?;
        let key = key.trim_end_matches(['\r', '\n']);
        if key.trim().is_empty() || pid.is_empty() {
            return Err(usage(localized!("simulate.empty_key", path = file.display())));
        }
        return Ok(vec![Merchant::v1(pid, Secret::new(key))]);
    }
    let platform_key = arguments.platform_private_key_file.as_deref().map(platform_key).transpose()?;
    let mut merchants = Vec::new();
    for merchant in &loaded()?.config.merchants {
        match Merchant::of(merchant, platform_key.as_ref()) {
            Ok(merchant) => merchants.push(merchant),
            Err(reason) => eprint(&left_out(reason, &merchant.pid, language)),
        }
    }
    Ok(merchants)
}

fn platform_key(file: &Path) -> anyhow::Result<PrivateKey> {
    PrivateKey::parse(&read(file)?).map_err(|_| failure!("config.bad_private_key", path = file.display()))
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

/// Prints events, a line each, on a thread of its own: who does not read them must not stop the gateway. The other end of what
/// comes second is closed when all is printed.
fn printer(json: bool, language: Language) -> (Box<dyn Fn(Event) + Send + Sync>, Receiver<()>) {
    let (events, waiting) = sync_channel::<Event>(EVENTS_MAX);
    let (printing, printed) = sync_channel(0);
    thread::spawn(move || {
        let _printing: SyncSender<()> = printing;
        for event in waiting {
            let line = if json { serde_json::to_string(&event).unwrap_or_default() } else { text(&event, language) };
            // A reader that has gone has seen enough; whoever still speaks to the gateway goes on.
            if output::line(&line).is_err() {
                return;
            }
        }
    });
    // Where the printer has gone, or is too slow, the event is lost.
    (Box::new(move |event| drop(events.try_send(event))), printed)
}

/// An event for a person, as one line whatever merchants put into their fields.
fn text(event: &Event, language: Language) -> String {
    let text = match event {
        Event::Created { pid, out_trade_no, trade_no, money } => {
            text!(language, "simulate.created", order = out_trade_no, pid = pid, trade = trade_no, amount = money)
        }
        Event::Paid { out_trade_no, money } => text!(language, "simulate.paid", order = out_trade_no, amount = money),
        Event::Callback { out_trade_no, count, sent, answer, delivered } => {
            let mark = if *delivered { '✓' } else { '✗' };
            text!(
                language,
                "simulate.callback",
                order = out_trade_no,
                count = count,
                kind = sent,
                answer = answer,
                mark = mark
            )
        }
        Event::Query { out_trade_no, status } => {
            text!(language, "simulate.query", order = out_trade_no, status = status)
        }
        Event::Refund { out_trade_no, money } => {
            text!(language, "simulate.refund", order = out_trade_no, amount = money)
        }
        Event::Closed { out_trade_no } => text!(language, "simulate.closed", order = out_trade_no),
        Event::Fault { endpoint, fault } => text!(language, "simulate.fault", endpoint = endpoint, fault = fault),
        Event::Refused { endpoint, reason } => {
            text!(language, "simulate.refused", endpoint = endpoint, reason = reason)
        }
    };
    output::escaped(&text)
}

fn left_out(reason: LeftOut, pid: &str, language: Language) -> String {
    match reason {
        LeftOut::NoPlatformKey => text!(language, "simulate.no_platform_key", pid = pid),
        LeftOut::NoPrivateKey => text!(language, "simulate.no_private_key", pid = pid),
    }
    .into_owned()
}

fn parse_answer(text: &str) -> Result<PayAnswer, LocalizedError> {
    chosen(PayAnswer::from_name(text), PayAnswer::known)
}

fn parse_fault(text: &str) -> Result<FaultAsked, LocalizedError> {
    text.parse().map_err(|_| LocalizedError::from(localized!("simulate.bad_fault", known = Fault::known())))
}

fn parse_probability(text: &str) -> Result<Probability, LocalizedError> {
    text.parse().map_err(|_| LocalizedError::from(localized!("simulate.bad_probability")))
}
