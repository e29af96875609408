//! What commands print: data on standard output, as JSON on one line or as columns for a person.

use std::io::{self, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::logging::Escaping;

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
    let printed = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    printed.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => error.into(),
    })
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

/// Text that somebody else chose, so that it cannot move the terminal's cursor.
pub(super) fn escaped(text: &str) -> String {
    use std::fmt::Write;
    let mut safe = String::with_capacity(text.len());
    Escaping(&mut safe).write_str(text).expect("writing to a String cannot fail");
    safe
}
