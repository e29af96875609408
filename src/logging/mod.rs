//! Log records: one line each, to the file and the console, never in the way of a payment.
//!
//! `fern` filters and formats; the finished line goes into a bounded queue for each destination, which a thread of its own
//! empties. A destination that is stuck or full costs records, never time: what is dropped is counted, and told as soon as
//! the destination takes records again.

mod lane;

use std::fmt::{self, Write};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use log::{Level, Record};

use crate::config;
use crate::domain::clock::Timestamp;
use crate::domain::language::Language;
use crate::domain::log_text::set_language;
pub(crate) use crate::domain::log_text::{language, log_text};
use crate::sync::lock;
use lane::{Console, Lane, LogFile, Sent};

/// How long the last records may take to be written when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// How long opening the log file anew may take: what is queued before is written first.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is told that records are being dropped.
const DROPPING_TOLD_INTERVAL: Duration = Duration::from_secs(10);

/// The running log. Dropping it waits a moment for the last records to be written.
#[must_use = "the last records are written when this is dropped"]
pub(crate) struct Logging {
    lanes: Arc<[Lane]>,
    settings: Settings,
}

/// Changes the log while it runs.
#[derive(Clone)]
pub(crate) struct Settings {
    file: Lane,
}

impl Settings {
    /// Goes on in the file of this name, newly opened, from this level on and in this language. Where it cannot be opened, everything stays as
    /// it was.
    pub(crate) fn apply(&self, log: &config::Log, language: Language) -> io::Result<()> {
        self.file.reopen(log.file.clone(), REOPEN_TIMEOUT)?;
        log::set_max_level(log.level.filter());
        set_language(language);
        Ok(())
    }
}

impl Logging {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }
}

/// Starts logging for this process, in this language, to the file and, if it is wanted, to standard error.
pub(crate) fn start(log: &config::Log, language: Language) -> anyhow::Result<Logging> {
    set_language(language);
    let console = if log.console { Some(Lane::spawn("log-console", Console::new())?) } else { None };
    let mut file = LogFile::new(log.file.clone(), console.clone());
    if let Err(error) = file.open()
        && console.is_none()
    {
        // The one place where a person may see it; later there is only the console.
        eprint!("{}", file.complaint(&error));
    }
    let file = Lane::spawn("log-file", file)?;
    let lanes: Arc<[Lane]> = [file.clone()].into_iter().chain(console).collect();
    let destinations = Arc::clone(&lanes);
    let told = Told::default();
    fern::Dispatch::new()
        // The level in force is that of the `log` crate, which a reload can change.
        .level(log::LevelFilter::Debug)
        .format(|out, message, record| out.finish(format_args!("{}", Line::new(record, message))))
        .chain(fern::Output::call(move |record| {
            let line = record.args().to_string();
            let mut dropping = false;
            for lane in &*destinations {
                dropping |= lane.send(&line) == Sent::FirstDropped;
            }
            if dropping && told.elapsed_then_restart(DROPPING_TOLD_INTERVAL) {
                let line = own_line(Level::Warn, &log_text!("log.dropping"));
                for lane in &*destinations {
                    lane.send(&line);
                }
            }
        }))
        .apply()
        .context("logging is started once")?;
    log::set_max_level(log.level.filter());
    log_panics();
    Ok(Logging { lanes, settings: Settings { file } })
}

impl Drop for Logging {
    fn drop(&mut self) {
        for lane in &*self.lanes {
            lane.flush(FLUSH_TIMEOUT);
        }
    }
}

/// When something was last told.
#[derive(Default)]
struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it was told longer than `interval` ago, or never; if so, it counts as told now.
    fn elapsed_then_restart(&self, interval: Duration) -> bool {
        let mut told = lock(&self.0);
        let is_due = told.is_none_or(|at| at.elapsed() >= interval);
        if is_due {
            *told = Some(Instant::now());
        }
        is_due
    }
}

/// Panics become records; which thread's panic ends the process is decided elsewhere.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let cause = panic.payload_as_str().unwrap_or("?");
        let name = thread.name().unwrap_or("?");
        log::error!(target: "webhookctl::panic", "{}", log_text!("log.panic", thread = name, place = location, cause = cause));
    }));
}

/// What stands between the parts of a record.
const SEPARATOR: &str = " - ";

/// One record as it is written: `2025-07-31 10:50:09,246 - webhookctl::store - INFO - 数据库初始化完成`, with its line end.
struct Line<'a> {
    target: &'a str,
    level: Level,
    message: &'a dyn fmt::Display,
}

impl<'a> Line<'a> {
    fn new(record: &'a Record, message: &'a dyn fmt::Display) -> Self {
        Self { target: record.target(), level: record.level(), message }
    }
}

/// A finished record, without its time.
fn without_time(line: &str) -> &str {
    line.split_once(SEPARATOR).map_or(line, |(_, rest)| rest)
}

/// A record of the log about itself, which must not go the way of other records.
fn own_line(level: Level, message: &str) -> String {
    Line { target: module_path!(), level, message: &message }.to_string()
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "ERROR",
            Level::Warn => "WARNING",
            Level::Info => "INFO",
            Level::Debug | Level::Trace => "DEBUG",
        };
        let time = Timestamp::now().to_log_time();
        write!(f, "{time}{SEPARATOR}{}{SEPARATOR}{level}{SEPARATOR}", self.target)?;
        write!(Escaping(&mut *f), "{}", self.message)?;
        f.write_char('\n')
    }
}

/// Text that somebody else chose, so that it cannot move the terminal's cursor.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    Escaping(&mut safe).write_str(text).expect("writing to a String cannot fail");
    safe
}

/// Writes text with everything escaped that could break a line, move a terminal's cursor, or turn text around.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !text.bytes().any(may_begin_unsafe) {
            return self.0.write_str(text);
        }
        let mut plain_from = 0;
        for (at, c) in text.char_indices().filter(|&(_, c)| is_unsafe(c)) {
            self.0.write_str(&text[plain_from..at])?;
            write!(self.0, "{}", c.escape_default())?;
            plain_from = at + c.len_utf8();
        }
        self.0.write_str(&text[plain_from..])
    }
}

/// Whether a character of which this is the first byte may be [unsafe](is_unsafe): few are, and a byte is looked at in no time.
fn may_begin_unsafe(byte: u8) -> bool {
    matches!(byte, 0..b' ' | 0x7f | 0xc2 | 0xe2)
}

/// C0 and C1 controls, line and paragraph separators, and the characters that change the direction of writing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::language::text;

    /// One test for all that needs a running log: it can be started once in a process.
    #[test]
    fn panics_become_records_in_the_language_that_is_set() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("logs/x.log");
        let before = std::panic::take_hook();
        let level = config::LogLevel::Error;
        let log = config::Log { file: file.clone(), level, console: false };
        let logging = start(&log, Language::Chinese).unwrap();
        let thread = std::thread::Builder::new().name("unlucky".into());
        assert!(thread.spawn(|| panic!("out of\nluck")).unwrap().join().is_err());
        logging.settings().apply(&log, Language::English).unwrap();
        let thread = std::thread::Builder::new().name("unluckier".into());
        assert!(thread.spawn(|| panic!("again")).unwrap().join().is_err());
        drop(logging);
        std::panic::set_hook(before);
        let written = std::fs::read_to_string(file).unwrap();
        let record = written.lines().find(|line| line.contains("unlucky")).unwrap();
        assert!(record.contains(" - webhookctl::panic - ERROR - ") && record.contains(r"out of\nluck"), "{record}");
        let in_words = |language: Language, thread: &str| {
            let told = text!(language, "log.panic", thread = thread, place = "PLACE", cause = "CAUSE").into_owned();
            told.split("PLACE").next().unwrap_or_default().to_owned()
        };
        assert!(record.contains(&in_words(Language::Chinese, "unlucky")), "{record}");
        let record = written.lines().find(|line| line.contains("unluckier")).unwrap();
        assert!(record.contains(&in_words(Language::English, "unluckier")), "{record}");
    }

    #[test]
    fn the_time_can_be_left_to_the_journal() {
        assert_eq!(without_time("2025-07-31 10:50:09,246 - x - INFO - a - b\n"), "x - INFO - a - b\n");
    }

    #[test]
    fn every_unsafe_character_is_seen_by_its_first_byte() {
        for c in (char::MIN..=char::MAX).filter(|&c| is_unsafe(c)) {
            assert!(may_begin_unsafe(c.to_string().as_bytes()[0]), "{c:?}");
        }
    }

    #[test]
    fn a_record_is_one_line_whatever_it_says() {
        let evil = "a\nb\r\t\u{1b}[31m\u{85}\u{2028}\u{202e}会";
        let line = Line { target: "webhookctl::x", level: Level::Warn, message: &evil }.to_string();
        let (time, rest) = line.split_once(" - ").unwrap();
        assert_eq!(rest, "webhookctl::x - WARNING - a\\nb\\r\\t\\u{1b}[31m\\u{85}\\u{2028}\\u{202e}会\n");
        assert_eq!(time.len(), "2025-07-31 10:50:09,246".len(), "{time}");
        assert_eq!(time.as_bytes()[19], b',');
    }
}
