//! `serve`: the service in the foreground, until a signal comes.

use std::future::Future;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rust_i18n::t;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, eprint, exit_of};
use crate::config::{Config, ConfigError, Loaded};
use crate::logging;
use crate::service::Service;

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
    let listener =
        TcpListener::bind(address).await.with_context(|| t!("log.bind_failed", address = address).into_owned())?;
    let service = Service::open(config).await?;
    Ok(service.run(listener, signals.shutdown()))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            // The terminal was closed: no reason to drop what is under way.
            _ = self.hangup.recv() => "SIGHUP",
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

/// Each connection takes a descriptor, and the usual soft limit of 1,024 is there for programs that use `select`.
fn raise_descriptor_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log::debug!("setrlimit: {error}");
    }
}
