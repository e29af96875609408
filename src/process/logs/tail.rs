//! The last lines of a file, without reading what stands before them.
//!
//! First the file is searched backwards for where the wanted lines are, then these places are read forwards. So nothing but
//! places is remembered: however many lines are wanted and however long they are, memory stays small.

use std::ops::Range;

use memchr::{memchr, memrchr, memrchr_iter};

use super::filter::{Filter, Verdict};
use super::lines::{LINE_MAX, Line, Lines};
use super::{BLOCK, ReadAt, Take};

/// Hands on the last `wanted` lines before `end` that the filter admits, or all of them since its time. It ends at the first
/// record from before that time: where the clock was set back, older lines than that are not looked for.
pub(crate) fn last_lines(
    log: &impl ReadAt,
    end: u64,
    wanted: Option<u64>,
    filter: &Filter,
    take: Take<'_>,
) -> anyhow::Result<()> {
    last_lines_by_blocks(BLOCK, log, end, wanted, filter, take)
}

fn last_lines_by_blocks(
    block: usize,
    log: &impl ReadAt,
    end: u64,
    wanted: Option<u64>,
    filter: &Filter,
    take: Take<'_>,
) -> anyhow::Result<()> {
    let mut block = vec![0; block];
    let found = Found::new(filter, wanted.unwrap_or(u64::MAX), block.len());
    let search = Search { log, found, line_end: end, border_line: Vec::new() };
    for stretch in search.run(&mut block)?.into_iter().rev() {
        copy(log, stretch, filter, &mut block, take)?;
    }
    Ok(())
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

/// Hands on the lines of a stretch that the filter admits.
fn copy(
    log: &impl ReadAt,
    stretch: Range<u64>,
    filter: &Filter,
    block: &mut [u8],
    take: Take<'_>,
) -> anyhow::Result<()> {
    let mut take = |line: Line<'_>| if filter.admits(line.text) { take(line) } else { Ok(()) };
    let mut lines = Lines::default();
    let mut at = stretch.start;
    while at < stretch.end {
        let len = (stretch.end - at).min(block.len() as u64);
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

/// A search for the places of the wanted lines, backwards.
struct Search<'a, L> {
    log: &'a L,
    found: Found<'a>,
    /// Where the last line ends that has not been judged yet.
    line_end: u64,
    /// Holds a line that is not all in the present block.
    border_line: Vec<u8>,
}

impl<L: ReadAt> Search<'_, L> {
    fn run(mut self, block: &mut [u8]) -> anyhow::Result<Vec<Range<u64>>> {
        let mut at = self.line_end;
        while at > 0 && !self.found.is_complete() {
            let (from, text) = read_before(self.log, at, block)?;
            let text_end = from + text.len() as u64;
            if text_end < at {
                // The file was cut off meanwhile: what was found behind this is gone.
                self.found.forget();
                self.line_end = text_end;
            }
            self.search_block(from, text)?;
            at = from;
        }
        if !self.found.is_complete() && self.line_end > 0 {
            self.judge_border_line(0)?;
        }
        Ok(self.found.stretches)
    }

    /// Judges the lines that begin in this block behind a line end.
    fn search_block(&mut self, from: u64, text: &[u8]) -> anyhow::Result<()> {
        let Some(newline) = memrchr(b'\n', text) else {
            // The midst of a long line.
            return Ok(());
        };
        let start = from + newline as u64 + 1;
        if start < self.line_end {
            self.judge_border_line(start)?;
        }
        let whole_lines = &text[..=newline];
        if self.found.filter.rules_out(whole_lines) {
            let first = memchr(b'\n', whole_lines).unwrap_or(newline);
            self.line_end = from + first as u64 + 1;
            return Ok(());
        }
        let mut end = whole_lines.len();
        for newline in memrchr_iter(b'\n', &text[..newline]) {
            if self.found.is_complete() {
                break;
            }
            let start = newline + 1;
            self.found.judge(from + start as u64..from + end as u64, &text[start..end]);
            end = start;
        }
        self.line_end = from + end as u64;
        Ok(())
    }

    /// Judges the line from `start` on, which has to be read once more.
    fn judge_border_line(&mut self, start: u64) -> anyhow::Result<()> {
        let len = (self.line_end - start).min(LINE_MAX as u64);
        self.border_line.resize(bytes(len), 0);
        let count = self.log.read_at(&mut self.border_line, start)?;
        self.found.judge(start..self.line_end, &self.border_line[..count]);
        self.line_end = start;
        Ok(())
    }
}

/// The places of wanted lines.
struct Found<'a> {
    filter: &'a Filter,
    wanted: u64,
    missing: u64,
    /// The last ones first. Lines less than `apart` from each other share a stretch, so that there are never more stretches
    /// than blocks in the file; what is between them is filtered again when they are read.
    stretches: Vec<Range<u64>>,
    apart: u64,
}

impl<'a> Found<'a> {
    fn new(filter: &'a Filter, wanted: u64, apart: usize) -> Self {
        Self { filter, wanted, missing: wanted, stretches: Vec::new(), apart: apart as u64 }
    }

    fn forget(&mut self) {
        self.stretches.clear();
        self.missing = self.wanted;
    }

    fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Keeps the place of a line if it is wanted.
    fn judge(&mut self, place: Range<u64>, line: &[u8]) {
        if self.is_complete() {
            return;
        }
        match self.filter.judge(line.strip_suffix(b"\n").unwrap_or(line)) {
            Verdict::Unwanted => {}
            Verdict::TooOld => self.missing = 0,
            Verdict::Wanted => {
                self.missing -= 1;
                self.add(place);
            }
        }
    }

    fn add(&mut self, place: Range<u64>) {
        match self.stretches.last_mut() {
            Some(stretch) if stretch.start - place.end < self.apart => stretch.start = place.start,
            _ => self.stretches.push(place),
        }
    }
}

/// A length that fits a buffer.
fn bytes(len: u64) -> usize {
    usize::try_from(len).expect("no longer than a buffer")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::super::level_of;
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

    fn found(block: usize, log: &Fake, end: u64, wanted: Option<u64>, filter: &Filter) -> Vec<String> {
        let mut lines = Vec::new();
        let mut take = |line: Line<'_>| {
            lines.push(String::from_utf8(line.text.to_owned()).unwrap());
            Ok(())
        };
        last_lines_by_blocks(block, log, end, wanted, filter, &mut take).unwrap();
        lines
    }

    #[test]
    fn little_of_a_huge_file_is_read() {
        let text: String = (0..60).map(|n| record(n, LogLevel::Info, &n.to_string())).collect();
        let log = Fake::new(5_000_000_000, &format!("\n{text}"));
        let since = crate::domain::clock::LogTime::at_start_of(record(40, LogLevel::Info, "").as_bytes());
        for (wanted, filter) in
            [(Some(20), Filter::default()), (None, Filter::new(Some(LogLevel::Debug), since, &["x".into()]))]
        {
            log.read.set(0);
            let lines = found(BLOCK, &log, log.end(), wanted, &filter);
            assert_eq!(lines.len(), 20);
            assert!(lines[0].ends_with(" 40") && lines[19].ends_with(" 59"), "{lines:?}");
            assert!(log.read.get() < 2 * BLOCK as u64, "{}", log.read.get());
        }
    }

    #[test]
    fn lines_far_apart_are_found_and_what_is_between_is_not_read_again() {
        let needle = record(1, LogLevel::Info, "needle");
        let hay = record(2, LogLevel::Info, "hay").repeat(1000);
        let log = Fake::new(0, &[&needle[..], &hay, &needle, &hay].concat());
        let filter = Filter::new(None, None, &["needle".into()]);
        assert_eq!(found(1024, &log, log.end(), Some(20), &filter).len(), 2);
        assert!(log.read.get() < log.end() + 4096, "{} of {}", log.read.get(), log.end());
    }

    #[test]
    fn a_file_that_was_cut_off_shows_what_is_left() {
        let text: String = (0..50).map(|n| record(n, LogLevel::Info, "x")).collect();
        let log = Fake::new(0, &text);
        for missing in [1, 40, 4000] {
            let lines = found(64, &log, log.end() + missing, Some(2), &Filter::default());
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
            text in prop::option::of("[ab]{1,2}"),
        ) {
            let mut all = lines.concat();
            if !ends && all.len() > 1 {
                all.truncate(all.trim_end_matches('\n').len());
            }
            let is_wanted = |line: &&str| {
                text.as_ref().is_none_or(|text| line.contains(text))
                    && level.is_none_or(|wanted| level_of(line.as_bytes()).is_some_and(|level| level.filter() <= wanted.filter()))
            };
            let expected: Vec<_> = all.lines().filter(is_wanted).collect();
            let expected = &expected[expected.len().saturating_sub(wanted)..];
            let texts: Vec<_> = text.iter().cloned().collect();
            let log = Fake::new(0, &all);
            let found = found(block, &log, log.end(), Some(wanted as u64), &Filter::new(level, None, &texts));
            prop_assert_eq!(found, expected);
        }
    }
}
