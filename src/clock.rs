//! Points in time, and the only place that reads the wall clock.

use std::fmt;

use serde::{Serialize, Serializer};

/// A point in time: milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Now, by the machine's wall clock.
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_millisecond())
    }

    /// The time `ms` milliseconds after the Unix epoch, kept within the years that can be printed.
    pub fn from_ms(ms: i64) -> Self {
        Self(ms.clamp(jiff::Timestamp::MIN.as_millisecond(), jiff::Timestamp::MAX.as_millisecond()))
    }

    /// Milliseconds since the Unix epoch.
    pub fn ms(self) -> i64 {
        self.0
    }

    /// The time `seconds` later.
    #[must_use]
    pub fn plus_seconds(self, seconds: u32) -> Self {
        Self::from_ms(self.0.saturating_add(i64::from(seconds) * 1000))
    }

    /// Local time as log records carry it: `2025-07-31 10:50:09,246`.
    pub fn to_log_time(self) -> impl fmt::Display {
        self.instant().to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S,%3f").to_string()
    }

    /// Local time to the second, for a person: `2025-07-31 10:50:09`.
    pub fn to_local(self) -> impl fmt::Display {
        self.instant().to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    fn instant(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

/// RFC 3339 in UTC to the second: `2026-01-02T03:04:05Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.instant().strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_utc_to_the_second() {
        assert_eq!(Timestamp::from_ms(1_767_323_045_999).to_string(), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn a_time_out_of_range_is_kept_in_range() {
        assert_eq!(Timestamp::from_ms(i64::MAX).plus_seconds(9), Timestamp::from_ms(i64::MAX));
        assert!(!Timestamp::from_ms(i64::MIN).to_string().is_empty());
    }
}
