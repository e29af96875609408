//! What commands print: data on standard output, as JSON on one line or as columns for a person.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

pub(super) use crate::logging::escaped;

/// Whoever read our output has seen enough.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(super) struct OutputClosed;

/// Prints one line of JSON.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value)?)
}

/// Prints one line.
pub(super) fn line(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(failed)
}

/// Prints bytes as they are.
pub(super) fn bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(failed)
}

/// What a failed write to standard output means.
pub(super) fn failed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => error.into(),
    }
}

/// Waits for some time, but only while somebody may read what will be printed.
pub(super) fn wait_while_open(time: Duration) -> anyhow::Result<()> {
    let stdout = rustix::stdio::stdout();
    // No event is asked for: errors and a reader that has gone are always told.
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    match poll(&mut polled, Some(&Timespec::try_from(time)?)) {
        Ok(0) | Err(Errno::INTR) => Ok(()),
        Ok(_) => Err(OutputClosed.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether what is printed there may have colours: a terminal, and nobody who wants none.
pub(super) fn may_be_coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints one line in a colour, where it may have one.
pub(super) fn coloured_line(colour: AnsiColor, text: &str) -> anyhow::Result<()> {
    let style = if may_be_coloured(&io::stdout()) { colour.on_default() } else { Style::new() };
    line(&format!("{style}{}{style:#}", escaped(text)))
}

/// How far a command has come, on a terminal; nothing elsewhere.
pub(super) fn progress_bar(count: u64, json: bool) -> ProgressBar {
    if json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len}  {eta}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count).with_style(style)
}

/// Prints rows in columns; Chinese characters count as the two cells that they take.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> anyhow::Result<()> {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    for row in &rows {
        let mut text = String::new();
        for (width, cell) in widths.iter().zip(row) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
        }
        line(text.trim_end())?;
    }
    Ok(())
}
