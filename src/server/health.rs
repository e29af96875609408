//! `/payment/health`: whether a payment that came now would be written.

use std::sync::Mutex;
use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::net::response::{JSON, Response, respond};
use crate::store::Store;
use crate::sync::lock;

pub(crate) const PATH: &str = "/payment/health";

const OK: &str = r#"{"service":"payment-webhook-v1","status":"ok"}"#;
const UNAVAILABLE: &str = r#"{"service":"payment-webhook-v1","status":"unavailable"}"#;

/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends one probe through the store's writer at a time, however many ask.
pub(super) struct Health {
    store: Store,
    under_way: Mutex<Option<Probe>>,
}

#[derive(Clone)]
struct Probe {
    deadline: Instant,
    /// `None` until the probe comes back, then whether it was well.
    result: watch::Receiver<Option<bool>>,
}

impl Health {
    pub(super) fn new(store: Store) -> Self {
        Self { store, under_way: Mutex::default() }
    }

    pub(super) async fn answer(&self) -> Response {
        let (status, body) =
            if self.is_well().await { (StatusCode::OK, OK) } else { (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE) };
        respond(status, JSON, body)
    }

    /// Whether a probe came back well, and in time.
    pub(super) async fn is_well(&self) -> bool {
        let mut probe = self.probe();
        let came_back = timeout_at(probe.deadline, probe.result.wait_for(Option::is_some)).await;
        matches!(came_back, Ok(Ok(result)) if *result == Some(true))
    }

    /// The probe that is under way, or a new one. One that is late stays the only one: a stuck writer gets no second.
    fn probe(&self) -> Probe {
        let mut under_way = lock(&self.under_way);
        if let Some(probe) = &*under_way
            && probe.result.borrow().is_none()
        {
            return probe.clone();
        }
        let (report, result) = watch::channel(None);
        let store = self.store.clone();
        tokio::spawn(async move {
            let well = store.probe().await.is_ok();
            report.send_replace(Some(well));
        });
        let probe = Probe { deadline: Instant::now() + PROBE_TIMEOUT, result };
        under_way.insert(probe).clone()
    }
}
