mod decisions;
mod upgrades;

use std::collections::HashSet;

use super::*;
use crate::config::DatabaseUrl;
use crate::domain::decisions::PaymentOfDecision;
use crate::domain::money::Amount;
use crate::domain::order::{NewOrder, OrderNo, OrderStatus, SettledBy, User};
use crate::domain::outcome::{ClaimedFields, Outcome, Rejected};
use crate::domain::settlement::ClaimProof;
use crate::store::{Answered, ByHand, Cause, Channel, Credited, Engine, Grant, Receipt, Store, fixtures};

const NOW: i64 = 1_700_000_000_000;

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = fixtures::open(&url(&directory)).await.unwrap();
        Self { directory, store }
    }

    /// A connection that obeys nothing but the schema, as another program's would.
    fn stranger(&self) -> Connection {
        let db = Connection::open(self.directory.path().join("x.db")).unwrap();
        db.busy_timeout(std::time::Duration::from_mins(1)).unwrap();
        db
    }

    fn count(&self, sql: &str) -> i64 {
        self.stranger().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

fn url(directory: &tempfile::TempDir) -> DatabaseUrl {
    DatabaseUrl::Sqlite(directory.path().join("x.db"))
}

fn writer_of(store: &Store) -> &WriterHandle {
    let Engine::Sqlite(sqlite) = &store.engine;
    sqlite.writer.as_ref().unwrap()
}

fn new_order(order_no: &str, telegram_id: i64) -> NewOrder {
    fixtures::order(order_no, telegram_id, Timestamp::from_ms(NOW))
}

fn settle(order_no: &str, trade_no: &str) -> Settle {
    fixtures::paid(order_no, trade_no, Timestamp::from_ms(NOW + 1000))
}

fn receipt() -> Receipt {
    fixtures::receipt(Timestamp::from_ms(NOW + 1000))
}

#[tokio::test]
async fn a_settlement_writes_everything_at_once() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    store.create_order(new_order("A1", 1001)).await.unwrap();
    let settlement = store.settle(settle("A1", "T1")).await.unwrap();
    assert_eq!(
        settlement,
        Settlement {
            outcome: Outcome::Settled,
            credited: Some(Credited { telegram_id: 1001, credits: 70 }),
            order_amount: Amount::from_fen(3600),
            changed_order: true,
        }
    );
    let order = store.order("A1").await.unwrap().unwrap();
    assert_eq!(order.stored_status, OrderStatus::Paid);
    assert_eq!(order.trade_no.as_deref(), Some("T1"));
    assert_eq!(order.settled_by, Some(SettledBy::Notify));
    assert_eq!(order.paid_at, Some(Timestamp::from_ms(NOW + 1000)));
    let user = store.user(1001).await.unwrap().unwrap();
    assert_eq!(user, User { credits: 70, orders_paid: 1, telegram_id: 1001 });
    assert_eq!(fixture.count("SELECT count(*) FROM outbox WHERE kind = 'settled'"), 1);
    let payload: Vec<u8> = fixture.stranger().query_row("SELECT payload FROM receipts", [], |row| row.get(0)).unwrap();
    assert_eq!(payload, b"a=1&b=%FF");
}

#[tokio::test]
async fn a_hundred_concurrent_copies_credit_once() {
    let fixture = Fixture::new().await;
    fixture.store.create_order(new_order("A1", 1001)).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = fixture.store.clone();
        tasks.spawn(async move { store.settle(settle("A1", "T1")).await.unwrap().outcome });
    }
    let outcomes = tasks.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Settled).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Duplicate).count(), 99);
    assert_eq!(fixture.store.user(1001).await.unwrap().unwrap().credits, 70);
    assert_eq!(fixture.count("SELECT count(*) FROM receipts"), 100);
}

#[tokio::test]
async fn one_payment_settles_one_order_and_two_payments_of_one_order_are_told_apart() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    for order_no in ["A1", "A2"] {
        store.create_order(new_order(order_no, 1001)).await.unwrap();
    }
    let outcome = async |order_no, trade_no| store.settle(settle(order_no, trade_no)).await.unwrap().outcome;
    assert_eq!(outcome("A1", "T1").await, Outcome::Settled);
    assert_eq!(outcome("A2", "T1").await, Outcome::TradeReused);
    assert_eq!(outcome("A1", "T2").await, Outcome::PaidAgain);
    assert_eq!(outcome("A2", "T2").await, Outcome::Settled);
    assert_eq!(outcome("NONE", "T3").await, Outcome::UnknownOrder);
    assert_eq!(store.user(1001).await.unwrap().unwrap().credits, 140);
    assert_eq!(fixture.count("SELECT count(*) FROM receipts"), 5);
}

#[tokio::test]
async fn a_wrong_amount_puts_the_order_in_review_and_tells_once() {
    let fixture = Fixture::new().await;
    fixture.store.create_order(new_order("A1", 1001)).await.unwrap();
    for _ in 0..2 {
        let mut wrong = settle("A1", "T1");
        wrong.claim.amount = Amount::from_fen(1);
        assert_eq!(fixture.store.settle(wrong).await.unwrap().outcome, Outcome::AmountMismatch);
    }
    assert_eq!(fixture.store.settle(settle("A1", "T1")).await.unwrap().outcome, Outcome::Held);
    let order = fixture.store.order("A1").await.unwrap().unwrap();
    assert_eq!(order.stored_status, OrderStatus::Review);
    assert_eq!(fixture.store.user(1001).await.unwrap().unwrap().credits, 0);
    assert_eq!(fixture.count("SELECT count(*) FROM outbox"), 1);
}

#[tokio::test]
async fn an_answer_from_a_clock_that_was_ahead_puts_no_question_off() {
    let fixture = Fixture::new().await;
    fixture.store.create_order(new_order("A1", 1001)).await.unwrap();
    let tomorrow = Timestamp::from_ms(NOW).plus_seconds(86_400);
    let answered = Answered {
        order_no: "A1".into(),
        at: tomorrow,
        cause: Cause::Reconcile,
        answer: "unpaid".into(),
        detail: String::new(),
        hold: None,
    };
    fixture.store.keep_answer(answered).await.unwrap();
    // The clock was set back since then.
    let mut unproved = settle("A1", "T1");
    unproved.claim.proof = ClaimProof::Missing;
    let now = unproved.receipt.received_at;
    assert_eq!(fixture.store.settle(unproved).await.unwrap().outcome, Outcome::Unconfirmed);
    assert_eq!(fixture.store.due_questions("1002".into(), now, 8).await.unwrap().len(), 1);
}

#[tokio::test]
async fn another_merchants_receipt_is_not_filed_under_the_order() {
    let fixture = Fixture::new().await;
    fixture.store.create_order(new_order("A1", 1001)).await.unwrap();
    let mut foreign = settle("A1", "T1");
    foreign.claim.merchant = "6666".into();
    assert_eq!(fixture.store.settle(foreign).await.unwrap().outcome, Outcome::UnknownOrder);
    assert_eq!(fixture.count("SELECT count(*) FROM receipts WHERE order_id IS NULL"), 1);
}

#[tokio::test]
async fn one_failing_job_does_not_spoil_its_batch() {
    let fixture = Fixture::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    // The same number twice: one of each pair must fail, whatever else shares its commit.
    for n in 0..50 {
        for _ in 0..2 {
            let store = fixture.store.clone();
            tasks.spawn(async move { store.create_order(new_order(&format!("A{n}"), 1001)).await.is_ok() });
        }
    }
    let created = tasks.join_all().await.into_iter().filter(|created| *created).count();
    assert_eq!(created, 50);
    assert_eq!(fixture.count("SELECT count(*) FROM orders"), 50);
}

#[tokio::test]
async fn the_schema_itself_keeps_the_books() {
    let fixture = Fixture::new().await;
    for order_no in ["A1", "A2"] {
        fixture.store.create_order(new_order(order_no, 1001)).await.unwrap();
    }
    fixture.store.settle(settle("A1", "T1")).await.unwrap();
    let db = fixture.stranger();
    // As in most programs that do not ask for it.
    db.pragma_update(None, "foreign_keys", false).unwrap();
    for forbidden in [
        "UPDATE ledger SET credits = 1000",
        "DELETE FROM ledger",
        "INSERT OR REPLACE INTO ledger (id, telegram_id, kind, credits, reason, created_at_ms)
         SELECT id, telegram_id, 'grant', 1000, 'x', 0 FROM ledger",
        "INSERT INTO ledger (telegram_id, kind, credits, order_id, created_at_ms)
         SELECT telegram_id, kind, credits, order_id, 0 FROM ledger",
        "INSERT OR REPLACE INTO ledger (telegram_id, kind, credits, order_id, created_at_ms)
         SELECT telegram_id, kind, 1000, order_id, 0 FROM ledger",
        "INSERT INTO ledger (telegram_id, kind, credits, created_at_ms) VALUES (1001, 'order', 70, 0)",
        "INSERT INTO ledger (telegram_id, kind, credits, created_at_ms) VALUES (1001, 'grant', 70, 0)",
        "UPDATE receipts SET payload = x''",
        "DELETE FROM receipts",
        "DELETE FROM orders",
        "UPDATE orders SET status = 'pending' WHERE order_no = 'A1'",
        "UPDATE orders SET status = 'paid', trade_no = 'T1', settled_by = 'notify', paid_at_ms = 1 WHERE order_no = 'A2'",
        "UPDATE orders SET status = 'paid' WHERE order_no = 'A2'",
        "UPDATE orders SET status = 'odd' WHERE order_no = 'A2'",
        "UPDATE orders SET amount_fen = 1 WHERE order_no = 'A2'",
        "UPDATE orders SET credits = 999",
        "UPDATE orders SET trade_no = 'T9' WHERE order_no = 'A1'",
        "UPDATE orders SET trade_no = 'T1' WHERE order_no = 'A2'",
        "INSERT OR REPLACE INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, created_at_ms,
             expires_at_ms) VALUES ('A1', '1002', 1001, 'x', 'alipay', 3600, 70, 0, 0)",
        "INSERT INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, created_at_ms,
             expires_at_ms) VALUES ('A3', '1002', 1001, 'x', 'alipay', 0, 70, 0, 0)",
        "INSERT INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, created_at_ms,
             expires_at_ms) VALUES ('A3', '1002', 1001, 'x', 'alipay', 1.5, 70, 0, 0)",
        "INSERT OR REPLACE INTO receipts SELECT id, 0, source, outcome, merchant, order_no, trade_no, order_id, client, method,
             x'' FROM receipts",
        "UPDATE users SET credits = 'many'",
        "INSERT OR REPLACE INTO users (telegram_id, created_at_ms) VALUES (1001, 0)",
        "DELETE FROM users",
        "UPDATE OR REPLACE orders SET status = 'paid', trade_no = 'T1', settled_by = 'notify', paid_at_ms = 1
         WHERE order_no = 'A2'",
    ] {
        assert!(db.execute_batch(forbidden).is_err(), "{forbidden}");
    }
    db.pragma_update(None, "foreign_keys", true).unwrap();
    let of_nobody =
        "INSERT INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, created_at_ms,
             expires_at_ms) VALUES ('A3', '1002', 1, 'x', 'alipay', 100, 70, 0, 0)";
    assert!(db.execute_batch(of_nobody).is_err(), "{of_nobody}");
    assert_eq!(fixture.store.user(1001).await.unwrap().unwrap().credits, 70);
}

#[tokio::test]
async fn grants_are_ledger_entries_and_never_go_below_zero() {
    let fixture = Fixture::new().await;
    let grant =
        |telegram_id, credits| Grant { telegram_id, credits, reason: "sorry".into(), at: Timestamp::from_ms(NOW) };
    assert!(matches!(fixture.store.grant(grant(1001, 5)).await, Err(AccountError::NoSuchUser(1001))));
    fixture.store.create_order(new_order("A1", 1001)).await.unwrap();
    assert_eq!(fixture.store.grant(grant(1001, 5)).await.unwrap().credits, 5);
    assert_eq!(fixture.store.grant(grant(1001, -3)).await.unwrap().credits, 2);
    for credits in [-3, i64::MAX, i64::MIN] {
        let refused = fixture.store.grant(grant(1001, credits)).await;
        assert!(matches!(refused, Err(AccountError::OutOfBounds { credits: 2, .. })), "{credits}");
    }
    let ledger = fixture.store.ledger(1001, 10).await.unwrap();
    assert_eq!(ledger.iter().map(|entry| entry.credits).collect::<Vec<_>>(), [-3, 5]);
}

#[tokio::test]
async fn orders_are_listed_newest_first_by_status_and_user() {
    let fixture = Fixture::new().await;
    for (order_no, user) in [("A1", 1001), ("A2", 1002), ("A3", 1001)] {
        fixture.store.create_order(new_order(order_no, user)).await.unwrap();
    }
    fixture.store.settle(settle("A1", "T1")).await.unwrap();
    let list = async |status, telegram_id, now, limit| {
        let now = Timestamp::from_ms(now);
        let filter = OrderFilter { status, telegram_id, limit, now };
        let orders = fixture.store.orders(filter).await.unwrap();
        orders.into_iter().map(|order| order.terms.order_no.to_string()).collect::<Vec<_>>().join(" ")
    };
    let late = NOW + 1_800_000;
    assert_eq!(list(None, None, NOW, 10).await, "A3 A2 A1");
    assert_eq!(list(None, None, NOW, 2).await, "A3 A2");
    assert_eq!(list(None, Some(1001), NOW, 10).await, "A3 A1");
    assert_eq!(list(Some(OrderStatus::Paid), None, NOW, 10).await, "A1");
    assert_eq!(list(Some(OrderStatus::Pending), None, NOW, 10).await, "A3 A2");
    assert_eq!(list(Some(OrderStatus::Pending), None, late, 10).await, "");
    assert_eq!(list(Some(OrderStatus::Expired), Some(1001), late, 10).await, "A3");
}

#[tokio::test]
async fn rejections_are_kept_up_to_their_number() {
    let fixture = Fixture::new().await;
    let db = fixture.stranger();
    db.execute_batch(
        "INSERT INTO rejections (id, received_at_ms, outcome, reason, payload, payload_bytes)
         VALUES (1, 0, 'malformed', 'x', x'', 0), (10000, 0, 'malformed', 'x', x'', 0)",
    )
    .unwrap();
    fixture.store.reject(Rejection {
        outcome: Rejected::BadSignature,
        reason: "bad_signature".into(),
        claimed: ClaimedFields { merchant: Some("1002".into()), order_no: Some("A1".into()), trade_no: None },
        receipt: receipt(),
        payload_bytes: 10_000,
    });
    fixture.store.clone().close().await.unwrap();
    assert_eq!(fixture.count("SELECT min(id) FROM rejections"), 10_000);
    assert_eq!(fixture.count("SELECT count(*) FROM rejections"), 2);
    assert_eq!(fixture.count("SELECT payload_bytes FROM rejections ORDER BY id DESC LIMIT 1"), 10_000);
}

#[tokio::test]
async fn a_flood_of_rejections_leaves_the_newest() {
    let fixture = Fixture::new().await;
    for n in 0..12_000_usize {
        fixture.store.reject(Rejection {
            outcome: Rejected::BadSignature,
            reason: String::new(),
            claimed: ClaimedFields::default(),
            receipt: Receipt { payload: Vec::new(), ..receipt() },
            payload_bytes: n,
        });
    }
    fixture.store.clone().close().await.unwrap();
    assert_eq!(fixture.count("SELECT count(*) FROM rejections"), 10_000);
    assert_eq!(fixture.count("SELECT min(payload_bytes) FROM rejections"), 2_000);
    assert_eq!(fixture.count("SELECT max(payload_bytes) FROM rejections"), 11_999);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_a_lock_fails_honestly() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    let opened = schema::open(&path, SchemaRule::Exact).unwrap();
    let sqlite = Sqlite::start(opened, 8, Steps::default()).unwrap();
    let store = Store { engine: Engine::Sqlite(sqlite.into()), tells_bot: Arc::default() };
    store.create_order(new_order("A1", 1001)).await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // One batch is stuck in BEGIN, eight jobs may wait, the others must not.
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..300 {
        let store = store.clone();
        tasks.spawn(async move { store.settle(settle("A1", &format!("T{n}"))).await });
    }
    let (mut overloaded, mut failed) = (0, 0);
    for result in tasks.join_all().await {
        match result {
            Err(StoreError::Overloaded) => overloaded += 1,
            Err(StoreError::Failed(_)) => failed += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(overloaded > 0 && failed > 0, "{overloaded} overloaded, {failed} failed");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(store.settle(settle("A1", "T1")).await.unwrap().outcome, Outcome::Settled);
}

/// As two processes are, one taking over from the other, while both have callbacks to write.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_makes_room_lets_another_one_write() {
    // Counted in batches of three and not in time: the moment between two commits alone is hardly ever met within so many.
    const BATCHES: i64 = 2;
    let fixture = Fixture::new().await;
    fixture.store.make_room(true);
    let mut other = fixture.stranger();
    // A slow disk: each commit takes some 20 ms, and the next one follows at once.
    let slow = "CREATE TEMP TRIGGER slow AFTER INSERT ON orders BEGIN
                    SELECT count(*) FROM (WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 200000)
                                          SELECT x FROM n);
                END";
    // On the writer's own connection: triggers of the file are not in force there.
    fixture.store.on_writer(move |db| Ok(db.execute_batch(slow)?)).await.unwrap();
    let mut floods = tokio::task::JoinSet::new();
    for name in ["A", "B", "C"] {
        let store = fixture.store.clone();
        floods.spawn(async move {
            for n in 0_u64.. {
                store.create_order(new_order(&format!("{name}{n}"), 1001)).await.unwrap();
            }
        });
    }
    fixture.store.create_order(new_order("D0", 1001)).await.unwrap();
    other
        .busy_handler(Some(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            true
        }))
        .unwrap();
    let count = |db: &Connection| db.query_row("SELECT count(*) FROM orders", [], |row| row.get::<_, i64>(0)).unwrap();
    let waited_for = move || {
        let turns = (0..10).map(|_| {
            // By then the next batch has begun.
            std::thread::sleep(std::time::Duration::from_millis(10));
            let before = count(&other);
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
            let orders = count(&other) - before;
            other.execute_batch("COMMIT").unwrap();
            orders / 3
        });
        turns.collect::<Vec<_>>()
    };
    let mut waited_for = tokio::task::spawn_blocking(waited_for).await.unwrap();
    // Mostly: a busy machine may wake the other one too late now and then.
    waited_for.sort_unstable();
    assert!(waited_for[waited_for.len() / 2] <= BATCHES, "{waited_for:?}");
}

#[tokio::test]
async fn what_is_queued_is_written_before_the_store_closes() {
    let fixture = Fixture::new().await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = fixture.store.clone();
        tasks.spawn(async move { store.create_order(new_order(&format!("A{n}"), 1001)).await.is_ok() });
    }
    tokio::task::yield_now().await;
    fixture.store.clone().close().await.unwrap();
    let acknowledged = tasks.join_all().await.into_iter().filter(|created| *created).count();
    assert_eq!(fixture.count("SELECT count(*) FROM orders"), i64::try_from(acknowledged).unwrap());
    assert!(matches!(fixture.store.probe().await, Err(StoreError::Closed)));
    fixture.store.writer_ended().await;
}

#[tokio::test]
async fn a_closed_database_reopens_with_everything_in_it() {
    let directory = tempfile::tempdir().unwrap();
    for n in 0..3 {
        let store = fixtures::open(&url(&directory)).await.unwrap();
        store.create_order(new_order(&format!("A{n}"), 1001)).await.unwrap();
        store.close().await.unwrap();
    }
    let store = Store::open_at(&url(&directory), Opening::Existing, false).await.unwrap();
    let numbers: HashSet<OrderNo> = store
        .orders(OrderFilter { status: None, telegram_id: None, limit: 10, now: Timestamp::from_ms(NOW) })
        .await
        .unwrap()
        .into_iter()
        .map(|order| order.terms.order_no)
        .collect();
    assert_eq!(numbers.len(), 3);
}

#[tokio::test]
async fn databases_that_are_not_ours_or_too_new_are_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("CREATE TABLE users (id INTEGER)").unwrap();
    assert!(matches!(fixtures::open(&url(&directory)).await, Err(OpenError::Foreign(_))));
    let journal: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(journal, "delete");
    drop(db);
    std::fs::remove_file(&path).unwrap();
    fixtures::open(&url(&directory)).await.unwrap().close().await.unwrap();
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = fixtures::open(&url(&directory)).await;
    assert!(matches!(refused, Err(OpenError::Newer { found: 99, known: schema::VERSION, .. })));
    std::fs::write(&path, "not a database, but long enough to look at ".repeat(100)).unwrap();
    assert!(matches!(fixtures::open(&url(&directory)).await, Err(OpenError::CannotOpen { denied: false, .. })));
    let elsewhere = DatabaseUrl::Sqlite(directory.path().join("none.db"));
    assert!(matches!(Store::open_at(&elsewhere, Opening::Existing, false).await, Err(OpenError::Missing(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_may_create_the_database_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let url = url(&directory);
        tasks.spawn(async move { fixtures::open(&url).await.map(drop) });
    }
    for opened in tasks.join_all().await {
        opened.unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_delays_nothing() {
    const HOUR_MS: i64 = 3_600_000;
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    let before = Timestamp::from_ms(NOW);
    for (order_no, ask_after_s) in [("A1", 10), ("A2", 20), ("A3", 0)] {
        let ask_at = Some(before.plus_seconds(ask_after_s));
        let creation = Creation { ask_at, ..new_order(order_no, 1001).into() };
        store.create_order(creation).await.unwrap();
    }
    store.settle(settle("A1", "T1")).await.unwrap();
    let now = Timestamp::from_ms(NOW + 1000 - HOUR_MS);
    store.clock_was_set_back(HOUR_MS, now).await.unwrap();
    // A second after it was created, there is half an hour left of the one that is unpaid.
    let expires = async |order_no| store.order(order_no).await.unwrap().unwrap().terms.expires_at;
    assert_eq!(expires("A2").await, now.plus_seconds(1799));
    assert_eq!(expires("A1").await, before.plus_seconds(1800), "it is paid, and its terms are kept as they were");
    assert_eq!(store.next_due(Channel::Telegram).await.unwrap(), Some(now));
    let due = async |now| store.due_questions("1002".into(), now, 10).await.unwrap();
    let due_numbers = async |now| {
        due(now).await.into_iter().map(|question| question.order.terms.order_no.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(due_numbers(now).await, ["A3"]);
    assert_eq!(due_numbers(now.plus_seconds(19)).await, ["A3", "A2"]);
    // What was asked before is in the future now, and no reason to wait.
    let answered = Answered {
        order_no: "A2".into(),
        at: before,
        cause: Cause::Notify,
        answer: "unpaid".into(),
        detail: String::new(),
        hold: None,
    };
    store.keep_answer(answered).await.unwrap();
    store.ask_soon("A2".into(), "1002".into(), now).await.unwrap();
    assert_eq!(due_numbers(now).await.len(), 2);
}

/// Has claims wait for the writer together, so that they share a batch.
async fn settle_together(fixture: &Fixture, claims: Vec<Settle>) -> Vec<Result<Settlement, StoreError>> {
    let stranger = fixture.stranger();
    stranger.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The writer waits with this one in its hands.
    let first = tokio::spawn({
        let store = fixture.store.clone();
        async move { store.probe().await }
    });
    while writer_of(&fixture.store).queue.has_jobs() || first.is_finished() {
        tokio::task::yield_now().await;
    }
    let answers: Vec<_> = claims
        .into_iter()
        .map(|claim| {
            let (reply, answer) = oneshot::channel();
            let claimed = Claimed { settle: claim.into(), tells_bot: false };
            assert!(writer_of(&fixture.store).queue.push(Job::settle(reply, claimed)).is_ok());
            answer
        })
        .collect();
    stranger.execute_batch("ROLLBACK").unwrap();
    first.await.unwrap().unwrap();
    let mut settled = Vec::new();
    for answer in answers {
        settled.push(answer.await.unwrap());
    }
    settled
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_one_batch_see_what_those_before_them_did() {
    use Outcome::{AmountMismatch, Duplicate, Held, PaidAgain, Settled, TradeReused, UnknownOrder};
    let fixture = Fixture::new().await;
    for order_no in ["A1", "A2", "A3"] {
        fixture.store.create_order(new_order(order_no, 1001)).await.unwrap();
    }
    let mut wrong = settle("A3", "T3");
    wrong.claim.amount = Amount::from_fen(1);
    let claims = vec![
        settle("A1", "T1"),
        settle("A1", "T1"),
        settle("A1", "T2"),
        settle("A2", "T1"),
        settle("NONE", "T4"),
        settle("A2", "T2"),
        wrong.clone(),
        settle("A3", "T3"),
        wrong,
        settle("A2", "T2"),
    ];
    let settled = settle_together(&fixture, claims).await;
    let outcomes: Vec<_> = settled.into_iter().map(|settled| settled.unwrap().outcome).collect();
    let expected = [
        Settled,
        Duplicate,
        PaidAgain,
        TradeReused,
        UnknownOrder,
        Settled,
        AmountMismatch,
        Held,
        AmountMismatch,
        Duplicate,
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(fixture.store.user(1001).await.unwrap().unwrap().credits, 140);
    let kept: Vec<String> = {
        let db = fixture.stranger();
        let mut receipts = db.prepare("SELECT outcome FROM receipts ORDER BY id").unwrap();
        receipts.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(kept, expected.map(Outcome::name), "one receipt a callback, in their order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_written_fails_alone() {
    let fixture = Fixture::new().await;
    for (order_no, user) in [("A1", 1001), ("A2", 1002), ("A3", 1003)] {
        fixture.store.create_order(new_order(order_no, user)).await.unwrap();
    }
    // No room for 70 more.
    fixture.stranger().execute("UPDATE users SET credits = ? WHERE telegram_id = 1002", [i64::MAX - 1]).unwrap();
    let claims = vec![settle("A1", "T1"), settle("A2", "T2"), settle("A3", "T3")];
    let settled = settle_together(&fixture, claims).await;
    assert!(matches!(settled[..], [Ok(_), Err(StoreError::Failed(_)), Ok(_)]), "{settled:?}");
    assert_eq!(fixture.count("SELECT count(*) FROM orders WHERE status = 'paid'"), 2);
    assert_eq!(fixture.count("SELECT count(*) FROM receipts"), 2);
    assert_eq!(fixture.count("SELECT count(*) FROM outbox"), 2);
    assert_eq!(fixture.count("SELECT sum(credits) FROM ledger"), 140);
}

/// What other programs are kept from by triggers, the writer is kept from by what it says itself; constraints hold for both.
#[tokio::test]
async fn the_writer_keeps_to_the_rules_that_it_is_trusted_with() {
    let fixture = Fixture::new().await;
    fixture.store.create_order(new_order("A1", 1001)).await.unwrap();
    fixture.store.settle(settle("A1", "T1")).await.unwrap();
    for forbidden in [
        "UPDATE orders SET status = 'pending'",
        "UPDATE orders SET status = 'odd'",
        "UPDATE orders SET settled_by = 'odd'",
        "UPDATE orders SET pay_kind = 'odd'",
        "UPDATE orders SET credits = 999",
        "DELETE FROM orders",
        "DELETE FROM users",
        "UPDATE ledger SET credits = 1",
        "DELETE FROM ledger",
        "INSERT INTO ledger (telegram_id, kind, credits, order_id, created_at_ms) VALUES (1001, 'order', 70, 1, 0)",
        "INSERT INTO ledger (telegram_id, kind, credits, created_at_ms) VALUES (1001, 'odd', 70, 0)",
        "INSERT INTO ledger (telegram_id, kind, credits, reason, created_at_ms) VALUES (1, 'grant', 70, 'x', 0)",
        "UPDATE receipts SET payload = x''",
        "DELETE FROM receipts",
        "INSERT INTO receipts (received_at_ms, source, outcome, merchant, order_no, trade_no, payload)
         VALUES (0, 'odd', 'settled', '1002', 'A1', 'T1', x'')",
        "UPDATE outbox SET kind = 'odd'",
        "UPDATE outbox SET state = 'odd'",
    ] {
        let result = fixture.store.on_writer(move |db| Ok(db.execute_batch(forbidden)?)).await;
        assert!(matches!(result, Err(StoreError::Failed(_))), "{forbidden}");
    }
}

#[tokio::test]
async fn the_log_begins_again_when_it_is_copied_and_waits_for_who_reads_it() {
    let fixture = Fixture::new().await;
    let log = fixture.directory.path().join("x.db-wal");
    let length = || std::fs::metadata(&log).unwrap().len();
    // Each keeps some ten pages of 4 KiB.
    let write = async |count: usize| {
        for _ in 0..count {
            let mut unknown = settle("NONE", "T1");
            unknown.receipt.payload = vec![b'x'; 40 * 1024];
            fixture.store.settle(unknown).await.unwrap();
        }
    };
    write(1500).await;
    let copied = length();
    assert!(copied < 6000 * 4120, "{copied}");
    let reader = fixture.stranger();
    reader.execute_batch("BEGIN; SELECT count(*) FROM receipts").unwrap();
    write(1500).await;
    let held = length();
    assert!(held > 12_000 * 4120, "{held}");
    reader.execute_batch("COMMIT").unwrap();
    write(1000).await;
    let freed = length();
    write(1000).await;
    assert_eq!(length(), freed, "it is written from its start again");
    assert_eq!(fixture.count("SELECT count(*) FROM receipts"), 5000);
}
