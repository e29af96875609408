//! Another process, held by a pidfd: once it is found, its pid cannot come to mean a stranger.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use procfs::ProcResult;
use procfs::process::Process as Proc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

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
    /// Whether its program has been replaced or removed on disk since it started.
    pub(crate) is_program_replaced: bool,
}

impl Process {
    /// The process of this pid, if it is there and started at this time; [`start_time`] has the unit.
    pub(crate) fn find(pid: u32, started: u64) -> io::Result<Option<Self>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // After the pidfd is there: from here on it cannot become another one.
        Ok((start_time(pid) == Some(started)).then_some(Self { pid, pidfd }))
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

    /// Whether it has this file open. Where we may not know, we may not do anything to it either, and it is taken for granted.
    pub(crate) fn has_open(&self, file: &File) -> io::Result<bool> {
        let wanted = file_id(&file.metadata()?);
        match std::fs::read_dir(format!("/proc/{}/fd", self.pid)) {
            Ok(descriptors) => {
                Ok(descriptors.flatten().any(|fd| fd.path().metadata().is_ok_and(|open| file_id(&open) == wanted)))
            }
            Err(error) => Ok(error.kind() == io::ErrorKind::PermissionDenied),
        }
    }

    /// Whose it is.
    pub(crate) fn uid(&self) -> io::Result<u32> {
        from_proc(Proc::new(self.raw()).and_then(|process| process.uid()))
    }

    pub(crate) fn vitals(&self) -> io::Result<Vitals> {
        let read = || {
            let process = Proc::new(self.raw())?;
            let now_s = procfs::Current::current().map(|uptime: procfs::Uptime| uptime.uptime)?;
            let stat = process.stat()?;
            #[allow(clippy::cast_precision_loss, reason = "a machine runs for less than 2^52 ticks")]
            let started_s = stat.starttime as f64 / procfs::ticks_per_second() as f64;
            let program = process.exe().unwrap_or_default();
            Ok(Vitals {
                uptime: Duration::try_from_secs_f64(now_s - started_s).unwrap_or_default(),
                memory_bytes: stat.rss * procfs::page_size(),
                is_program_replaced: program.to_string_lossy().ends_with(" (deleted)"),
            })
        };
        from_proc(read())
    }

    fn raw(&self) -> i32 {
        self.pid.cast_signed()
    }
}

/// What a file is, whatever it is called.
pub(super) fn file_id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
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

/// When a process started, in clock ticks since the machine did: with the pid, the name of one process for good.
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
    fn a_recycled_pid_is_not_the_same_process() {
        let own = std::process::id();
        let started = start_time(own).unwrap();
        assert!(Process::find(own, started).unwrap().is_some());
        assert!(Process::find(own, started + 1).unwrap().is_none());
        assert!(Process::find(0, 0).unwrap().is_none());
        assert!(Process::find(u32::MAX, 0).unwrap().is_none());
    }

    #[test]
    fn an_ended_process_is_noticed_before_anyone_waits_for_it() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::find(child.id(), start_time(child.id()).unwrap()).unwrap().unwrap();
        assert!(!process.wait(Duration::ZERO).unwrap());
        process.kill().unwrap();
        assert!(process.wait(Duration::from_secs(30)).unwrap());
        assert_eq!(start_time(child.id()), None);
        child.wait().unwrap();
    }
}
