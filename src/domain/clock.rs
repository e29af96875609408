//! Points in time, and the clock that is given to whatever reads the time or waits.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Span, SpanRelativeTo, civil};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::sync::lock;

thread_local! {
    /// A second since the Unix epoch, and how local time says it.
    static LOCAL_SECOND: RefCell<(Option<i64>, String)> = const { RefCell::new((None, String::new())) };
}

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

    /// The time so much later.
    #[must_use]
    pub(crate) fn plus(self, time: Duration) -> Self {
        Self::from_ms(self.0.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time that a person names: how long before `now`, such as `10m` or `1h 30m`, local time, such as `2026-01-02 03:04`, or
    /// RFC 3339.
    pub(crate) fn parse_since(text: &str, now: Self) -> Option<Self> {
        let instant = if let Ok(instant) = text.parse::<jiff::Timestamp>() {
            instant
        } else if let Ok(local) = text.parse::<civil::DateTime>() {
            local.to_zoned(TimeZone::system()).ok()?.timestamp()
        } else {
            ago(text, now)?
        };
        Some(Self(instant.as_millisecond()))
    }

    /// The time in an HTTP header: `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub(crate) fn parse_http_date(text: &str) -> Option<Self> {
        let zoned = jiff::fmt::rfc2822::parse(text.trim()).ok()?;
        Some(Self(zoned.timestamp().as_millisecond()))
    }

    /// Local time as log records carry it: `2025-07-31 10:50:09,246`.
    pub fn to_log_time(self) -> impl fmt::Display {
        let (second, ms) = (self.0.div_euclid(1000), self.0.rem_euclid(1000));
        // Each payment has a record, and all of a second share what the rules of the time zone make of it.
        LOCAL_SECOND.with_borrow_mut(|(known, text)| {
            if *known != Some(second) {
                (*known, *text) = (Some(second), self.to_local().to_string());
            }
            format!("{text},{ms:03}")
        })
    }

    /// Local time to the second, for a person: `2025-07-31 10:50:09`.
    pub fn to_local(self) -> impl fmt::Display {
        self.instant().to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// China's time to the second, as gateways write it: `2026-01-02 11:04:05`. There is no summer time.
    pub(crate) fn to_gateway_time(self) -> String {
        self.instant().to_zoned(TimeZone::fixed(Offset::constant(8))).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    fn instant(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

/// The time that lies so long before `now`.
fn ago(text: &str, now: Timestamp) -> Option<jiff::Timestamp> {
    let span: Span = text.parse().ok()?;
    let ago = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    let since = now.instant().checked_sub(ago).ok()?;
    (ago >= SignedDuration::ZERO).then_some(since)
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

/// Reads the time and waits: by the machine's clock, or by one that a test moves by hand. A clone is the same clock.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    /// None: the machine's clock.
    hands: Option<Arc<Mutex<Hands>>>,
}

/// What a clock shows that is moved by hand.
#[derive(Debug)]
struct Hands {
    wall: Timestamp,
    /// The origin of its instants. Only differences between instants mean anything.
    origin: Instant,
    passed: Duration,
}

impl Hands {
    fn pass(&mut self, time: Duration) {
        self.passed += time;
        self.wall = self.wall.plus(time);
    }
}

impl Clock {
    /// The machine's clock.
    pub(crate) fn system() -> Self {
        Self { hands: None }
    }

    /// A clock that stands still until it is moved. Whoever sleeps by it moves it on by as much.
    #[cfg(test)]
    pub(crate) fn by_hand(wall: Timestamp) -> Self {
        let hands = Hands { wall, origin: Instant::now(), passed: Duration::ZERO };
        Self { hands: Some(Arc::new(Mutex::new(hands))) }
    }

    /// Lets time pass.
    #[cfg(test)]
    pub(crate) fn pass(&self, time: Duration) {
        self.hands().expect("a clock that is moved by hand").pass(time);
    }

    /// Sets the wall clock. No time passes.
    #[cfg(test)]
    pub(crate) fn set(&self, wall: Timestamp) {
        self.hands().expect("a clock that is moved by hand").wall = wall;
    }

    fn hands(&self) -> Option<MutexGuard<'_, Hands>> {
        self.hands.as_ref().map(|hands| lock(hands))
    }

    /// The wall clock's time, which may be set forward and back.
    pub(crate) fn now(&self) -> Timestamp {
        self.hands().map_or_else(Timestamp::now, |hands| hands.wall)
    }

    /// The time of a clock that is never set, for deadlines and pauses within this process.
    pub(crate) fn instant(&self) -> Instant {
        self.hands().map_or_else(Instant::now, |hands| hands.origin + hands.passed)
    }

    /// The time since the machine was started, the time asleep included.
    fn running(&self) -> Duration {
        self.hands().map_or_else(running, |hands| hands.passed)
    }

    /// Waits for so long.
    pub(crate) async fn sleep(&self, time: Duration) {
        if let Some(mut hands) = self.hands() {
            hands.pass(time);
            return;
        }
        tokio::time::sleep(time).await;
    }

    /// Waits until then.
    pub(crate) async fn sleep_until(&self, deadline: Instant) {
        self.sleep(deadline.saturating_duration_since(self.instant())).await;
    }
}

/// Notices where the wall clock is set back, which moves all that is due at a time away.
#[derive(Debug)]
pub(crate) struct SetBack {
    clock: Clock,
    seen: Seen,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    wall: Timestamp,
    /// By a clock that nobody sets, and that goes on while the machine sleeps.
    running: Duration,
}

impl SetBack {
    pub(crate) fn watch(clock: &Clock) -> Self {
        Self { clock: clock.clone(), seen: Seen::by(clock) }
    }

    /// How many milliseconds the clock was set back by since this was last asked, or since the beginning.
    pub(crate) fn since_last(&mut self) -> Option<i64> {
        let now = Seen::by(&self.clock);
        self.seen.step_to(now)
    }
}

impl Seen {
    /// What is less does not matter yet.
    const LEAST_MS: i64 = 1000;

    fn by(clock: &Clock) -> Self {
        Self { wall: clock.now(), running: clock.running() }
    }

    fn step_to(&mut self, now: Self) -> Option<i64> {
        let passed = i64::try_from(now.running.saturating_sub(self.running).as_millis()).unwrap_or(i64::MAX);
        let back = self.wall.ms().saturating_add(passed).saturating_sub(now.wall.ms());
        if back > 0 && back < Self::LEAST_MS {
            // Small steps add up.
            return None;
        }
        *self = now;
        (back >= Self::LEAST_MS).then_some(back)
    }
}

/// The time since the machine was started.
fn running() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.try_into().unwrap_or_default()
}

/// Local time as log records carry it, `2025-07-31 10:50:09,246`.
pub(crate) struct LogTime;

impl LogTime {
    /// Its length in bytes.
    pub(crate) const LEN: usize = Self::SHAPE.len();

    const SHAPE: &[u8; 23] = b"0000-00-00 00:00:00,000";

    /// Whether a line begins with such a time.
    pub(crate) fn begins(line: &[u8]) -> bool {
        let fits = |(byte, shape): (&u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
        line.len() >= Self::LEN && line.iter().zip(Self::SHAPE).all(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG_TIME: &str = "%Y-%m-%d %H:%M:%S,%3f";

    #[test]
    fn prints_utc_to_the_second() {
        assert_eq!(Timestamp::from_ms(1_767_323_045_999).to_string(), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn an_http_date_is_read() {
        let read = |text| Timestamp::parse_http_date(text).map(Timestamp::ms);
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777_000));
        assert_eq!(read("yesterday"), None);
    }

    #[test]
    fn a_clock_that_is_set_back_is_noticed_and_one_that_goes_on_is_not() {
        let at = |wall_ms: i64, running_s: u64| Seen {
            wall: Timestamp::from_ms(1_700_000_000_000 + wall_ms),
            running: Duration::from_secs(running_s),
        };
        let mut clock = at(0, 100);
        for (wall_ms, running_s, back) in [
            (1_000, 101, None),
            (2_000, 102, None),
            // Set back by an hour, and then no more.
            (-3_597_000, 103, Some(3_600_000)),
            (-3_596_000, 104, None),
            // Set forward, which delays nothing.
            (5_000, 105, None),
            // By little steps.
            (5_500, 106, None),
            (6_000, 107, Some(1_000)),
            // The machine slept for an hour.
            (3_606_000, 3_707, None),
        ] {
            assert_eq!(clock.step_to(at(wall_ms, running_s)), back, "{running_s}");
        }
        assert_eq!(SetBack::watch(&Clock::system()).since_last(), None);
    }

    #[tokio::test]
    async fn a_clock_that_is_moved_by_hand_passes_and_is_set() {
        let clock = Clock::by_hand(Timestamp::from_ms(1_700_000_000_000));
        let (began, mut set_back) = (clock.instant(), SetBack::watch(&clock));
        clock.sleep(Duration::from_hours(1)).await;
        clock.clone().pass(Duration::from_secs(5));
        assert_eq!(clock.now(), Timestamp::from_ms(1_700_003_605_000));
        assert_eq!(clock.instant() - began, Duration::from_secs(3605));
        assert_eq!(set_back.since_last(), None);
        clock.set(Timestamp::from_ms(1_700_000_000_000));
        assert_eq!(clock.instant() - began, Duration::from_secs(3605));
        assert_eq!(set_back.since_last(), Some(3_605_000));
        clock.sleep_until(began + Duration::from_secs(3606)).await;
        assert_eq!(clock.now(), Timestamp::from_ms(1_700_000_001_000));
    }

    #[test]
    fn gateways_write_the_time_of_china() {
        assert_eq!(Timestamp::from_ms(1_767_373_445_999).to_gateway_time(), "2026-01-03 01:04:05");
    }

    #[test]
    fn a_time_out_of_range_is_kept_in_range() {
        assert_eq!(Timestamp::from_ms(i64::MAX).plus_seconds(9), Timestamp::from_ms(i64::MAX));
        assert!(!Timestamp::from_ms(i64::MIN).to_string().is_empty());
    }

    #[test]
    fn records_of_one_second_differ_in_their_milliseconds_alone() {
        for ms in [1_767_373_445_999, 1_767_373_446_000, 1_767_373_446_007, 1_767_373_445_998, -1, 0] {
            let expected = Timestamp(ms).instant().to_zoned(TimeZone::system()).strftime(LOG_TIME).to_string();
            assert_eq!(Timestamp(ms).to_log_time().to_string(), expected);
        }
    }

    #[test]
    fn a_record_begins_with_its_time() {
        let now = Timestamp::now().to_log_time().to_string();
        assert!(LogTime::begins(format!("{now} - x").as_bytes()), "{now}");
        for line in [
            "",
            "2026-01-02 03:04:05",
            "2026-01-02 03:04:05.678 -",
            "2026-01-02T03:04:05,678 -",
            "x026-01-02 03:04:05,678",
        ] {
            assert!(!LogTime::begins(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn a_person_names_a_time() {
        let now = Timestamp::from_ms(1_767_323_045_678);
        let parse = |text: &str| Timestamp::parse_since(text, now).map(Timestamp::ms);
        assert_eq!(parse("2h"), Some(now.ms() - 7_200_000));
        assert_eq!(parse("2026-01-02T03:04:05Z"), Some(1_767_323_045_000));
        let local = Timestamp::from_ms(1_767_323_045_000).to_local().to_string();
        assert_eq!(parse(&local), Some(1_767_323_045_000));
        for text in ["", "10", "-10m", "1 month", "2026-13-02 03:04", "9999999999d"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
