//! `serve`: the process that the service lives in, from its first word to its last.
//!
//! [`seat`] is what only one process can have, [`host`] what signals and requests act on, [`requests`] the answers to the
//! commands of the manager.

mod host;
mod requests;
mod seat;
mod signals;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rust_i18n::t;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::failure::{Exit, eprint, exit_of};
use crate::config::{Config, ConfigError, Loaded};
use crate::logging;
use crate::manager::health::{self, Health};
use crate::manager::readiness::{Report, Word};
use crate::manager::systemd;
use crate::server::Phase;
use crate::service::Service;
use host::Host;
use seat::{Already, Seat};
use signals::Signals;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Started by `start`, which waits at the other end of standard output
    #[arg(long, hide = true)]
    daemon: bool,
    /// Take over from the service that runs
    #[arg(long, hide = true, requires = "daemon")]
    take_over: bool,
}

pub(super) fn run(arguments: &Arguments, loaded: Result<Loaded, ConfigError>) -> Exit {
    let report = if arguments.daemon { Report::on_stdout() } else { Ok(Report::to_nobody()) };
    let mut teller = match report {
        Ok(report) => Teller { report, has_console: false },
        Err(_) => return Exit::Failed,
    };
    let mut loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return teller.start_failed(&error.into()),
    };
    // A daemon has no terminal.
    loaded.config.log.console &= !arguments.daemon;
    let logging = match logging::start(&loaded.config.log) {
        Ok(logging) => logging,
        Err(error) => return teller.start_failed(&error),
    };
    teller.has_console = loaded.config.log.console;
    for warning in &loaded.warnings {
        log::warn!("{}", t!("log.config_warning", finding = warning));
    }
    raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return teller.start_failed(&error.into()),
    };
    let exit = match runtime.block_on(start(arguments, loaded, logging.settings())) {
        Err(error) => teller.start_failed(&error),
        Ok(running) => {
            teller.started(&running);
            match runtime.block_on(running.run_to_the_end()) {
                Err(error) => ended(teller.has_console, &error),
                Ok(()) => Exit::Done,
            }
        }
    };
    // What still runs had its time to finish.
    runtime.shutdown_background();
    exit
}

/// Tells a failure wherever somebody may look for it.
struct Teller {
    report: Report,
    has_console: bool,
}

impl Teller {
    fn started(&mut self, running: &Running) {
        let pid = std::process::id();
        let word = if running.is_ready {
            Word::Ready { pid, listen: running.listen }
        } else {
            Word::Failed { cause: t!("log.stopped_while_starting").into(), exit: Exit::Failed.code() }
        };
        if let Err(error) = std::mem::replace(&mut self.report, Report::to_nobody()).finish(&word) {
            // Whoever started it was interrupted. It is up all the same, and the pid file tells.
            log::warn!("{}", t!("log.starter_gone", error = error));
        }
    }

    fn start_failed(mut self, error: &anyhow::Error) -> Exit {
        let exit = exit_of(error);
        let text = t!("log.start_failed", cause = format!("{error:#}"));
        let word = if error.is::<Already>() {
            Word::Running
        } else {
            Word::Failed { cause: text.to_string(), exit: exit.code() }
        };
        log::error!("{text}");
        if self.report.is_awaited() {
            // Whoever waited may be gone.
            let _ = self.report.tell(&word);
        } else if !self.has_console {
            eprint(&text);
        }
        exit
    }
}

/// A running service ended that was not told to.
fn ended(has_console: bool, error: &anyhow::Error) -> Exit {
    let text = format!("{error:#}");
    log::error!("{text}");
    if !has_console {
        eprint(&text);
    }
    exit_of(error)
}

/// A service that answers.
struct Running {
    listen: SocketAddr,
    host: Arc<Host>,
    service: JoinHandle<anyhow::Result<()>>,
    /// The process that this one took over from, until it has ended.
    predecessor: Option<JoinHandle<()>>,
    /// Not where it was told to end before it was ready.
    is_ready: bool,
}

/// Everything that can fail while starting.
async fn start(arguments: &Arguments, loaded: Loaded, log: logging::Settings) -> anyhow::Result<Running> {
    let signals = Signals::listen()?;
    // Before the store: a second start by mistake must not touch the first one's database.
    let mut seat = if arguments.take_over {
        Seat::take_over(&loaded.config)?
    } else {
        Seat::take(&loaded.config, arguments.daemon)?
    };
    let (listen, listener) = (seat.listen, TcpListener::from_std(seat.listener()?)?);
    let (control, predecessor) = (seat.control.take(), seat.predecessor.take());
    let host = Arc::new(Host::new(seat, loaded.source.file, log));
    tokio::spawn(Arc::clone(&host).follow(signals));
    if let Some(control) = control {
        requests::serve(Arc::clone(&host), control)?;
    }
    let patience = Duration::from_secs(loaded.config.service.start_timeout_s.into());
    let service = Service::open(with_address(loaded.config, listen)).await?;
    host.has(&service);
    let service = tokio::spawn(service.run_through(listener, host.phases()));
    let mut running = Running { listen, host, service, predecessor: None, is_ready: false };
    match running.begin(predecessor, patience).await {
        Ok(()) => Ok(running),
        Err(error) => Err(running.give_up(error).await),
    }
}

/// The address as it is, where the configuration leaves the port to the system.
fn with_address(mut config: Config, listen: SocketAddr) -> Config {
    config.listen = listen;
    config
}

impl Running {
    /// Makes sure that the service answers, and tells everybody; unless it is told to end first.
    async fn begin(&mut self, predecessor: Option<seat::Predecessor>, patience: Duration) -> anyhow::Result<()> {
        let mut phases = self.host.phases();
        let is_well = is_well(&self.host, self.listen, predecessor.is_some());
        tokio::select! {
            biased;
            _ = phases.wait_for(|phase| *phase >= Phase::Stopping) => return Ok(()),
            is_well = timeout(patience, is_well) => is_well.map_err(|_| anyhow!(t!("log.not_well").into_owned()))?,
            ended = &mut self.service => return ended?.and(Err(anyhow!(t!("log.not_well").into_owned()))),
        }
        if let Some(mut predecessor) = predecessor {
            predecessor.dismiss()?;
            self.predecessor = Some(tokio::spawn(predecessor.see_off(self.host.phases())));
        }
        self.host.is_ready(self.listen)?;
        self.is_ready = true;
        if let Some(interval) = systemd::watchdog() {
            tokio::spawn(Arc::clone(&self.host).feed_watchdog(interval / 2));
        }
        Ok(())
    }

    async fn give_up(self, error: anyhow::Error) -> anyhow::Error {
        self.host.reach(Phase::Stopping);
        if !self.service.is_finished() {
            // The first error is the one to tell.
            let _ = self.service.await;
        }
        error
    }

    async fn run_to_the_end(self) -> anyhow::Result<()> {
        self.service.await??;
        if let Some(predecessor) = self.predecessor
            && self.host.phase() == Phase::Stopping
        {
            // Who stops the service means all of it.
            let _ = timeout(PREDECESSOR_TIMEOUT, predecessor).await;
        }
        Ok(())
    }
}

/// Comes back when the service answers. A database that another program has locked may be free in a moment.
async fn is_well(host: &Host, listen: SocketAddr, shares_listener: bool) {
    loop {
        let is_well = if shares_listener {
            // The process before us might answer.
            host.is_well().await
        } else {
            matches!(health::check(listen).await, Health::Ok(_))
        };
        if is_well {
            return;
        }
        sleep(WELL_PAUSE).await;
    }
}

/// How long a service that is not well has until it is asked again.
const WELL_PAUSE: Duration = Duration::from_millis(50);
/// How long the process before this one may take to end after this one has.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(5);

/// Each connection takes a descriptor, and the usual soft limit of 1,024 is there for programs that use `select`.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::debug!("setrlimit: {error}");
    }
}
