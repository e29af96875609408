//! `doctor`: whether everything that a payment needs is in place, one line for each thing that is looked at.

use std::path::PathBuf;

use anstyle::AnsiColor;
use serde::Serialize;

use super::output;
use crate::config::{ConfigError, Loaded};
use crate::doctor::{Check, State, examine};
use crate::domain::language::{Language, Localized, text};
use crate::process::exit::Exit;

const AFTER_HELP: &str = "\
It changes nothing, and works beside a running service and without one. To see whether callbacks arrive, it sends one to
notify_url that is refused, as the log will tell.

Exit code: 10 if there is a problem; 0 otherwise, warnings included.";

#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// Where the system's own files are, of logrotate and systemd, such as /host in a container
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` shows; keys in alphabetical order.
#[derive(Serialize)]
struct View {
    checks: Vec<CheckView>,
    problems: usize,
    warnings: usize,
}

#[derive(Serialize)]
struct CheckView {
    name: String,
    state: State,
    text: String,
}

impl CheckView {
    fn of(check: &Check, language: Language) -> Self {
        let Check { subject, of, state, text } = check;
        let name = of.as_ref().map_or(subject.to_string(), |of| format!("{subject}:{of}"));
        Self { name, state: *state, text: text.text(language) }
    }
}

pub(super) async fn run(
    arguments: Arguments,
    loaded: Result<Loaded, ConfigError>,
    language: Language,
) -> anyhow::Result<Exit> {
    let checks = examine(loaded, &arguments.root).await;
    let count = |state| checks.iter().filter(|check| check.state == state).count();
    let (problems, warnings) = (count(State::Problem), count(State::Warning));
    if arguments.json {
        output::json(&View {
            checks: checks.iter().map(|check| CheckView::of(check, language)).collect(),
            problems,
            warnings,
        })?;
    } else {
        for check in &checks {
            let name = text!(language, format!("check.{}", check.subject));
            let name = check.of.as_ref().map_or(name.to_string(), |of| format!("{name} {of}"));
            let (colour, mark) = match check.state {
                State::Fine => (AnsiColor::Green, "✓"),
                State::Warning => (AnsiColor::Yellow, "!"),
                State::Problem => (AnsiColor::Red, "✗"),
                State::Skipped => (AnsiColor::BrightBlack, "-"),
            };
            output::coloured_line(
                colour,
                &format!("{mark} {}", text!(language, "doctor.line", name = name, text = check.text)),
            )?;
        }
        output::line(&text!(language, "doctor.summary", problems = problems, warnings = warnings))?;
    }
    Ok(if problems > 0 { Exit::Found } else { Exit::Done })
}
