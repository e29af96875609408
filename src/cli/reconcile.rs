//! `reconcile`: ask the gateways about unpaid orders, now.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{gateways, output};
use crate::config::{Config, Current};
use crate::domain::clock::Timestamp;
use crate::domain::failure::LocalizedError;
use crate::domain::language::{Language, localized, text};
use crate::domain::outcome::Outcome;
use crate::payments::reconcile::{Finding, Reconciler};
use crate::process::exit::Exit;
use crate::store::Store;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Ask about orders created since then: how long ago, such as 12h, or local time, such as "2026-01-02 03:04"
    #[arg(long, value_name = "TIME", default_value = "3d", value_parser = parse_since)]
    since: Timestamp,
    /// Ask, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: Arguments, config: &Config) -> anyhow::Result<Exit> {
    let store = super::orders::open(config).await?;
    let result = sweep(&arguments, config, &store).await;
    store.close().await?;
    result
}

async fn sweep(arguments: &Arguments, config: &Config, store: &Store) -> anyhow::Result<Exit> {
    let count = store.count_unpaid_orders(arguments.since).await?;
    let current = Current::new(config.clone());
    let gateways = Arc::new(gateways(&current, store));
    let reconciler = Arc::new(Reconciler::new(&current, store, &gateways));
    let progress = output::progress_bar(count.into(), arguments.json);
    let mut report = Report::default();
    let swept = reconciler.sweep(arguments.since, arguments.dry_run, |order, finding| {
        progress.inc(1);
        report.add(order.terms.order_no.as_str(), finding);
    });
    swept.await?;
    progress.finish_and_clear();
    report.print(arguments, config.language)?;
    Ok(report.exit())
}

/// What the gateways said.
#[derive(Default)]
struct Report {
    asked: usize,
    /// How many orders there were of each finding.
    counts: BTreeMap<String, usize>,
    /// Orders that are worth a look: paid, contradicted, or without an answer.
    orders: Vec<(String, Finding)>,
}

impl Report {
    fn add(&mut self, order_no: &str, finding: &Finding) {
        self.asked += 1;
        *self.counts.entry(finding.name()).or_default() += 1;
        if !matches!(finding, Finding::NotPaid(_)) {
            self.orders.push((order_no.to_owned(), finding.clone()));
        }
    }

    fn print(&self, arguments: &Arguments, language: Language) -> anyhow::Result<()> {
        if arguments.json {
            let orders: Vec<Value> = self
                .orders
                .iter()
                .map(|(order_no, finding)| json!({ "finding": finding.name(), "order_no": order_no }))
                .collect();
            return output::json(&json!({
                "asked": self.asked,
                "dry_run": arguments.dry_run,
                "findings": self.counts,
                "orders": orders,
            }));
        }
        for (order_no, finding) in &self.orders {
            let what = match finding {
                Finding::Paid(outcome) => text!(language, "reconcile.paid", outcome = outcome),
                Finding::Refunded(outcome) => text!(language, "reconcile.refunded", outcome = outcome),
                Finding::WouldSettle => text!(language, "reconcile.would_settle"),
                Finding::Contradicts(field) => text!(language, "reconcile.contradicts", field = field),
                Finding::NoAnswer(error) => text!(language, "reconcile.no_answer", cause = error),
                Finding::NotPaid(verdict) => verdict.into(),
            };
            output::line(&format!("{order_no}  {what}"))?;
        }
        let counts: Vec<_> = self.counts.iter().map(|(finding, count)| format!("{finding} {count}")).collect();
        output::line(&text!(language, "reconcile.summary", asked = self.asked, counts = counts.join(", ")))
    }

    /// 10 where money had come that nobody knew of; 1 where not every question was answered.
    fn exit(&self) -> Exit {
        let found = |finding: &Finding| match finding {
            Finding::Paid(outcome) => *outcome != Outcome::Duplicate,
            Finding::Refunded(_) | Finding::WouldSettle | Finding::Contradicts(_) => true,
            _ => false,
        };
        if self.orders.iter().any(|(_, finding)| found(finding)) {
            Exit::Found
        } else if self.orders.iter().any(|(_, finding)| matches!(finding, Finding::NoAnswer(_))) {
            Exit::Failed
        } else {
            Exit::Done
        }
    }
}

pub(super) fn parse_since(text: &str) -> Result<Timestamp, LocalizedError> {
    Timestamp::parse_since(text, Timestamp::now()).ok_or_else(|| localized!("logs.bad_since").into())
}
