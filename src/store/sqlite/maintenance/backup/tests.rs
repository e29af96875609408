use std::collections::BTreeSet;

use super::*;
use crate::config::DatabaseUrl;
use crate::domain::clock::Timestamp;
use crate::store::fixtures;

pub(in crate::store::sqlite) const NOW: i64 = 1_700_000_000_000;

pub(in crate::store::sqlite) struct Fixture {
    pub(in crate::store::sqlite) directory: tempfile::TempDir,
    pub(in crate::store::sqlite) database: PathBuf,
}

impl Fixture {
    /// A database with one settled order, A1, closed.
    pub(in crate::store::sqlite) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("data")).unwrap();
        let database = directory.path().join("data/x.db");
        let fixture = Self { directory, database };
        fixture.settle("A1").await;
        fixture
    }

    pub(in crate::store::sqlite) fn url(&self) -> DatabaseUrl {
        DatabaseUrl::Sqlite(self.database.clone())
    }

    pub(in crate::store::sqlite) async fn settle(&self, order_no: &str) {
        let at = Timestamp::from_ms(NOW);
        let store = fixtures::open(&self.url()).await.unwrap();
        store.create_order(fixtures::order(order_no, 7, at)).await.unwrap();
        store.settle(fixtures::paid(order_no, &format!("T{order_no}"), at)).await.unwrap();
        store.close().await.unwrap();
    }

    pub(in crate::store::sqlite) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(in crate::store::sqlite) fn files(&self, below: &str) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.path(below)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(in crate::store::sqlite) async fn back_up(&self, name: &str) -> PathBuf {
        let file = self.path(name);
        DatabaseFile::of(&self.url()).back_up(file.clone(), false, |_, _| ControlFlow::Continue(())).await.unwrap();
        file
    }
}

pub(in crate::store::sqlite) fn orders(database: &Path) -> Vec<String> {
    let db = Connection::open(database).unwrap();
    let mut orders = db.prepare("SELECT order_no FROM orders ORDER BY id").unwrap();
    orders.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

async fn verify(fixture: &Fixture, file: &Path) -> Result<Audit, BackupError> {
    DatabaseFile::of(&fixture.url()).verify(file.to_owned(), |_, _| ()).await
}

#[tokio::test]
async fn a_copy_is_one_private_file_that_audits_clean() {
    let fixture = Fixture::new().await;
    std::fs::create_dir(fixture.path("copies")).unwrap();
    let file = fixture.back_up("copies/a").await;
    assert_eq!(fixture.files("copies"), ["a".to_owned()].into());
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes[18..20], [1, 1], "no write-ahead log is wanted by whoever opens it");
    // Neither reading nor proving it leaves anything beside it, and it may be read-only.
    std::fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
    let audit = verify(&fixture, &file).await.unwrap();
    assert_eq!((audit.findings(), audit.orders, audit.settled), (0, 1, 1));
    assert!(std::fs::read(&file).unwrap() == bytes);
    assert_eq!(fixture.files("copies"), ["a".to_owned()].into());
    assert_eq!(orders(&file), ["A1"]);
}

#[tokio::test]
async fn a_copy_is_of_the_moment_when_it_began_whatever_is_written_meanwhile() {
    const PAGES: i64 = 1500;
    let fixture = Fixture::new().await;
    let writer = Connection::open(&fixture.database).unwrap();
    writer.execute_batch("PRAGMA wal_autocheckpoint = 0; CREATE TABLE filler (a); CREATE TABLE marks (a)").unwrap();
    writer.execute("INSERT INTO filler VALUES (zeroblob(4096 * ?))", [PAGES]).unwrap();
    let file = fixture.path("a");
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (kept, database) = (std::sync::Arc::clone(&told), fixture.database.clone());
    DatabaseFile::of(&fixture.url())
        .back_up(file.clone(), false, move |done, total| {
            let mut told = kept.lock().unwrap();
            told.push((done, total));
            // Begun anew at each step, it would never end.
            assert!(told.len() < 1000);
            let writer = Connection::open(&database).unwrap();
            writer.busy_timeout(std::time::Duration::from_mins(1)).unwrap();
            writer.execute("INSERT INTO marks VALUES (zeroblob(4096))", []).unwrap();
            ControlFlow::Continue(())
        })
        .await
        .unwrap();
    let told = told.lock().unwrap();
    let steps = u64::try_from(PAGES_PER_STEP).unwrap();
    assert!(told.len() > 20, "{told:?}");
    for pair in told.windows(2) {
        assert_eq!((pair[1].0, pair[1].1), (pair[0].0 + steps, pair[0].1), "{told:?}");
    }
    let marks = |db: &Connection| db.query_row("SELECT count(*) FROM marks", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(marks(&writer), i64::try_from(told.len()).unwrap());
    let copy = Connection::open(&file).unwrap();
    assert_eq!(marks(&copy), 0);
    let check: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_is_left_when_a_copy_is_refused_or_broken_off() {
    let fixture = Fixture::new().await;
    let back_up = async |to: PathBuf, overwrite| {
        DatabaseFile::of(&fixture.url()).back_up(to, overwrite, |_, _| ControlFlow::Continue(())).await
    };
    std::fs::write(fixture.path("there"), "something").unwrap();
    let refused = back_up(fixture.path("there"), false).await;
    assert!(matches!(refused, Err(BackupError::Exists(_))), "{refused:?}");
    assert_eq!(std::fs::read(fixture.path("there")).unwrap(), b"something");
    std::os::unix::fs::symlink(&fixture.database, fixture.path("link")).unwrap();
    let log = with_ending(&fixture.database, "-wal");
    for own in [fixture.database.clone(), fixture.path("link"), fixture.path("data/../data/x.db"), log] {
        let refused = back_up(own.clone(), true).await;
        assert!(matches!(refused, Err(BackupError::IsTheDatabase(_))), "{own:?} {refused:?}");
        let refused = verify(&fixture, &own).await;
        assert!(matches!(refused, Err(BackupError::IsTheDatabase(_))), "{own:?} {refused:?}");
    }
    Connection::open(&fixture.database)
        .unwrap()
        .execute_batch("CREATE TABLE filler (a); INSERT INTO filler VALUES (zeroblob(1000000))")
        .unwrap();
    let before = fixture.files(".");
    let stopped = DatabaseFile::of(&fixture.url())
        .back_up(fixture.path("b"), false, |_, _| ControlFlow::Break(()))
        .await
        .unwrap_err();
    assert!(matches!(stopped, BackupError::Interrupted), "{stopped:?}");
    let nowhere = back_up(fixture.path("no/such/directory"), false).await;
    assert!(matches!(nowhere, Err(BackupError::Io(..))), "{nowhere:?}");
    assert_eq!(fixture.files("."), before);
    back_up(fixture.path("there"), true).await.unwrap();
    assert_eq!(orders(&fixture.path("there")), ["A1"]);
}

#[tokio::test]
async fn what_is_no_whole_copy_is_found_or_refused() {
    let fixture = Fixture::new().await;
    let file = fixture.back_up("a").await;
    let whole = std::fs::read(&file).unwrap();
    for (damaged, what) in [
        (whole[..whole.len() - 4096].to_vec(), "cut off"),
        (whole[..5000].to_vec(), "cut off within a page"),
        (whole[..100].to_vec(), "hardly begun"),
        ([&[0x5a; 4096], &whole[4096..]].concat(), "first page"),
        ([&whole[..4096], &[0x5a; 8192], &whole[3 * 4096..]].concat(), "second and third page"),
    ] {
        std::fs::write(&file, damaged).unwrap();
        let audit = verify(&fixture, &file).await.unwrap();
        assert!(!audit.is_sound() && audit.findings() > 0, "{what}");
    }
    std::fs::write(&file, "").unwrap();
    assert!(matches!(verify(&fixture, &file).await, Err(BackupError::Foreign(path)) if path == file));
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(verify(&fixture, &file).await, Err(BackupError::Io(..))));
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(matches!(verify(&fixture, &file).await, Err(BackupError::Foreign(path)) if path == file));
}

#[tokio::test]
async fn a_copy_of_another_version_is_proved_or_refused_and_stays_as_it_is() {
    let fixture = Fixture::new().await;
    let file = fixture.back_up("a").await;
    Connection::open(&file).unwrap().pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
    let newer = verify(&fixture, &file).await;
    assert!(matches!(&newer, Err(BackupError::Database(OpenError::Newer { path, .. })) if *path == file), "{newer:?}");
    let old = fixture.path("old");
    Connection::open(&old)
        .unwrap()
        .execute_batch(&format!(
            "{}; PRAGMA user_version = 1; PRAGMA application_id = {}",
            include_str!("../../schema.sql"),
            0x7768_6b63
        ))
        .unwrap();
    let bytes = std::fs::read(&old).unwrap();
    assert_eq!(verify(&fixture, &old).await.unwrap().findings(), 0);
    assert!(std::fs::read(&old).unwrap() == bytes);
}
