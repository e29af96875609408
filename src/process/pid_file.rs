//! The pid file: locked for as long as the service lives, and telling who holds it.
//!
//! The lock decides, the text only explains. The file is never unlinked: whoever had it open would lock a file that nobody else
//! can see, and two services would own "the" pid file. A clean end leaves it empty; a text in an unlocked file is that of a
//! service that died.
//!
//! The text is believed of a process that bears its mark. The lock (flock) belongs to an open file, which several processes share
//! during a handover and which outlives the one that locked it, so it names no process. The mark is a record lock (fcntl): it
//! belongs to one process, takes write access to the file, ends with the process, and the kernel tells its pid to everybody who
//! can open the file. Reading the descriptors in `/proc` instead fails where the service has a user namespace of its own or is not
//! dumpable, even for its own user. The service must not close any descriptor of its pid file: the kernel then drops the mark.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::OFlags;

use super::pidfd::{Process, Program, start_time};
use crate::domain::failure::{LocalizedError, OrFailure};
use crate::domain::language::{LocalizedText, localized};
use crate::files::FileIdentity;
use crate::files::{self, Audience};
use crate::logging::log_text;

/// How long a lock is tried for: someone who only looks holds it for a moment. And how long a text that does not fit is looked at
/// again: it may be about to change.
const TRIES: u32 = 20;
const TRY_PAUSE: Duration = Duration::from_millis(10);
/// The mark of a process is one byte, at its pid behind this offset: far behind any text, and within the 2 GiB of a 32-bit offset.
const MARKS_START: i32 = 1 << 30;
/// The type of lock that a mark is, and where its offset is counted from.
#[allow(clippy::cast_possible_truncation, reason = "0 to 2, of another type than the fields that they are for")]
const WRITE_LOCK: (libc::c_short, libc::c_short) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
/// A text longer than this is not ours.
const TEXT_BYTES_MAX: u64 = 4096;

/// What the pid file says of the running service.
///
/// The pid stands alone on the first line, so that other tools can read it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) pid: u32,
    /// When the process started, in clock ticks since the machine did: tells it from another one of the same pid.
    pub(crate) start_time: u64,
    /// Where it listens; not there while it is starting.
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) version: String,
    /// The same for all processes that take over from each other, another one after each fresh start.
    pub(crate) seat: String,
    /// The name of the socket that commands ask it over.
    pub(crate) control: Option<String>,
    /// The program that it runs: commands of another user, or beside a hardened service, cannot see that in `/proc`.
    pub(crate) program: Option<Program>,
    /// The systemd unit that owns it.
    pub(crate) unit: Option<String>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, start_time, version, seat, .. } = self;
        writeln!(f, "{pid}\nstart_time={start_time}\nversion={version}\nseat={seat}")?;
        if let Some(control) = &self.control {
            writeln!(f, "control={control}")?;
        }
        if let Some(program) = &self.program {
            writeln!(f, "program={program}")?;
        }
        if let Some(unit) = &self.unit {
            writeln!(f, "systemd={unit}")?;
        }
        if let Some(listen) = self.listen {
            writeln!(f, "listen={listen}")?;
        }
        Ok(())
    }
}

impl Record {
    /// What starts, stops or restarts it: systemd, where that owns it.
    pub(crate) fn command(&self, verb: &str) -> String {
        match &self.unit {
            Some(unit) => format!("systemctl {verb} {unit}"),
            None => format!("webhookctl {verb}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once('\n')?;
        // A text that is being written does not end in a line end yet; one that is being replaced by a shorter one has more
        // behind the address.
        let (rest, _) = rest.rsplit_once('\n')?;
        let end = rest.find("\nlisten=").and_then(|at| Some(at + 1 + rest[at + 1..].find('\n')?));
        let lines = &rest[..end.unwrap_or(rest.len())];
        let value = |key: &str| lines.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Some(Self {
            pid: pid.parse().ok()?,
            start_time: value("start_time")?.parse().ok()?,
            listen: value("listen").map(str::parse).transpose().ok()?,
            version: value("version")?.to_owned(),
            seat: value("seat").unwrap_or_default().to_owned(),
            control: value("control").map(str::to_owned),
            program: value("program").and_then(|program| program.parse().ok()),
            unit: value("systemd").map(str::to_owned),
        })
    }
}

/// The pid file, locked for as long as one of those that share the lock has it.
pub(crate) struct PidFile {
    file: File,
}

/// Why the pid file could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("locked")]
    Held,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl PidFile {
    /// Creates the file where there is none, with its directory, and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Self, LockError> {
        if let Some(directory) = path.parent() {
            files::create_directory(directory)?;
        }
        // Who may read it may lock it, and so keep the service from starting.
        let mode = Audience::Group.mode();
        let file = open(path, OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode))?;
        // A failure leaves the file to its owner.
        let _ = files::close_opened_to_others(&file, path, Audience::Group);
        for _ in 0..TRIES {
            match file.try_lock() {
                Ok(()) => return Ok(Self { file }),
                Err(TryLockError::WouldBlock) => std::thread::sleep(TRY_PAUSE),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        Err(LockError::Held)
    }

    /// Shares the file that another process has locked.
    pub(crate) fn inherit(locked: OwnedFd) -> Self {
        Self { file: locked.into() }
    }

    /// Says that this process has it. Where that fails, such as on a full disk, some of the old text may be lost, but never all.
    pub(crate) fn write(&mut self, record: &Record) -> io::Result<()> {
        // Before the text: from the moment that it names us, it has to be believed.
        if let Err(error) = self.mark() {
            log::warn!("{}", log_text!("log.pid_file_unmarked", error = error));
        }
        let text = record.to_string();
        // In one call, so that a reader sees all of it or nothing.
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }

    /// Says that nobody runs any more. The lock stays until the process ends.
    pub(crate) fn clear(&mut self) {
        // What stays is taken for a death; nothing worse.
        let _ = self.file.set_len(0);
    }

    /// Marks this process as one of those that the file may tell of; does nothing where it is marked.
    pub(crate) fn mark(&self) -> io::Result<()> {
        fcntl(&self.file, FcntlArg::F_SETLK(&mark_of(std::process::id())))?;
        Ok(())
    }

    /// Whether it says this.
    pub(crate) fn says(&self, record: &Record) -> bool {
        read(&self.file).is_ok_and(|text| text == record.to_string())
    }

    /// Whether it is still the one that others find there.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let own = FileIdentity::of_open(&self.file);
        own.is_ok_and(|own| FileIdentity::at(path).is_ok_and(|there| there == own))
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn mark_of(pid: u32) -> libc::flock {
    let (l_type, l_whence) = WRITE_LOCK;
    libc::flock { l_type, l_whence, l_start: (MARKS_START | pid.cast_signed()).into(), l_len: 1, l_pid: 0 }
}

/// Whether this process has marked itself in the file; it may end at any time.
fn has_marked(process: &Process, file: &File) -> bool {
    let mut lock = mark_of(process.pid());
    let answer = fcntl(file, FcntlArg::F_GETLK(&mut lock));
    // Whoever may only read the file can only have a lock for reading.
    answer.is_ok() && lock.l_type == WRITE_LOCK.0 && u32::try_from(lock.l_pid) == Ok(process.pid())
}

/// Whether this process is the service that the locked file tells of.
fn is_service(process: &Process, file: &File, record: &Record) -> io::Result<bool> {
    let started = start_time(record.pid);
    let is_it = if has_marked(process, file) {
        // An earlier process with this pid has left the text, and the marked one is about to write its own. Where start times are
        // hidden, nothing tells the two apart; still, only the service is marked.
        started.is_none_or(|started| started == record.start_time)
    } else {
        // An older version, or a file system without record locks.
        started == Some(record.start_time) && process.has_open(file)?
    };
    // Last: what was found out about the pid was found out about this process.
    Ok(is_it && !process.has_ended()?)
}

/// Opens a regular file; a named pipe would make us wait for somebody at its other end.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// What a look at the pid file found.
pub(crate) enum Found {
    /// Nobody runs, and the last end was a clean one.
    Nothing,
    /// Nobody runs; this is what someone who died has left.
    Left(Record),
    /// Nobody runs; the text is not ours.
    LeftGarbage(String),
    /// The service runs.
    Running(Record, Process),
    /// Somebody holds the lock, and the text does not tell who.
    Unknown(Riddle),
}

/// A locked file with a text that does not fit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Riddle {
    Empty,
    Garbage(String),
    /// The process that it names has ended, was never there, or is not the one that holds it.
    NoSuchProcess(Record),
}

impl Riddle {
    /// What was found, and what to do.
    pub(crate) fn explain(&self, pid_file: &Path) -> anyhow::Error {
        LocalizedError::from(self.explanation(pid_file)).into()
    }

    /// What was found, and what to do, for somebody who only looks.
    pub(crate) fn explanation(&self, pid_file: &Path) -> LocalizedText {
        let path = pid_file.display();
        match self {
            Self::Empty => localized!("manager.riddle_empty", path = path),
            Self::Garbage(text) => localized!("manager.riddle_garbage", path = path, text = text),
            Self::NoSuchProcess(record) => localized!("manager.riddle_no_process", path = path, pid = record.pid),
        }
    }
}

/// Looks whether the service runs, and who it is. Changes nothing, and signals nobody.
pub(crate) fn look(path: &Path) -> anyhow::Result<Found> {
    try_look(path).or_failure(|| localized!("log.pid_file_failed", path = path.display()))
}

fn try_look(path: &Path) -> io::Result<Found> {
    let mut riddle = Riddle::Empty;
    for _ in 0..TRIES {
        // Opened anew each time: a file that is not there yet may come.
        let file = match open(path, OpenOptions::new().read(true)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        match file.try_lock_shared() {
            Ok(()) => return Ok(left(&read(&file)?)),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {}
        }
        let text = read(&file)?;
        riddle = match Record::parse(&text) {
            None if text.trim().is_empty() => Riddle::Empty,
            None => Riddle::Garbage(beginning(&text)),
            Some(record) => match Process::open(record.pid)? {
                // The text alone proves nothing, and must not have changed before the process was held.
                Some(process) if is_service(&process, &file, &record)? && read(&file)? == text => {
                    return Ok(Found::Running(record, process));
                }
                _ => Riddle::NoSuchProcess(record),
            },
        };
        std::thread::sleep(TRY_PAUSE);
    }
    Ok(Found::Unknown(riddle))
}

fn left(text: &str) -> Found {
    match Record::parse(text) {
        Some(record) => Found::Left(record),
        None if text.trim().is_empty() => Found::Nothing,
        None => Found::LeftGarbage(beginning(text)),
    }
}

fn read(mut file: &File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(TEXT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Enough of a text to recognize it by.
fn beginning(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::pidfd::start_time;
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/x.pid");
        (directory, path)
    }

    fn own() -> Record {
        let pid = std::process::id();
        let start_time = start_time(pid).unwrap();
        let (version, seat) = ("1".into(), "a".into());
        Record { pid, start_time, listen: None, version, seat, control: None, program: None, unit: None }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for (listen, unit) in [(None, None), (Some("[::1]:5002"), Some("webhookctl.service"))] {
            let listen = listen.map(|listen| listen.parse().unwrap());
            let (control, program) = (unit.map(|_| "x".into()), unit.and_then(|_| Program::of_own()));
            let record = Record { listen, control, program, unit: unit.map(str::to_owned), ..own() };
            let text = record.to_string();
            assert_eq!(text.lines().next().unwrap().parse(), Ok(std::process::id()));
            assert_eq!(Record::parse(&text), Some(record.clone()));
            let longer = Record { listen: Some("203.0.113.255:65535".parse().unwrap()), ..record.clone() }.to_string();
            if listen.is_some() {
                let replaced = text.clone() + &longer[text.len()..];
                assert_eq!(Record::parse(&replaced), Some(record), "what is left of a longer one does not count");
            }
            // Cut off anywhere, it is never taken for another one.
            for end in 0..text.len() {
                let cut = Record::parse(&text[..end]);
                assert!(cut.is_none_or(|cut| cut.pid == std::process::id() && cut.listen.is_none()), "{end}");
            }
        }
    }

    #[test]
    fn the_file_tells_who_holds_it() {
        let (_directory, path) = file();
        assert!(matches!(look(&path).unwrap(), Found::Nothing), "no file");
        let mut lock = PidFile::lock(&path).unwrap();
        assert!(matches!(PidFile::lock(&path), Err(LockError::Held)));
        assert!(matches!(look(&path).unwrap(), Found::Unknown(Riddle::Empty)), "nothing written yet");
        let record = own();
        lock.write(&record).unwrap();
        let Found::Running(found, process) = look(&path).unwrap() else { panic!("not running") };
        assert_eq!((found, process.pid()), (record, std::process::id()));
        assert!(lock.is_at(&path));
        lock.clear();
        drop(lock);
        assert!(matches!(look(&path).unwrap(), Found::Nothing), "a clean end");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "", "and the file stays");
    }

    #[test]
    fn the_lock_is_held_until_the_last_who_shares_it_has_gone() {
        let (_directory, path) = file();
        let mut old = PidFile::lock(&path).unwrap();
        old.write(&own()).unwrap();
        let share = |old: &PidFile| PidFile::inherit(old.as_fd().try_clone_to_owned().unwrap());
        drop(share(&old));
        assert!(matches!(look(&path).unwrap(), Found::Running(..)), "who went away again has changed nothing");
        let mut new = share(&old);
        drop(old);
        assert!(matches!(look(&path).unwrap(), Found::Running(..)));
        new.clear();
        drop(new);
        assert!(matches!(look(&path).unwrap(), Found::Nothing));
    }

    #[test]
    fn a_process_that_does_not_have_the_file_open_is_a_stranger() {
        let (_directory, path) = file();
        let mut stranger = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = stranger.id();
        let mut held = PidFile::lock(&path).unwrap();
        let record = Record { pid, start_time: start_time(pid).unwrap(), ..own() };
        held.write(&record).unwrap();
        assert!(matches!(look(&path).unwrap(), Found::Unknown(Riddle::NoSuchProcess(_))));
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn what_others_left_is_told_and_not_believed() {
        let (_directory, path) = file();
        drop(PidFile::lock(&path).unwrap());
        let recycled = Record { start_time: 1, ..own() };
        for (text, locked) in [(recycled.to_string(), true), ("12345".into(), true), (recycled.to_string(), false)] {
            std::fs::write(&path, &text).unwrap();
            let stranger = File::open(&path).unwrap();
            if locked {
                stranger.lock().unwrap();
            }
            let found = look(&path).unwrap();
            match (locked, found) {
                (true, Found::Unknown(Riddle::NoSuchProcess(record))) | (false, Found::Left(record)) => {
                    assert_eq!(record, recycled);
                }
                (true, Found::Unknown(Riddle::Garbage(beginning))) => assert_eq!(beginning, "12345"),
                _ => panic!("{text} {locked}"),
            }
        }
        std::fs::write(&path, "\u{fffd} nonsense").unwrap();
        assert!(matches!(look(&path).unwrap(), Found::LeftGarbage(_)));
    }
}
