//! Databases whose schema somebody has changed: by another program, by hand, or to make credits.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use super::*;
use crate::config::DatabaseUrl;
use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, Localized};
use crate::store::audit::{Audit, CheckName};
use crate::store::sqlite::maintenance::DatabaseFile;
use crate::store::sqlite::schema;
use crate::store::{OpenError, Store, fixtures};

const NOW: i64 = 1_700_000_000_000;
/// Gives a million credits for each callback that comes in, in books that add up.
const MINT: &str = "CREATE TRIGGER mint AFTER INSERT ON receipts BEGIN
    INSERT INTO ledger (telegram_id, kind, credits, reason, created_at_ms) VALUES (7, 'grant', 1000000, 'x', 0);
    UPDATE users SET credits = credits + 1000000 WHERE telegram_id = 7;
END";

/// A database with one settled order of user 7, closed.
struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        let store = fixtures::open(&fixture.url()).await.unwrap();
        settle(&store, "A1").await;
        store.close().await.unwrap();
        fixture
    }

    /// A database of an older version, without orders.
    fn of_version(version: u32) -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        schema::migrate_to(&fixture.stranger(), version).unwrap();
        fixture
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("x.db")
    }

    fn url(&self) -> DatabaseUrl {
        DatabaseUrl::Sqlite(self.path())
    }

    /// A connection of another program's.
    fn stranger(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    fn doctor(&self, sql: &str) {
        self.stranger().execute_batch(sql).unwrap();
    }

    fn credits(&self) -> i64 {
        self.stranger().query_row("SELECT credits FROM users WHERE telegram_id = 7", [], |row| row.get(0)).unwrap()
    }
}

async fn settle(store: &Store, order_no: &str) {
    let at = Timestamp::from_ms(NOW);
    store.create_order(fixtures::order(order_no, 7, at)).await.unwrap();
    store.settle(fixtures::paid(order_no, &format!("T{order_no}"), at)).await.unwrap();
}

/// An audit's findings about the schema, as `fault name`.
fn told(audit: &Audit) -> Vec<String> {
    let check = audit.checks.iter().find(|check| check.name == CheckName::Schema).unwrap();
    check.rows.iter().map(|row| format!("{} {}", row.fault, row.row)).collect()
}

/// The objects for which the database is not opened, as `Deviation kind name`; the file stays as it is.
async fn refused(fixture: &Fixture) -> Vec<String> {
    let before = std::fs::read(fixture.path()).unwrap();
    let error = fixtures::open(&fixture.url()).await.err().unwrap();
    let OpenError::OtherSchema { differences, .. } = &error else { panic!("{error:?}") };
    assert!(std::fs::read(fixture.path()).unwrap() == before, "it was written to");
    let text = error.text(Language::English);
    assert!(differences.iter().take(5).all(|difference| text.contains(&difference.name)), "{text}");
    assert!(text.contains("webhookctl backup restore"), "{text}");
    differences.iter().map(|of| format!("{:?} {} {}", of.deviation, of.kind, of.name)).collect()
}

#[tokio::test]
async fn a_trigger_that_mints_credits_is_found_by_audit_verify_restore_and_open() {
    let fixture = Fixture::new().await;
    let copy = fixture.directory.path().join("copy");
    DatabaseFile::of(&fixture.url()).back_up(copy.clone(), false, |_, _| ControlFlow::Continue(())).await.unwrap();
    Connection::open(&copy).unwrap().execute_batch(MINT).unwrap();
    let verified = DatabaseFile::of(&fixture.url()).verify(copy.clone(), |_, _| ()).await.unwrap();
    let candidate = DatabaseFile::of(&fixture.url()).candidate(copy, |_, _| ()).await.unwrap();
    fixture.doctor(MINT);
    let audited = Store::audit(&fixture.url(), |_, _| ()).await.unwrap();
    for audit in [&verified, &candidate.audit, &audited] {
        assert_eq!(told(audit), ["schema_foreign mint"]);
        assert!(!audit.is_sound() && !audit.can_be_opened());
    }
    assert_eq!(refused(&fixture).await, ["Foreign trigger mint"]);
    let inspected = DatabaseFile::of(&fixture.url()).inspect().await;
    assert!(matches!(inspected, Err(OpenError::OtherSchema { .. })), "{inspected:?}");
}

#[tokio::test]
async fn a_trigger_that_comes_while_the_service_runs_is_not_put_in_force() {
    let fixture = Fixture::new().await;
    let store = fixtures::open(&fixture.url()).await.unwrap();
    fixture.doctor(MINT);
    settle(&store, "B2").await;
    store.close().await.unwrap();
    assert_eq!(fixture.credits(), 140);
    // Any other program that writes to the file would obey the trigger.
    assert_eq!(refused(&fixture).await, ["Foreign trigger mint"]);
}

#[tokio::test]
async fn every_object_that_is_foreign_missing_or_changed_is_named() {
    const REWRITE: &str = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET";
    let rewrite = |change: &str| format!("{REWRITE} {change}");
    for (doctoring, expected) in [
        (MINT.to_owned(), &["Foreign trigger mint"][..]),
        ("CREATE VIEW shadow AS SELECT * FROM users".into(), &["Foreign view shadow"]),
        ("CREATE TABLE notes (a)".into(), &["Foreign table notes"]),
        ("CREATE INDEX by_name ON orders (name)".into(), &["Foreign index by_name"]),
        ("CREATE UNIQUE INDEX once ON orders (telegram_id)".into(), &["Foreign index once"]),
        (
            "CREATE VIRTUAL TABLE found USING rtree (a, b, c)".into(),
            &[
                "Foreign table found",
                "Foreign table found_node",
                "Foreign table found_parent",
                "Foreign table found_rowid",
            ],
        ),
        (
            "ALTER TABLE heartbeat RENAME TO pulse; CREATE VIEW heartbeat AS SELECT 1 AS id, 1 AS beats".into(),
            &["Foreign view heartbeat", "Missing table heartbeat", "Foreign table pulse"],
        ),
        ("DROP TRIGGER users_are_kept".into(), &["Missing trigger users_are_kept"]),
        ("DROP INDEX orders_by_trade".into(), &["Missing index orders_by_trade"]),
        (
            "DROP TRIGGER orders_are_kept; CREATE TRIGGER orders_are_kept BEFORE DELETE ON orders BEGIN SELECT 1; END"
                .into(),
            &["Changed trigger orders_are_kept"],
        ),
        ("ALTER TABLE users ADD COLUMN rich INTEGER AS (credits * 2)".into(), &["Changed table users"]),
        (rewrite("sql = replace(sql, 'CHECK (id = 1)', '') WHERE name = 'heartbeat'"), &["Changed table heartbeat"]),
        (rewrite("sql = replace(sql, 'DEFAULT 0', 'DEFAULT 1000000') WHERE name = 'users'"), &["Changed table users"]),
        // The engine takes it for the same, and comparing bytes does not.
        (rewrite("sql = CAST(sql AS BLOB) WHERE name = 'users_are_kept'"), &["Changed trigger users_are_kept"]),
        // Each forged callback would be written into the balances.
        (
            rewrite("rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'users') WHERE name = 'rejections'"),
            &["Changed table users"],
        ),
    ] {
        let fixture = Fixture::new().await;
        fixture.doctor(&doctoring);
        let found = refused(&fixture).await;
        assert_eq!(found, expected, "{doctoring}");
        let audit = Store::audit(&fixture.url(), |_, _| ()).await.unwrap();
        assert_eq!(told(&audit).len(), expected.len(), "{doctoring}");
        assert!(!audit.can_be_opened());
    }
}

#[tokio::test]
async fn an_index_of_somebody_elses_is_refused_with_the_sql_that_removes_it() {
    let fixture = Fixture::new().await;
    fixture.doctor("CREATE INDEX \"bot's \"\"own\"\"\" ON orders (name); CREATE INDEX by_type ON orders (type)");
    let error = fixtures::open(&fixture.url()).await.err().unwrap().text(Language::English);
    let removal = "DROP INDEX \"bot's \"\"own\"\"\"; DROP INDEX \"by_type\";";
    assert!(error.ends_with(removal), "{error}");
    fixture.doctor(removal);
    fixtures::open(&fixture.url()).await.unwrap().close().await.unwrap();
    // Dropping the index is not enough if more is different.
    fixture.doctor("CREATE INDEX by_type ON orders (type); DROP TRIGGER users_are_kept");
    let error = fixtures::open(&fixture.url()).await.err().unwrap().text(Language::English);
    assert!(error.contains("by_type") && !error.contains("DROP INDEX"), "{error}");
}

#[tokio::test]
async fn a_schema_with_very_many_foreign_objects_is_told_in_one_line() {
    let fixture = Fixture::new().await;
    let mut sql = String::new();
    for number in 0..200 {
        write!(sql, "CREATE TABLE \"{number}{}\" (a);", "x".repeat(1000)).unwrap();
    }
    fixture.doctor(&sql);
    let error = fixtures::open(&fixture.url()).await.err().unwrap().text(Language::English);
    assert!(error.len() < 2000 && error.contains("195"), "{error}");
}

#[tokio::test]
async fn what_sqlite_makes_by_itself_is_lawful() {
    let fixture = Fixture::new().await;
    fixture.doctor("ANALYZE; VACUUM; PRAGMA optimize");
    // As an SQLite makes it that was built with more statistics than ours.
    fixture.doctor(&format!("PRAGMA writable_schema = ON; {}", STATISTICS[1].1));
    let objects = read(&fixture.stranger()).unwrap();
    assert_eq!(objects.iter().filter(|object| object.is_statistics()).count(), STATISTICS.len());
    let audit = Store::audit(&fixture.url(), |_, _| ()).await.unwrap();
    assert_eq!(audit.findings(), 0);
    let store = fixtures::open(&fixture.url()).await.unwrap();
    settle(&store, "B2").await;
    store.close().await.unwrap();
    assert_eq!(fixture.credits(), 140);
    // Nothing else goes by such a name.
    fixture.doctor(
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'stat)', 'stat, x)')
        WHERE name = 'sqlite_stat1'",
    );
    assert_eq!(refused(&fixture).await, ["Foreign table sqlite_stat1"]);
}

#[tokio::test]
async fn every_version_is_opened_as_it_was_made_and_refused_with_anything_more() {
    for version in 1..=schema::VERSION {
        let fixture = Fixture::of_version(version);
        let copy = fixture.directory.path().join("copy");
        std::fs::copy(fixture.path(), &copy).unwrap();
        let verify = async || DatabaseFile::of(&fixture.url()).verify(copy.clone(), |_, _| ()).await.unwrap();
        assert_eq!(verify().await.findings(), 0, "{version}");
        Connection::open(&copy).unwrap().execute_batch(MINT).unwrap();
        assert_eq!(told(&verify().await), ["schema_foreign mint"], "{version}");

        fixture.doctor(MINT);
        assert_eq!(refused(&fixture).await, ["Foreign trigger mint"], "{version}");
        fixture.doctor("DROP TRIGGER mint");
        let store = fixtures::open(&fixture.url()).await.unwrap();
        settle(&store, "A1").await;
        store.close().await.unwrap();
        let audit = Store::audit(&fixture.url(), |_, _| ()).await.unwrap();
        assert_eq!((audit.findings(), fixture.credits()), (0, 70), "{version}");
    }
}

#[tokio::test]
async fn a_file_that_lies_about_its_version_is_refused() {
    for made in 1..=schema::VERSION {
        for said in (0..=schema::VERSION).filter(|&said| said != made) {
            let fixture = Fixture::of_version(made);
            fixture.doctor(&format!("PRAGMA user_version = {said}"));
            assert!(!refused(&fixture).await.is_empty(), "{made} as {said}");
        }
    }
    let fixture = Fixture::of_version(1);
    fixture.doctor("PRAGMA user_version = -1");
    assert!(matches!(fixtures::open(&fixture.url()).await, Err(OpenError::Foreign(_))));
}

#[tokio::test]
async fn a_database_that_is_written_back_with_a_foreign_index_is_refused_and_not_lost() {
    let fixture = Fixture::new().await;
    let store = fixtures::open(&fixture.url()).await.unwrap();
    fixture.doctor("CREATE INDEX by_name ON orders (name)");
    std::fs::remove_file(fixture.path()).unwrap();
    let at = Timestamp::from_ms(NOW);
    assert!(store.create_order(fixtures::order("B2", 7, at)).await.is_err());
    store.close().await.unwrap();
    assert_eq!(refused(&fixture).await, ["Foreign index by_name"]);
    assert_eq!(fixture.credits(), 70);
    fixture.doctor("DROP INDEX by_name");
    fixtures::open(&fixture.url()).await.unwrap().close().await.unwrap();
}

/// Databases hold these texts. A migration that is changed, or an SQLite that writes ALTER TABLE down in another way, would have this
/// program refuse every one of them.
#[test]
fn the_schema_of_each_version_is_what_it_has_always_been() {
    let digests = [1, 2, 3, 4].map(|version| {
        let mut text = String::new();
        for object in schema::objects_of(version).unwrap() {
            writeln!(text, "{} {} {} {:?}", object.kind, object.name, object.table, object.sql).unwrap();
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        u64::from_be_bytes(digest.as_ref()[..8].try_into().unwrap())
    });
    assert_eq!(digests, [0x8af9_f136_ad19_313f, 0x3d7c_54f8_5cfc_0cde, 0xd452_6e11_9c87_c880, 0x16e4_ccc3_1efe_16ac]);
}
