//! The service: its parts put together, run, and shut down.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Bound, Listening};
use crate::config::{self, Config, Current};
use crate::domain::clock::{Clock, SetBack};
use crate::domain::failure::{OrFailure, failure};
use crate::domain::language::{Localized, localized};
use crate::domain::notices::Notices;
use crate::logging::{self, log_text};
use crate::net::client::Client;
use crate::outbox::telegram::Sender;
use crate::outbox::{self, Buyers, Dispatcher, Events, Watch, tell_admin};
use crate::payments::gateways::Gateways;
use crate::payments::reconcile::Reconciler;
use crate::server::{self, Drained, Phase, Site};
use crate::store::sqlite::maintenance::DatabaseFile;
use crate::store::{Opening, Store};

/// How often it is looked whether the clock was set back.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(1);

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
    /// Shared by all that ask others for something.
    client: Client,
    clock: Clock,
    notices: Notices,
    reconciler: Arc<Reconciler>,
    site: Arc<Site>,
    api: Arc<Api>,
    api_address: Option<Bound>,
}

impl Service {
    /// Opens the store; creates the database where there is none.
    pub async fn open(config: Config) -> anyhow::Result<Self> {
        let api_address = config.api.as_ref().map(bind_api).transpose()?;
        let store = Store::open(&config, Opening::Create).await?;
        match DatabaseFile::of(&config.database.url).remove_leftovers().await {
            Ok(removed) => removed.iter().for_each(|path| {
                log::warn!(target: "webhookctl::store", "{}", log_text!("backup.leftover_removed", path = path.display()));
            }),
            // A leftover does no harm to the running service.
            Err(error) => log::warn!(target: "webhookctl::store", "{}", error.text(logging::language())),
        }
        log::info!(target: "webhookctl::store", "{}", log_text!("log.store_ready"));
        log::info!("{}", log_text!("log.service_ready"));
        let config = Current::new(config);
        let (client, clock) = (Client::new(), Clock::system());
        let notices = Notices::default();
        let gateways = Arc::new(Gateways::new(&config, &store, &client, &clock).telling(&notices));
        let reconciler = Arc::new(Reconciler::new(&config, &store, &gateways));
        let site = Arc::new(Site::new(&config, &store, &gateways, &reconciler));
        let api = Arc::new(Api::new(&config, &store, &gateways));
        Ok(Self { config, store, client, clock, notices, reconciler, site, api, api_address })
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
        let api_listening = api_listening.or_failure(|| localized!("log.api_listen_failed"))?;
        let address = listener.local_addr().context("the listener has no address")?;
        log::info!("{}", log_text!("log.starting", port = address.port()));
        let (version, sqlite) = (env!("CARGO_PKG_VERSION"), Store::engine_version());
        log::info!("{}", log_text!("log.listening", address = address, version = version, sqlite = sqlite));
        let drain = || drain_timeout(&self.config.load());
        let mut background = Background::start(&self);
        if let Some(listening) = api_listening {
            let (api, config) = (Arc::clone(&self.api), self.config.clone());
            background.add(|stop| listening.serve(api, stop, move || drain_timeout(&config.load())));
        }
        let drained = tokio::select! {
            drained = server::serve(listener, Arc::clone(&self.site), phases.clone(), drain) => drained,
            () = self.store.writer_ended() => return Err(failure!("log.writer_ended")),
            fault = background.fault(phases) => return Err(fault),
        };
        background.finish(drain()).await;
        if let Drained::Partly(count) = drained {
            log::warn!("{}", log_text!("log.stop_timeout", count = count, seconds = drain().as_secs_f32()));
        }
        self.store.close().await?;
        self.site.finish().await;
        log::info!("{}", log_text!("log.stopped"));
        Ok(())
    }
}

fn bind_api(config: &config::Api) -> anyhow::Result<Bound> {
    Api::bind(config).or_failure(|| localized!("log.api_bind_failed", address = config.listen))
}

/// What the service does beside answering requests, in parts that all end by the same signal.
struct Background {
    parts: JoinSet<()>,
    stop: CancellationToken,
    stopped_at: Option<Instant>,
}

impl Background {
    fn start(service: &Service) -> Self {
        let (config, store) = (&service.config, &service.store);
        let (stop, notices) = (CancellationToken::new(), service.notices.clone());
        let (client, clock) = (service.client.clone(), service.clock.clone());
        let sender = Sender::new(client.clone(), clock.clone());
        let buyers = Buyers::new(config.clone(), sender.clone());
        let buyers = Dispatcher::new(buyers, store.clone(), notices.clone(), clock.clone());
        let events = Events::new(config.clone(), store.clone(), client, notices.clone(), clock.clone());
        let events = Dispatcher::new(events, store.clone(), notices.clone(), clock.clone());
        let watch = Watch::new(notices, config.clone(), store.clone(), sender, clock.clone());
        let mut parts = JoinSet::new();
        parts.spawn(outbox::run(buyers, stop.clone()));
        parts.spawn(outbox::run(events, stop.clone()));
        parts.spawn(Arc::clone(&service.reconciler).run(stop.clone()));
        parts.spawn(follow_clock(DueTimes::new(store.clone(), &clock), clock, stop.clone()));
        parts.spawn(tell_admin(watch, stop.clone()));
        Self { parts, stop, stopped_at: None }
    }

    fn add<F: Future<Output = ()> + Send + 'static>(&mut self, part: impl FnOnce(CancellationToken) -> F) {
        self.parts.spawn(part(self.stop.clone()));
    }

    /// Comes back when a part ends that must not. Tells them to end when the service does not serve any more, which may be long
    /// before its last connection is closed: another process is to do their work then.
    async fn fault(&mut self, mut phases: watch::Receiver<Phase>) -> anyhow::Error {
        tokio::select! {
            Some(ended) = self.parts.join_next() => {
                let cause = ended.err().map_or_else(String::new, |error| error.to_string());
                return failure!("log.task_ended", cause = cause);
            }
            // Nobody is left to say that it is over where this is an error.
            _ = phases.wait_for(|phase| *phase != Phase::Serving) => {}
        }
        self.tell_to_stop();
        std::future::pending().await
    }

    fn tell_to_stop(&mut self) -> Instant {
        self.stop.cancel();
        *self.stopped_at.get_or_insert_with(Instant::now)
    }

    /// Waits until all parts have ended, for at most `patience` after they were told to.
    async fn finish(mut self, patience: Duration) {
        let deadline = self.tell_to_stop() + patience;
        // What is cut here is due again by itself, when its lease ends.
        let _ = timeout_at(deadline, async { while self.parts.join_next().await.is_some() {} }).await;
    }
}

async fn follow_clock(mut due_times: DueTimes, clock: Clock, stop: CancellationToken) {
    while stop.run_until_cancelled(clock.sleep(LOOK_AT_CLOCK)).await.is_some() {
        due_times.round().await;
    }
}

/// What is due at a time is due by the wall clock. Where that is set back, the times go with it: no buyer is to wait an hour longer.
pub(crate) struct DueTimes {
    store: Store,
    clock: Clock,
    set_back: SetBack,
    /// How far the times in the store are behind the clock.
    owed_ms: i64,
}

impl DueTimes {
    pub(crate) fn new(store: Store, clock: &Clock) -> Self {
        Self { store, set_back: SetBack::watch(clock), clock: clock.clone(), owed_ms: 0 }
    }

    /// Looks at the clock, and moves the times if it was set back.
    pub(crate) async fn round(&mut self) {
        if let Some(back_ms) = self.set_back.since_last() {
            log::warn!("{}", log_text!("log.clock_set_back", seconds = back_ms / 1000));
            self.owed_ms = self.owed_ms.saturating_add(back_ms);
        }
        if self.owed_ms > 0 && self.store.clock_was_set_back(self.owed_ms, self.clock.now()).await.is_ok() {
            self.owed_ms = 0;
        }
    }
}

/// How long requests may take to finish at a stop: what is left of `stop_timeout_s` is for closing the database, so that
/// the whole ends within it.
fn drain_timeout(config: &Config) -> Duration {
    let whole = Duration::from_secs(config.service.stop_timeout_s.into());
    whole.saturating_sub(Duration::from_secs(2)).max(whole / 2)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::domain::language::{Language, text};

    /// How long an answer may take before the test has failed.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// The page that a buyer gets who names no order and no language.
    async fn page(address: std::net::SocketAddr) -> String {
        let reply = Client::new().get(&format!("http://{address}/payment/return"), PATIENCE).await.unwrap();
        String::from_utf8(reply.body.to_vec()).unwrap()
    }

    /// What the local API says to a client without a token.
    async fn refusal(socket: &Path) -> Value {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(b"GET /v1/packages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// A program may embed several services, and has a language of its own.
    #[tokio::test]
    async fn two_services_in_one_process_speak_each_its_own_language() {
        let directory = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let mut services = Vec::new();
        for &language in Language::ALL {
            let own = directory.path().join(language.name());
            std::fs::create_dir(&own).unwrap();
            let text = format!("language = \"{language}\"\n[api]\nlisten = \"unix:api.sock\"\ntoken = \"t\"\n");
            let service = Service::open(Config::from_toml(&text, &own).unwrap()).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let running = tokio::spawn(service.run(listener, stop.clone().cancelled_owned()));
            services.push((language, address, own.join("api.sock"), running));
        }
        // Both are open by now, and each is asked: neither has the language of the one that was opened last.
        for (language, address, socket, _) in &services {
            let page = page(*address).await;
            assert!(page.contains(&*text!(*language, "page.neutral")), "{language}: {page}");
            assert_eq!(refusal(socket).await["detail"], *text!(*language, "api.unauthorized"), "{language}");
        }
        stop.cancel();
        for (.., running) in services {
            running.await.unwrap().unwrap();
        }
    }
}
