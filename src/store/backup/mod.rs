//! Copies of the database: made beside a running service, proved, and put back in its place.

mod restore;

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rust_i18n::t;
use tempfile::NamedTempFile;

use super::audit::{Audit, audit};
use super::place::BESIDE;
use super::{Store, StoreError, schema};
use crate::config::DatabaseUrl;
use crate::files::Audience;

/// How many pages are copied before the progress is told.
const PAGES_PER_STEP: i32 = 64;
/// After how many steps what is copied goes to the disk. All of it at the end would hold up the commits of a writing service for
/// as long as the disk takes for it.
const STEPS_PER_SYNC: u64 = 16;

/// Why there is no copy, or why it does not come into the place of the database.
#[derive(Debug)]
pub(crate) enum BackupError {
    /// The database, or a copy of it, cannot be read or written.
    Store(StoreError),
    /// A file is there that would be lost.
    Exists(PathBuf),
    /// The file is the database itself, or belongs to it.
    IsTheDatabase(PathBuf),
    /// The file is no database of this program, or an empty one.
    Foreign(PathBuf),
    /// The file is damaged so much that nothing can be read from it.
    Unreadable(PathBuf, String),
    /// Another program has the database open.
    InUse(PathBuf),
    /// Nobody waits for it any more.
    Interrupted,
    /// A file cannot be read or written.
    Io(PathBuf, io::Error),
}

impl std::fmt::Display for BackupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&match self {
            Self::Store(_) => t!("backup.failed"),
            Self::Exists(path) => t!("backup.exists", path = path.display()),
            Self::IsTheDatabase(path) => t!("backup.is_the_database", path = path.display()),
            Self::Foreign(path) => t!("backup.foreign", path = path.display()),
            Self::Unreadable(path, cause) => t!("backup.unreadable", path = path.display(), cause = cause),
            Self::InUse(path) => t!("backup.in_use", path = path.display()),
            Self::Interrupted => t!("backup.interrupted"),
            Self::Io(path, _) => t!("backup.io", path = path.display()),
        })
    }
}

impl std::error::Error for BackupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Io(_, error) => Some(error),
            _ => None,
        }
    }
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The failure of something with the file or directory `path`.
fn io_at(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    |error| BackupError::Io(path.to_owned(), error)
}

impl Store {
    /// Copies the database, as it is at this moment, to one file, and returns how many bytes that has. `progress` hears of how many
    /// pages out of how many are copied, and may end it.
    pub(crate) async fn back_up(
        url: &DatabaseUrl,
        to: PathBuf,
        overwrite: bool,
        progress: impl FnMut(u64, u64) -> ControlFlow<()> + Send + 'static,
    ) -> Result<u64, BackupError> {
        let DatabaseUrl::Sqlite(database) = url.clone();
        blocking(move || back_up(&database, &to, overwrite, progress)).await
    }

    /// Proves the books of a copy, which is not touched, but copied to the directory for temporary files.
    pub(crate) async fn verify(
        url: &DatabaseUrl,
        file: PathBuf,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Audit, BackupError> {
        let DatabaseUrl::Sqlite(database) = url.clone();
        blocking(move || {
            // Copied while somebody writes to it, it would be no whole one.
            refuse_own_file(&database, &file)?;
            match Replica::of(&file, &std::env::temp_dir()).and_then(|replica| replica.audit(progress)) {
                Err(BackupError::Unreadable(_, cause)) => Ok(Audit::of_damaged(cause)),
                result => result,
            }
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(BackupError::Store(StoreError::Closed)))
}

fn back_up(
    database: &Path,
    to: &Path,
    overwrite: bool,
    progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<u64, BackupError> {
    let to = std::path::absolute(to).map_err(io_at(to))?;
    refuse_own_file(database, &to)?;
    if !overwrite && to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to));
    }
    let (source, version) = schema::open_unchanging(database)?;
    if version == 0 {
        return Err(StoreError::Missing(database.to_owned()).into());
    }
    let directory = to.parent().unwrap_or(Path::new("/"));
    // For its owner only, and removed again if it comes to nothing.
    let part = tempfile::Builder::new().prefix(TEMPORARY).suffix(".part").tempfile_in(directory);
    let part = part.map_err(io_at(directory))?;
    copy(&source, &part, progress)?;
    part.as_file().sync_all().map_err(io_at(part.path()))?;
    let bytes = part.as_file().metadata().map_err(io_at(part.path()))?.len();
    let persisted = if overwrite { part.persist(&to) } else { part.persist_noclobber(&to) };
    persisted.map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists if !overwrite => BackupError::Exists(to.clone()),
        _ => BackupError::Io(to.clone(), error.error),
    })?;
    sync_directory(directory)?;
    Ok(bytes)
}

/// Refuses the database itself, and what SQLite keeps beside it, by whatever name.
fn refuse_own_file(database: &Path, file: &Path) -> Result<(), BackupError> {
    let id = |path: &Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let own = [database.to_owned()].into_iter().chain(BESIDE.map(|suffix| beside(database, suffix)));
    for own in own {
        if file == own || id(&own).is_some_and(|own| id(file) == Some(own)) {
            return Err(BackupError::IsTheDatabase(file.to_owned()));
        }
    }
    Ok(())
}

fn copy(
    source: &Connection,
    part: &NamedTempFile,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<(), BackupError> {
    // The whole copy is of this one snapshot. Without it each step would see what was committed last, and begin anew.
    let snapshot = source.unchecked_transaction()?;
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let mut target = Connection::open(part.path())?;
    // It is thrown away if it does not get complete.
    target.query_row("PRAGMA journal_mode = OFF", [], |_| Ok(()))?;
    target.pragma_update(None, "synchronous", "OFF")?;
    let backup = Backup::new(&snapshot, &mut target)?;
    for steps in 1_u64.. {
        match backup.step(PAGES_PER_STEP)? {
            StepResult::Done => break,
            StepResult::More => {}
            _ => return Err(StoreError::Failed("database is locked".into()).into()),
        }
        let pages = backup.progress();
        let count = |pages: i32| u64::try_from(pages).unwrap_or_default();
        if progress(count(pages.pagecount - pages.remaining), count(pages.pagecount)).is_break() {
            return Err(BackupError::Interrupted);
        }
        if steps.is_multiple_of(STEPS_PER_SYNC) {
            let started = Instant::now();
            part.as_file().sync_data().map_err(io_at(part.path()))?;
            // Payments have to wait for the same disk.
            std::thread::sleep(started.elapsed());
        }
    }
    drop(backup);
    target.close().map_err(|(_, error)| error)?;
    make_single(part.path())?;
    Ok(())
}

/// Puts everything of a database into its one file: what is in a log or a journal beside it, and the mode that would make one.
fn make_single(path: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    // Nobody else has it, and a network file system may not be able to share the memory that SQLite would want to share.
    db.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    db.close().map_err(|(_, error)| error)
}

/// The name of what SQLite keeps beside a database.
fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn sync_directory(directory: &Path) -> Result<(), BackupError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_at(directory))
}

/// A copy of a database file that nobody else has: it can be opened, brought up to date and thrown away.
struct Replica {
    /// The file that it is a copy of.
    original: PathBuf,
    directory: tempfile::TempDir,
    /// Locked for as long as the copy is in use: a process that is killed leaves the directory without a lock.
    _lock: File,
    version: u32,
}

/// How the names of temporary files and directories begin.
const TEMPORARY: &str = ".webhookctl-";

impl Replica {
    /// Copies a file, with the log that may be beside it, below `directory`.
    fn of(file: &Path, directory: &Path) -> Result<Self, BackupError> {
        let original = file.to_owned();
        let private = Permissions::from_mode(0o700);
        let directory = tempfile::Builder::new().prefix(TEMPORARY).permissions(private).tempdir_in(directory);
        let directory = directory.map_err(io_at(file))?;
        let lock = File::open(directory.path()).map_err(io_at(directory.path()))?;
        // On a file system without locks, no copy is ever taken for abandoned.
        let _ = lock.try_lock();
        let mut replica = Self { original, directory, _lock: lock, version: 0 };
        let path = replica.path();
        copy_bytes(file, &path)?;
        let mut is_single = true;
        for suffix in ["-wal", "-journal"] {
            let log = beside(file, suffix);
            if log.try_exists().map_err(io_at(&log))? {
                copy_bytes(&log, &beside(&path, suffix))?;
                is_single = false;
            }
        }
        let readable = || -> Result<u32, BackupError> {
            // Before anything is changed in it: SQLite would make a database of an empty file.
            let (db, version) = schema::open_unchanging(&path)?;
            let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
            drop(db);
            if !is_single || mode == "wal" {
                make_single(&path)?;
            }
            Ok(version)
        };
        replica.version = readable().map_err(|error| replica.told_of(error))?;
        if replica.version == 0 {
            return Err(BackupError::Foreign(replica.original));
        }
        Ok(replica)
    }

    /// Whether a directory holds a copy, and the process that made it has ended.
    fn is_abandoned(directory: &Path) -> bool {
        let is_ours =
            directory.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()));
        is_ours && File::open(directory).is_ok_and(|directory| directory.try_lock().is_ok())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("database")
    }

    /// Proves its books; those of an older version in a copy that is brought up to date.
    fn audit(&self, progress: impl FnMut(u64, u64)) -> Result<Audit, BackupError> {
        let told = |error: StoreError| self.told_of(error.into());
        if self.version == schema::VERSION {
            return audit(&self.path(), progress).map_err(told);
        }
        let newest = self.directory.path().join("newest");
        copy_bytes(&self.path(), &newest)?;
        let result = match schema::open(&newest) {
            Ok((db, _)) => {
                db.close().map_err(|(_, error)| self.told_of(error.into()))?;
                audit(&newest, progress).map_err(told)
            }
            // Not brought up to date: its triggers would run.
            Err(StoreError::OtherSchema { differences, .. }) => Ok(Audit::of_other_schema(&differences)),
            Err(error) => Err(told(error)),
        };
        std::fs::remove_file(&newest).map_err(io_at(&newest))?;
        result
    }

    /// An error in the words of the file that this is a copy of.
    fn told_of(&self, error: BackupError) -> BackupError {
        let path = self.original.clone();
        match error {
            BackupError::Store(StoreError::Foreign(_)) => BackupError::Foreign(path),
            BackupError::Store(StoreError::CannotOpen { cause, .. }) => BackupError::Unreadable(path, cause),
            BackupError::Store(StoreError::Failed(cause)) => BackupError::Unreadable(path, cause.to_string()),
            BackupError::Store(StoreError::Newer { found, known, .. }) => {
                StoreError::Newer { path, found, known }.into()
            }
            error => error,
        }
    }
}

/// Copies a file as it is to a new one of our own.
fn copy_bytes(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut source = File::open(from).map_err(io_at(from))?;
    let mut target =
        OpenOptions::new().write(true).create_new(true).mode(Audience::Owner.mode()).open(to).map_err(io_at(to))?;
    io::copy(&mut source, &mut target).map_err(io_at(to))?;
    Ok(())
}

/// Whether SQLite says that a file is damaged, and not that something stands in the way.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

#[cfg(test)]
mod tests;
