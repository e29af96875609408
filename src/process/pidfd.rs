//! Another process, held by a pidfd: once it is found, its pid cannot come to mean a stranger.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use procfs::ProcResult;
use procfs::process::Process as Proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal, test_kill_process};

use crate::files::FileIdentity;

/// A process that was running when it was looked for.
pub(crate) struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

/// What `/proc` tells of a process, as far as we may read it.
#[derive(Debug)]
pub(crate) struct Vitals {
    /// How long it has been running.
    pub(crate) uptime: Duration,
    /// The memory that it has in use, in bytes.
    pub(crate) memory_bytes: u64,
}

/// The file that a process runs: by what it is, another one at its path can be told from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    path: PathBuf,
    identity: FileIdentity,
}

impl Program {
    /// Ours; `None` where its path cannot be told in one line.
    pub(crate) fn of_own() -> Option<Self> {
        let path = std::env::current_exe().ok()?;
        let identity = FileIdentity::at(Path::new("/proc/self/exe")).ok()?;
        path.to_str().is_some_and(|path| !path.contains('\n')).then_some(Self { path, identity })
    }

    /// Whether it has been replaced or removed.
    pub(crate) fn is_replaced(&self) -> bool {
        match FileIdentity::at(&self.path) {
            Ok(there) => there != self.identity,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.identity, self.path.display())
    }
}

impl FromStr for Program {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (path_at, _) = text.match_indices(':').nth(1).ok_or(())?;
        Ok(Self { path: text[path_at + 1..].into(), identity: text[..path_at].parse()? })
    }
}

impl Process {
    /// The process that has this pid now, if there is one.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some(Self { pid, pidfd })),
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended. As long as it has not, its pid means this process and no other.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        self.wait(Duration::ZERO)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Ends it, whatever it is doing.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            // It has ended by itself: what was wanted.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Waits for its end, at most `timeout`; whether it has ended.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        Ok(is_readable(&self.pidfd, timeout)?)
    }

    /// Whether it has this file open, as far as we may see: its descriptors are hidden where it is not dumpable, or in a user
    /// namespace of another user.
    pub(crate) fn has_open(&self, file: &File) -> io::Result<bool> {
        let wanted = FileIdentity::of_open(file)?;
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        let mut files = descriptors.filter_map(|descriptor| FileIdentity::at(&descriptor.path()).ok());
        Ok(files.any(|open| open == wanted))
    }

    /// The user whose rights it has. Not the owner of its `/proc` directory, which is root where it is not dumpable.
    pub(crate) fn uid(&self) -> io::Result<u32> {
        from_proc(Proc::new(self.raw()).and_then(|process| process.status()).map(|status| status.euid))
    }

    /// Whether it has our own user's rights.
    pub(crate) fn is_own(&self) -> bool {
        match self.uid() {
            Ok(uid) => uid == geteuid().as_raw(),
            // Hidden (`hidepid`), which nothing is from root; and nobody else may signal another user's process.
            Err(_) => Pid::from_raw(self.raw()).is_some_and(|pid| test_kill_process(pid).is_ok()),
        }
    }

    pub(crate) fn vitals(&self) -> io::Result<Vitals> {
        let read = || {
            let process = Proc::new(self.raw())?;
            let now_s = procfs::Current::current().map(|uptime: procfs::Uptime| uptime.uptime)?;
            let stat = process.stat()?;
            #[allow(clippy::cast_precision_loss, reason = "a machine runs for less than 2^52 ticks")]
            let started_s = stat.starttime as f64 / procfs::ticks_per_second() as f64;
            Ok(Vitals {
                uptime: Duration::try_from_secs_f64(now_s - started_s).unwrap_or_default(),
                memory_bytes: stat.rss * procfs::page_size(),
            })
        };
        from_proc(read())
    }

    fn raw(&self) -> i32 {
        self.pid.cast_signed()
    }
}

/// Waits until there is something to read, or whoever writes has gone; false after `timeout`.
pub(super) fn is_readable(descriptor: &OwnedFd, timeout: Duration) -> rustix::io::Result<bool> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let left =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// When a process started, in clock ticks since the machine did: with the pid, the name of one process for good. `None` where it
/// has ended, or is hidden from us (`hidepid`).
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = Proc::new(pid.try_into().ok()?).ok()?.stat().ok()?;
    // A dead process that nobody has waited for is no process any more.
    (stat.state != 'Z').then_some(stat.starttime)
}

/// A process as a person would name it.
pub(crate) fn command_line(pid: u32) -> Option<String> {
    let words = Proc::new(pid.try_into().ok()?).ok()?.cmdline().ok()?;
    Some(words.join(" ")).filter(|line| !line.is_empty())
}

/// The systemd service whose control group a process is in.
pub(crate) fn systemd_unit_of_own() -> Option<String> {
    let groups = Proc::myself().ok()?.cgroups().ok()?;
    let name = |path: &str| Some(PathBuf::from(path).file_name()?.to_str()?.to_owned());
    groups.0.iter().find_map(|group| name(&group.pathname).filter(|name| name.ends_with(".service")))
}

fn from_proc<T>(result: ProcResult<T>) -> io::Result<T> {
    result.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_of_no_process_opens_nothing() {
        assert!(Process::open(std::process::id()).unwrap().is_some());
        assert!(Process::open(0).unwrap().is_none());
        assert!(Process::open(u32::MAX).unwrap().is_none());
    }

    #[test]
    fn a_process_has_the_user_that_it_runs_as() {
        let own = Process::open(std::process::id()).unwrap().unwrap();
        assert_eq!(own.uid().unwrap(), geteuid().as_raw());
        assert!(own.is_own());
        let first = Process::open(1).unwrap().unwrap();
        assert_eq!(first.is_own(), first.uid().unwrap() == geteuid().as_raw());
    }

    #[test]
    fn a_program_is_replaced_when_its_path_names_another_file_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let (path, new) = (directory.path().join("a b:c"), directory.path().join("new"));
        std::fs::write(&path, "old").unwrap();
        let program = Program { identity: FileIdentity::at(&path).unwrap(), path: path.clone() };
        assert_eq!(program.to_string().parse(), Ok(program.clone()));
        assert!(!program.is_replaced());
        std::fs::write(&new, "new").unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert!(program.is_replaced());
        std::fs::remove_file(&path).unwrap();
        assert!(program.is_replaced());
        assert!(!Program::of_own().unwrap().is_replaced());
        for text in ["", "1:2", "x:2:/bin/true"] {
            assert_eq!(text.parse::<Program>(), Err(()), "{text}");
        }
    }

    #[test]
    fn an_ended_process_is_noticed_before_anyone_waits_for_it() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap().unwrap();
        assert!(!process.has_ended().unwrap());
        process.kill().unwrap();
        assert!(process.wait(Duration::from_secs(30)).unwrap());
        assert_eq!(start_time(child.id()), None);
        child.wait().unwrap();
    }
}
