//! What signals and requests act on: the running service, seen from its process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use rust_i18n::t;
use tokio::sync::watch;

use super::seat::Seat;
use super::signals::{Signals, Told};
use crate::cli::failure::Exit;
use crate::config::{self, ConfigError, Current, process_environment};
use crate::logging;
use crate::manager::pid_file::Record;
use crate::manager::systemd;
use crate::server::{Phase, Site};
use crate::service::Service;

pub(super) struct Host {
    phase: watch::Sender<Phase>,
    /// Where it listens, as soon as it answers.
    ready: watch::Sender<Option<SocketAddr>>,
    pub(super) seat: Mutex<Seat>,
    /// Held by whoever hands the service over, so that there is one at a time.
    pub(super) handing_over: tokio::sync::Mutex<()>,
    reloading: tokio::sync::Mutex<()>,
    config_file: Option<PathBuf>,
    log: logging::Settings,
    /// The service's, as soon as it is open.
    service: OnceLock<(Current, Arc<Site>)>,
}

impl Host {
    pub(super) fn new(seat: Seat, config_file: Option<PathBuf>, log: logging::Settings) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            ready: watch::Sender::new(None),
            seat: Mutex::new(seat),
            handing_over: tokio::sync::Mutex::default(),
            reloading: tokio::sync::Mutex::default(),
            config_file,
            log,
            service: OnceLock::new(),
        }
    }

    /// This is the service that it hosts.
    pub(super) fn has(&self, service: &Service) {
        // There is one.
        let _ = self.service.set((service.config().clone(), Arc::clone(service.site())));
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
        self.seat().socket = None;
        self.phase.send_if_modified(|now| {
            let is_later = *now < phase;
            *now = phase.max(*now);
            is_later
        });
    }

    pub(super) async fn is_well(&self) -> bool {
        match self.service.get() {
            Some((_, site)) => site.is_well().await,
            None => false,
        }
    }

    /// The service answers: tells the pid file, systemd, and whoever waits.
    pub(super) fn is_ready(&self, listen: SocketAddr) -> anyhow::Result<()> {
        let mut seat = self.seat();
        let record = Record::own(Some(listen), seat.unit.clone());
        seat.pid_file.write(&record)?;
        systemd::ready(&t!("log.ready", address = listen));
        self.ready.send_replace(Some(listen));
        Ok(())
    }

    /// Comes back when the service answers.
    pub(super) async fn wait_until_ready(&self) -> Option<SocketAddr> {
        *self.ready.subscribe().wait_for(Option::is_some).await.ok()?
    }

    pub(super) fn seat(&self) -> std::sync::MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Obeys signals for as long as the process lives; a second one to end ends it at once.
    pub(super) async fn follow(self: Arc<Self>, mut signals: Signals) {
        let mut is_ending = false;
        loop {
            match signals.next().await {
                Told::Reload => drop(self.reload().await),
                Told::End(_) if is_ending => {
                    // At once: a terminal that is stuck must not be waited for, so this may be lost.
                    log::warn!("{}", t!("log.second_signal"));
                    std::process::exit(Exit::Failed.code().into());
                }
                Told::End(name) => {
                    is_ending = true;
                    log::info!("{}", t!("log.stopping", signal = name));
                    systemd::stopping();
                    self.reach(Phase::Stopping);
                }
            }
        }
    }

    /// Reads the configuration again and opens the log file anew. The keys that take a restart, or why everything is as it was.
    pub(super) async fn reload(&self) -> anyhow::Result<Vec<&'static str>> {
        let _one_at_a_time = self.reloading.lock().await;
        systemd::reloading();
        let reloaded = tokio::task::block_in_place(|| self.reload_now());
        match &reloaded {
            Ok(after_restart) if after_restart.is_empty() => log::info!("{}", t!("log.reloaded")),
            Ok(after_restart) => log::warn!("{}", t!("log.reloaded_but", keys = after_restart.join(", "))),
            Err(error) => log::error!("{}", t!("log.reload_failed", cause = format!("{error:#}"))),
        }
        systemd::ready(&if reloaded.is_ok() { t!("log.reloaded") } else { t!("log.reload_failed_short") });
        reloaded
    }

    fn reload_now(&self) -> anyhow::Result<Vec<&'static str>> {
        let mut loaded =
            config::read_again(self.config_file.as_deref(), &process_environment)?.load(&process_environment)?;
        let (current, _) = self.service.get().ok_or_else(|| anyhow!(t!("log.not_open_yet").into_owned()))?;
        let now = current.load();
        if loaded.config.merchants.is_empty() && !now.merchants.is_empty() {
            // More likely a file that an editor is about to write than a wish to refuse every callback.
            return Err(ConfigError::of(loaded.source.file, "merchant", t!("config.no_merchant_left")).into());
        }
        for warning in &loaded.warnings {
            log::warn!("{}", t!("log.config_warning", finding = warning));
        }
        if !now.log.console {
            // A daemon has none, whatever the file says.
            loaded.config.log.console = false;
        }
        if loaded.config.listen.port() == 0 && loaded.config.listen.ip() == now.listen.ip() {
            loaded.config.listen = now.listen;
        }
        self.log.apply(&loaded.config.log)?;
        loaded.config.language.activate();
        Ok(current.replace(loaded.config))
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
