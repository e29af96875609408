//! Opening the database: settings, schema versions, and the refusal of what is not ours.

use std::io;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::place::Place;
use super::{StoreError, checkpoint};

/// Marks a database file as ours: `whkc`.
const APPLICATION_ID: i64 = 0x7768_6b63;
/// How many pauses a write waits for another process's, some 1.5 s in all. Gateways give up after 5 s, and a job may have to wait for the batch before
/// its own as well.
const LOCK_PAUSES_MAX: u32 = 1400;
/// How long it is until the lock is tried again. SQLite's own pauses grow to 100 ms: while another process writes batch after
/// batch, as both do when one takes over from the other, so few tries can all find it locked.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// How often the switch to write-ahead logging is tried: SQLite does not wait for other processes there.
const WAL_ATTEMPTS: u32 = 100;
/// How much of the database is kept in memory, in KiB.
const CACHE_KIB: i64 = 16 * 1024;
/// Room for every statement that we have.
const STATEMENTS_MAX: usize = 128;

/// Triggers that are for other programs alone: merely to be asked, they cost a payment a third of its time in the engine. This program
/// never says OR REPLACE (`tests/tidy.rs` sees to that), moves balances in [`super::ledger`], and names the status that it expects
/// wherever it changes one; constraints hold for everybody.
const LEFT_TO_US: [&str; 8] = [
    "ledger_is_append_only_replace",
    "ledger_moves_the_balance",
    "orders_are_not_replaced",
    "orders_are_not_replaced_by_update",
    "orders_keep_their_settlement",
    "orders_stay_settled",
    "receipts_are_not_replaced",
    "users_are_not_replaced",
];

/// Each element takes the schema one version further; the version is the number of elements applied.
const MIGRATIONS: [&str; VERSION as usize] = [
    include_str!("schema.sql"),
    include_str!("schema_v2.sql"),
    include_str!("schema_v3.sql"),
    include_str!("schema_v4.sql"),
];
/// The newest version of the schema.
pub(super) const VERSION: u32 = 4;

/// Opens the database for writing, created and migrated where that is needed.
pub(super) fn open(path: &Path) -> Result<(Connection, Place), StoreError> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| StoreError::cannot_open(path, &error))?;
    }
    open_with(path, OpenFlags::SQLITE_OPEN_CREATE)
}

/// Opens the database for writing, which must be there.
pub(super) fn open_existing(path: &Path) -> Result<(Connection, Place), StoreError> {
    open_with(path, OpenFlags::empty())
}

fn open_with(path: &Path, flags: OpenFlags) -> Result<(Connection, Place), StoreError> {
    let cannot_open = |cause: String, denied| StoreError::CannotOpen { path: path.to_owned(), cause, denied };
    let db = prepare(path, flags).map_err(|error| match error {
        OpenError::Refused(refusal) => refusal,
        OpenError::ReadOnly => {
            let cause = cause_in_the_file_system(path).unwrap_or_else(|| io::ErrorKind::ReadOnlyFilesystem.into());
            cannot_open(cause.to_string(), true)
        }
        OpenError::NoWal(mode) => cannot_open(format!("journal_mode = {mode}, not wal"), false),
        OpenError::Engine(error) => {
            let cause = cause_in_the_file_system(path);
            let denied = matches!(error.sqlite_error_code(), Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly))
                || cause.as_ref().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
            cannot_open(cause.map_or_else(|| error.to_string(), |cause| cause.to_string()), denied)
        }
    })?;
    match Place::of(path) {
        Ok(place) => Ok((db, place)),
        Err(error) => Err(StoreError::cannot_open(path, &error)),
    }
}

/// Why a file cannot be opened, in the system's own words: SQLite says "unable to open" for many causes.
///
/// Without opening it: closing it again would give up the locks that this process may hold on it.
fn cause_in_the_file_system(path: &Path) -> Option<io::Error> {
    if path.is_dir() {
        return Some(io::ErrorKind::IsADirectory.into());
    }
    let needed = if path.exists() { path } else { path.parent()? };
    access(needed, AccessFlags::R_OK | AccessFlags::W_OK).err().map(io::Error::from)
}

/// Opens a connection that cannot write.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.busy_handler(Some(wait_for_lock))?;
    db.pragma_update(None, "query_only", true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(db)
}

/// Opens a database that must be there and up to date, in a way that cannot change it.
pub(super) fn open_for_audit(path: &Path) -> Result<Connection, StoreError> {
    match open_unchanging(path)? {
        (db, VERSION) => Ok(db),
        (_, found) => Err(StoreError::Older { path: path.to_owned(), found, known: VERSION }),
    }
}

/// Opens a database that must be there, in a way that cannot change it; with the version that it has, 0 for an empty one.
pub(super) fn open_unchanging(path: &Path) -> Result<(Connection, u32), StoreError> {
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(StoreError::Missing(path.to_owned())),
        Err(error) => return Err(StoreError::cannot_open(path, &error)),
    }
    let refused = |error| match error {
        OpenError::Refused(refusal) => refusal,
        OpenError::NoWal(mode) => StoreError::Failed(mode.into()),
        OpenError::ReadOnly => StoreError::cannot_open(path, &io::ErrorKind::PermissionDenied.into()),
        OpenError::Engine(error) => {
            let cause = cause_in_the_file_system(path);
            let denied = cause.as_ref().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
            let cause = cause.filter(|_| denied).map_or_else(|| error.to_string(), |cause| cause.to_string());
            StoreError::CannotOpen { path: path.to_owned(), cause, denied }
        }
    };
    let open = || -> Result<(Connection, u32), OpenError> {
        // Not READ_ONLY: SQLite does not even load CHECK constraints then, and its integrity check would pass over them.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(path, flags)?;
        db.busy_handler(Some(wait_for_lock))?;
        db.pragma_update(None, "query_only", true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let snapshot = db.transaction()?;
        let found = check_version(&snapshot, path)?;
        snapshot.commit()?;
        Ok((db, found))
    };
    open().map_err(refused)
}

/// A database in memory with nothing but the newest schema.
pub(super) fn in_memory() -> rusqlite::Result<Connection> {
    let db = Connection::open_in_memory()?;
    MIGRATIONS.iter().try_for_each(|migration| db.execute_batch(migration))?;
    Ok(db)
}

/// Has an empty database become one of this version.
#[cfg(test)]
pub(super) fn migrate_to(db: &Connection, version: u32) -> rusqlite::Result<()> {
    MIGRATIONS.iter().take(version as usize).try_for_each(|migration| db.execute_batch(migration))?;
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", version)
}

enum OpenError {
    Refused(StoreError),
    /// It may be read, and not written.
    ReadOnly,
    /// Write-ahead logging is not possible; the journal mode that it is.
    NoWal(String),
    Engine(rusqlite::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(error)
    }
}

fn prepare(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    // SQLite opens what it may only read all the same, and would fail with every payment. Not even the write-ahead log may come
    // into being: it would be read-only as well.
    if db.is_readonly("main")? {
        return Err(OpenError::ReadOnly);
    }
    db.busy_handler(Some(wait_for_lock))?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Before anything is changed: another program's file must stay as it is.
    let snapshot = db.transaction()?;
    let version = check_version(&snapshot, path)?;
    snapshot.commit()?;
    switch_to_wal(&db)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.pragma_update(None, "trusted_schema", false)?;
    checkpoint::watch_log(&mut db)?;
    if version < VERSION {
        migrate(&mut db, path)?;
        checkpoint::copy_log(&db);
    }
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // What a statement may have to undo is not worth a file.
    db.pragma_update(None, "temp_store", "MEMORY")?;
    choose_triggers(&db)?;
    // The write-ahead log and its index come with the first read.
    db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(db)
}

/// Has all triggers but [`LEFT_TO_US`] in force for this connection, as temporary ones: an engine's own can only be switched off
/// together.
fn choose_triggers(db: &Connection) -> rusqlite::Result<()> {
    let triggers: Vec<(String, String)> = db
        .prepare("SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger'")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (_, sql) in triggers.iter().filter(|(name, _)| !LEFT_TO_US.contains(&name.as_str())) {
        db.execute_batch(&sql.replacen("CREATE TRIGGER", "CREATE TEMP TRIGGER", 1))?;
    }
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    Ok(())
}

/// Refuses a database that another program made, or a newer version of this one.
///
/// Called in a transaction: another process may be creating the schema at this moment, and half of it looks foreign.
fn check_version(db: &Connection, path: &Path) -> Result<u32, OpenError> {
    let found: u32 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i64 = db.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let path = path.to_owned();
    if application != APPLICATION_ID && (application != 0 || found > 0 || tables > 0) {
        return Err(OpenError::Refused(StoreError::Foreign(path)));
    }
    if found > VERSION {
        return Err(OpenError::Refused(StoreError::Newer { path, found, known: VERSION }));
    }
    Ok(found)
}

/// SQLite asks this as long as another process has the lock that it needs: whether to try again.
fn wait_for_lock(pauses: i32) -> bool {
    let is_patient = u32::try_from(pauses).is_ok_and(|pauses| pauses < LOCK_PAUSES_MAX);
    if is_patient {
        std::thread::sleep(LOCK_PAUSE);
    }
    is_patient
}

fn switch_to_wal(db: &Connection) -> Result<(), OpenError> {
    let mut attempts = WAL_ATTEMPTS;
    loop {
        let mode = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        attempts -= 1;
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            // Some file systems cannot do it, and SQLite only says so by the mode that it stays in.
            Ok(mode) => return Err(OpenError::NoWal(mode)),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && attempts > 0 => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Applies what is missing in one transaction: after a crash the schema is the old one or the new one.
fn migrate(db: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have done it in the meantime.
    let version = check_version(&transaction, path)?;
    for migration in MIGRATIONS.iter().skip(version as usize) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(())
}
