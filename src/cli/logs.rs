//! `logs`: the last lines of the log file, and those to come.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::path::Path;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::{chosen, output};
use crate::config::LogLevel;
use crate::domain::failure::{LocalizedError, failure};
use crate::domain::language::{Language, text};
use crate::process::exit::{Exit, eprint};
use crate::process::failure::text_of;
use crate::process::logs::{Follow, Line, LogFile, complete_end, is_wanted, last_lines, level_of};

/// How often it is looked whether there are new lines.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Show so many lines, the last ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: u64,
    /// Go on with new lines as they come, across rotations
    #[arg(short, long)]
    follow: bool,
    /// Only records of this level and above: debug, info, warning, error
    #[arg(long, value_parser = parse_level)]
    level: Option<LogLevel>,
}

pub(super) fn run(arguments: &Arguments, log_file: &Path, language: Language) -> anyhow::Result<Exit> {
    let (wanted, level) = (arguments.lines, arguments.level);
    let mut printer = Printer::new();
    let log = LogFile::open(log_file)?;
    let mut print = |line: Line<'_>| printer.print(line);
    let follow = match log {
        Some(log) if arguments.follow => {
            // A record of which the end has not been written yet comes later.
            let end = complete_end(&log, log.len())?;
            last_lines(&log, end, wanted, level, &mut print)?;
            Follow::from(log_file, log, end)?
        }
        Some(log) => {
            last_lines(&log, log.len(), wanted, level, &mut print)?;
            printer.flush()?;
            return Ok(Exit::Done);
        }
        None if arguments.follow => {
            eprint(&text!(language, "logs.waiting", path = log_file.display()));
            Follow::from_nothing(log_file)
        }
        None => return Err(failure!("logs.missing", path = log_file.display())),
    };
    go_on(follow, level, printer, language)
}

/// Prints new lines until somebody ends it.
fn go_on(
    mut follow: Follow,
    level: Option<LogLevel>,
    mut printer: Printer,
    language: Language,
) -> anyhow::Result<Exit> {
    loop {
        printer.flush()?;
        if let Some(trouble) = follow.take_trouble() {
            eprint(&text_of(&trouble, language));
        }
        output::wait_while_open(LOOK_INTERVAL)?;
        follow.read_on(&mut |line| if is_wanted(line.text, level) { printer.print(line) } else { Ok(()) })?;
    }
}

/// Prints lines in bulk, in the colour of their level.
struct Printer {
    // Standard output alone would write each line by itself.
    out: BufWriter<StdoutLock<'static>>,
    in_colour: bool,
}

impl Printer {
    fn new() -> Self {
        let stdout = io::stdout().lock();
        let in_colour = output::may_be_coloured(&stdout);
        Self { out: BufWriter::with_capacity(64 * 1024, stdout), in_colour }
    }

    fn print(&mut self, line: Line<'_>) -> anyhow::Result<()> {
        let text = rendered(line, self.in_colour);
        self.out.write_all(text.as_bytes()).map_err(output::failed)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.out.flush().map_err(output::failed)
    }
}

/// A line as it is printed; `…` stands for what was cut off.
fn rendered(line: Line<'_>, in_colour: bool) -> String {
    let style = match level_of(line.text) {
        Some(LogLevel::Warning) if in_colour => AnsiColor::Yellow.on_default(),
        Some(LogLevel::Error) if in_colour => AnsiColor::Red.on_default(),
        _ => Style::new(),
    };
    let text = output::escaped(&String::from_utf8_lossy(line.text));
    let rest = if line.is_cut { "…" } else { "" };
    format!("{style}{text}{rest}{style:#}\n")
}

fn parse_level(text: &str) -> Result<LogLevel, LocalizedError> {
    chosen(LogLevel::from_name(text), LogLevel::known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_colour_of_its_level_and_nothing_else_to_move_a_terminal() {
        let warning = "2026-01-02 03:04:05,678 - x - WARNING - w";
        let error = "2026-01-02 03:04:05,678 - x - ERROR - e";
        let info = "2026-01-02 03:04:05,678 - x - INFO - ERROR";
        for (text, is_cut, in_colour, expected) in [
            (warning, false, true, format!("\u{1b}[33m{warning}\u{1b}[0m\n")),
            (error, false, true, format!("\u{1b}[31m{error}\u{1b}[0m\n")),
            (info, false, true, format!("{info}\n")),
            (warning, false, false, format!("{warning}\n")),
            (error, true, false, format!("{error}…\n")),
            ("\u{1b}[31m", false, false, "\\u{1b}[31m\n".to_owned()),
        ] {
            assert_eq!(rendered(Line { text: text.as_bytes(), is_cut }, in_colour), expected);
        }
        assert_eq!(rendered(Line { text: b"\xff\r", is_cut: false }, false), "\u{fffd}\\r\n");
    }
}
