//! `serve`: the service in the foreground, until a signal comes.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rust_i18n::t;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, eprint, exit_of};
use crate::config::{Config, ConfigError, Loaded};
use crate::logging;
use crate::service::Service;

/// How many connections wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;

pub(super) fn run(loaded: Result<Loaded, ConfigError>) -> Exit {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprint(&t!("log.start_failed", cause = error));
            return Exit::BadConfiguration;
        }
    };
    let console = loaded.config.log.console;
    let failed = |error: &anyhow::Error, text: &str| {
        log::error!("{text}");
        if !console {
            eprint(text);
        }
        exit_of(error)
    };
    let _logging = match logging::start(&loaded.config.log) {
        Ok(logging) => logging,
        Err(error) => {
            eprint(&t!("log.start_failed", cause = format!("{error:#}")));
            return exit_of(&error);
        }
    };
    for warning in &loaded.warnings {
        log::warn!("{}", t!("log.config_warning", finding = warning));
    }
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let text = t!("log.start_failed", cause = error);
            return failed(&error.into(), &text);
        }
    };
    let exit = match runtime.block_on(start(loaded.config)) {
        Err(error) => failed(&error, &t!("log.start_failed", cause = format!("{error:#}"))),
        Ok(running) => match runtime.block_on(running) {
            Err(error) => failed(&error, &format!("{error:#}")),
            Ok(()) => Exit::Done,
        },
    };
    // What still runs had its time to finish.
    runtime.shutdown_background();
    exit
}

/// Everything that can fail while starting; what comes back runs until a signal.
async fn start(config: Config) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let signals = Signals::listen()?;
    let address = config.listen;
    // Before the store: a second start by mistake must not touch the first one's database.
    let listener = listen(address).with_context(|| t!("log.bind_failed", address = address).into_owned())?;
    let service = Service::open(config).await?;
    Ok(service.run(listener, signals.shutdown()))
}

/// With a longer queue than tokio's own: a sale may bring many buyers in the same moment, and who finds the queue full tries again
/// only after a second.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of an earlier run may linger; a second listener is refused all the same.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

struct Signals {
    terminate: Signal,
    interrupt: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
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
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            () = received(&mut self.interrupt) => "SIGINT",
            // The terminal was closed: no reason to drop what is under way.
            () = received(&mut self.hangup) => "SIGHUP",
        }
    }

    /// Comes back at the first signal; a second one ends the process at once.
    async fn shutdown(mut self) {
        let name = self.next().await;
        log::info!("{}", t!("log.stopping", signal = name));
        tokio::spawn(async move {
            self.next().await;
            // At once: a terminal that is stuck must not be waited for, so this may be lost.
            log::warn!("{}", t!("log.second_signal"));
            std::process::exit(Exit::Failed as i32);
        });
    }
}

async fn received(signal: &mut Option<Signal>) {
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

/// Each connection takes a descriptor, and the usual soft limit of 1,024 is there for programs that use `select`.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::debug!("setrlimit: {error}");
    }
}
