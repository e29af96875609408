//! One destination of log records: a bounded queue, and the thread that empties it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use log::Level;
use rust_i18n::t;

use super::Line;

/// How many records wait for a slow destination.
const QUEUE_MAX: usize = 4096;
/// How long a file that could not be opened is left alone.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Something that takes finished lines.
pub(super) trait Sink: Send + 'static {
    /// Writes one line, with one `write(2)` where the system takes it whole.
    fn write_line(&mut self, line: &str) -> io::Result<()>;
}

enum Message {
    Line(Arc<str>),
    Flush(SyncSender<()>),
}

/// The sending end of a destination.
pub(super) struct Lane {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
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
    pub(super) fn send(&self, line: Arc<str>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what is queued now is written, at most `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = unsent;
            std::thread::sleep(Duration::from_millis(2));
        }
        // A destination that is still stuck by then keeps its records.
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn run(messages: &Receiver<Message>, dropped: &AtomicU64, mut sink: impl Sink) {
    while let Ok(message) = messages.recv() {
        match message {
            Message::Line(line) if sink.write_line(&line).is_err() => {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
            Message::Line(_) => report_dropped(dropped, &mut sink),
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
        let message = t!("log.dropped", count = count);
        let line = Line { target: "webhookctl::logging", level: Level::Warn, message: &message };
        if sink.write_line(&line.to_string()).is_err() {
            dropped.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Standard error.
pub(super) struct Console;

impl Sink for Console {
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        io::stderr().write_all(line.as_bytes())
    }
}

/// The log file: opened for appending when the first record comes, and again when that failed.
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    failed_at: Option<Instant>,
    /// A full disk cut the last line off: the next one has to start on a line of its own.
    torn: bool,
}

impl LogFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, failed_at: None, torn: false }
    }

    fn open(&mut self) -> io::Result<&mut File> {
        if self.failed_at.is_some_and(|at| at.elapsed() < REOPEN_PAUSE) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        Ok(self.file.insert(file))
    }
}

impl Sink for LogFile {
    fn write_line(&mut self, line: &str) -> io::Result<()> {
        if self.file.is_none()
            && let Err(error) = self.open()
        {
            if self.failed_at.is_none() {
                let text = t!("log.file_failed", path = self.path.display(), error = error);
                let line = Line { target: "webhookctl::logging", level: Level::Error, message: &text };
                let _ = io::stderr().write_all(line.to_string().as_bytes());
            }
            self.failed_at = Some(Instant::now());
            return Err(error);
        }
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        self.failed_at = None;
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        let written = file.write(line.as_bytes())?;
        if written < line.len() {
            self.torn = true;
            file.write_all(&line.as_bytes()[written..])?;
            self.torn = false;
        }
        Ok(())
    }
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
            lane.send(format!("{n}\n").into());
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
    fn a_file_that_cannot_be_opened_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs");
        std::fs::write(&path, "a file where a directory should be").unwrap();
        let mut file = LogFile::new(path.join("x.log"));
        assert!(file.write_line("one\n").is_err());
        std::fs::remove_file(&path).unwrap();
        file.failed_at = Some(Instant::now().checked_sub(REOPEN_PAUSE).unwrap());
        file.write_line("two\n").unwrap();
        assert_eq!(std::fs::read_to_string(path.join("x.log")).unwrap(), "two\n");
    }
}
