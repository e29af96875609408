//! Starting a service as a daemon, beside nobody or in the place of one that runs.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::control::{Answer, Request, ask};
use super::daemon::Daemon;
use super::log_end::LogEnd;
use super::pid_file::{Found, Record, Riddle, look};
use super::pidfd::Process;
use super::readiness::{self, Heard, Word};
use super::systemd;
use crate::domain::failure::{OrFailure, failure};
use crate::domain::language::{Language, Localized, LocalizedText, localized};

/// How long a service that did not become ready has to end before it is killed.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take until a process that has the lock has told its name.
const RIDDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a service that is not ready is waited for before the pid file is looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// What is started, and how.
pub(crate) struct Start<'a> {
    /// The configuration file; `None` for the defaults, which are relative to the working directory.
    pub(crate) config_file: Option<&'a Path>,
    pub(crate) pid_file: &'a Path,
    pub(crate) log_file: &'a Path,
    /// How long it may take.
    pub(crate) timeout: Duration,
}

/// How a start went well.
#[derive(Debug)]
pub(crate) enum Started {
    /// It answers.
    Ready {
        pid: u32,
        listen: SocketAddr,
        /// Whom it took over from.
        replaced: Option<u32>,
        /// What it said meanwhile, such as that it cannot write its log.
        noise: String,
    },
    /// It was there already, and answers.
    Already { pid: u32, listen: SocketAddr },
}

/// Why there is no new service.
#[derive(Debug)]
pub(crate) struct NotStarted {
    /// What the service itself would exit with.
    pub(crate) exit: u8,
    /// Why; the service itself says so in its own language.
    pub(crate) cause: LocalizedText,
    /// The last that it logged.
    pub(crate) log: Vec<String>,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not_started: {}", self.cause)?;
        self.log.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for NotStarted {}

impl Localized for NotStarted {
    fn text(&self, language: Language) -> String {
        let lines = self.log.iter().map(|line| format!("\n  {line}"));
        std::iter::once(self.cause.text(language)).chain(lines).collect()
    }
}

/// Another service is there, or starting.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Already(pub(crate) LocalizedText);

impl Localized for Already {
    fn text(&self, language: Language) -> String {
        self.0.text(language)
    }
}

impl Start<'_> {
    /// Starts the service unless it runs, and waits until it answers or has failed.
    pub(crate) fn start(&self) -> anyhow::Result<Started> {
        let begun = Instant::now();
        let left = || self.timeout.saturating_sub(begun.elapsed());
        loop {
            let (record, process) = match look(self.pid_file)? {
                // A daemon beside it would have the lock, and systemd would try again and again in vain.
                Found::Left(Record { unit: Some(unit), .. }) if systemd::is_starting(&unit) => {
                    return Err(failure!("manager.owned_by_systemd", unit = unit, verb = "start"));
                }
                Found::Nothing | Found::Left(_) | Found::LeftGarbage(_) => {
                    match self.launch(&[], left())? {
                        Some(started) => return Ok(started),
                        None if left().is_zero() => return Err(failure!("manager.other_start_failed")),
                        // Another start was quicker: it is as good as ours, if it comes to something.
                        None => continue,
                    }
                }
                // Another process is about to write its name, or to end.
                Found::Unknown(Riddle::Empty | Riddle::NoSuchProcess(_))
                    if begun.elapsed() < RIDDLE_TIMEOUT && !left().is_zero() =>
                {
                    continue;
                }
                Found::Unknown(riddle) => return Err(riddle.explain(self.pid_file)),
                Found::Running(record, process) => (record, process),
            };
            let pid = record.pid;
            let answer = ask(&record, &process, left(), Request::Wait);
            match (answer, record.listen) {
                (Ok(Answer::Ready { listen }), _) => return Ok(Started::Already { pid, listen }),
                // It has no socket to be asked over.
                (Err(error), Some(listen)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(Started::Already { pid, listen });
                }
                _ => {}
            }
            // It is about to end, or another one has taken over: then the place is free, or the file tells of that one.
            if !process.wait(left().min(LOOK_AGAIN_AFTER))? && left().is_zero() {
                return Err(failure!("manager.in_the_way", pid = pid, seconds = self.timeout.as_secs_f32()));
            }
        }
    }

    /// Starts another service, which takes over from the one that runs. Where it fails, that one goes on.
    pub(crate) fn take_over(&self, running: &Process) -> anyhow::Result<Started> {
        if !running.is_own() {
            // As another user it would leave files behind that the next start as the right user cannot open.
            return Err(io::Error::from(io::ErrorKind::PermissionDenied))
                .or_failure(|| localized!("manager.other_user", pid = running.pid()));
        }
        self.launch(&["--take-over"], self.timeout)?.ok_or_else(|| failure!("manager.gone_meanwhile"))
    }

    /// Starts a process and hears what becomes of it; `None` where there was another one.
    fn launch(&self, flags: &[&str], timeout: Duration) -> anyhow::Result<Option<Started>> {
        let log_end = LogEnd::of(self.log_file);
        let (pipe, trouble) = self.daemon(flags, timeout)?.start()?;
        let takes_over = !flags.is_empty();
        let failed = |exit, cause| {
            // What is logged during a takeover is another one's for the most part.
            let log = if takes_over { Vec::new() } else { log_end.lines_since() };
            Err(NotStarted { exit, cause, log }.into())
        };
        // The service itself knows when its time is over; it is not waited for if it cannot even tell.
        match readiness::listen(pipe, timeout + GIVE_UP_TIMEOUT)? {
            Heard::Word(Word::Ready { pid, listen, replaced }, noise) => {
                Ok(Some(Started::Ready { pid, listen, replaced, noise }))
            }
            Heard::Word(Word::Failed { cause, exit }, _) => failed(exit, LocalizedText::verbatim("failed", &cause)),
            Heard::Word(Word::Running | Word::Begun(_), _) => Ok(None),
            Heard::Died(noise) => {
                let said: Vec<_> = [noise, trouble.map(|error| error.to_string()).unwrap_or_default()].into();
                let said = said.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n");
                let text = if said.is_empty() {
                    localized!("manager.died")
                } else {
                    localized!("manager.died_saying", noise = said)
                };
                failed(1, text)
            }
            Heard::TimedOut(pid) => {
                if let Some(pid) = pid {
                    // At the last moment it may have come to be the service.
                    if let Found::Running(Record { pid: running, listen: Some(listen), .. }, _) = look(self.pid_file)?
                        && running == pid
                    {
                        return Ok(Some(Started::Ready { pid, listen, replaced: None, noise: String::new() }));
                    }
                    give_up(pid)?;
                }
                failed(1, localized!("manager.start_timeout", seconds = timeout.as_secs_f32()))
            }
        }
    }

    fn daemon(&self, flags: &[&str], timeout: Duration) -> io::Result<Daemon> {
        let mut arguments = Vec::new();
        if let Some(file) = self.config_file {
            arguments.extend(["--config".into(), file.into()]);
        }
        let ready_within = timeout.as_secs_f64().to_string();
        arguments.extend(["serve", "--daemon", "--ready-within", &ready_within].map(Into::into));
        arguments.extend(flags.iter().map(Into::into));
        // A file system that the daemon works in cannot be unmounted, so it works in one only where it has to.
        let directory = if self.config_file.is_some() { PathBuf::from("/") } else { std::env::current_dir()? };
        Ok(Daemon { program: std::env::current_exe()?, arguments, directory })
    }
}

/// Ends a service that we have started and that does not become ready.
fn give_up(pid: u32) -> io::Result<()> {
    // Its pipe was open a moment ago, so it is the process of this pid.
    let Some(process) = Process::open(pid)? else { return Ok(()) };
    process.terminate()?;
    if !process.wait(GIVE_UP_TIMEOUT)? {
        process.kill()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_works_where_its_paths_need_it_to_and_else_nowhere() {
        let file = Path::new("/etc/x.toml");
        for (config_file, directory) in [(None, std::env::current_dir().unwrap()), (Some(file), "/".into())] {
            let start = Start { config_file, pid_file: file, log_file: file, timeout: Duration::from_secs(1) };
            let daemon = start.daemon(&["--take-over"], start.timeout).unwrap();
            assert_eq!(daemon.directory, directory);
            assert_eq!(config_file.is_some(), daemon.arguments.contains(&"--config".into()));
            assert_eq!(daemon.arguments.last().unwrap(), "--take-over");
        }
    }
}
