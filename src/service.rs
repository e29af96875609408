//! The service: its parts put together, run, and shut down.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rust_i18n::t;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Bound, Listening};
use crate::config::{self, Config, Current};
use crate::gateways::Gateways;
use crate::reconcile::Reconciler;
use crate::server::{self, Drained, Phase, Site};
use crate::store::Store;

/// The payment webhook service, opened and ready to run.
///
/// The listener and the end are the caller's, so that a program can embed the service beside its own work:
///
/// ```
/// # fn main() -> anyhow::Result<()> { tokio::runtime::Runtime::new()?.block_on(async {
/// use tokio::net::TcpListener;
/// use webhookctl::{Config, Service};
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let config = Config::from_toml(
///     r#"
///         [[merchant]]
///         pid = "1002"
///         key = "the merchant's key"
///     "#,
///     directory,
/// )?;
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
///
/// let service = Service::open(config).await?;
/// let running = tokio::spawn(service.run(listener, async { drop(stopped.await) }));
///
/// // Gateways can reach http://{address}/payment/notify now.
/// # tokio::net::TcpStream::connect(address).await?;
/// stop.send(()).unwrap();
/// running.await??;
/// # Ok(()) }) }
/// ```
pub struct Service {
    config: Current,
    store: Store,
    site: Arc<Site>,
    reconciler: Arc<Reconciler>,
    api: Arc<Api>,
    api_address: Option<Bound>,
}

impl Service {
    /// Opens the store; creates the database where there is none. The configured language becomes that of the process.
    pub async fn open(config: Config) -> anyhow::Result<Self> {
        config.language.activate();
        let api_address = config.api.as_ref().map(bind_api).transpose()?;
        let store = Store::open(&config.database.url).await?;
        log::info!(target: "webhookctl::store", "{}", t!("log.store_ready"));
        log::info!("{}", t!("log.service_ready"));
        let config = Current::new(config);
        let gateways = Arc::new(Gateways::new(&config, &store));
        let reconciler = Arc::new(Reconciler::new(&config, &store, &gateways));
        let site = Arc::new(Site::new(&config, &store, &gateways));
        let api = Arc::new(Api::new(&config, &store, &gateways));
        Ok(Self { config, store, site, reconciler, api, api_address })
    }

    /// The store that the service settles in, for a program that embeds it: to create orders and read credits.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The configuration in force, for whoever may replace it.
    pub(crate) fn config(&self) -> &Current {
        &self.config
    }

    /// What tells whether the service is well, for as long as it runs.
    pub(crate) fn site(&self) -> &Arc<Site> {
        &self.site
    }

    /// Serves `listener` until `shutdown` comes, finishes the requests under way, and closes the store.
    ///
    /// An error means that a part of the service ended that must not; nothing is served any more then.
    pub async fn run(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (phase, phases) = watch::channel(Phase::Serving);
        let ending = async {
            shutdown.await;
            phase.send_replace(Phase::Stopping);
            std::future::pending().await
        };
        tokio::select! {
            ended = self.run_through(listener, phases) => ended,
            never = ending => never,
        }
    }

    /// [`Service::run`], in phases that come from outside.
    pub(crate) fn run_through(
        mut self,
        listener: TcpListener,
        phases: watch::Receiver<Phase>,
    ) -> impl Future<Output = anyhow::Result<()>> + Send {
        // Now, and not when the future is first polled: who takes over dismisses the other process right after this call.
        let api_listening = self.api_address.take().map(Bound::listen).transpose();
        self.run_parts(listener, phases, api_listening)
    }

    async fn run_parts(
        self,
        listener: TcpListener,
        phases: watch::Receiver<Phase>,
        api_listening: io::Result<Option<Listening>>,
    ) -> anyhow::Result<()> {
        let api_listening = api_listening.with_context(|| t!("log.api_listen_failed").into_owned())?;
        let address = listener.local_addr().context("the listener has no address")?;
        log::info!("{}", t!("log.starting", port = address.port()));
        let (version, sqlite) = (env!("CARGO_PKG_VERSION"), Store::engine_version());
        log::info!("{}", t!("log.listening", address = address, version = version, sqlite = sqlite));
        let drain = || drain_timeout(&self.config.load());
        let mut parts = Parts::default();
        parts.start(|stop| Arc::clone(&self.reconciler).run(stop));
        if let Some(listening) = api_listening {
            let (api, config) = (Arc::clone(&self.api), self.config.clone());
            parts.start(|stop| listening.serve(api, stop, move || drain_timeout(&config.load())));
        }
        let drained = tokio::select! {
            drained = server::serve(listener, Arc::clone(&self.site), phases.clone(), drain) => drained,
            () = self.store.writer_ended() => return Err(anyhow!(t!("log.writer_ended"))),
            error = parts.run_while_serving(phases) => return Err(error),
        };
        parts.finish().await;
        if let Drained::Partly(count) = drained {
            log::warn!("{}", t!("log.stop_timeout", count = count, seconds = drain().as_secs_f32()));
        }
        self.store.close().await?;
        self.site.finish().await;
        log::info!("{}", t!("log.stopped"));
        Ok(())
    }
}

fn bind_api(config: &config::Api) -> anyhow::Result<Bound> {
    Api::bind(config).with_context(|| t!("log.api_bind_failed", address = config.listen).into_owned())
}

/// What runs beside the server: each part until it is told to stop, which is when another process takes over, or the end comes.
#[derive(Default)]
struct Parts {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Parts {
    fn start<F: Future<Output = ()> + Send + 'static>(&mut self, part: impl FnOnce(CancellationToken) -> F) {
        self.tasks.spawn(part(self.stop.clone()));
    }

    /// Tells the parts to stop when serving ends; comes back only if one of them ends before.
    async fn run_while_serving(&mut self, mut phases: watch::Receiver<Phase>) -> anyhow::Error {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => {
                return anyhow!(t!("log.task_ended", cause = format!("{ended:?}")).into_owned());
            }
            // Whoever decides on the phases and goes away means the end as well.
            _ = phases.wait_for(|phase| *phase > Phase::Serving) => self.stop.cancel(),
        }
        std::future::pending().await
    }

    /// Waits for the parts to finish what is under way, which each of them limits.
    async fn finish(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// How long requests may take to finish at a stop: what is left of `stop_timeout_s` is for closing the database, so that
/// the whole ends within it.
fn drain_timeout(config: &Config) -> Duration {
    let whole = Duration::from_secs(config.service.stop_timeout_s.into());
    whole.saturating_sub(Duration::from_secs(2)).max(whole / 2)
}
