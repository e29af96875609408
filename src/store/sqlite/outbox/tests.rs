use tokio::task::JoinSet;

use super::*;
use crate::config::DatabaseUrl;
use crate::store::{Store, fixtures};

/// When orders are paid.
const PAID: i64 = 1_700_000_000_000;
const LEASE: Duration = Duration::from_secs(30);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_ms(PAID + seconds * 1000)
}

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    /// A store with as many paid orders, `ORDER0` and so on.
    async fn with_paid_orders(count: usize, tells_bot: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory).await;
        store.tell_bot(tells_bot);
        for n in 0..count {
            pay(&store, &format!("ORDER{n}")).await;
        }
        Self { directory, store }
    }

    async fn claim(&self, now: Timestamp) -> Vec<Delivery> {
        self.store.claim_due(Channel::Telegram, now, LEASE, 10).await.unwrap()
    }

    async fn only(&self, channel: Channel) -> Delivery {
        let all = self.store.deliveries(channel, DeliveryFilter::default(), 10).await.unwrap();
        let [only] = all.try_into().unwrap();
        only
    }
}

async fn open(directory: &tempfile::TempDir) -> Store {
    fixtures::open(&DatabaseUrl::Sqlite(directory.path().join("x.db"))).await.unwrap()
}

async fn pay(store: &Store, order_no: &str) {
    store.create_order(fixtures::order(order_no, 1001, at(-60))).await.unwrap();
    store.settle(fixtures::paid(order_no, &format!("T{order_no}"), at(0))).await.unwrap();
}

#[tokio::test]
async fn each_row_is_claimed_by_one_until_its_lease_ends() {
    let fixture = Fixture::with_paid_orders(20, false).await;
    let other = open(&fixture.directory).await;
    let mut claims = JoinSet::new();
    for store in [&fixture.store, &other] {
        for _ in 0..3 {
            let store = store.clone();
            claims.spawn(async move { store.claim_due(Channel::Telegram, at(1), LEASE, 4).await.unwrap() });
        }
    }
    let mut claimed: Vec<_> = claims.join_all().await.into_iter().flatten().map(|delivery| delivery.id).collect();
    claimed.sort_unstable();
    let all = claimed.len();
    claimed.dedup();
    assert_eq!((all, claimed.len()), (20, 20), "four each of six, and no row twice");
    assert!(fixture.claim(at(30)).await.is_empty());
    let again = fixture.claim(at(31)).await;
    assert_eq!((again.len(), again[0].attempts), (10, 2));
}

#[tokio::test]
async fn what_becomes_of_an_attempt() {
    let error = || "no".to_owned();
    for (attempt, state, due_at, attempts, finished_at) in [
        (Attempt::Sent, DeliveryState::Sent, None, 1, Some(at(2))),
        (Attempt::Again { at: at(9), error: error() }, DeliveryState::Due, Some(at(9)), 1, None),
        (Attempt::NotNow { at: at(9), attempts_before: 0, error: error() }, DeliveryState::Due, Some(at(9)), 0, None),
        (Attempt::Failed { error: error() }, DeliveryState::Failed, None, 1, Some(at(2))),
    ] {
        let fixture = Fixture::with_paid_orders(1, false).await;
        let claimed = fixture.claim(at(1)).await;
        fixture.store.attempted(claimed[0].id, attempt.clone(), at(2)).await.unwrap();
        let after = fixture.only(Channel::Telegram).await;
        assert_eq!((after.state, after.attempts, after.finished_at), (state, attempts, finished_at), "{attempt:?}");
        assert_eq!(fixture.store.next_due(Channel::Telegram).await.unwrap(), due_at, "{attempt:?}");
        assert_eq!(after.error.is_some(), attempt != Attempt::Sent, "{attempt:?}");
    }
}

#[tokio::test]
async fn what_was_sent_is_not_made_due_by_one_who_comes_late() {
    let fixture = Fixture::with_paid_orders(1, false).await;
    let id = fixture.claim(at(1)).await[0].id;
    fixture.store.attempted(id, Attempt::Sent, at(40)).await.unwrap();
    for late in [Attempt::Again { at: at(50), error: "x".into() }, Attempt::Failed { error: "x".into() }] {
        fixture.store.attempted(id, late, at(41)).await.unwrap();
        assert_eq!(fixture.only(Channel::Telegram).await.state, DeliveryState::Sent);
    }
}

#[tokio::test]
async fn the_age_is_counted_from_when_a_person_last_asked() {
    let fixture = Fixture::with_paid_orders(1, false).await;
    let give_up = |until| fixture.store.give_up_older(Channel::Telegram, until, "too old".into(), at(100_000));
    assert_eq!(give_up(at(0)).await.unwrap(), 0);
    assert_eq!(give_up(at(1)).await.unwrap(), 1);
    let failed = fixture.only(Channel::Telegram).await;
    assert_eq!((failed.state, failed.error.as_deref()), (DeliveryState::Failed, Some("too old")));

    let again = DeliveryFilter { state: Some(DeliveryState::Failed), ..DeliveryFilter::default() };
    assert_eq!(fixture.store.deliver_again(Channel::Telegram, again, at(90_000)).await.unwrap(), 1);
    let due = fixture.only(Channel::Telegram).await;
    assert_eq!((due.created_at, due.tried_since, due.due_at), (at(0), at(90_000), at(90_000)));
    assert_eq!((due.state, due.attempts, due.error), (DeliveryState::Due, 0, None));
    assert_eq!(give_up(at(90_000)).await.unwrap(), 0);
    assert_eq!(give_up(at(90_001)).await.unwrap(), 1);
}

#[tokio::test]
async fn events_are_added_once_for_what_happened_before_there_was_a_bot() {
    let fixture = Fixture::with_paid_orders(1, false).await;
    let events = || fixture.store.deliveries(Channel::Event, DeliveryFilter::default(), 10);
    assert!(events().await.unwrap().is_empty());
    assert_eq!(fixture.store.add_missing_events(at(1), at(500_000)).await.unwrap(), 0);
    assert_eq!(fixture.store.add_missing_events(at(0), at(500_000)).await.unwrap(), 1);
    assert_eq!(fixture.store.add_missing_events(at(0), at(500_000)).await.unwrap(), 0);
    let event = fixture.only(Channel::Event).await;
    assert_eq!((event.created_at, event.tried_since), (at(0), at(500_000)), "too old only from then on");

    fixture.store.tell_bot(true);
    pay(&fixture.store, "LATER").await;
    assert_eq!(events().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_filter_takes_what_it_names() {
    let fixture = Fixture::with_paid_orders(2, false).await;
    let id = fixture.claim(at(1)).await[0].id;
    fixture.store.attempted(id, Attempt::Sent, at(2)).await.unwrap();
    let all = DeliveryFilter::default;
    for (filter, count) in [
        (all(), 2),
        (DeliveryFilter { state: Some(DeliveryState::Sent), ..all() }, 1),
        (DeliveryFilter { state: Some(DeliveryState::Failed), ..all() }, 0),
        (DeliveryFilter { order_no: Some("ORDER1".into()), ..all() }, 1),
        (DeliveryFilter { order_no: Some("ORDER9".into()), ..all() }, 0),
        (DeliveryFilter { id: Some(id), ..all() }, 1),
        (DeliveryFilter { since: Some(at(0)), ..all() }, 2),
        (DeliveryFilter { since: Some(at(1)), ..all() }, 0),
    ] {
        let text = format!("{filter:?}");
        let found = fixture.store.deliveries(Channel::Telegram, filter.clone(), 10).await.unwrap();
        assert_eq!(found.len(), count, "{text}");
        assert_eq!(fixture.store.deliver_again(Channel::Event, filter, at(3)).await.unwrap(), 0, "{text}");
    }
}

/// Whoever does not hear that an attempt was noted notes it once more.
#[tokio::test]
async fn an_attempt_that_does_not_count_is_taken_back_once() {
    let fixture = Fixture::with_paid_orders(1, false).await;
    let id = fixture.claim(at(1)).await[0].id;
    fixture.store.attempted(id, Attempt::Again { at: at(9), error: "no".into() }, at(2)).await.unwrap();
    assert_eq!(fixture.claim(at(9)).await[0].attempts, 2);
    for _ in 0..2 {
        let attempt = Attempt::NotNow { at: at(20), attempts_before: 1, error: "too many".into() };
        fixture.store.attempted(id, attempt, at(10)).await.unwrap();
    }
    assert_eq!(fixture.only(Channel::Telegram).await.attempts, 1);
}
