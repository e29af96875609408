//! `serve`: the process that the service lives in, from its first word to its last.
//!
//! [`seat`] is what only one process can have, [`host`] what signals and requests act on, [`requests`] the answers to the
//! commands of the manager.

mod host;
mod requests;
mod seat;
mod signals;

use std::io;
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout_at};

use crate::config::{Config, ConfigError, Essentials, Loaded, Log, LogLevel};
use crate::domain::failure::failure;
use crate::domain::language::{Language, text};
use crate::logging::{self, Logging, log_text};
use crate::process::exit::{Exit, eprint, exit_of};
use crate::process::failure::text_of;
use crate::process::health::{self, Health};
use crate::process::readiness::{Report, Word};
use crate::process::start::Already;
use crate::process::systemd;
use crate::server::Phase;
use crate::service::Service;
use host::Host;
use seat::{Predecessor, Seat, Taken};
use signals::Signals;

/// How the process was started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Started by `start`, which waits at the other end of standard output.
    pub daemon: bool,
    /// How long it may take until it answers.
    pub ready_within: Option<Duration>,
    /// Take over from the service that runs.
    pub take_over: bool,
}

/// Runs the service until it is told to stop. `language` is the one that the configuration asks for, whatever else is wrong with it.
pub(crate) fn run(
    options: Options,
    loaded: Result<Loaded, ConfigError>,
    essentials: Result<Essentials, ConfigError>,
    language: Language,
) -> Exit {
    let report = if options.daemon { Report::on_stdout() } else { Ok(Report::to_nobody()) };
    let mut teller = match report {
        Ok(report) => Teller { report, has_console: false, logging: None, language },
        // Nobody is there any more to hear why.
        Err(_) => return Exit::Failed,
    };
    let mut loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            // The log is where somebody looks for it who was not there, as far as the log is known.
            let log =
                essentials.map(|essentials| Log { file: essentials.log_file, level: LogLevel::Info, console: false });
            teller.logging = log.ok().and_then(|log| logging::start(&log, language).ok());
            return teller.start_failed(&error.into());
        }
    };
    // A daemon has no terminal.
    loaded.config.log.console &= !options.daemon;
    let log = match logging::start(&loaded.config.log, language) {
        Ok(logging) => teller.logging.insert(logging).settings(),
        Err(error) => return teller.start_failed(&error),
    };
    teller.has_console = loaded.config.log.console;
    for warning in &loaded.warnings {
        log::warn!("{}", log_text!("log.config_warning", finding = warning));
    }
    raise_descriptor_limit();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return teller.start_failed(&error.into()),
    };
    let exit = match runtime.block_on(start(options, loaded, log)) {
        Err(error) => teller.start_failed(&error),
        Ok(running) => {
            teller.started(&running);
            match runtime.block_on(running.run_to_the_end()) {
                Err(error) => ended(teller.has_console, &error, language),
                Ok(()) => Exit::Done,
            }
        }
    };
    // What still runs had its time to finish.
    runtime.shutdown_background();
    exit
}

/// The threads that serve connections: one processor is left for the store's writer, which everybody with a payment waits for.
fn runtime() -> io::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    tokio::runtime::Builder::new_multi_thread().worker_threads((processors - 1).max(1)).enable_all().build()
}

/// Tells a failure wherever somebody may look for it.
struct Teller {
    report: Report,
    has_console: bool,
    logging: Option<Logging>,
    language: Language,
}

impl Teller {
    fn started(&mut self, running: &Running) {
        let pid = std::process::id();
        let word = if running.is_ready {
            Word::Ready { pid, listen: running.listen, replaced: running.replaced.as_ref().map(|(pid, _)| *pid) }
        } else {
            Word::Failed { cause: text!(self.language, "log.stopped_while_starting").into(), exit: Exit::Failed.code() }
        };
        if let Err(error) = std::mem::replace(&mut self.report, Report::to_nobody()).finish(&word) {
            // Whoever started it was interrupted. It is up all the same, and the pid file tells.
            log::warn!("{}", log_text!("log.starter_gone", error = error));
        }
    }

    fn start_failed(mut self, error: &anyhow::Error) -> Exit {
        let exit = exit_of(error);
        let text = text!(self.language, "log.start_failed", cause = text_of(error, self.language));
        let word = if error.is::<Already>() {
            Word::Running
        } else {
            Word::Failed { cause: text.to_string(), exit: exit.code() }
        };
        log::error!("{text}");
        // Written by then: whoever waited shows the last records.
        drop(self.logging.take());
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
fn ended(has_console: bool, error: &anyhow::Error, language: Language) -> Exit {
    let text = text_of(error, language);
    log::error!("{text}");
    if !has_console {
        eprint(&text);
    }
    exit_of(error)
}

/// A service that is up.
struct Running {
    listen: SocketAddr,
    /// Not where it was told to end before it was ready.
    is_ready: bool,
    host: Arc<Host>,
    service: JoinHandle<anyhow::Result<()>>,
    /// What has to go on for as long as the process lives.
    tasks: JoinSet<()>,
    /// The process that this one took over from, and its end.
    replaced: Option<(u32, JoinHandle<()>)>,
}

/// Everything that can fail while starting.
async fn start(options: Options, loaded: Loaded, log: logging::Settings) -> anyhow::Result<Running> {
    let signals = Signals::listen()?;
    let patience = Duration::from_secs(loaded.config.service.start_timeout_s.into());
    let deadline = Deadline::after(options.ready_within.unwrap_or(patience));
    // Before the store: a second start by mistake must not touch the first one's database.
    let Taken { seat, control, predecessor } = if options.take_over {
        Seat::take_over(&loaded.config, deadline.at)?
    } else {
        Seat::take(&loaded.config, options.daemon)?
    };
    let (listen, listener) = (seat.listen, TcpListener::from_std(seat.listener()?)?);
    let host = Arc::new(Host::new(seat, &loaded, log, options.daemon));
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&host).follow(signals));
    tasks.spawn(Arc::clone(&host).keep_pid_file());
    if let Some(control) = control {
        tasks.spawn(requests::serve(Arc::clone(&host), control));
    }
    let config = Config { listen, ..loaded.config };
    let started = match predecessor {
        None => begin(&host, config, listener, &deadline).await,
        Some(predecessor) => succeed(&host, config, listener, predecessor, &deadline).await,
    };
    let Started { is_ready, service, replaced } = started.inspect_err(|_| host.seat().clear())?;
    if let Some(interval) = systemd::watchdog() {
        tasks.spawn(Arc::clone(&host).feed_watchdog(interval / 2));
    }
    Ok(Running { listen, is_ready, host, service, tasks, replaced })
}

struct Started {
    is_ready: bool,
    service: JoinHandle<anyhow::Result<()>>,
    replaced: Option<(u32, JoinHandle<()>)>,
}

/// Begins to serve, and makes sure that it answers; unless it is told to end first.
async fn begin(
    host: &Arc<Host>,
    config: Config,
    listener: TcpListener,
    deadline: &Deadline,
) -> anyhow::Result<Started> {
    let listen = config.listen;
    let service = deadline.keep(Service::open(config)).await??;
    host.has(&service);
    let mut service = tokio::spawn(service.run_through(listener, host.phases()));
    let is_well = async || matches!(health::check(listen).await, Health::Ok(_));
    let mut phases = host.phases();
    let is_ready = tokio::select! {
        biased;
        _ = phases.wait_for(|phase| *phase >= Phase::Stopping) => Ok(false),
        is_well = deadline.keep(until(is_well)) => is_well.and_then(|()| host.seat().sign(Some(listen))).map(|()| true),
        ended = &mut service => return ended?.and(Err(deadline.missed())),
    };
    match is_ready {
        Ok(is_ready) => {
            if is_ready {
                host.is_ready();
            }
            Ok(Started { is_ready, service, replaced: None })
        }
        Err(error) => {
            host.reach(Phase::Stopping);
            // The first error is the one to tell.
            let _ = service.await;
            Err(error)
        }
    }
}

/// Makes sure that it could serve, and takes over from the process before.
async fn succeed(
    host: &Arc<Host>,
    config: Config,
    listener: TcpListener,
    mut predecessor: Predecessor,
    deadline: &Deadline,
) -> anyhow::Result<Started> {
    let (listen, stop_timeout_s) = (config.listen, config.service.stop_timeout_s);
    let prepared = async {
        let service = deadline.keep(Service::open(config)).await??;
        host.has(&service);
        host.shares_database(true);
        // Not over the network: the other process accepts there, too.
        deadline.keep(until(async || host.is_well().await)).await?;
        if host.phase() != Phase::Serving {
            return Err(failure!("log.stopped_while_starting"));
        }
        // The point of no return: from here on we are the service, and nothing can fail any more.
        host.seat().sign(Some(listen))?;
        anyhow::Ok(service)
    };
    let prepared = tokio::select! {
        prepared = prepared => prepared,
        () = predecessor.is_told_to_stop() => Err(failure!("log.stopped_while_starting")),
    };
    let service = prepared.inspect_err(|_| {
        if predecessor.has_ended() {
            host.seat().keep();
        }
    })?;
    host.seat().keep();
    let service = tokio::spawn(service.run_through(listener, host.phases()));
    predecessor.dismiss().await;
    host.is_ready();
    // What has been changed since we read it, by a reload or a rotation that only the other process heard of.
    host.reload_beside();
    let (pid, patience) = (predecessor.pid(), Duration::from_secs(stop_timeout_s.into()));
    let host = Arc::clone(host);
    let end = tokio::spawn(async move {
        if predecessor.see_off(host.phases(), patience).await {
            log::info!("{}", log_text!("log.stopped_with_predecessor"));
            host.reach(Phase::Stopping);
        }
        host.shares_database(false);
    });
    Ok(Started { is_ready: true, service, replaced: Some((pid, end)) })
}

/// Comes back when it is so. A database that another program has locked may be free in a moment.
async fn until(is_so: impl AsyncFn() -> bool) {
    while !is_so().await {
        sleep(WELL_PAUSE).await;
    }
}

/// How long a service that is not well has until it is asked again.
const WELL_PAUSE: Duration = Duration::from_millis(50);

/// When a start is given up.
struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    fn after(after: Duration) -> Self {
        Self { at: Instant::now() + after, after }
    }

    async fn keep<T>(&self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        timeout_at(self.at.into(), work).await.map_err(|_| self.missed())
    }

    fn missed(&self) -> anyhow::Error {
        let seconds = (self.after.as_secs_f64() * 10.0).round() / 10.0;
        failure!("log.not_ready", seconds = seconds)
    }
}

impl Running {
    async fn run_to_the_end(mut self) -> anyhow::Result<()> {
        tokio::select! {
            ended = &mut self.service => ended??,
            // Signals, commands and the watchdog: without one of them it cannot be left alone.
            Some(ended) = self.tasks.join_next() => return Err(failure!("log.task_ended", cause = format!("{ended:?}"))),
        }
        if let Some((_, predecessor)) = self.replaced {
            // It ends when we do, and may still have something to finish.
            let _ = predecessor.await;
        }
        // Not left to `Drop`: tasks that hold the host may outlive the runtime.
        self.host.seat().clear();
        Ok(())
    }
}

/// Each connection takes a descriptor, and the usual soft limit of 1,024 is there for programs that use `select`.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::debug!("setrlimit: {error}");
    }
}
