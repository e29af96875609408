//! One destination of log records: a bounded queue, and the thread that empties it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use log::Level;
use rust_i18n::t;

use super::{own_line, without_time};

/// How many records wait for a slow destination.
const QUEUE_MAX: usize = 4096;
/// How long a file that could not be opened is left alone.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Something that takes finished lines.
pub(super) trait Sink: Send + 'static {
    /// Writes one line, with one `write(2)` where the system takes it whole.
    fn write_line(&mut self, line: &str) -> io::Result<()>;

    /// Goes on in the file of this name, where the sink is a file.
    fn reopen(&mut self, _path: PathBuf) -> io::Result<()> {
        Ok(())
    }
}

enum Message {
    Line(Arc<str>),
    Reopen(PathBuf, SyncSender<io::Result<()>>),
    Flush(SyncSender<()>),
}

/// The sending end of a destination.
#[derive(Clone)]
pub(super) struct Lane {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

/// What became of a line that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Queued,
    /// There was no room, for the first time since there was.
    FirstDropped,
    Dropped,
}

impl Lane {
    pub(super) fn spawn(thread: &str, sink: impl Sink) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let lane = Self { queue, dropped: Arc::clone(&dropped) };
        std::thread::Builder::new().name(thread.to_owned()).spawn(move || run(&messages, &dropped, sink))?;
        Ok(lane)
    }

    /// Queues a line; counts it where there is no room.
    pub(super) fn send(&self, line: &Arc<str>) -> Sent {
        if self.queue.try_send(Message::Line(Arc::clone(line))).is_ok() {
            return Sent::Queued;
        }
        match self.dropped.fetch_add(1, Ordering::Relaxed) {
            0 => Sent::FirstDropped,
            _ => Sent::Dropped,
        }
    }

    /// Waits until what is queued now is written, at most `timeout`: a destination that is still stuck by then keeps its records.
    pub(super) fn flush(&self, timeout: Duration) {
        let _ = self.ask(Message::Flush, timeout);
    }

    /// Writes what is queued now where it belongs, and what comes after it to the file of this name; waits for that, at most
    /// `timeout`.
    pub(super) fn reopen(&self, path: PathBuf, timeout: Duration) -> io::Result<()> {
        self.ask(|done| Message::Reopen(path, done), timeout).unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Puts a message behind the queued lines, even where there is no room yet, and waits for its answer.
    fn ask<T>(&self, message: impl FnOnce(SyncSender<T>) -> Message, timeout: Duration) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let (done, answer) = sync_channel(1);
        let mut message = message(done);
        while let Err(TrySendError::Full(unsent)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return None;
            }
            message = unsent;
            std::thread::sleep(Duration::from_millis(2));
        }
        answer.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }
}

fn run(messages: &Receiver<Message>, dropped: &AtomicU64, mut sink: impl Sink) {
    while let Ok(message) = messages.recv() {
        match message {
            Message::Line(line) if sink.write_line(&line).is_err() => {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
            Message::Line(_) => report_dropped(dropped, &mut sink),
            Message::Reopen(path, done) => {
                let _ = done.send(sink.reopen(path));
            }
            Message::Flush(done) => {
                report_dropped(dropped, &mut sink);
                let _ = done.send(());
            }
        }
    }
}

/// Tells how many records are missing, once the destination works again.
fn report_dropped(dropped: &AtomicU64, sink: &mut impl Sink) {
    let count = dropped.swap(0, Ordering::Relaxed);
    if count > 0 {
        let line = own_line(Level::Warn, &t!("log.dropped", count = count));
        if sink.write_line(&line).is_err() {
            dropped.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Standard error.
pub(super) struct Console {
    /// Whether whoever reads it, the systemd journal, adds the time of each line.
    is_journal: bool,
}

impl Console {
    pub(super) fn new() -> Self {
        Self { is_journal: is_journal() }
    }
}

impl Sink for Console {
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        let line = if self.is_journal { without_time(line) } else { line };
        io::stderr().write_all(line.as_bytes())
    }
}

/// Whether standard error is the stream that `JOURNAL_STREAM` names by device and inode; where it is another one, somebody has
/// redirected it since (see systemd.exec(5)).
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let own = rustix::fs::fstat(io::stderr()).ok().map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    named.is_some() && named == own
}

/// The log file: opened when it is first needed, and again from time to time after that failed.
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    /// When the file could last not be opened, and why.
    open_failed: Option<(Instant, io::ErrorKind, String)>,
    /// Where trouble with the file is told.
    console: Option<Lane>,
    in_trouble: bool,
    /// A full disk cut the last line off: the next one has to start on a line of its own.
    torn: bool,
}

impl LogFile {
    pub(super) fn new(path: PathBuf, console: Option<Lane>) -> Self {
        Self { path, file: None, open_failed: None, console, in_trouble: false, torn: false }
    }

    /// Opens the file where it is not open.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if self.file.is_some() {
            return Ok(());
        }
        if let Some((at, kind, cause)) = &self.open_failed
            && at.elapsed() < REOPEN_PAUSE
        {
            return Err(io::Error::new(*kind, cause.clone()));
        }
        match open(&self.path) {
            Ok(file) => {
                self.file = Some(file);
                self.open_failed = None;
                Ok(())
            }
            Err(error) => {
                self.open_failed = Some((Instant::now(), error.kind(), error.to_string()));
                Err(error)
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        // Nobody would ever read what is written to a file that was removed. One that was only renamed is logrotate's affair.
        if self.file.as_ref().is_some_and(is_removed) {
            self.file = None;
            self.torn = false;
        }
        self.open()?;
        let Self { file: Some(file), torn, .. } = self else { return Err(io::ErrorKind::NotFound.into()) };
        if *torn {
            file.write_all(b"\n")?;
            *torn = false;
        }
        let written = file.write(line.as_bytes())?;
        let rest = file.write_all(&line.as_bytes()[written..]);
        *torn = rest.is_err() && written > 0;
        rest
    }

    /// The record that tells what is wrong with the file.
    pub(super) fn complaint(&self, error: &io::Error) -> String {
        own_line(Level::Error, &t!("log.file_failed", path = self.path.display(), error = error))
    }
}

impl Sink for LogFile {
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        let result = self.write(line);
        let was_in_trouble = std::mem::replace(&mut self.in_trouble, result.is_err());
        if let (Err(error), Some(console), false) = (&result, &self.console, was_in_trouble) {
            console.send(&self.complaint(error).into());
        }
        result
    }

    /// The file that is open stays in use where the other cannot be opened.
    fn reopen(&mut self, path: PathBuf) -> io::Result<()> {
        let file = open(&path)?;
        *self = Self { file: Some(file), ..Self::new(path, self.console.take()) };
        Ok(())
    }
}

fn is_removed(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes lines, but only while the test lets it.
    #[derive(Clone, Default)]
    struct Gate {
        open: Arc<Mutex<()>>,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl Sink for Gate {
        fn write_line(&mut self, line: &str) -> io::Result<()> {
            let _open = self.open.lock().unwrap();
            self.lines.lock().unwrap().push(line.to_owned());
            Ok(())
        }
    }

    #[test]
    fn a_stuck_destination_costs_records_and_says_how_many() {
        let gate = Gate::default();
        let stuck = gate.open.lock().unwrap();
        let lane = Lane::spawn("test", gate.clone()).unwrap();
        let sent = QUEUE_MAX + 100;
        for n in 0..sent {
            lane.send(&format!("{n}\n").into());
        }
        drop(stuck);
        lane.flush(Duration::from_secs(30));
        let lines = gate.lines.lock().unwrap();
        let reported: usize = lines
            .iter()
            .filter(|line| line.contains("webhookctl::logging - WARNING"))
            .map(|line| {
                let (_, text) = line.split_once("WARNING - ").unwrap();
                text.chars().filter(char::is_ascii_digit).collect::<String>().parse::<usize>().unwrap()
            })
            .sum();
        let written = lines.iter().filter(|line| line.trim_end().parse::<usize>().is_ok()).count();
        assert!(reported >= 99, "{reported}");
        assert_eq!(written + reported, sent);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_tried_again_however_much_there_is_to_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs");
        std::fs::write(&path, "a file where a directory should be").unwrap();
        let gate = Gate::default();
        let console = Lane::spawn("test", gate.clone()).unwrap();
        let mut file = LogFile::new(path.join("x.log"), Some(console.clone()));
        assert!(file.write_line("one\n").is_err());
        std::fs::remove_file(&path).unwrap();
        let (first_failure, kind, cause) = file.open_failed.clone().unwrap();
        assert!(file.write_line("two\n").is_err(), "not so soon");
        assert_eq!(file.open_failed.as_ref().unwrap().0, first_failure, "and the pause is not prolonged by trying");
        file.open_failed = Some((first_failure.checked_sub(REOPEN_PAUSE).unwrap(), kind, cause));
        file.write_line("three\n").unwrap();
        assert_eq!(std::fs::read_to_string(path.join("x.log")).unwrap(), "three\n");
        console.flush(Duration::from_secs(30));
        assert_eq!(gate.lines.lock().unwrap().len(), 1, "told once");
    }

    #[test]
    fn a_reopened_file_is_the_new_one_and_one_that_cannot_be_opened_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let lane = Lane::spawn("test", LogFile::new(path.clone(), None)).unwrap();
        let patience = Duration::from_secs(30);
        lane.send(&"one\n".into());
        lane.flush(patience);
        std::fs::rename(&path, directory.path().join("x.log.1")).unwrap();
        lane.send(&"two\n".into());
        lane.reopen(path.clone(), patience).unwrap();
        lane.send(&"three\n".into());
        assert!(lane.reopen(path.join("in/a/file"), patience).is_err());
        lane.send(&"four\n".into());
        lane.flush(patience);
        assert_eq!((read("x.log.1"), read("x.log")), ("one\ntwo\n".to_owned(), "three\nfour\n".to_owned()));
    }

    #[test]
    fn a_file_that_is_removed_is_followed_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/x.log");
        let mut file = LogFile::new(path.clone(), None);
        file.write_line("one\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_line("two\n").unwrap();
        std::fs::remove_dir_all(directory.path().join("logs")).unwrap();
        file.write_line("three\n").unwrap();
        file.write_line("four\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\nfour\n");
    }

    #[test]
    fn a_full_disk_is_told_on_the_console() {
        let gate = Gate::default();
        let console = Lane::spawn("test", gate.clone()).unwrap();
        let mut file = LogFile::new("/dev/full".into(), Some(console.clone()));
        for _ in 0..3 {
            assert!(file.write_line("x\n").is_err());
        }
        console.flush(Duration::from_secs(30));
        let lines = gate.lines.lock().unwrap();
        assert!(lines.len() == 1 && lines[0].contains("/dev/full"), "{lines:?}");
    }
}
