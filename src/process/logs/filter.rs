//! Which lines are wanted.

use memchr::memmem::{self, Finder};

use crate::config::LogLevel;
use crate::domain::clock::LogTime;

/// What a line has to be, to be shown: all of it.
///
/// A line that is no record of ours has no level and no time. A wanted level leaves it out; a time does not, so such a line is
/// shown with the records around it.
#[derive(Default)]
pub(crate) struct Filter {
    level: Option<LogLevel>,
    since: Option<LogTime>,
    texts: Vec<Finder<'static>>,
}

/// What a filter says of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wanted,
    Unwanted,
    /// A record from before the wanted time: nothing in front of it is wanted.
    TooOld,
}

impl Filter {
    /// Records of `level` and above, not older than `since`; lines that contain every one of `texts`.
    pub(crate) fn new(level: Option<LogLevel>, since: Option<LogTime>, texts: &[String]) -> Self {
        Self { level, since, texts: texts.iter().map(|text| Finder::new(text).into_owned()).collect() }
    }

    /// Whether the line is wanted.
    pub(crate) fn admits(&self, line: &[u8]) -> bool {
        self.judge(line) == Verdict::Wanted
    }

    pub(super) fn judge(&self, line: &[u8]) -> Verdict {
        if let Some(since) = self.since
            && LogTime::at_start_of(line).is_some_and(|time| time < since)
        {
            return Verdict::TooOld;
        }
        if self.has_texts(line) && self.has_level(line) { Verdict::Wanted } else { Verdict::Unwanted }
    }

    /// Whether none of these lines is wanted, and none is too old, as far as can be told without looking at each.
    pub(super) fn rules_out(&self, lines: &[u8]) -> bool {
        self.since.is_none() && !self.has_texts(lines)
    }

    fn has_texts(&self, line: &[u8]) -> bool {
        self.texts.iter().all(|text| text.find(line).is_some())
    }

    fn has_level(&self, line: &[u8]) -> bool {
        // The filter of a level is the greater, the more it lets through.
        self.level.is_none_or(|wanted| level_of(line).is_some_and(|level| level.filter() <= wanted.filter()))
    }
}

/// The level of a record: `TIME - TARGET - LEVEL - MESSAGE`.
pub(crate) fn level_of(line: &[u8]) -> Option<LogLevel> {
    const BETWEEN: &[u8] = b" - ";
    LogTime::at_start_of(line)?;
    let target = line[LogTime::LEN..].strip_prefix(BETWEEN)?;
    let level = &target[memmem::find(target, BETWEEN)? + BETWEEN.len()..];
    let level = &level[..memmem::find(level, BETWEEN)?];
    LogLevel::ALL.iter().copied().find(|known| known.name().as_bytes().eq_ignore_ascii_case(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GARBAGE: &str = "Traceback (most recent call last): - x - ERROR - no record";

    fn record(minute: u8, level: &str, message: &str) -> String {
        format!("2026-01-02 03:{minute:02}:00,000 - webhookctl::store - {level} - {message}")
    }

    #[test]
    fn a_record_has_a_level() {
        for (line, level) in [
            (record(1, "DEBUG", "x"), Some(LogLevel::Debug)),
            (record(1, "INFO", ""), Some(LogLevel::Info)),
            (record(1, "WARNING", "- ERROR -"), Some(LogLevel::Warning)),
            (record(1, "ERROR", "x - INFO - y"), Some(LogLevel::Error)),
            (record(1, "FATAL", "x"), None),
            (GARBAGE.into(), None),
            (String::new(), None),
            ("2026-01-02 03:04:00,000".into(), None),
            ("2026-01-02 03:04:00,000 - ".into(), None),
            ("2026-01-02 03:04:00,000 - x - ERROR".into(), None),
        ] {
            assert_eq!(level_of(line.as_bytes()), level, "{line}");
        }
    }

    #[test]
    fn every_part_of_a_filter_must_fit() {
        use Verdict::{TooOld, Unwanted, Wanted};
        let since = || LogTime::at_start_of(record(5, "", "").as_bytes());
        let warning = Some(LogLevel::Warning);
        for (level, since, texts, line, verdict) in [
            (None, None, &[][..], GARBAGE.to_owned(), Wanted),
            (warning, None, &[], GARBAGE.into(), Unwanted),
            (Some(LogLevel::Debug), None, &[], GARBAGE.into(), Unwanted),
            (None, since(), &[], GARBAGE.into(), Wanted),
            (warning, None, &[], record(1, "INFO", "x"), Unwanted),
            (warning, None, &[], record(1, "WARNING", "x"), Wanted),
            (warning, None, &[], record(1, "ERROR", "x"), Wanted),
            (None, since(), &[], record(4, "ERROR", "x"), TooOld),
            (None, since(), &[], record(5, "ERROR", "x"), Wanted),
            (warning, since(), &[], record(4, "DEBUG", "x"), TooOld),
            (warning, since(), &[], record(6, "DEBUG", "x"), Unwanted),
            (None, None, &["订单", "T1"], record(1, "INFO", "订单 T1"), Wanted),
            (None, None, &["订单", "T1"], record(1, "INFO", "订单 T2"), Unwanted),
            (None, None, &["store"], record(1, "INFO", "x"), Wanted),
            (warning, since(), &["T1"], record(6, "ERROR", "T1"), Wanted),
            (warning, since(), &["T1"], record(6, "INFO", "T1"), Unwanted),
        ] {
            let texts: Vec<_> = texts.iter().map(ToString::to_string).collect();
            let filter = Filter::new(level, since, &texts);
            assert_eq!(filter.judge(line.as_bytes()), verdict, "{level:?} {since:?} {texts:?} {line}");
            assert!(verdict == Unwanted || !filter.rules_out(line.as_bytes()), "{line}");
        }
    }
}
