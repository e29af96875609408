//! One destination of log records: a bounded queue, and the thread that empties it.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use log::Level;

use super::{log_text, own_line, without_time};
use crate::files::{self, Audience, FileIdentity};
use crate::sync::Monitor;

/// How many records wait for a slow destination.
const QUEUE_MAX: usize = 4096;
/// How long records wait for company behind others that were just written: a thread that is woken for each of them, and a write
/// for each, would cost a payment more than its signature does.
const COMPANY: Duration = Duration::from_millis(5);
/// How much room is kept for records while there are none.
const ROOM_KEPT: usize = 64 * 1024;
/// How long a file that could not be opened is left alone.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// Something that takes finished lines.
pub(super) trait Sink: Send + 'static {
    /// Writes whole lines, with one `write(2)` where the system takes them so; how many are lost.
    fn write_lines(&mut self, lines: &str) -> usize;

    /// Goes on in the file of this name, where the sink is a file.
    fn reopen(&mut self, _path: PathBuf) -> io::Result<()> {
        Ok(())
    }
}

/// What is asked of a destination when the lines before are written.
enum Request {
    Reopen(PathBuf, SyncSender<io::Result<()>>),
    Flush(SyncSender<()>),
}

/// The sending end of a destination.
#[derive(Clone)]
pub(super) struct Lane {
    queue: Arc<Monitor<Queue>>,
}

#[derive(Default)]
struct Queue {
    lines: String,
    /// How many lines wait, those among them that are being written.
    count: usize,
    /// How many there was no room for, or that could not be written, since that was last told.
    dropped: u64,
    requests: Vec<Request>,
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
        let lane = Self { queue: Arc::default() };
        let own = lane.clone();
        std::thread::Builder::new().name(thread.to_owned()).spawn(move || own.run(sink))?;
        Ok(lane)
    }

    /// Queues a line; counts it where there is no room.
    pub(super) fn send(&self, line: &str) -> Sent {
        let mut queue = self.queue.lock();
        if queue.count < QUEUE_MAX {
            queue.count += 1;
            queue.lines.push_str(line);
            queue.notify();
            return Sent::Queued;
        }
        queue.dropped += 1;
        if queue.dropped == 1 { Sent::FirstDropped } else { Sent::Dropped }
    }

    /// Waits until what is queued now is written, at most `timeout`: a destination that is still stuck by then keeps its records.
    pub(super) fn flush(&self, timeout: Duration) {
        let _ = self.ask(Request::Flush, timeout);
    }

    /// Writes what is queued now where it belongs, and what comes after it to the file of this name; waits for that, at most
    /// `timeout`.
    pub(super) fn reopen(&self, path: PathBuf, timeout: Duration) -> io::Result<()> {
        self.ask(|done| Request::Reopen(path, done), timeout).unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
    }

    fn ask<T>(&self, request: impl FnOnce(SyncSender<T>) -> Request, timeout: Duration) -> Option<T> {
        let (done, answer) = sync_channel(1);
        let mut queue = self.queue.lock();
        queue.requests.push(request(done));
        // The thread may be waiting for company.
        queue.interrupt();
        answer.recv_timeout(timeout).ok()
    }

    fn run(&self, mut sink: impl Sink) {
        let mut lines = String::new();
        loop {
            lines.clear();
            lines.shrink_to(ROOM_KEPT);
            let mut queue = self.queue.lock();
            while queue.lines.is_empty() && queue.requests.is_empty() {
                queue = queue.wait(None);
            }
            std::mem::swap(&mut lines, &mut queue.lines);
            let taken = queue.count;
            let requests = std::mem::take(&mut queue.requests);
            drop(queue);
            let lost = if lines.is_empty() { 0 } else { sink.write_lines(&lines) };
            self.queue.lock().count -= taken;
            self.report_dropped(lost, &mut sink);
            for request in requests {
                match request {
                    Request::Reopen(path, done) => drop(done.send(sink.reopen(path))),
                    Request::Flush(done) => drop(done.send(())),
                }
            }
            self.queue.lock().pause_while(COMPANY, |queue| queue.requests.is_empty());
        }
    }

    /// Tells how many records are missing, once the destination works again.
    fn report_dropped(&self, lost: usize, sink: &mut impl Sink) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.dropped += lost as u64;
            if lost > 0 { 0 } else { std::mem::take(&mut queue.dropped) }
        };
        if dropped > 0 && sink.write_lines(&own_line(Level::Warn, &log_text!("log.dropped", count = dropped))) > 0 {
            self.queue.lock().dropped += dropped;
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
    fn write_lines(&mut self, lines: &str) -> usize {
        let text: Cow<str> =
            if self.is_journal { lines.split_inclusive('\n').map(without_time).collect() } else { lines.into() };
        if io::stderr().write_all(text.as_bytes()).is_ok() { 0 } else { count(lines.as_bytes()) }
    }
}

/// Whether standard error is the stream that `JOURNAL_STREAM` names by device and inode; where it is another one, somebody has
/// redirected it since (see systemd.exec(5)).
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    let own = FileIdentity::of_open(io::stderr()).ok().map(|identity| identity.to_string());
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
                self.close_to_others(&file);
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

    /// Keeps other users out of a file that was just opened, and tells that. A log that they can read is better than none.
    fn close_to_others(&self, mut file: &File) {
        let path = self.path.display();
        let text = match files::close_opened_to_others(file, &self.path, Audience::Group) {
            Ok(None) => return,
            Ok(Some(narrowed)) => {
                let (from, to) = (files::octal(narrowed.from), files::octal(narrowed.to));
                log_text!("log.closed_to_others", path = path, from = from, to = to)
            }
            Err(open) => log_text!("store.open_to_others", path = path, mode = files::octal(open.mode)),
        };
        let line = own_line(Level::Warn, &text);
        // Records that come after it tell of trouble with the file.
        let _ = file.write_all(line.as_bytes());
        if let Some(console) = &self.console {
            console.send(&line);
        }
    }

    /// Writes lines; how many bytes of them were written, and what came in the way of the others.
    fn write(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        // Nobody would ever read what is written to a file that was removed. One that was only renamed is logrotate's affair.
        if self.file.as_ref().is_some_and(is_removed) {
            self.file = None;
            self.torn = false;
        }
        if let Err(error) = self.open() {
            return (0, Err(error));
        }
        let Self { file: Some(file), torn, .. } = self else { return (0, Err(io::ErrorKind::NotFound.into())) };
        if *torn && let Err(error) = file.write_all(b"\n") {
            return (0, Err(error));
        }
        *torn = false;
        let mut written = 0;
        while written < lines.len() {
            match file.write(&lines[written..]) {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    *torn = written > 0 && lines[written - 1] != b'\n';
                    return (written, Err(error));
                }
            }
        }
        (written, Ok(()))
    }

    /// The record that tells what is wrong with the file.
    pub(super) fn complaint(&self, error: &io::Error) -> String {
        own_line(Level::Error, &log_text!("log.file_failed", path = self.path.display(), error = error))
    }
}

impl Sink for LogFile {
    fn write_lines(&mut self, lines: &str) -> usize {
        let (written, result) = self.write(lines.as_bytes());
        let was_in_trouble = std::mem::replace(&mut self.in_trouble, result.is_err());
        if let (Err(error), Some(console), false) = (&result, &self.console, was_in_trouble) {
            console.send(&self.complaint(error));
        }
        count(&lines.as_bytes()[written..])
    }

    /// The file that is open stays in use where the other cannot be opened.
    fn reopen(&mut self, path: PathBuf) -> io::Result<()> {
        let file = open(&path)?;
        *self = Self { file: Some(file), ..Self::new(path, self.console.take()) };
        if let Some(file) = &self.file {
            self.close_to_others(file);
        }
        Ok(())
    }
}

/// How many lines these are, the rest of one among them.
fn count(lines: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', lines).count()
}

fn is_removed(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0)
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        files::create_directory(directory)?;
    }
    OpenOptions::new().append(true).create(true).mode(Audience::Group.mode()).open(path)
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
        writes: Arc<Mutex<usize>>,
    }

    impl Sink for Gate {
        fn write_lines(&mut self, lines: &str) -> usize {
            let _open = self.open.lock().unwrap();
            self.lines.lock().unwrap().extend(lines.lines().map(str::to_owned));
            *self.writes.lock().unwrap() += 1;
            0
        }
    }

    #[test]
    fn a_stuck_destination_costs_records_and_says_how_many() {
        let gate = Gate::default();
        let stuck = gate.open.lock().unwrap();
        let lane = Lane::spawn("test", gate.clone()).unwrap();
        let sent = QUEUE_MAX + 100;
        for n in 0..sent {
            lane.send(&format!("{n}\n"));
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
    fn lines_that_come_together_are_written_together_and_in_their_order() {
        let gate = Gate::default();
        let lane = Lane::spawn("test", gate.clone()).unwrap();
        let sent: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        for line in &sent {
            assert_eq!(lane.send(&format!("{line}\n")), Sent::Queued);
        }
        lane.flush(Duration::from_secs(30));
        assert_eq!(*gate.lines.lock().unwrap(), sent);
        let writes = *gate.writes.lock().unwrap();
        assert!(writes < 500, "{writes}");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_tried_again_however_much_there_is_to_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs");
        std::fs::write(&path, "a file where a directory should be").unwrap();
        let gate = Gate::default();
        let console = Lane::spawn("test", gate.clone()).unwrap();
        let mut file = LogFile::new(path.join("x.log"), Some(console.clone()));
        assert_eq!(file.write_lines("one\n"), 1);
        std::fs::remove_file(&path).unwrap();
        let (first_failure, kind, cause) = file.open_failed.clone().unwrap();
        assert_eq!(file.write_lines("two\n"), 1, "not so soon");
        assert_eq!(file.open_failed.as_ref().unwrap().0, first_failure, "and the pause is not prolonged by trying");
        file.open_failed = Some((first_failure.checked_sub(REOPEN_PAUSE).unwrap(), kind, cause));
        assert_eq!(file.write_lines("three\n"), 0);
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
        lane.send("one\n");
        lane.flush(patience);
        std::fs::rename(&path, directory.path().join("x.log.1")).unwrap();
        lane.send("two\n");
        lane.reopen(path.clone(), patience).unwrap();
        lane.send("three\n");
        assert!(lane.reopen(path.join("in/a/file"), patience).is_err());
        lane.send("four\n");
        lane.flush(patience);
        assert_eq!((read("x.log.1"), read("x.log")), ("one\ntwo\n".to_owned(), "three\nfour\n".to_owned()));
    }

    #[test]
    fn a_file_that_is_removed_is_followed_by_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/x.log");
        let mut file = LogFile::new(path.clone(), None);
        assert_eq!(file.write_lines("one\n"), 0);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.write_lines("two\n"), 0);
        std::fs::remove_dir_all(directory.path().join("logs")).unwrap();
        assert_eq!(file.write_lines("three\n"), 0);
        assert_eq!(file.write_lines("four\n"), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\nfour\n");
    }

    #[test]
    fn a_full_disk_is_told_on_the_console() {
        let gate = Gate::default();
        let console = Lane::spawn("test", gate.clone()).unwrap();
        let mut file = LogFile::new("/dev/full".into(), Some(console.clone()));
        for _ in 0..3 {
            assert_eq!(file.write_lines("x\ny\n"), 2);
        }
        console.flush(Duration::from_secs(30));
        let lines = gate.lines.lock().unwrap();
        assert!(lines.len() == 1 && lines[0].contains("/dev/full"), "{lines:?}");
    }
}
