//! `status`: whether the service runs, and how it is.

use std::time::Duration;

use anstyle::AnsiColor;
use serde_json::json;

use super::output;
use super::start::listener_beside;
use crate::config::Essentials;
use crate::domain::language::{Language, Localized, text};
use crate::process::exit::Exit;
use crate::process::health::Health;
use crate::process::pid_file::Record;
use crate::process::pidfd::{Program, Vitals};
use crate::process::status::{Status, status};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &Arguments, essentials: &Essentials) -> anyhow::Result<Exit> {
    let status = status(&essentials.pid_file).await?;
    if arguments.json {
        output::json(&as_json(&status))?;
    } else {
        let (colour, headline) = headline(&status, essentials.language);
        output::coloured_line(colour, &headline)?;
        output::columns(&rows(&status, essentials))?;
        for line in needs_attention(&status, essentials) {
            output::line(&format!("! {line}"))?;
        }
    }
    Ok(match status {
        Status::Stopped => Exit::Stopped,
        Status::Dead(_) | Status::Garbage(_) => Exit::Dead,
        Status::Running { health: Health::Ok(_), .. } => Exit::Done,
        Status::Unknown(_) | Status::Running { .. } => Exit::NotAnswering,
    })
}

fn as_json(status: &Status) -> serde_json::Value {
    let (state, record, vitals, health) = match status {
        Status::Stopped => ("stopped", None, None, None),
        Status::Dead(record) => ("dead", Some(record), None, None),
        Status::Garbage(_) => ("dead", None, None, None),
        Status::Unknown(_) => ("unknown", None, None, None),
        Status::Running { record, vitals, health } => ("running", Some(record), vitals.as_ref(), Some(health)),
    };
    json!({
        "health": health.map(|health| match health {
            Health::Ok(_) => "ok",
            Health::Unavailable => "unavailable",
            Health::NoAnswer => "no_answer",
        }),
        "listen": record.and_then(|record| record.listen),
        "pid": record.map(|record| record.pid),
        "state": state,
        "uptime_s": vitals.map(|vitals| vitals.uptime.as_secs()),
        "version": record.map(|record| &record.version),
    })
}

fn headline(status: &Status, language: Language) -> (AnsiColor, String) {
    let (colour, text) = match status {
        Status::Stopped => (AnsiColor::BrightBlack, text!(language, "status_of.stopped")),
        Status::Dead(_) | Status::Garbage(_) => (AnsiColor::Red, text!(language, "status_of.dead")),
        Status::Running { health: Health::Ok(_), .. } => (AnsiColor::Green, text!(language, "status_of.running")),
        Status::Running { record: Record { listen: None, .. }, .. } => {
            (AnsiColor::Yellow, text!(language, "status_of.starting"))
        }
        Status::Running { .. } => (AnsiColor::Red, text!(language, "status_of.not_answering")),
        Status::Unknown(_) => (AnsiColor::Red, text!(language, "status_of.unknown")),
    };
    (colour, format!("● {text}"))
}

fn rows(status: &Status, essentials: &Essentials) -> Vec<[String; 2]> {
    let language = essentials.language;
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |name: &str, value: String| rows.push([text!(language, name).into_owned(), value]);
    match status {
        Status::Stopped | Status::Garbage(_) | Status::Unknown(_) => {}
        Status::Dead(record) => row("status_of.pid", record.pid.to_string()),
        Status::Running { record, vitals, health } => {
            row("status_of.pid", pid(record));
            if let Some(listen) = record.listen {
                row("status_of.listen", listen.to_string());
                row("status_of.health", health_text(*health, language));
            }
            row("status_of.version", record.version.clone());
            if let Some(Vitals { uptime, memory_bytes }) = vitals {
                row("status_of.uptime", uptime_text(*uptime, language));
                row("status_of.memory", format!("{} MiB", memory_bytes.div_ceil(1 << 20)));
            }
        }
    }
    row("status_of.log", essentials.log_file.display().to_string());
    rows
}

fn pid(record: &Record) -> String {
    match &record.unit {
        Some(unit) => format!("{} ({unit})", record.pid),
        None => record.pid.to_string(),
    }
}

fn health_text(health: Health, language: Language) -> String {
    match health {
        Health::Ok(after) => {
            text!(language, "status_of.ok", ms = format!("{:.1}", after.as_secs_f64() * 1000.0)).into()
        }
        Health::Unavailable => text!(language, "status_of.unavailable").into(),
        Health::NoAnswer => text!(language, "status_of.no_answer").into(),
    }
}

/// The two largest units: more is not worth reading.
fn uptime_text(uptime: Duration, language: Language) -> String {
    let (minutes, seconds) = (uptime.as_secs() / 60, uptime.as_secs() % 60);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    match (hours / 24, hours % 24) {
        (0, 0) => text!(language, "status_of.minutes", minutes = minutes, seconds = seconds),
        (0, hours) => text!(language, "status_of.hours", hours = hours, minutes = minutes),
        (days, hours) => text!(language, "status_of.days", days = days, hours = hours),
    }
    .into()
}

/// What a person should do something about.
fn needs_attention(status: &Status, essentials: &Essentials) -> Vec<String> {
    let language = essentials.language;
    let on_disk = env!("CARGO_PKG_VERSION");
    let text = match status {
        Status::Stopped => {
            let beside = listener_beside(essentials);
            return vec![beside.unwrap_or_else(|| text!(language, "status_of.start_it").into())];
        }
        Status::Dead(record) => text!(language, "status_of.it_died", command = record.command("start")),
        Status::Unknown(riddle) => riddle.text(language).into(),
        Status::Garbage(text) => {
            text!(language, "manager.left_garbage", path = essentials.pid_file.display(), text = text)
        }
        Status::Running {
            health: Health::Unavailable | Health::NoAnswer,
            record: Record { listen: Some(_), .. },
            ..
        } => {
            text!(language, "status_of.look_at_the_log")
        }
        Status::Running { record, .. } if record.version != on_disk => {
            text!(language, "status_of.other_version", version = on_disk, command = record.command("restart"))
        }
        Status::Running { record, .. } if record.program.as_ref().is_some_and(Program::is_replaced) => {
            text!(language, "status_of.other_build", command = record.command("restart"))
        }
        Status::Running { .. } => return Vec::new(),
    };
    vec![text.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uptime_has_two_units() {
        for (seconds, numbers) in [(0, "0 0"), (61, "1 1"), (7_325, "2 2"), (183_600, "2 3")] {
            let text = uptime_text(Duration::from_secs(seconds), Language::English);
            let found: Vec<_> = text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty()).collect();
            assert_eq!(found.join(" "), numbers, "{text}");
        }
    }
}
