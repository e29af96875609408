//! What signals and requests act on: the running service, seen from its process.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::seat::Seat;
use super::signals::{Signals, Told};
use crate::config::{ConfigError, Current, Loaded, process_environment};
use crate::domain::failure::{OrFailure, failure};
use crate::domain::language::localized;
use crate::logging::{self, log_text};
use crate::process::exit::Exit;
use crate::process::failure::text_of;
use crate::process::systemd;
use crate::server::{Phase, Site};
use crate::service::Service;
use crate::store::Store;
use crate::sync::lock;

pub(super) struct Host {
    phase: watch::Sender<Phase>,
    /// Where it listens, as soon as it answers.
    ready: watch::Sender<Option<SocketAddr>>,
    seat: Mutex<Seat>,
    /// Whether a signal to end has come, or is on its way.
    is_to_end: AtomicBool,
    reloading: tokio::sync::Mutex<()>,
    config_file: Option<PathBuf>,
    /// Where the file told us to listen: systemd, or port 0, may have made another address of it.
    configured_listen: SocketAddr,
    log: logging::Settings,
    /// A daemon has no console, whatever the file says.
    is_daemon: bool,
    /// The service's, as soon as it is open.
    service: OnceLock<Hosted>,
}

/// How often it is looked whether the pid file is still there.
const PID_FILE_INTERVAL: Duration = Duration::from_secs(1);

/// What the process has to do with its service.
struct Hosted {
    config: Current,
    site: Arc<Site>,
    store: Store,
}

impl Host {
    pub(super) fn new(seat: Seat, loaded: &Loaded, log: logging::Settings, is_daemon: bool) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            ready: watch::Sender::new(None),
            seat: Mutex::new(seat),
            is_to_end: AtomicBool::new(false),
            reloading: tokio::sync::Mutex::default(),
            config_file: loaded.source.file.clone(),
            configured_listen: loaded.config.listen,
            log,
            is_daemon,
            service: OnceLock::new(),
        }
    }

    /// This is the service that it hosts.
    pub(super) fn has(&self, service: &Service) {
        // There is one.
        let _ = self.service.set(Hosted {
            config: service.config().clone(),
            site: Arc::clone(service.site()),
            store: service.store().clone(),
        });
    }

    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a phase; never back.
    pub(super) fn reach(&self, phase: Phase) {
        // First: the server's own handle must be the last one, which closes the socket.
        self.seat().close();
        self.phase.send_if_modified(|now| {
            let is_later = *now < phase;
            *now = phase.max(*now);
            is_later
        });
    }

    /// Whether it answers, and nobody has told it to end.
    pub(super) fn is_serving(&self) -> bool {
        self.phase() == Phase::Serving && self.ready.borrow().is_some()
    }

    pub(super) fn has_left(&self) -> bool {
        matches!(self.phase(), Phase::Leaving { .. })
    }

    /// Sends us the signal to end, unless that has been done.
    pub(super) fn end(&self) -> io::Result<()> {
        if !self.is_to_end.swap(true, Ordering::Relaxed) {
            kill_process(getpid(), Signal::TERM)?;
        }
        Ok(())
    }

    /// Another process is the service now.
    pub(super) fn leave(&self, took_listener: bool) {
        self.seat().leave();
        self.reach(Phase::Leaving { shared: took_listener });
    }

    pub(super) async fn is_well(&self) -> bool {
        match self.service.get() {
            Some(hosted) => hosted.site.is_well().await,
            None => false,
        }
    }

    /// How many merchants' callbacks it takes.
    pub(super) fn merchants(&self) -> usize {
        self.service.get().map_or(0, |hosted| hosted.config.load().merchants.len())
    }

    /// There is another process with the same database, or no longer.
    pub(super) fn shares_database(&self, yes: bool) {
        if let Some(hosted) = self.service.get() {
            hosted.store.make_room(yes);
        }
    }

    /// The service answers: tells systemd, and whoever waits.
    pub(super) fn is_ready(&self) {
        let listen = self.seat().listen;
        systemd::ready(&log_text!("log.ready", address = listen));
        self.ready.send_replace(Some(listen));
    }

    /// Comes back when the service answers; without an address where it is to end.
    pub(super) async fn wait_until_ready(&self) -> Option<SocketAddr> {
        let (mut ready, mut phases) = (self.ready.subscribe(), self.phases());
        tokio::select! {
            biased;
            _ = phases.wait_for(|phase| *phase > Phase::Serving) => None,
            ready = ready.wait_for(Option::is_some) => *ready.ok()?,
        }
    }

    pub(super) fn seat(&self) -> MutexGuard<'_, Seat> {
        lock(&self.seat)
    }

    /// Obeys signals for as long as the process lives; a second one to end ends it at once.
    pub(super) async fn follow(self: Arc<Self>, mut signals: Signals) {
        let mut is_ending = false;
        loop {
            match signals.next().await {
                // Beside: a file system that hangs must not make us deaf.
                Told::Reload => self.reload_beside(),
                Told::End(_) if is_ending => {
                    // At once: a terminal that is stuck must not be waited for, so this may be lost.
                    log::warn!("{}", log_text!("log.second_signal"));
                    std::process::exit(Exit::Failed.code().into());
                }
                Told::End(name) => {
                    is_ending = true;
                    self.is_to_end.store(true, Ordering::Relaxed);
                    self.reach(Phase::Stopping);
                    log::info!("{}", log_text!("log.stopping", signal = name));
                    systemd::stopping();
                }
            }
        }
    }

    /// [`Host::reload`], while others go on; what comes of it is logged.
    pub(super) fn reload_beside(self: &Arc<Self>) {
        let host = Arc::clone(self);
        tokio::spawn(async move { host.reload().await });
    }

    /// Reads the configuration again and opens the log file anew. The keys that take a restart, or why everything is as it was.
    pub(super) async fn reload(&self) -> anyhow::Result<Vec<&'static str>> {
        let is_ready = self.wait_until_ready().await.is_some();
        let _one_at_a_time = self.reloading.lock().await;
        if !is_ready || !self.is_serving() {
            return Err(failure!("manager.is_stopping"));
        }
        systemd::reloading();
        let reloaded = block_in_place(|| self.reload_now());
        match &reloaded {
            Ok(after_restart) if after_restart.is_empty() => log::info!("{}", log_text!("log.reloaded")),
            Ok(after_restart) => log::warn!("{}", log_text!("log.reloaded_but", keys = after_restart.join(", "))),
            Err(error) => {
                log::error!("{}", log_text!("log.reload_failed", cause = text_of(error, logging::language())));
            }
        }
        if self.is_serving() {
            systemd::ready(&if reloaded.is_ok() {
                log_text!("log.reloaded")
            } else {
                log_text!("log.reload_failed_short")
            });
        }
        reloaded
    }

    fn reload_now(&self) -> anyhow::Result<Vec<&'static str>> {
        let mut loaded =
            crate::config::read_again(self.config_file.as_deref(), &process_environment)?.load(&process_environment)?;
        let Hosted { config, store, .. } = self.service.get().ok_or_else(|| failure!("manager.is_stopping"))?;
        let now = config.load();
        if loaded.config.merchants.is_empty() && !now.merchants.is_empty() {
            // More likely a file that an editor is about to write than a wish to refuse every callback.
            return Err(ConfigError::of(loaded.source.file, "merchant", localized!("config.no_merchant_left")).into());
        }
        for warning in &loaded.warnings {
            log::warn!("{}", log_text!("log.config_warning", finding = warning));
        }
        loaded.config.log.console &= !self.is_daemon;
        if loaded.config.listen == self.configured_listen {
            loaded.config.listen = now.listen;
        }
        if loaded.config.service.pid_file != now.service.pid_file {
            // From then on no command would find us, `restart` included.
            return Err(
                ConfigError::of(loaded.source.file, "service.pid_file", localized!("config.pid_file_moved")).into()
            );
        }
        let log_file = loaded.config.log.file.display().to_string();
        self.log
            .apply(&loaded.config.log, loaded.config.language)
            .or_failure(|| localized!("logs.cannot_open", path = log_file))?;
        store.tell_bot(loaded.config.events.is_some());
        Ok(config.replace(loaded.config))
    }

    /// Looks after the pid file for as long as the process lives.
    pub(super) async fn keep_pid_file(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PID_FILE_INTERVAL).await;
            if !self.is_serving() {
                continue;
            }
            match block_in_place(|| self.seat().restore()) {
                Ok(false) => {}
                Ok(true) => log::warn!("{}", log_text!("log.pid_file_restored")),
                Err(error) => {
                    log::error!("{}", log_text!("log.pid_file_gone", cause = text_of(&error, logging::language())));
                }
            }
        }
    }

    /// Tells systemd that the service is alive, for as long as its writer answers.
    pub(super) async fn feed_watchdog(self: Arc<Self>, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        loop {
            ticks.tick().await;
            if self.is_well().await {
                systemd::alive();
            }
        }
    }
}
