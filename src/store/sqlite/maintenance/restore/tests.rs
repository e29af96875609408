use std::collections::BTreeSet;

use super::super::backup::tests::{Fixture, NOW, orders};
use super::*;
use crate::config::DatabaseUrl;
use crate::store::{Store, fixtures};

const KEPT: &str = "data/x.db.before-restore-20231114T221320Z";

/// A database with A1 and B2, and a copy with A1 alone.
async fn old_and_copy() -> (Fixture, PathBuf) {
    let fixture = Fixture::new().await;
    let file = fixture.back_up("copy").await;
    fixture.settle("B2").await;
    (fixture, file)
}

async fn restore(fixture: &Fixture, file: &Path) -> Result<Option<PathBuf>, BackupError> {
    let candidate = DatabaseFile::of(&fixture.url()).candidate(file.to_owned(), |_, _| ()).await?;
    assert!(candidate.audit.is_sound());
    Ok(candidate.install(Timestamp::from_ms(NOW)).await?.kept)
}

async fn findings(database: &Path) -> u64 {
    Store::audit(&DatabaseUrl::Sqlite(database.to_owned()), |_, _| ()).await.unwrap().findings()
}

#[tokio::test]
async fn a_copy_takes_the_place_and_the_old_database_can_be_taken_back() {
    let (fixture, file) = old_and_copy().await;
    let before = std::fs::read(&file).unwrap();
    let kept = restore(&fixture, &file).await.unwrap().unwrap();
    assert_eq!(kept, fixture.path(KEPT));
    assert_eq!((orders(&fixture.database), orders(&kept)), (vec!["A1".to_owned()], vec!["A1".into(), "B2".into()]));
    assert_eq!(fixture.files("data"), ["x.db", &KEPT[5..]].map(str::to_owned).into());
    assert!(std::fs::read(&file).unwrap() == before);
    assert_eq!((findings(&fixture.database).await, findings(&kept).await), (0, 0));
    fixture.settle("C3").await;
    assert_eq!(orders(&fixture.database), ["A1", "C3"]);

    // Within the same second, so that the name is taken.
    assert_eq!(restore(&fixture, &kept).await.unwrap().unwrap(), with_ending(&kept, "-2"));
    assert_eq!(orders(&fixture.database), ["A1", "B2"]);
}

/// What the service leaves that is killed: commits that are only in the log.
fn leave_a_log(fixture: &Fixture) {
    let db = Connection::open(&fixture.database).unwrap();
    db.execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE users SET language = 'en'").unwrap();
    let (log, aside) = (with_ending(&fixture.database, "-wal"), fixture.path("aside"));
    std::fs::copy(&log, &aside).unwrap();
    let main = std::fs::read(&fixture.database).unwrap();
    drop(db);
    std::fs::write(&fixture.database, main).unwrap();
    std::fs::rename(aside, log).unwrap();
}

fn language(database: &Path) -> Option<String> {
    let db = Connection::open(database).unwrap();
    db.query_row("SELECT language FROM users", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn commits_in_the_old_log_stay_with_the_old_database() {
    let (fixture, file) = old_and_copy().await;
    leave_a_log(&fixture);
    let kept = restore(&fixture, &file).await.unwrap().unwrap();
    assert!(!with_ending(&fixture.database, "-wal").exists());
    assert_eq!((language(&fixture.database), language(&kept)), (None, Some("en".into())));
}

#[tokio::test]
async fn a_file_with_its_log_beside_it_is_taken_with_it() {
    let (fixture, _) = old_and_copy().await;
    leave_a_log(&fixture);
    let file = fixture.path("moved");
    std::fs::rename(&fixture.database, &file).unwrap();
    std::fs::rename(with_ending(&fixture.database, "-wal"), with_ending(&file, "-wal")).unwrap();
    // What is left of a database that is gone belongs to nothing.
    let stale = with_ending(&fixture.database, "-wal");
    std::fs::write(&stale, "a stale log").unwrap();
    std::fs::set_permissions(&stale, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(restore(&fixture, &file).await.unwrap(), None);
    assert!(!with_ending(&fixture.database, "-wal").exists());
    let stale = fixture.path(&format!("{KEPT}-wal"));
    assert_eq!(std::fs::read(&stale).unwrap(), b"a stale log");
    assert_eq!(stale.metadata().unwrap().mode() & 0o077, 0);
    assert_eq!(orders(&fixture.database), ["A1", "B2"]);
    assert_eq!(language(&fixture.database), Some("en".into()));
}

#[tokio::test]
async fn whatever_ends_the_process_between_two_steps_the_old_or_the_new_one_is_in_place() {
    for survived in 0.. {
        let (fixture, file) = old_and_copy().await;
        leave_a_log(&fixture);
        let candidate = DatabaseFile::of(&fixture.url()).candidate(file, |_, _| ()).await.unwrap();
        let held = complete(&fixture.database).unwrap();
        assert!(held.is_some());
        let kept = fixture.path(KEPT);
        let steps = plan(&candidate.replica.path(), &fixture.database, &kept, true);
        take(&steps[..survived.min(steps.len())]).unwrap();
        drop(held);
        drop(candidate);
        let is_new = orders(&fixture.database) == ["A1"];
        assert!(is_new || orders(&fixture.database) == ["A1", "B2"], "{survived}");
        assert_eq!(language(&fixture.database), (!is_new).then(|| "en".to_owned()), "{survived}");
        assert_eq!(findings(&fixture.database).await, 0, "{survived}");
        assert!(!is_new || orders(&kept) == ["A1", "B2"], "{survived}");
        let is_second_name = |path: &Path| path.metadata().is_ok_and(|kept| same_file(&kept, &fixture.database));
        let was_second_name = is_second_name(&kept);
        assert!(!(is_new && was_second_name), "{survived}");
        // The next start cures it, whichever it was.
        let store = fixtures::open(&fixture.url()).await.unwrap();
        let removed = DatabaseFile::of(&fixture.url()).remove_leftovers().await.unwrap();
        store.close().await.unwrap();
        assert_eq!(removed.contains(&kept), was_second_name, "{survived}: {removed:?}");
        assert_eq!(kept.exists(), is_new, "{survived}");
        assert_eq!(orders(&fixture.database).len(), if is_new { 1 } else { 2 }, "{survived}");
        if survived == steps.len() {
            assert!(is_new);
            break;
        }
    }
}

fn same_file(metadata: &std::fs::Metadata, path: &Path) -> bool {
    path.metadata().is_ok_and(|other| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino()))
}

/// Leaves what a restore does that is killed after its first step, with its copy.
async fn interrupt_a_restore(fixture: &Fixture, file: &Path) -> (PathBuf, PathBuf) {
    let candidate = DatabaseFile::of(&fixture.url()).candidate(file.to_owned(), |_, _| ()).await.unwrap();
    let _held = complete(&fixture.database).unwrap();
    let kept = fixture.path(KEPT);
    let steps = plan(&candidate.replica.path(), &fixture.database, &kept, true);
    take(&steps[..1]).unwrap();
    let copy = fixture.path("data/.webhookctl-abcdef");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(candidate.replica.path(), copy.join("database")).unwrap();
    (kept, copy)
}

#[tokio::test]
async fn the_next_start_and_the_next_restore_remove_what_an_interrupted_restore_left() {
    let (fixture, file) = old_and_copy().await;
    let (link, copy) = interrupt_a_restore(&fixture, &file).await;
    assert!(same_file(&link.metadata().unwrap(), &fixture.database));
    // What others keep beside the database is theirs, and a copy that is in use is needed.
    std::fs::create_dir(fixture.path("data/.other")).unwrap();
    std::fs::write(fixture.path("data/x.db.before-restore-old"), "kept by an earlier restore").unwrap();
    let in_use = DatabaseFile::of(&fixture.url()).candidate(file.clone(), |_, _| ()).await.unwrap();
    let store = fixtures::open(&fixture.url()).await.unwrap();
    let mut expected = vec![link.clone(), copy.clone()];
    expected.sort_unstable();
    assert_eq!(DatabaseFile::of(&fixture.url()).remove_leftovers().await.unwrap(), expected);
    assert!(DatabaseFile::of(&fixture.url()).remove_leftovers().await.unwrap().is_empty());
    store.close().await.unwrap();
    assert!(in_use.replica.path().exists());
    drop(in_use);
    let names = [".other", "x.db", "x.db.before-restore-old"];
    assert_eq!(fixture.files("data"), names.map(str::to_owned).into());
    assert_eq!(orders(&fixture.database), ["A1", "B2"]);

    interrupt_a_restore(&fixture, &file).await;
    let candidate = DatabaseFile::of(&fixture.url()).candidate(file, |_, _| ()).await.unwrap();
    let restored = candidate.install(Timestamp::from_ms(NOW)).await.unwrap();
    assert_eq!((restored.kept.as_ref(), restored.removed), (Some(&link), expected));
    assert_eq!((orders(&fixture.database), orders(&link)), (vec!["A1".to_owned()], vec!["A1".into(), "B2".into()]));
}

#[tokio::test]
async fn the_log_of_a_damaged_database_comes_back_from_an_interrupted_restore() {
    let (fixture, file) = old_and_copy().await;
    std::fs::write(&fixture.database, "damaged".repeat(2000)).unwrap();
    let log = with_ending(&fixture.database, "-wal");
    std::fs::write(&log, "its log").unwrap();
    let kept = fixture.path(KEPT);
    let steps = plan(&file, &fixture.database, &kept, true);
    take(&steps[..2]).unwrap();
    assert!(!log.exists());
    let restored = restore(&fixture, &file).await.unwrap().unwrap();
    assert_eq!(restored, kept);
    assert_eq!(std::fs::read_to_string(with_ending(&kept, "-wal")).unwrap(), "its log");
    assert_eq!(orders(&fixture.database), ["A1"]);
}

#[tokio::test]
async fn a_database_that_another_program_has_open_is_left_alone() {
    let (fixture, file) = old_and_copy().await;
    let other = Connection::open(&fixture.database).unwrap();
    let count = || other.query_row("SELECT count(*) FROM orders", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count(), 2);
    let refused = restore(&fixture, &file).await;
    assert!(matches!(refused, Err(BackupError::InUse(_))), "{refused:?}");
    assert_eq!(count(), 2);
    assert!(!fixture.path(KEPT).exists());
    drop(other);
    restore(&fixture, &file).await.unwrap();
}

#[tokio::test]
async fn a_database_that_cannot_be_read_any_more_is_replaced_and_kept_with_its_log() {
    let (fixture, file) = old_and_copy().await;
    leave_a_log(&fixture);
    let damaged = "damaged".repeat(2000);
    std::fs::write(&fixture.database, &damaged).unwrap();
    // Its log would bring back the first page.
    let log = with_ending(&fixture.database, "-wal");
    std::fs::write(&log, "a damaged log").unwrap();
    let kept = restore(&fixture, &file).await.unwrap().unwrap();
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), damaged);
    let names: BTreeSet<_> = fixture.files("data");
    assert!(names.contains(&KEPT[5..]) && !names.contains("x.db-wal"), "{names:?}");
    assert_eq!(orders(&fixture.database), ["A1"]);
}

#[tokio::test]
async fn another_programs_database_is_not_replaced_and_a_link_stays_one() {
    let (fixture, file) = old_and_copy().await;
    let real = fixture.path("real.db");
    std::fs::rename(&fixture.database, &real).unwrap();
    std::os::unix::fs::symlink(&real, &fixture.database).unwrap();
    restore(&fixture, &file).await.unwrap();
    assert!(fixture.database.is_symlink());
    assert_eq!(orders(&real), ["A1"]);

    std::fs::remove_file(&real).unwrap();
    Connection::open(&real).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let refused = restore(&fixture, &file).await;
    assert!(matches!(refused, Err(BackupError::Database(OpenError::Foreign(_)))), "{refused:?}");
    Connection::open(&real).unwrap().execute_batch("SELECT * FROM t").unwrap();
}
