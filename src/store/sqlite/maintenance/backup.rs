//! Copies of the database: made beside a running service, proved, and put back in its place.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use tempfile::NamedTempFile;

use super::audit::audit;
use super::copy::{self, Progress};
use super::place::BESIDE;
use super::schema::SchemaRule;
use super::{DatabaseFile, OpenError, schema};
use crate::domain::language::{Language, Localized, text};
use crate::files::{Audience, FileIdentity, with_ending};
use crate::store::audit::Audit;
use crate::store::sqlite::{Interruptible, blocking};

/// How many pages are copied before the progress is told.
const PAGES_PER_STEP: i32 = 64;
/// After how many steps what is copied goes to the disk. All of it at the end would hold up the commits of a writing service for
/// as long as the disk takes for it.
const STEPS_PER_SYNC: u64 = 16;

/// Why there is no copy, or why it does not come into the place of the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// The database, or a copy of it, cannot be read or written.
    #[error("backup_failed: the database cannot be copied")]
    Database(#[source] OpenError),
    /// A file is there that would be lost.
    #[error("exists: {0} is there already")]
    Exists(PathBuf),
    /// The file is the database itself, or belongs to it.
    #[error("is_the_database: {0} is the database itself")]
    IsTheDatabase(PathBuf),
    /// The file is no database of this program, or an empty one.
    #[error("foreign: {0} is no backup of this program")]
    Foreign(PathBuf),
    /// The file is damaged so much that nothing can be read from it.
    #[error("unreadable: {0} is damaged: {1}")]
    Unreadable(PathBuf, String),
    /// Another program has the database open.
    #[error("in_use: another program uses {0}")]
    InUse(PathBuf),
    /// The caller wanted it no more.
    #[error("interrupted: the copy was interrupted")]
    Interrupted,
    /// A file cannot be read or written.
    #[error("file_failed: {0} cannot be read or written")]
    Io(PathBuf, #[source] io::Error),
}

impl Localized for BackupError {
    fn text(&self, language: Language) -> String {
        match self {
            Self::Database(_) => text!(language, "backup.failed"),
            Self::Exists(path) => text!(language, "backup.exists", path = path.display()),
            Self::IsTheDatabase(path) => text!(language, "backup.is_the_database", path = path.display()),
            Self::Foreign(path) => text!(language, "backup.foreign", path = path.display()),
            Self::Unreadable(path, cause) => {
                text!(language, "backup.unreadable", path = path.display(), cause = cause)
            }
            Self::InUse(path) => text!(language, "backup.in_use", path = path.display()),
            Self::Interrupted => text!(language, "backup.interrupted"),
            Self::Io(path, _) => text!(language, "backup.io", path = path.display()),
        }
        .into_owned()
    }
}

impl From<OpenError> for BackupError {
    fn from(error: OpenError) -> Self {
        Self::Database(error)
    }
}

impl From<rusqlite::Error> for BackupError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.into())
    }
}

/// The failure of something with the file or directory `path`.
pub(super) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    |error| BackupError::Io(path.to_owned(), error)
}

impl DatabaseFile {
    /// Copies the database, as it is at this moment, to one file, and returns how many bytes that has. `progress` is told how many
    /// of all pages are copied, and may end it.
    pub(crate) async fn back_up(
        self,
        to: PathBuf,
        overwrite: bool,
        progress: impl FnMut(u64, u64) -> ControlFlow<()> + Send + 'static,
    ) -> Result<u64, BackupError> {
        blocking(move || back_up(&self.path, &to, overwrite, progress)).await
    }

    /// Proves the books of a copy, which is not touched, but copied to the directory for temporary files.
    pub(crate) async fn verify(
        self,
        copy: PathBuf,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Audit, BackupError> {
        blocking(move || {
            // Copied while a process writes to it, it would be no whole one.
            refuse_own_file(&self.path, &copy)?;
            match Replica::of(&copy, &std::env::temp_dir()).and_then(|replica| replica.audit(progress)) {
                Err(BackupError::Unreadable(_, cause)) => Ok(Audit::of_damaged(cause)),
                result => result,
            }
        })
        .await
    }
}

impl Interruptible for BackupError {
    fn interrupted() -> Self {
        OpenError::interrupted().into()
    }
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
        return Err(OpenError::Missing(database.to_owned()).into());
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
pub(super) fn refuse_own_file(database: &Path, file: &Path) -> Result<(), BackupError> {
    let id = |path: &Path| FileIdentity::at(path).ok();
    let own = [database.to_owned()].into_iter().chain(BESIDE.map(|suffix| with_ending(database, suffix)));
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
    let mut steps = 0_u64;
    copy::copy(&snapshot, part.path(), PAGES_PER_STEP, |Progress { done, all }| {
        if progress(done, all).is_break() {
            return Err(BackupError::Interrupted);
        }
        steps += 1;
        if steps.is_multiple_of(STEPS_PER_SYNC) {
            let started = Instant::now();
            part.as_file().sync_data().map_err(io_at(part.path()))?;
            // Payments have to wait for the same disk.
            std::thread::sleep(started.elapsed());
        }
        Ok(())
    })?;
    make_single(part.path())?;
    Ok(())
}

/// Puts everything of a database into its one file: what is in a log or a journal beside it, and the mode that would make one.
pub(super) fn make_single(path: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    // Nobody else has it, and a network file system may not be able to share the memory that SQLite would want to share.
    db.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    db.close().map_err(|(_, error)| error)
}

pub(super) fn sync_directory(directory: &Path) -> Result<(), BackupError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_at(directory))
}

/// A copy of a database file that nobody else has: it can be opened, brought up to date and thrown away.
pub(super) struct Replica {
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
    pub(super) fn of(file: &Path, directory: &Path) -> Result<Self, BackupError> {
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
            let log = with_ending(file, suffix);
            if log.try_exists().map_err(io_at(&log))? {
                copy_bytes(&log, &with_ending(&path, suffix))?;
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
    pub(super) fn is_abandoned(directory: &Path) -> bool {
        let is_ours =
            directory.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes()));
        is_ours && File::open(directory).is_ok_and(|directory| directory.try_lock().is_ok())
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("database")
    }

    /// Proves its books; those of an older version in a copy that is brought up to date.
    pub(super) fn audit(&self, progress: impl FnMut(u64, u64)) -> Result<Audit, BackupError> {
        let told = |error: OpenError| self.told_of(error.into());
        if self.version == schema::VERSION {
            return audit(&self.path(), progress).map_err(told);
        }
        let newest = self.directory.path().join("newest");
        copy_bytes(&self.path(), &newest)?;
        let result = match schema::open(&newest, SchemaRule::Exact) {
            Ok((db, _)) => {
                db.close().map_err(|(_, error)| self.told_of(error.into()))?;
                audit(&newest, progress).map_err(told)
            }
            // Not brought up to date: its triggers would run.
            Err(OpenError::OtherSchema { differences, .. }) => Ok(Audit::of_other_schema(&differences)),
            Err(error) => Err(told(error)),
        };
        std::fs::remove_file(&newest).map_err(io_at(&newest))?;
        result
    }

    /// An error in the words of the file that this is a copy of.
    fn told_of(&self, error: BackupError) -> BackupError {
        let path = self.original.clone();
        match error {
            BackupError::Database(OpenError::Foreign(_)) => BackupError::Foreign(path),
            BackupError::Database(OpenError::CannotOpen { cause, .. }) => BackupError::Unreadable(path, cause),
            BackupError::Database(OpenError::Failed(cause)) => BackupError::Unreadable(path, cause.to_string()),
            BackupError::Database(OpenError::Newer { found, known, .. }) => {
                OpenError::Newer { path, found, known }.into()
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
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt))
}

#[cfg(test)]
pub(super) mod tests;
