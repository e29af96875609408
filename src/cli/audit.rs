//! `audit`: prove the books, reading only.

use serde::Serialize;

use super::output;
use crate::config::Config;
use crate::domain::language::{Language, text};
use crate::process::exit::{Exit, eprint};
use crate::store::Store;
use crate::store::audit::{Audit, Finding as AuditFinding};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// An audit as `--json` shows it; keys in alphabetical order.
#[derive(Serialize)]
pub(super) struct View<'a> {
    checks: Vec<CheckView<'a>>,
    findings: u64,
    orders: u64,
    settled: u64,
}

#[derive(Serialize)]
struct CheckView<'a> {
    findings: u64,
    name: &'static str,
    /// Only where there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<RowView<'a>>,
}

#[derive(Serialize)]
struct RowView<'a> {
    detail: &'a str,
    fault: &'static str,
    row: &'a str,
    table: &'static str,
}

impl<'a> View<'a> {
    pub(super) fn of(audit: &'a Audit) -> Self {
        let row = |finding: &'a AuditFinding| RowView {
            detail: &finding.detail,
            fault: finding.fault.name(),
            row: &finding.row,
            table: finding.table,
        };
        let checks = audit.checks.iter().map(|check| CheckView {
            findings: check.findings,
            name: check.name.name(),
            rows: check.rows.iter().map(row).collect(),
        });
        Self { checks: checks.collect(), findings: audit.findings(), orders: audit.orders, settled: audit.settled }
    }
}

pub(super) async fn run(arguments: Arguments, config: &Config) -> anyhow::Result<Exit> {
    let language = config.language;
    let progress = output::progress_bar(0, arguments.json);
    let bar = progress.clone();
    let audit = Store::audit(&config.database.url, move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    let audit = audit.await?;
    progress.finish_and_clear();
    if arguments.json {
        output::json(&View::of(&audit))?;
    } else {
        print(&audit, language)?;
        if audit.findings() > 0 {
            eprint(&text!(language, "audit.what_to_do"));
        }
        if !audit.can_be_opened() {
            eprint(&text!(language, "audit.other_schema"));
        }
    }
    Ok(if audit.findings() == 0 { Exit::Done } else { Exit::Found })
}

/// What an audit found, for a person.
pub(super) fn print(audit: &Audit, language: Language) -> anyhow::Result<()> {
    for check in &audit.checks {
        let (mark, count) =
            if check.findings == 0 { ("✓", String::new()) } else { ("✗", check.findings.to_string()) };
        output::columns(&[[format!("{mark} {}", text!(language, format!("audit.{}", check.name))), count]])?;
        for finding in &check.rows {
            let what = text!(language, format!("fault.{}", finding.fault));
            let place = format!("{} {}", finding.table, finding.row);
            output::line(&output::escaped(&format!("    {}: {what} {}", place.trim_end(), finding.detail)))?;
        }
        let unnamed = check.findings.saturating_sub(check.rows.len() as u64);
        if unnamed > 0 {
            output::line(&format!("    {}", text!(language, "audit.more", count = unnamed)))?;
        }
    }
    output::line(&text!(
        language,
        "audit.summary",
        orders = audit.orders,
        settled = audit.settled,
        findings = audit.findings()
    ))?;
    Ok(())
}
