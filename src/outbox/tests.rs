use std::sync::Mutex;

use tokio::sync::Semaphore;

use super::*;
use crate::config::DatabaseUrl;
use crate::domain::language::Language;
use crate::store::{DeliveryFilter, DeliveryState, fixtures};

/// Does what it is told to, one verdict after the other, and then delivers.
struct Scripted {
    verdicts: Mutex<Vec<Verdict>>,
    /// A delivery ends when there is a permit for it.
    permits: Arc<Semaphore>,
    begun: Arc<Semaphore>,
}

impl Courier for Scripted {
    const CHANNEL: Channel = Channel::Telegram;
    const KEEPS_TRYING: Duration = Duration::from_hours(24);
    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(2) };
    const FAILURE: NoticeKind = NoticeKind::MessageFailed;
    type Route = ();

    fn language(&self) -> Language {
        Language::English
    }

    async fn route(&self) -> Result<Option<()>, StoreError> {
        Ok(Some(()))
    }

    async fn deliver(&self, (): &(), _: &Delivery) -> Verdict {
        self.begun.add_permits(1);
        self.permits.acquire().await.unwrap().forget();
        self.verdicts.lock().unwrap().pop().unwrap_or(Verdict::Sent)
    }
}

struct Fixture {
    _directory: tempfile::TempDir,
    store: Store,
    permits: Arc<Semaphore>,
    begun: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = fixtures::open(&DatabaseUrl::Sqlite(directory.path().join("x.db"))).await.unwrap();
        let semaphore = || Arc::new(Semaphore::new(0));
        Self { _directory: directory, store, permits: semaphore(), begun: semaphore(), stop: CancellationToken::new() }
    }

    fn start(&self, mut verdicts: Vec<Verdict>) -> tokio::task::JoinHandle<()> {
        verdicts.reverse();
        let (permits, begun) = (Arc::clone(&self.permits), Arc::clone(&self.begun));
        let courier = Scripted { verdicts: Mutex::new(verdicts), permits, begun };
        let dispatcher = Dispatcher::new(courier, self.store.clone(), Notices::default(), Clock::system());
        tokio::spawn(run(dispatcher, self.stop.clone()))
    }

    async fn pay(&self, order_no: &str, paid_at: Timestamp) {
        self.store.create_order(fixtures::order(order_no, 1001, paid_at)).await.unwrap();
        self.store.settle(fixtures::paid(order_no, &format!("T{order_no}"), paid_at)).await.unwrap();
    }

    async fn all(&self) -> Vec<Delivery> {
        self.store.deliveries(Channel::Telegram, DeliveryFilter::default(), 100).await.unwrap()
    }

    /// Waits until as many deliveries have begun.
    async fn begun(&self, count: u32) {
        self.begun.acquire_many(count).await.unwrap().forget();
    }

    /// Waits until the only row has come so far.
    async fn reaches(&self, state: DeliveryState) -> Delivery {
        loop {
            let [row] = self.all().await.try_into().unwrap();
            if row.state == state {
                return row;
            }
            tokio::task::yield_now().await;
        }
    }
}

fn again() -> Verdict {
    Verdict::Again { error: "not yet".into(), after: None }
}

#[tokio::test]
async fn what_fails_is_tried_until_it_arrives() {
    let fixture = Fixture::new().await;
    let running = fixture.start(vec![again(), again(), again()]);
    fixture.permits.add_permits(100);
    fixture.pay("ORDER1", Timestamp::now()).await;
    let row = fixture.reaches(DeliveryState::Sent).await;
    assert_eq!((row.attempts, row.error), (4, None));
    fixture.stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_pause_counts_no_attempt_and_loses_nothing() {
    let fixture = Fixture::new().await;
    let pause = Verdict::Pause { time: Duration::from_millis(5), level: log::Level::Warn, error: "too many".into() };
    let running = fixture.start(vec![pause.clone(), pause]);
    fixture.permits.add_permits(100);
    fixture.pay("ORDER1", Timestamp::now()).await;
    assert_eq!(fixture.reaches(DeliveryState::Sent).await.attempts, 1);
    fixture.stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn what_is_final_is_recorded() {
    let fixture = Fixture::new().await;
    let running = fixture.start(vec![Verdict::Final { error: "blocked".into() }]);
    fixture.permits.add_permits(100);
    fixture.pay("ORDER1", Timestamp::now()).await;
    let row = fixture.reaches(DeliveryState::Failed).await;
    assert_eq!((row.error.as_deref(), row.attempts), (Some("blocked"), 1));
    fixture.stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn what_is_too_old_is_given_up_untried() {
    let fixture = Fixture::new().await;
    let now = Timestamp::now();
    fixture.pay("ORDER1", Timestamp::from_ms(now.ms() - 25 * 3_600_000)).await;
    let running = fixture.start(Vec::new());
    let row = fixture.reaches(DeliveryState::Failed).await;
    assert_eq!(row.attempts, 0);
    fixture.stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_stop_takes_up_nothing_more_and_finishes_what_is_under_way() {
    let fixture = Fixture::new().await;
    let now = Timestamp::now();
    for n in 0..CONCURRENCY + 3 {
        fixture.pay(&format!("ORDER{n}"), now).await;
    }
    let running = fixture.start(Vec::new());
    fixture.begun(u32::try_from(CONCURRENCY).unwrap()).await;
    fixture.stop.cancel();
    fixture.permits.add_permits(100);
    running.await.unwrap();
    let sent = fixture.all().await.iter().filter(|row| row.state == DeliveryState::Sent).count();
    assert_eq!(sent, CONCURRENCY);
    assert_eq!(fixture.begun.available_permits(), 0, "nothing was begun after the stop");
    assert_eq!(fixture.all().await.iter().map(|row| row.attempts).max(), Some(1));
}

#[test]
fn nothing_is_planned_beyond_its_time() {
    let now = Timestamp::now();
    let since = |seconds: i64| Timestamp::from_ms(now.ms() - seconds * 1000);
    let row = |tried_since| {
        let order = crate::domain::order::Order::new(fixtures::order("ORDER1", 1, now));
        Delivery {
            id: 1,
            news: crate::store::News::Settled,
            order,
            language: None,
            balance: 0,
            created_at: since(1_000_000),
            tried_since,
            due_at: now,
            attempts: 3,
            state: DeliveryState::Due,
            error: None,
            finished_at: None,
        }
    };
    let verdict =
        |tried_since| again_or_never::<Scripted>(&row(tried_since), "x".into(), None, now, &Jitter::default());
    assert!(matches!(verdict(since(3600)), Attempt::Again { at, .. } if at > now));
    assert!(matches!(verdict(since(24 * 3600)), Attempt::Failed { .. }));
    // What the other side asks for is kept to, within reason.
    let hours = Some(Duration::from_hours(9));
    let asked = again_or_never::<Scripted>(&row(now), "x".into(), hours, now, &Jitter::default());
    assert!(matches!(asked, Attempt::Again { at, .. } if at == now.plus(Scripted::BACKOFF.longest)));
}
