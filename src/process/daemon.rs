//! The one place that makes a daemon.
//!
//! `daemonize` forks twice, so that the daemon has no terminal and cannot get one, and sets its umask and directory. What it forks
//! goes on with `exec` at once: nothing of this process is carried on, neither threads nor descriptors.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use daemonize::{Daemonize, Outcome};
use nix::sys::stat::{Mode, umask};

use super::readiness::Word;

/// Files that the service creates are for its user and group.
const UMASK: Mode = Mode::from_bits_truncate(0o027);
/// What belongs to the process that we were started in, not to a daemon of its own.
const VARIABLES_OF_A_SUPERVISOR: &[&str] = &[
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// What to run as a daemon.
pub(super) struct Daemon {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<std::ffi::OsString>,
    /// Where it works: what its relative paths start at.
    pub(super) directory: PathBuf,
}

impl Daemon {
    /// Starts it; what it says on standard output and standard error comes through the pipe. Where it cannot be started, the
    /// pipe ends at once, and the error may say why; an error alone does not mean that.
    pub(super) fn start(self) -> io::Result<(PipeReader, Option<io::Error>)> {
        let (reader, writer) = io::pipe()?;
        // What is left in a buffer would be printed by both processes.
        io::stdout().flush()?;
        // Nor may it loosen what whoever starts it has forbidden. Looking at the mask means setting it.
        let mask = umask(UMASK) | UMASK;
        match Daemonize::new().working_directory(&self.directory).umask(mask.bits()).execute() {
            // Where the caller ignores SIGCHLD, nothing is wrong but that there was nobody to wait for.
            Outcome::Parent(forked) => Ok((reader, forked.err().map(io::Error::other))),
            Outcome::Child(forked) => {
                let error = match forked {
                    Ok(_) => self.become_it(&writer),
                    Err(error) => io::Error::other(error),
                };
                let failed = Word::Failed { cause: format!("{}: {error}", self.program.display()), exit: 1 };
                // Nobody else can be told.
                let _ = failed.say(&mut &writer);
                // The forked copy of a command must not go on as if it were the command.
                std::process::exit(1);
            }
        }
    }

    /// Goes on as the daemon; comes back only with an error.
    fn become_it(&self, pipe: &PipeWriter) -> io::Error {
        // Whatever the command was started with, such as the pipe of a `$(…)` that waits for its end.
        close_fds::CloseFdsBuilder::new().cloexecfrom(3);
        let (stdout, stderr) = match (pipe.try_clone(), pipe.try_clone()) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr),
            (Err(error), _) | (_, Err(error)) => return error,
        };
        let mut command = Command::new(&self.program);
        for variable in VARIABLES_OF_A_SUPERVISOR {
            command.env_remove(variable);
        }
        command.args(&self.arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr).exec()
    }
}
