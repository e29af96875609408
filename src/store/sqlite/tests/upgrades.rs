//! Databases of older versions, as this one takes them over.

use super::*;
use crate::domain::order::Hold;

#[tokio::test]
async fn a_database_of_any_version_becomes_the_same_as_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    let schema_of = |db: &Connection| -> Vec<(String, Option<String>)> {
        let mut parts = db.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").unwrap();
        parts.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    let newest = Connection::open_in_memory().unwrap();
    schema::migrate_to(&newest, schema::VERSION).unwrap();
    let newest = schema_of(&newest);
    assert!(
        newest.iter().all(|(_, sql)| sql.as_ref().is_none_or(|sql| !sql.contains("IN ('pending', 'paid', 'review'")))
    );
    for version in 1..schema::VERSION {
        let _ = std::fs::remove_file(&path);
        let old = Connection::open(&path).unwrap();
        schema::migrate_to(&old, version).unwrap();
        drop(old);
        fixtures::open(&url(&directory)).await.unwrap().close().await.unwrap();
        let db = Connection::open(&path).unwrap();
        assert_eq!(schema_of(&db), newest, "from version {version}");
        let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
        assert!(db.execute("UPDATE users SET language = 'odd'", []).is_ok(), "nobody is there");
    }
}

/// A callback has no time of its own: one for money that went back before the upgrade is valid after it.
#[tokio::test]
async fn what_gateways_answered_before_the_upgrade_is_state() {
    let directory = tempfile::tempdir().unwrap();
    let old = Connection::open(directory.path().join("x.db")).unwrap();
    schema::migrate_to(&old, 3).unwrap();
    old.execute_batch("INSERT INTO users (telegram_id, created_at_ms) VALUES (7, 0)").unwrap();
    let orders = [
        ("A1", &["paid", "refunded", "frozen"][..], Some(Hold::Refunded), Outcome::Held),
        ("A2", &["pre_authorised", "frozen", "unpaid"], Some(Hold::Frozen), Outcome::Unconfirmed),
        ("A3", &["pre_authorised"], Some(Hold::PreAuthorised), Outcome::Unconfirmed),
        ("A4", &["unpaid", "no_answer"], None, Outcome::Settled),
    ];
    for (order_no, answers, ..) in orders {
        old.execute(
            "INSERT INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, created_at_ms, expires_at_ms)
             VALUES (?, '1002', 7, 'x', 'alipay', 3600, 70, 0, 1)",
            [order_no],
        )
        .unwrap();
        for answer in answers {
            old.execute(
                "INSERT INTO answers (order_id, asked_at_ms, cause, answer, detail)
                 VALUES ((SELECT max(id) FROM orders), 0, 'reconcile', ?, '')",
                [answer],
            )
            .unwrap();
        }
    }
    drop(old);
    let store = fixtures::open(&url(&directory)).await.unwrap();
    for (order_no, _, hold, outcome) in orders {
        assert_eq!(store.order(order_no).await.unwrap().unwrap().hold, hold, "{order_no}");
        let mut callback = fixtures::paid(order_no, &format!("T{order_no}"), Timestamp::from_ms(1_700_000_000_000));
        callback.policy.can_ask = true;
        assert_eq!(store.settle(callback).await.unwrap().outcome, outcome, "{order_no}");
    }
}

/// An older service may be running on it, and would fail with every payment.
#[tokio::test]
async fn a_command_leaves_an_older_database_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.db");
    std::fs::write(&path, "").unwrap();
    assert!(
        matches!(Store::open_at(&url(&directory), Opening::Existing, false).await, Err(OpenError::Missing(_))),
        "an empty file"
    );
    for version in 1..schema::VERSION {
        let _ = std::fs::remove_file(&path);
        let old = Connection::open(&path).unwrap();
        schema::migrate_to(&old, version).unwrap();
        drop(old);
        let before = std::fs::read(&path).unwrap();
        for opening in [Opening::Existing, Opening::ReadOnly] {
            let refused = Store::open_at(&url(&directory), opening, false).await.err().unwrap();
            assert!(matches!(refused, OpenError::Older { found, .. } if found == version), "{refused}");
        }
        assert!(std::fs::read(&path).unwrap() == before, "version {version} was changed");
    }
    fixtures::open(&url(&directory)).await.unwrap().close().await.unwrap();
    Store::open_at(&url(&directory), Opening::Existing, false).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_database_opened_for_reading_is_read_and_never_changed() {
    let fixture = Fixture::new().await;
    fixture.store.create_order(new_order("A1", 1001)).await.unwrap();
    let url = url(&fixture.directory);
    let reading = Store::open_at(&url, Opening::ReadOnly, false).await.unwrap();
    fixture.store.settle(settle("A1", "T1")).await.unwrap();
    assert_eq!(reading.order("A1").await.unwrap().unwrap().trade_no.as_deref(), Some("T1"), "beside a writer");
    assert!(matches!(reading.settle(settle("A1", "T2")).await, Err(StoreError::ReadOnly)));
    reading.close().await.unwrap();
    fixture.store.close().await.unwrap();
    // As a restored backup is, before a service has opened it: one file, and no log.
    let path = fixture.directory.path().join("x.db");
    let alone = Connection::open(&path).unwrap();
    alone.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    drop(alone);
    let before = std::fs::read(&path).unwrap();
    let reading = Store::open_at(&url, Opening::ReadOnly, false).await.unwrap();
    assert!(reading.order("A1").await.unwrap().is_some());
    reading.close().await.unwrap();
    assert!(std::fs::read(&path).unwrap() == before, "it was written to");
    assert_eq!(std::fs::read_dir(fixture.directory.path()).unwrap().count(), 1, "a file has come beside it");
}
