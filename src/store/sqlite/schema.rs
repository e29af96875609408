//! Opening the database: settings, schema versions, and the refusal of what is not ours.

use std::io;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::catalog::{self, Object};
use super::checkpoint;
use super::place::{BESIDE, Place};
use crate::files::{self, Audience, with_ending};
use crate::logging::log_text;
use crate::store::error::Failure;
use crate::store::{OpenError, SchemaDifference};

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

/// Every object of the newest version.
static NEWEST: LazyLock<Vec<Object>> =
    LazyLock::new(|| objects_of(VERSION).expect("the migrations of this program can be applied"));

/// Opens the database for writing, created and migrated where that is needed.
pub(super) fn open(path: &Path, rule: SchemaRule) -> Result<(Connection, Place), OpenError> {
    let cannot_open = |error: io::Error| OpenError::cannot_open(path, &error);
    if let Some(directory) = path.parent() {
        files::create_directory(directory).map_err(cannot_open)?;
    }
    // SQLite would make it with a mode that the umask decides on, and its log and index have the mode of the database.
    files::create_unopened(path).map_err(cannot_open)?;
    open_as(path, Mode::Create(rule))
}

/// Opens the database for writing. It must be there and up to date: only the service and the creation of an order bring a schema
/// up to date, because an older service may be running on it.
pub(super) fn open_existing(path: &Path) -> Result<(Connection, Place), OpenError> {
    must_exist(path)?;
    open_as(path, Mode::Existing)
}

fn must_exist(path: &Path) -> Result<(), OpenError> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::Missing(path.to_owned())),
        Err(error) => Err(OpenError::cannot_open(path, &error)),
    }
}

/// Whether a database must have the schema that this program makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SchemaRule {
    Exact,
    /// For tests that take objects out of the schema.
    #[cfg_attr(not(test), allow(dead_code, reason = "only tests open such a database"))]
    Any,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Create(SchemaRule),
    Existing,
}

fn open_as(path: &Path, mode: Mode) -> Result<(Connection, Place), OpenError> {
    let cannot_open = |cause: String, denied| OpenError::CannotOpen { path: path.to_owned(), cause, denied };
    let db = prepare(path, mode).map_err(|error| match error {
        EngineError::Refused(refusal) => refusal,
        EngineError::ReadOnly => {
            let cause = cause_in_the_file_system(path).unwrap_or_else(|| io::ErrorKind::ReadOnlyFilesystem.into());
            cannot_open(cause.to_string(), true)
        }
        EngineError::NoWal(mode) => cannot_open(format!("journal_mode = {mode}, not wal"), false),
        EngineError::Engine(error) => {
            let cause = cause_in_the_file_system(path);
            let denied = matches!(error.sqlite_error_code(), Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly))
                || cause.as_ref().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
            cannot_open(cause.map_or_else(|| error.to_string(), |cause| cause.to_string()), denied)
        }
    })?;
    match Place::of(path) {
        Ok(place) => Ok((db, place)),
        Err(error) => Err(OpenError::cannot_open(path, &error)),
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
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path, OpenFlags::empty())?;
    db.pragma_update(None, "query_only", true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(db)
}

/// Opens a database for reading. It must be there and up to date.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, OpenError> {
    let (db, version) = open_unchanging(path)?;
    must_be_newest(path, version)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    let differences = differences(&db, VERSION)?;
    if !differences.is_empty() {
        return Err(OpenError::OtherSchema { path: path.to_owned(), differences: differences.into() });
    }
    close_to_others(path)?;
    // Its log may be a dead service's: the last connection to close copies and removes it, whichever command that is.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    Ok(db)
}

/// Opens a database that must be there and up to date, in a way that cannot change it.
pub(super) fn open_for_audit(path: &Path) -> Result<Connection, OpenError> {
    match open_unchanging(path)? {
        (db, VERSION) => Ok(db),
        (_, found) => Err(OpenError::Older { path: path.to_owned(), found, known: VERSION }),
    }
}

/// Refuses an older version, which is not to be brought up to date here. A file without a version has no database in it yet.
fn must_be_newest(path: &Path, found: u32) -> Result<(), OpenError> {
    match found {
        VERSION => Ok(()),
        0 => Err(OpenError::Missing(path.to_owned())),
        _ => Err(OpenError::Older { path: path.to_owned(), found, known: VERSION }),
    }
}

/// Opens a database that must be there, in a way that cannot change it; with the version that it has, 0 for an empty one.
pub(super) fn open_unchanging(path: &Path) -> Result<(Connection, u32), OpenError> {
    must_exist(path)?;
    let refused = |error| match error {
        EngineError::Refused(refusal) => refusal,
        EngineError::NoWal(mode) => OpenError::Failed(Failure::new(mode)),
        EngineError::ReadOnly => OpenError::cannot_open(path, &io::ErrorKind::PermissionDenied.into()),
        EngineError::Engine(error) => {
            let cause = cause_in_the_file_system(path);
            let denied = cause.as_ref().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied);
            let cause = cause.filter(|_| denied).map_or_else(|| error.to_string(), |cause| cause.to_string());
            OpenError::CannotOpen { path: path.to_owned(), cause, denied }
        }
    };
    let open = || -> Result<(Connection, u32), EngineError> {
        let mut db = connect(path, OpenFlags::empty())?;
        db.pragma_update(None, "query_only", true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let snapshot = db.transaction()?;
        let found = check_version(&snapshot, path)?;
        snapshot.commit()?;
        Ok((db, found))
    };
    open().map_err(refused)
}

/// The objects that are foreign, missing or changed in a database that says to be of this version.
pub(super) fn differences(db: &Connection, version: u32) -> rusqlite::Result<Vec<SchemaDifference>> {
    let found = catalog::read(db)?;
    if version == VERSION {
        return Ok(catalog::compare(&found, &NEWEST));
    }
    Ok(catalog::compare(&found, &objects_of(version)?))
}

/// Every object of this version, as the migrations make them; none of version 0.
pub(super) fn objects_of(version: u32) -> rusqlite::Result<Vec<Object>> {
    let db = Connection::open_in_memory()?;
    apply(&db, version)?;
    catalog::read(&db)
}

fn apply(empty: &Connection, version: u32) -> rusqlite::Result<()> {
    MIGRATIONS.iter().take(version as usize).try_for_each(|migration| empty.execute_batch(migration))
}

/// Has an empty database become one of this version.
#[cfg(test)]
pub(super) fn migrate_to(db: &Connection, version: u32) -> rusqlite::Result<()> {
    apply(db, version)?;
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", version)
}

enum EngineError {
    Refused(OpenError),
    /// It may be read, and not written.
    ReadOnly,
    /// Write-ahead logging is not possible; the journal mode that it is.
    NoWal(String),
    Engine(rusqlite::Error),
}

impl From<rusqlite::Error> for EngineError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<OpenError> for EngineError {
    fn from(refusal: OpenError) -> Self {
        Self::Refused(refusal)
    }
}

/// Opens a connection on which nothing of the file's schema runs by itself.
///
/// Not for reading only: SQLite does not even load CHECK constraints then, and its integrity check would pass over them.
fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags)?;
    // Before the first statement.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    db.busy_handler(Some(wait_for_lock))?;
    Ok(db)
}

fn prepare(path: &Path, mode: Mode) -> Result<Connection, EngineError> {
    let (flags, rule) = match mode {
        Mode::Create(rule) => (OpenFlags::SQLITE_OPEN_CREATE, rule),
        Mode::Existing => (OpenFlags::empty(), SchemaRule::Exact),
    };
    let mut db = connect(path, flags)?;
    // SQLite opens what it may only read all the same, and would fail with every payment. Not even the write-ahead log may come
    // into being: it would be read-only as well.
    if db.is_readonly("main")? {
        return Err(EngineError::ReadOnly);
    }
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // Before anything is changed: another program's file must stay as it is.
    let snapshot = db.transaction()?;
    let version = check(&snapshot, path, rule)?;
    snapshot.commit()?;
    if mode == Mode::Existing {
        must_be_newest(path, version)?;
    }
    close_to_others(path)?;
    switch_to_wal(&db)?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    checkpoint::watch_log(&mut db)?;
    if version < VERSION {
        migrate(&mut db, path, rule)?;
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

/// Has all triggers but [`LEFT_TO_US`] in force for this connection, as temporary ones made from this program's own text: a file's can
/// only be switched off together, and are.
fn choose_triggers(db: &Connection) -> rusqlite::Result<()> {
    let triggers = NEWEST.iter().filter(|object| object.is_trigger() && !LEFT_TO_US.contains(&object.name.as_str()));
    for sql in triggers.filter_map(|trigger| trigger.sql.as_ref()) {
        db.execute_batch(&sql.replacen("CREATE TRIGGER", "CREATE TEMP TRIGGER", 1))?;
    }
    Ok(())
}

/// Keeps other users out of the database and of what SQLite has beside it.
pub(super) fn close_to_others(path: &Path) -> Result<(), OpenError> {
    // The files stand beside the database itself and not beside a link to it.
    let database = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    for file in std::iter::once(database.clone()).chain(BESIDE.map(|ending| with_ending(&database, ending))) {
        let narrowed = files::close_to_others(&file, Audience::Owner)
            .map_err(|open| OpenError::OpenToOthers { path: open.path, mode: open.mode })?;
        if let Some(narrowed) = narrowed {
            let (from, to) = (files::octal(narrowed.from), files::octal(narrowed.to));
            log::warn!(
                target: "webhookctl::store",
                "{}", log_text!("log.closed_to_others", path = file.display(), from = from, to = to)
            );
        }
    }
    Ok(())
}

/// Refuses a database that another program made, a newer version of this one, or one whose schema is not exactly that of its version.
fn check(db: &Connection, path: &Path, rule: SchemaRule) -> Result<u32, EngineError> {
    let version = check_version(db, path)?;
    let differences = differences(db, version)?;
    if differences.is_empty() || rule == SchemaRule::Any {
        return Ok(version);
    }
    Err(OpenError::OtherSchema { path: path.to_owned(), differences: differences.into() }.into())
}

/// Refuses a database that another program made, or a newer version of this one.
///
/// Called in a transaction: another process may be creating the schema at this moment, and half of it looks foreign.
fn check_version(db: &Connection, path: &Path) -> Result<u32, EngineError> {
    let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let application: i64 = db.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let path = path.to_owned();
    let is_empty = application == 0 && found == 0 && tables == 0;
    match u32::try_from(found) {
        Ok(found) if found > VERSION && application == APPLICATION_ID => {
            Err(OpenError::Newer { path, found, known: VERSION }.into())
        }
        Ok(found) if is_empty || application == APPLICATION_ID => Ok(found),
        _ => Err(OpenError::Foreign(path).into()),
    }
}

/// SQLite asks this as long as another process has the lock that it needs: whether to try again.
fn wait_for_lock(pauses: i32) -> bool {
    let is_patient = u32::try_from(pauses).is_ok_and(|pauses| pauses < LOCK_PAUSES_MAX);
    if is_patient {
        std::thread::sleep(LOCK_PAUSE);
    }
    is_patient
}

fn switch_to_wal(db: &Connection) -> Result<(), EngineError> {
    let mut attempts = WAL_ATTEMPTS;
    loop {
        let mode = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        attempts -= 1;
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            // Some file systems cannot do it, and SQLite only says so by the mode that it stays in.
            Ok(mode) => return Err(EngineError::NoWal(mode)),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && attempts > 0 => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Applies what is missing in one transaction: after a crash the schema is the old one or the new one.
fn migrate(db: &mut Connection, path: &Path, rule: SchemaRule) -> Result<(), EngineError> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have done it in the meantime.
    let version = check(&transaction, path, rule)?;
    // The schema is ours: its triggers hold while it changes, and a migration may rewrite it.
    transaction.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true)?;
    transaction.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)?;
    for migration in MIGRATIONS.iter().skip(version as usize) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    Ok(())
}
