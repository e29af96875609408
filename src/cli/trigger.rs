//! `trigger`: the callback that a gateway would send for an order, to the running service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tokio::task::JoinSet;

use super::callback::{self, Answer, Callback, Connection};
use super::output;
use crate::channel::epay::{Credentials, SignedCallback};
use crate::config::{Config, Merchant};
use crate::domain::failure::failure;
use crate::domain::language::localized;
use crate::domain::order::Order;
use crate::domain::secret::Secret;
use crate::process::exit::{Exit, eprint, usage};
use crate::process::failure::text_of;
use crate::process::health::reachable;
use crate::server::NOTIFY_PATH;
use crate::store::{Opening, Store};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The order's number
    order_no: String,
    /// How to send it
    #[arg(long, value_enum, default_value_t = SendMethod::Get)]
    method: SendMethod,
    /// Send it so many times
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeat: u32,
    /// Over so many connections at once
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,
    /// Another amount than the order's
    #[arg(long, value_name = "YUAN")]
    money: Option<String>,
    /// Another merchant than the order's
    #[arg(long)]
    pid: Option<String>,
    #[arg(long, value_name = "STATUS", help = "Another trade_status than TRADE_SUCCESS")]
    status: Option<String>,
    /// Another payment number; by default each order has one of its own
    #[arg(long, value_name = "NO")]
    trade_no: Option<String>,
    /// Another product name than the order's
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Another `param` than the order's
    #[arg(long, value_name = "TEXT")]
    param: Option<String>,
    /// Spoil the signature
    #[arg(long)]
    bad_sign: bool,
    /// Send it for a merchant that is no sandbox: this gives real credits
    #[arg(long)]
    live: bool,
    /// Where the service listens, if not where the configuration says
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum SendMethod {
    Get,
    Post,
}

impl From<SendMethod> for Method {
    fn from(method: SendMethod) -> Self {
        match method {
            SendMethod::Get => Self::GET,
            SendMethod::Post => Self::POST,
        }
    }
}

pub(super) async fn run(arguments: Arguments, config: &Config) -> anyhow::Result<Exit> {
    let store = Store::open(config, Opening::ReadOnly).await?;
    let order = store.order(&arguments.order_no).await?;
    store.close().await?;
    let callback = signed(&arguments, order.as_ref(), config)?;
    let address = reachable(arguments.address.unwrap_or(config.listen));
    if address.port() == 0 {
        return Err(usage(localized!("cli.which_address")));
    }
    let sent = callback.signed.masked();
    let url = format!("http://{address}{NOTIFY_PATH}");
    let method = callback.method.clone();
    if !arguments.json {
        output::line(&format!("→ {method} {url}\n  {sent}"))?;
    }
    let (answers, failures) = send(callback, address, arguments.repeat, arguments.concurrency).await?;
    // Some connections may fail where others are answered: both are told.
    match failures.into_iter().next() {
        Some(failure) if answers.is_empty() => return Err(failure),
        Some(failure) => eprint(&text_of(&failure, config.language)),
        None => {}
    }
    if arguments.json {
        let list: Vec<_> = answers
            .iter()
            .map(|(answer, times)| json!({ "body": answer.body, "count": times.len(), "status": answer.status }))
            .collect();
        let sent = json!({ "method": method.as_str(), "params": sent, "url": url });
        output::json(&json!({ "answers": list, "sent": sent }))?;
    } else {
        for (Answer { body, status }, times) in &answers {
            let (count, median) = (times.len(), median(times).as_secs_f64() * 1000.0);
            let body = output::escaped(body);
            output::line(&format!("← {status} {body} × {count} ({median:.1} ms)"))?;
        }
    }
    let answered: usize = answers.values().map(Vec::len).sum();
    let all_success = answered == arguments.repeat as usize && answers.keys().all(Answer::is_success);
    Ok(if all_success { Exit::Done } else { Exit::Failed })
}

/// The callback for `order`, changed as the arguments say; an order that is not there needs a merchant and an amount.
fn signed(arguments: &Arguments, order: Option<&Order>, config: &Config) -> anyhow::Result<Callback> {
    let mut fields = match (order, &arguments.pid, &arguments.money) {
        (Some(order), _, _) => callback::paid(order),
        (None, Some(pid), Some(money)) => callback::unknown(&arguments.order_no, pid.clone(), money.clone()),
        (None, _, _) => return Err(failure!("cli.no_such_order_to_trigger", order = arguments.order_no)),
    };
    for (said, instead) in [
        (&mut fields.pid, &arguments.pid),
        (&mut fields.trade_no, &arguments.trade_no),
        (&mut fields.name, &arguments.name),
        (&mut fields.money, &arguments.money),
        (&mut fields.trade_status, &arguments.status),
    ] {
        if let Some(instead) = instead {
            said.clone_from(instead);
        }
    }
    fields.param = arguments.param.clone().or(fields.param);
    let owner = order.map(|order| order.terms.merchant.as_str());
    let key = signing_key(&fields.pid, owner, arguments.live, config)?;
    let mut signed = SignedCallback::v1(fields, &key);
    if arguments.bad_sign {
        signed.spoil();
    }
    Ok(Callback { signed, method: arguments.method.into() })
}

/// The key to sign with: that of the merchant named, else of the order's. Both must be sandboxes, or `live` be said.
fn signing_key(pid: &str, order_merchant: Option<&str>, live: bool, config: &Config) -> anyhow::Result<Secret> {
    let named = config.merchant(pid);
    let owner = order_merchant.and_then(|pid| config.merchant(pid));
    for merchant in [named, owner].into_iter().flatten() {
        if !merchant.sandbox && !live {
            return Err(failure!("cli.not_sandbox", pid = merchant.pid));
        }
    }
    let merchant = named.or(owner).ok_or_else(|| failure!("cli.merchant_gone", pid = pid))?;
    match merchant {
        Merchant { credentials: Credentials::V1 { key, .. }, .. } => Ok(key.clone()),
        Merchant { credentials: Credentials::V2 { .. }, .. } => Err(failure!("cli.trigger_v2", pid = pid)),
    }
}

/// How long each answer took, by what it was.
type Answers = BTreeMap<Answer, Vec<Duration>>;

/// Sends the callback `repeat` times over `concurrency` connections; what came back, and what went wrong.
async fn send(
    callback: Callback,
    address: SocketAddr,
    repeat: u32,
    concurrency: u32,
) -> anyhow::Result<(Answers, Vec<anyhow::Error>)> {
    let callback = Arc::new(callback);
    let sent = Arc::new(AtomicU32::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..concurrency.min(repeat) {
        let (callback, sent) = (Arc::clone(&callback), Arc::clone(&sent));
        senders.spawn(async move {
            let mut answers = Vec::new();
            let sending = async {
                let mut connection = Connection::open(address).await?;
                while sent.fetch_add(1, Ordering::Relaxed) < repeat {
                    answers.push(connection.send(&callback).await?);
                }
                anyhow::Ok(())
            };
            let failure = sending.await.err();
            (answers, failure)
        });
    }
    let mut answers = Answers::new();
    let mut failures = Vec::new();
    while let Some(sender) = senders.join_next().await {
        let (sender_answers, failure) = sender?;
        failures.extend(failure);
        for (answer, time) in sender_answers {
            answers.entry(answer).or_default().push(time);
        }
    }
    Ok((answers, failures))
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
