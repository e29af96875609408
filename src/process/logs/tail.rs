//! The last lines of a file, without reading what stands before them.
//!
//! The file is searched backwards for the place where they begin, and read forwards from there: however many lines are wanted and
//! however long they are, memory stays small.

use memchr::{memchr, memrchr, memrchr_iter};

use super::level::{HEAD_MAX, is_wanted};
use super::lines::{Line, Lines};
use super::{BLOCK, ReadAt, Take};
use crate::config::LogLevel;

/// Hands on the last `wanted` lines before `end`; with a level, the last records of that level and above.
pub(crate) fn last_lines(
    log: &impl ReadAt,
    end: u64,
    wanted: u64,
    level: Option<LogLevel>,
    take: Take<'_>,
) -> anyhow::Result<()> {
    last_lines_by_blocks(&mut vec![0; BLOCK], log, end, wanted, level, take)
}

fn last_lines_by_blocks(
    block: &mut [u8],
    log: &impl ReadAt,
    end: u64,
    wanted: u64,
    level: Option<LogLevel>,
    take: Take<'_>,
) -> anyhow::Result<()> {
    let mut take = |line: Line<'_>| if is_wanted(line.text, level) { take(line) } else { Ok(()) };
    let mut lines = Lines::default();
    let mut at = start_of(block, log, end, wanted, level)?;
    while at < end {
        let len = (end - at).min(block.len() as u64);
        let count = log.read_at(&mut block[..bytes(len)], at)?;
        if count == 0 {
            // The file was cut off meanwhile.
            break;
        }
        lines.feed(&block[..count], &mut take)?;
        at += count as u64;
    }
    lines.finish(&mut take)
}

/// The place where the last `wanted` lines before `end` begin.
fn start_of(
    block: &mut [u8],
    log: &impl ReadAt,
    end: u64,
    wanted: u64,
    level: Option<LogLevel>,
) -> anyhow::Result<u64> {
    let (mut at, mut end, mut missing) = (end, end, wanted);
    let mut head = [0; HEAD_MAX];
    while at > 0 && missing > 0 {
        let (from, text) = read_before(log, at, block)?;
        if from + (text.len() as u64) < at {
            // The file was cut off meanwhile: the lines that were counted are gone.
            (end, missing) = (from + text.len() as u64, wanted);
        }
        for newline in memrchr_iter(b'\n', text) {
            let start = from + newline as u64 + 1;
            let line = &text[newline + 1..];
            let line = match memchr(b'\n', line) {
                Some(len) => &line[..len],
                // Its end is not in this block.
                None if level.is_some() => {
                    let count = log.read_at(&mut head, start)?;
                    head[..count].split(|byte| *byte == b'\n').next().unwrap_or_default()
                }
                None => line,
            };
            // Behind the last line end there is no line.
            if start < end && is_wanted(line, level) {
                missing -= 1;
                if missing == 0 {
                    return Ok(start);
                }
            }
        }
        at = from;
    }
    Ok(if missing > 0 { 0 } else { end })
}

/// The end of the last complete line before `end`.
pub(crate) fn complete_end(log: &impl ReadAt, end: u64) -> anyhow::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut at = end;
    while at > 0 {
        let (from, text) = read_before(log, at, &mut block)?;
        if let Some(newline) = memrchr(b'\n', text) {
            return Ok(from + newline as u64 + 1);
        }
        at = from;
    }
    Ok(0)
}

/// Fills the block with what stands before `at`; where that begins, and the text. It is shorter than asked for where the file
/// was cut off meanwhile.
fn read_before<'b>(log: &impl ReadAt, at: u64, block: &'b mut [u8]) -> anyhow::Result<(u64, &'b [u8])> {
    let len = at.min(block.len() as u64);
    let from = at - len;
    let count = log.read_at(&mut block[..bytes(len)], from)?;
    Ok((from, &block[..count]))
}

/// A length that fits a buffer.
fn bytes(len: u64) -> usize {
    usize::try_from(len).expect("no longer than a buffer")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::config::LogLevel;

    /// A file with many zeros in front, which counts how much of it is read.
    struct Fake {
        zeros: u64,
        text: Vec<u8>,
        read: Cell<u64>,
    }

    impl Fake {
        fn new(zeros: u64, text: &str) -> Self {
            Self { zeros, text: text.into(), read: Cell::new(0) }
        }

        fn end(&self) -> u64 {
            self.zeros + self.text.len() as u64
        }
    }

    impl ReadAt for Fake {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> anyhow::Result<usize> {
            let mut count = 0;
            for (byte, at) in buffer.iter_mut().zip(offset..self.end()) {
                *byte = at.checked_sub(self.zeros).map_or(0, |at| self.text[bytes(at)]);
                count += 1;
            }
            self.read.set(self.read.get() + count as u64);
            Ok(count)
        }
    }

    fn record(second: usize, level: LogLevel, message: &str) -> String {
        format!("2026-01-02 03:04:{second:02},000 - x - {} - {message}\n", level.name().to_uppercase())
    }

    fn found(block: usize, log: &Fake, end: u64, wanted: u64, level: Option<LogLevel>) -> Vec<String> {
        let mut lines = Vec::new();
        let mut take = |line: Line<'_>| {
            lines.push(String::from_utf8(line.text.to_owned()).unwrap());
            Ok(())
        };
        last_lines_by_blocks(&mut vec![0; block], log, end, wanted, level, &mut take).unwrap();
        lines
    }

    #[test]
    fn little_of_a_huge_file_is_read() {
        let text: String = (0..60).map(|n| record(n, LogLevel::Info, &n.to_string())).collect();
        let log = Fake::new(5_000_000_000, &format!("\n{text}"));
        for level in [None, Some(LogLevel::Debug)] {
            log.read.set(0);
            let lines = found(BLOCK, &log, log.end(), 20, level);
            assert_eq!(lines.len(), 20);
            assert!(lines[0].ends_with(" 40") && lines[19].ends_with(" 59"), "{lines:?}");
            assert!(log.read.get() < 2 * BLOCK as u64, "{}", log.read.get());
        }
    }

    #[test]
    fn a_file_that_was_cut_off_shows_what_is_left() {
        let text: String = (0..50).map(|n| record(n, LogLevel::Info, "x")).collect();
        let log = Fake::new(0, &text);
        for missing in [1, 40, 4000] {
            let lines = found(64, &log, log.end() + missing, 2, None);
            assert_eq!(lines, [text.lines().nth(48).unwrap(), text.lines().nth(49).unwrap()]);
        }
    }

    #[test]
    fn the_end_of_the_last_complete_line() {
        for (zeros, text, end) in [
            (0, "", 0),
            (0, "a", 0),
            (0, "a\n", 2),
            (0, "a\nb", 2),
            (0, "\n", 1),
            (600_000, "\nx", 600_001),
            (600_000, "x", 0),
        ] {
            let log = Fake::new(zeros, text);
            assert_eq!(complete_end(&log, log.end()).unwrap(), end, "{text:?}");
        }
    }

    fn any_line() -> impl Strategy<Value = String> {
        let level = proptest::sample::select(LogLevel::ALL);
        let message = "[ab\u{8ba2}]{0,12}";
        prop_oneof![4 => (level, message).prop_map(|(level, message)| record(0, level, &message)), 1 => "[ab]{0,9}\n"]
    }

    proptest! {
        #[test]
        fn the_same_lines_as_by_reading_it_all(
            lines in prop::collection::vec(any_line(), 0..40),
            ends in any::<bool>(),
            block in 1..300_usize,
            wanted in 0..30_usize,
            level in prop::option::of(proptest::sample::select(LogLevel::ALL)),
        ) {
            let mut all = lines.concat();
            if !ends && all.len() > 1 {
                all.truncate(all.trim_end_matches('\n').len());
            }
            let expected: Vec<_> = all.lines().filter(|line| is_wanted(line.as_bytes(), level)).collect();
            let expected = &expected[expected.len().saturating_sub(wanted)..];
            let log = Fake::new(0, &all);
            let found = found(block, &log, log.end(), wanted as u64, level);
            prop_assert_eq!(found, expected);
        }
    }
}
