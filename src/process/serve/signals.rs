//! The signals that a service is told by.

use std::io::{self, IsTerminal};

use nix::sys::signal::SigSet;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

pub(super) struct Signals {
    terminate: Stream,
    interrupt: Option<Stream>,
    hangup: Option<Stream>,
    /// Whether it was started on a terminal.
    has_terminal: bool,
}

/// What a signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// To end, by the signal of this name.
    End(&'static str),
    /// To read the configuration again.
    Reload,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        // A mask that keeps signals from us is inherited, too, and nobody means that.
        SigSet::all().thread_unblock()?;
        // Whoever starts a program with a signal ignored, such as nohup, means it to live on.
        let ignored = ignored_signals();
        let unless_ignored = |kind: SignalKind| {
            let is_ignored = ignored & (1 << (kind.as_raw_value() - 1)) != 0;
            (!is_ignored).then(|| signal(kind)).transpose()
        };
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: unless_ignored(SignalKind::interrupt())?,
            hangup: unless_ignored(SignalKind::hangup())?,
            has_terminal: is_on_terminal(),
        })
    }

    pub(super) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::End("SIGTERM"),
            () = received(&mut self.interrupt) => Told::End("SIGINT"),
            // A terminal that was closed takes the service with it, as a person expects; any other SIGHUP is a wish.
            () = received(&mut self.hangup) => {
                if self.has_terminal && !is_on_terminal() { Told::End("SIGHUP") } else { Told::Reload }
            }
        }
    }
}

/// A terminal that was closed is none any more.
fn is_on_terminal() -> bool {
    io::stdin().is_terminal() || io::stderr().is_terminal()
}

async fn received(signal: &mut Option<Stream>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// The signals that this process was started with ignored, a bit each, the lowest for signal 1.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
}
