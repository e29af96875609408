//! Starting a service as a daemon, beside nobody or in the place of one that runs.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rust_i18n::t;

use super::control::{Answer, Connection, Request};
use super::daemon::Daemon;
use super::log_end::LogEnd;
use super::pid_file::{Found, Record, Riddle, look};
use super::process::{Process, start_time};
use super::readiness::{self, Heard, Word};

/// How long a service that did not become ready has to end before it is killed.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(3);

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
    Ready { pid: u32, listen: SocketAddr },
    /// It was there already, and answers.
    Already { pid: u32, listen: SocketAddr },
}

/// Why there is no new service.
#[derive(Debug)]
pub(crate) struct NotStarted {
    /// What the service itself would exit with.
    pub(crate) exit: u8,
    /// Why, in its own words.
    pub(crate) cause: String,
    /// The last that it logged.
    pub(crate) log: Vec<String>,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        self.log.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl std::error::Error for NotStarted {}

impl Start<'_> {
    /// Starts the service unless it runs, and waits until it answers or has failed.
    pub(crate) fn start(&self) -> anyhow::Result<Started> {
        match look(self.pid_file)? {
            Found::Nothing | Found::Left(_) | Found::LeftGarbage(_) => self.launch(&["--daemon"]),
            Found::Running(record, _) => self.wait_for(&record),
            // Locked a moment ago by a start that has not told its name yet, or by a stranger.
            Found::Unknown(riddle) => Err(unknown(self.pid_file, &riddle)),
        }
    }

    /// Starts another service, which takes over from the one that runs. Where it fails, that one goes on.
    pub(crate) fn take_over(&self, running: &Process) -> anyhow::Result<Started> {
        if running.uid()? != rustix::process::geteuid().as_raw() {
            // As another user it would leave files behind that the next start as the right user cannot open.
            return Err(io::Error::from(io::ErrorKind::PermissionDenied))
                .with_context(|| t!("manager.other_user", pid = running.pid()).into_owned());
        }
        self.launch(&["--daemon", "--take-over"])
    }

    fn launch(&self, flags: &[&str]) -> anyhow::Result<Started> {
        let deadline = Instant::now() + self.timeout;
        let log_end = LogEnd::of(self.log_file);
        let pipe = self.daemon(flags)?.start()?;
        let failed = |exit, cause: String| NotStarted { exit, cause, log: log_end.lines_since() }.into();
        match readiness::listen(pipe, self.timeout)? {
            Heard::Word(Word::Ready { pid, listen }) => Ok(Started::Ready { pid, listen }),
            Heard::Word(Word::Failed { cause, exit }) => Err(failed(exit, cause)),
            // Another start was quicker: it is as good as ours, if it comes to something.
            Heard::Word(_) => match look(self.pid_file)? {
                Found::Running(record, _) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    Start { timeout: left, ..*self }.wait_for(&record)
                }
                Found::Unknown(riddle) => Err(unknown(self.pid_file, &riddle)),
                _ => Err(failed(1, t!("manager.other_start_failed").into())),
            },
            Heard::Died(noise) if noise.is_empty() => Err(failed(1, t!("manager.died").into())),
            Heard::Died(noise) => Err(failed(1, t!("manager.died_saying", noise = noise).into())),
            Heard::TimedOut(pid) => {
                if let Some(pid) = pid {
                    give_up(pid)?;
                }
                Err(failed(1, t!("manager.start_timeout", seconds = self.timeout.as_secs_f32()).into()))
            }
        }
    }

    /// Waits until a service that somebody else has started is ready.
    fn wait_for(&self, record: &Record) -> anyhow::Result<Started> {
        let pid = record.pid;
        if let Some(listen) = record.listen {
            return Ok(Started::Already { pid, listen });
        }
        let answer = Connection::open(self.pid_file, pid, self.timeout.max(Duration::from_millis(1)))
            .and_then(|mut connection| connection.ask(Request::Wait));
        match answer {
            Ok(Answer::Ready { listen }) => Ok(Started::Already { pid, listen }),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                anyhow::bail!(
                    t!("manager.other_start_slow", pid = pid, seconds = self.timeout.as_secs_f32()).into_owned()
                )
            }
            _ => anyhow::bail!(t!("manager.other_start_failed").into_owned()),
        }
    }

    fn daemon(&self, flags: &[&str]) -> io::Result<Daemon> {
        let mut arguments = Vec::new();
        if let Some(file) = self.config_file {
            arguments.extend(["--config".into(), file.into()]);
        }
        arguments.push("serve".into());
        arguments.extend(flags.iter().map(Into::into));
        // A file system that the daemon works in cannot be unmounted, so it works in one only where it has to.
        let directory = if self.config_file.is_some() { PathBuf::from("/") } else { std::env::current_dir()? };
        Ok(Daemon { program: std::env::current_exe()?, arguments, directory })
    }
}

/// Ends a service that we have started and that does not become ready.
fn give_up(pid: u32) -> io::Result<()> {
    // Its pipe was open a moment ago, so it is the process of this pid.
    let Some(process) = start_time(pid).map(|started| Process::find(pid, started)).transpose()?.flatten() else {
        return Ok(());
    };
    process.terminate()?;
    if !process.wait(GIVE_UP_TIMEOUT)? {
        process.kill()?;
    }
    Ok(())
}

/// Somebody holds the pid file, and it does not tell who.
pub(crate) fn unknown(pid_file: &Path, riddle: &Riddle) -> anyhow::Error {
    let path = pid_file.display();
    let text = match riddle {
        Riddle::Empty => t!("manager.riddle_empty", path = path),
        Riddle::Garbage(text) => t!("manager.riddle_garbage", path = path, text = text),
        Riddle::NoSuchProcess(record) => t!("manager.riddle_no_process", path = path, pid = record.pid),
    };
    anyhow::anyhow!(text.into_owned())
}
