//! A database with one order of each kind, damaged in one way at a time.

use rusqlite::Connection;

use super::*;
use crate::config::DatabaseUrl;
use crate::domain::clock::Timestamp;
use crate::domain::decisions::{PaymentOfDecision, Refused};
use crate::domain::outcome::Outcome;
use crate::store::{ByHand, DecisionError, Settle, Store, fixtures};

const NOW: i64 = 1_700_000_000_000;

/// A healthy database: PAID1 (row 1) and PAID2 (2) of user 7, REFUNDED3 (3) and PENDING4 (4) of user 8, BYHAND5 (5) of user 8.
struct Books {
    directory: tempfile::TempDir,
}

fn at() -> Timestamp {
    Timestamp::from_ms(NOW)
}

fn paid(order_no: &str, trade_no: &str) -> Settle {
    fixtures::paid(order_no, trade_no, at())
}

fn by_hand(order_no: &str) -> ByHand {
    ByHand { order_no: order_no.into(), reason: "because".into(), at: at() }
}

impl Books {
    async fn healthy() -> Self {
        let books = Self { directory: tempfile::tempdir().unwrap() };
        let store = fixtures::open(&books.url()).await.unwrap();
        for (order_no, user) in [("PAID1", 7), ("PAID2", 7), ("REFUNDED3", 8), ("PENDING4", 8), ("BYHAND5", 8)] {
            store.create_order(fixtures::order(order_no, user, at())).await.unwrap();
        }
        for (order_no, trade_no) in [("PAID1", "T1"), ("PAID2", "T2"), ("REFUNDED3", "T3"), ("PAID1", "T1")] {
            store.settle(paid(order_no, trade_no)).await.unwrap();
        }
        store.begin_refund(by_hand("REFUNDED3"), false).await.unwrap();
        store.finish_refund("REFUNDED3".into(), "yes".into(), true, at()).await.unwrap();
        store.settle_by_hand(by_hand("BYHAND5"), PaymentOfDecision::default()).await.unwrap();
        store.close().await.unwrap();
        books
    }

    fn url(&self) -> DatabaseUrl {
        DatabaseUrl::Sqlite(self.directory.path().join("books.db"))
    }

    async fn audit(&self) -> Audit {
        Store::audit(&self.url(), |_, _| ()).await.unwrap()
    }

    /// Does to the database what its triggers, keys and checks forbid, and puts the triggers back.
    fn damage(&self, sql: &str) {
        let DatabaseUrl::Sqlite(path) = self.url();
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "foreign_keys", false).unwrap();
        let triggers: Vec<(String, String)> = db
            .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        for (name, _) in &triggers {
            db.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
        }
        db.execute_batch(sql).unwrap();
        for (_, sql) in &triggers {
            db.execute_batch(sql).unwrap();
        }
    }
}

/// What was found, as `check: table row fault`.
fn told(audit: &Audit) -> Vec<String> {
    let of_check = |check: &Check| {
        let name = check.name;
        assert_eq!(check.findings, check.rows.len() as u64);
        check
            .rows
            .iter()
            .map(move |finding| format!("{name}: {} {} {}", finding.table, finding.row, finding.fault))
            .collect::<Vec<_>>()
    };
    audit.checks.iter().flat_map(of_check).collect()
}

#[tokio::test]
async fn healthy_books_audit_clean_and_stay_as_they_are() {
    let books = Books::healthy().await;
    let DatabaseUrl::Sqlite(path) = books.url();
    let before = std::fs::read(&path).unwrap();
    let audit = books.audit().await;
    assert_eq!(told(&audit), [""; 0]);
    assert_eq!((audit.orders, audit.settled, audit.findings()), (5, 4, 0));
    assert_eq!(audit.checks.len(), CheckName::ALL.len());
    assert!(std::fs::read(&path).unwrap() == before, "the audit wrote to the database");
}

/// Before version 4, the first payment of an order that was settled by hand was one too many; sent again, it is adopted.
#[tokio::test]
async fn a_payment_that_is_the_orders_own_by_now_is_not_one_too_many() {
    let books = Books::healthy().await;
    books.damage(
        "INSERT INTO receipts (id, received_at_ms, source, outcome, merchant, order_no, trade_no, order_id, payload)
         VALUES (99, 0, 'notify', 'paid_again', '1002', 'BYHAND5', 'T9', 5, x'')",
    );
    assert_eq!(told(&books.audit().await), ["paid_again: orders 5 paid_twice"]);
    let store = fixtures::open(&books.url()).await.unwrap();
    store.settle(paid("BYHAND5", "T9")).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(told(&books.audit().await), [""; 0]);
}

#[tokio::test]
async fn each_kind_of_damage_is_found_and_named() {
    for (damage, expected) in [
        ("DELETE FROM ledger WHERE order_id = 1; UPDATE users SET credits = 70 WHERE telegram_id = 7", &["credit_once: orders 1 no_credit"][..]),
        ("UPDATE ledger SET credits = 71 WHERE order_id = 1; UPDATE users SET credits = 141 WHERE telegram_id = 7", &["credit_once: ledger 1 wrong_credits"]),
        (
            "UPDATE ledger SET telegram_id = 8 WHERE id = 1; UPDATE users SET credits = credits - 70 WHERE telegram_id = 7;
             UPDATE users SET credits = credits + 70 WHERE telegram_id = 8",
            &["credit_once: ledger 1 wrong_user"],
        ),
        (
            "DROP INDEX ledger_by_order; UPDATE users SET credits = credits + 70 WHERE telegram_id = 7;
             INSERT INTO ledger (id, telegram_id, kind, credits, order_id, created_at_ms) VALUES (99, 7, 'order', 70, 1, 0)",
            &["schema: sqlite_schema ledger_by_order schema_missing", "credit_once: ledger 99 credited_twice"],
        ),
        (
            "INSERT INTO ledger (id, telegram_id, kind, credits, order_id, created_at_ms) VALUES (99, 8, 'order', 70, 4, 0);
             UPDATE users SET credits = credits + 70 WHERE telegram_id = 8",
            &["credit_has_order: ledger 99 credit_for_unsettled"],
        ),
        (
            "INSERT INTO ledger (id, telegram_id, kind, credits, order_id, created_at_ms) VALUES (99, 8, 'order', 70, 44, 0);
             UPDATE users SET credits = credits + 70 WHERE telegram_id = 8",
            &["credit_has_order: ledger 99 dangling"],
        ),
        ("DELETE FROM receipts WHERE order_id = 1 AND outcome = 'settled'", &["receipt_kept: orders 1 no_receipt"]),
        ("UPDATE receipts SET outcome = 'settled' WHERE outcome = 'duplicate'", &["receipt_kept: receipts 4 receipt_twice"]),
        ("UPDATE receipts SET trade_no = 'T9' WHERE id = 1", &["receipt_kept: receipts 1 receipt_differs"]),
        ("UPDATE receipts SET source = 'reconcile' WHERE id = 1", &["receipt_kept: receipts 1 receipt_differs"]),
        ("UPDATE receipts SET merchant = '1003' WHERE id = 1", &["receipt_kept: receipts 1 receipt_differs"]),
        (
            "INSERT INTO receipts (id, received_at_ms, source, outcome, merchant, order_no, trade_no, order_id, payload)
             VALUES (99, 0, 'notify', 'settled', '1002', 'PENDING4', 'T4', 4, x'')",
            &["receipt_kept: receipts 99 receipt_for_unsettled"],
        ),
        ("UPDATE orders SET trade_no = 'T9' WHERE id = 5", &["receipt_kept: receipts 5 receipt_differs"]),
        (
            "UPDATE orders SET trade_no = 'T9', paid_outside = 1 WHERE id = 5;
             INSERT INTO receipts (id, received_at_ms, source, outcome, merchant, order_no, trade_no, order_id, payload, alert)
             VALUES (99, 0, 'notify', 'duplicate', '1002', 'BYHAND5', 'T9', 5, x'', 'adopted')",
            &["receipt_kept: receipts 5 receipt_differs"],
        ),
        (
            "UPDATE orders SET trade_no = 'T9' WHERE id = 5;
             INSERT INTO receipts (id, received_at_ms, source, outcome, merchant, order_no, trade_no, order_id, payload, alert)
             VALUES (98, 0, 'notify', 'duplicate', '1002', 'BYHAND5', 'T9', 5, x'', 'adopted'),
                    (99, 0, 'notify', 'duplicate', '1002', 'BYHAND5', 'T8', 5, x'', 'adopted')",
            &["receipt_kept: receipts 5 receipt_differs"],
        ),
        ("UPDATE receipts SET order_id = 44 WHERE id = 4", &["references: receipts 4 dangling"]),
        (
            "DELETE FROM ledger WHERE kind = 'refund'; UPDATE users SET credits = 140 WHERE telegram_id = 8",
            &["refund_once: orders 3 not_taken_back"],
        ),
        (
            "UPDATE ledger SET credits = -69 WHERE kind = 'refund'; UPDATE users SET credits = 71 WHERE telegram_id = 8",
            &["refund_once: ledger 4 taken_back_wrongly"],
        ),
        (
            "INSERT INTO ledger (id, telegram_id, kind, credits, order_id, created_at_ms) VALUES (99, 7, 'refund', -70, 1, 0);
             UPDATE users SET credits = 70 WHERE telegram_id = 7",
            &["refund_once: ledger 99 taken_back_unrefunded"],
        ),
        ("UPDATE users SET credits = credits + 1 WHERE telegram_id = 7", &["balance: users 7 balance_differs"]),
        (
            "INSERT INTO ledger (id, telegram_id, kind, credits, reason, created_at_ms) VALUES (99, 9, 'grant', 5, 'x', 0)",
            &["balance: ledger 99 dangling"],
        ),
        (
            "DROP INDEX orders_by_trade; UPDATE orders SET trade_no = 'T1' WHERE id = 2; UPDATE receipts SET trade_no = 'T1' WHERE id = 2",
            &["schema: sqlite_schema orders_by_trade schema_missing", "trade_once: orders 2 trade_reused"],
        ),
        ("DELETE FROM outbox WHERE order_id = 2", &["message_queued: orders 2 no_message"]),
        ("DELETE FROM outbox WHERE order_id = 3 AND kind = 'refunded'", &["message_queued: orders 3 no_message"]),
        ("UPDATE outbox SET order_id = 44 WHERE order_id = 5", &["references: outbox 5 dangling", "message_queued: orders 5 no_message"]),
        ("DELETE FROM users WHERE telegram_id = 7", &[
            "references: orders 1 dangling",
            "references: orders 2 dangling",
            "balance: ledger 1 dangling",
            "balance: ledger 2 dangling",
        ]),
        ("UPDATE refunds SET order_id = 44", &["references: refunds 44 dangling"]),
        (
            "PRAGMA ignore_check_constraints = TRUE; UPDATE orders SET amount_fen = -1 WHERE id = 4",
            &["integrity: database  damaged"],
        ),
    ] {
        let books = Books::healthy().await;
        books.damage(damage);
        assert_eq!(told(&books.audit().await), expected, "{damage}");
    }
}

#[tokio::test]
async fn a_dropped_or_rewritten_trigger_is_found() {
    let books = Books::healthy().await;
    let DatabaseUrl::Sqlite(path) = books.url();
    Connection::open(path)
        .unwrap()
        .execute_batch(
            "DROP TRIGGER users_are_kept; DROP TRIGGER orders_are_kept;
             CREATE TRIGGER orders_are_kept BEFORE DELETE ON orders BEGIN SELECT 1; END;",
        )
        .unwrap();
    assert_eq!(
        told(&books.audit().await),
        ["schema: sqlite_schema orders_are_kept schema_changed", "schema: sqlite_schema users_are_kept schema_missing",]
    );
}

#[tokio::test]
async fn an_overwritten_page_is_found() {
    let books = Books::healthy().await;
    let DatabaseUrl::Sqlite(path) = books.url();
    let root: usize = {
        let db = Connection::open(&path).unwrap();
        db.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'receipts'", [], |row| row.get::<_, i64>(0))
            .map(|page| usize::try_from(page).unwrap())
            .unwrap()
    };
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[(root - 1) * 4096..root * 4096].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let audit = books.audit().await;
    assert!(audit.checks[CheckName::Integrity as usize].findings > 0);
    // What does not need that page is checked all the same.
    books.damage_balance_of(8);
    let audit = books.audit().await;
    assert_eq!(audit.checks[CheckName::Balance as usize].findings, 1);
}

impl Books {
    fn damage_balance_of(&self, user: i64) {
        let DatabaseUrl::Sqlite(path) = self.url();
        Connection::open(path)
            .unwrap()
            .execute("UPDATE users SET credits = credits + 1 WHERE telegram_id = ?", [user])
            .unwrap();
    }
}

#[tokio::test]
async fn paying_twice_is_found_until_a_person_has_taken_care_of_it() {
    let books = Books::healthy().await;
    let store = fixtures::open(&books.url()).await.unwrap();
    for trade_no in ["T8", "T9", "T8"] {
        let settlement = store.settle(paid("PAID1", trade_no)).await.unwrap();
        assert_eq!(settlement.outcome, Outcome::PaidAgain);
    }
    let audit = books.audit().await;
    let details: Vec<_> = audit.checks[CheckName::PaidAgain as usize].rows.iter().map(|row| &row.detail).collect();
    assert_eq!(details, ["PAID1 T8", "PAID1 T9"]);

    assert_eq!(store.acknowledge(by_hand("PAID1"), Some("T8".into())).await.unwrap(), ["T8"]);
    assert_eq!(books.audit().await.findings(), 1);
    assert_eq!(store.acknowledge(by_hand("PAID1"), None).await.unwrap(), ["T9"]);
    assert_eq!(books.audit().await.findings(), 0);
    // A third payment is another matter.
    store.settle(paid("PAID1", "T10")).await.unwrap();
    assert_eq!(books.audit().await.findings(), 1);
    let again = store.acknowledge(by_hand("PAID2"), None).await;
    assert!(matches!(again, Err(DecisionError::Refused { refused: Refused::NotPaidAgain, .. })), "{again:?}");
}

#[tokio::test]
async fn what_is_no_database_of_ours_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    let url = DatabaseUrl::Sqlite(path.clone());
    assert!(matches!(Store::audit(&url, |_, _| ()).await, Err(OpenError::Missing(_))));
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Store::audit(&url, |_, _| ()).await, Err(OpenError::Older { found: 0, .. })));
    std::fs::write(&path, "not a database, and long enough to be looked at".repeat(100)).unwrap();
    assert!(matches!(Store::audit(&url, |_, _| ()).await, Err(OpenError::CannotOpen { .. })));
    std::fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(matches!(Store::audit(&url, |_, _| ()).await, Err(OpenError::Foreign(_))));
}
