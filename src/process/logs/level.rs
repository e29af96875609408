//! The level of a line.

use memchr::memmem;

use crate::config::LogLevel;
use crate::domain::clock::LogTime;

/// Length of a line's beginning that has its level, where it has one: the names of our targets are short.
pub(super) const HEAD_MAX: usize = 256;

/// Whether a line is a record of this level or above. Every line is, where no level is wanted.
pub(crate) fn is_wanted(line: &[u8], wanted: Option<LogLevel>) -> bool {
    // The filter of a level is the greater, the more it lets through.
    wanted.is_none_or(|wanted| level_of(line).is_some_and(|level| level.filter() <= wanted.filter()))
}

/// The level of a record: `TIME - TARGET - LEVEL - MESSAGE`.
pub(crate) fn level_of(line: &[u8]) -> Option<LogLevel> {
    const BETWEEN: &[u8] = b" - ";
    let line = &line[..line.len().min(HEAD_MAX)];
    if !LogTime::begins(line) {
        return None;
    }
    let target = line[LogTime::LEN..].strip_prefix(BETWEEN)?;
    let level = &target[memmem::find(target, BETWEEN)? + BETWEEN.len()..];
    let level = &level[..memmem::find(level, BETWEEN)?];
    LogLevel::ALL.iter().copied().find(|known| known.name().as_bytes().eq_ignore_ascii_case(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_level() {
        let record =
            |level: &str, message: &str| format!("2026-01-02 03:04:05,000 - webhookctl::store - {level} - {message}");
        for (line, level) in [
            (record("DEBUG", "x"), Some(LogLevel::Debug)),
            (record("INFO", ""), Some(LogLevel::Info)),
            (record("WARNING", "- ERROR -"), Some(LogLevel::Warning)),
            (record("ERROR", "x - INFO - y"), Some(LogLevel::Error)),
            (record("ERROR", &"x".repeat(2 * HEAD_MAX)), Some(LogLevel::Error)),
            (record("FATAL", "x"), None),
            ("Traceback (most recent call last): - x - ERROR - no record".into(), None),
            (String::new(), None),
            ("2026-01-02 03:04:00,000".into(), None),
            ("2026-01-02 03:04:00,000 - ".into(), None),
            ("2026-01-02 03:04:00,000 - x - ERROR".into(), None),
        ] {
            assert_eq!(level_of(line.as_bytes()), level, "{line}");
            assert!(is_wanted(line.as_bytes(), None), "{line}");
        }
        let is_wanted = |level: &str| is_wanted(record(level, "x").as_bytes(), Some(LogLevel::Warning));
        assert!(is_wanted("ERROR") && is_wanted("WARNING") && !is_wanted("INFO") && !is_wanted("FATAL"));
    }
}
