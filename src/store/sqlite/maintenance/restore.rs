//! A copy comes into the place of the database, so that at every moment one or the other is there, whole.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::backup::{BackupError, Replica, io_at, is_damage, make_single, refuse_own_file, sync_directory};
use super::place::BESIDE;
use super::schema::SchemaRule;
use super::{DatabaseFile, OpenError, reconciliation, schema};
use crate::domain::clock::Timestamp;
use crate::files::{self, Audience, FileIdentity, with_ending};
use crate::store::audit::Audit;
use crate::store::sqlite::blocking;

/// A copy that may take the database's place: on the same file system already, and audited.
pub(crate) struct Candidate {
    pub(crate) audit: Audit,
    replica: Replica,
    /// The database that is to be replaced; links are followed.
    database: PathBuf,
}

impl DatabaseFile {
    /// Copies a file beside the database, and proves its books.
    pub(crate) async fn candidate(
        self,
        copy: PathBuf,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Candidate, BackupError> {
        blocking(move || {
            refuse_own_file(&self.path, &copy)?;
            // A link must stay one.
            let database = match self.path.canonicalize() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.path,
                found => found.map_err(io_at(&self.path))?,
            };
            let directory = directory_of(&database);
            files::create_directory(directory).map_err(io_at(directory))?;
            let replica = Replica::of(&copy, directory)?;
            let audit = replica.audit(progress)?;
            Ok(Candidate { audit, replica, database })
        })
        .await
    }

    /// Removes the remains of interrupted restores beside the database, and returns the names of the removed files.
    ///
    /// For the process that has the store open: no restore can be between its steps then, as it needs the database for itself.
    pub(crate) async fn remove_leftovers(self) -> Result<Vec<PathBuf>, BackupError> {
        blocking(move || remove_leftovers(&self.path.canonicalize().map_err(io_at(&self.path))?, false)).await
    }
}

/// What came of a restore.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The new name of the old database, if there was one.
    pub(crate) kept: Option<PathBuf>,
    /// Files of earlier, interrupted restores that were removed.
    pub(crate) removed: Vec<PathBuf>,
}

impl Candidate {
    /// Takes the place of the database, which is kept under another name.
    pub(crate) async fn install(self, at: Timestamp) -> Result<Restored, BackupError> {
        blocking(move || {
            hold_unpaid(&self.replica.path(), at)?;
            install(&self.replica.path(), &self.database, at)
        })
        .await
    }
}

/// Orders that were unpaid when the backup was made may have been settled, refunded or compensated since: each needs its gateway's
/// own word before it is credited.
fn hold_unpaid(new: &Path, at: Timestamp) -> Result<(), BackupError> {
    let (db, _) = schema::open(new, SchemaRule::Exact)?;
    reconciliation::hold_unpaid(&db, at)?;
    db.close().map_err(|(_, error)| error)?;
    Ok(make_single(new)?)
}

fn directory_of(database: &Path) -> &Path {
    database.parent().unwrap_or(Path::new("/"))
}

fn install(new: &Path, database: &Path, at: Timestamp) -> Result<Restored, BackupError> {
    let Ok(old) = database.metadata() else {
        make_durable(new)?;
        let kept = kept_name(database, at);
        schema::close_to_others(database)?;
        take(&plan(new, database, &kept, false))?;
        return Ok(Restored { kept: None, removed: Vec::new() });
    };
    let mode = Audience::Owner.narrowed(old.mode());
    std::fs::set_permissions(new, Permissions::from_mode(mode)).map_err(io_at(new))?;
    // Whoever reads it by its group; it may be a group that we cannot give it to.
    let _ = chown(new, None, Some(old.gid()));
    make_durable(new)?;
    // Held until all is done, so that nobody opens the file that is about to be the old one.
    let held = complete(database)?;
    let removed = remove_leftovers(database, held.is_none())?;
    let kept = kept_name(database, at);
    // The old database is closed to other users as well.
    schema::close_to_others(database)?;
    take(&plan(new, database, &kept, true))?;
    Ok(Restored { kept: Some(kept), removed })
}

/// Removes what interrupted restores left beside the database: copies of backups, and second names of the database's own file. A
/// restore that ended before the exchange leaves such a name, and SQLite would give each name a log of its own.
///
/// The caller holds the database open or locked, so that no restore is between its steps.
fn remove_leftovers(database: &Path, is_damaged: bool) -> Result<Vec<PathBuf>, BackupError> {
    let directory = directory_of(database);
    let own = database.metadata().map_err(io_at(database))?;
    let prefix = kept_prefix(database);
    let mut removed = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(io_at(directory))? {
        let path = entry.map_err(io_at(directory))?.path();
        // One that has gone meanwhile is nobody's leftover any more.
        let Ok(file) = path.symlink_metadata() else { continue };
        let is_second_name = FileIdentity::of(&file) == FileIdentity::of(&own)
            && path.as_os_str().as_encoded_bytes().starts_with(prefix.as_os_str().as_encoded_bytes());
        if is_second_name {
            // The log of a damaged database may have been moved already. It belongs to the database again.
            for suffix in BESIDE.iter().filter(|_| is_damaged) {
                let (moved, log) = (with_ending(&path, suffix), with_ending(database, suffix));
                if moved.symlink_metadata().is_ok() && log.symlink_metadata().is_err() {
                    std::fs::rename(&moved, &log).map_err(io_at(&log))?;
                }
            }
            std::fs::remove_file(&path).map_err(io_at(&path))?;
        } else if file.is_dir() && Replica::is_abandoned(&path) {
            std::fs::remove_dir_all(&path).map_err(io_at(&path))?;
        } else {
            continue;
        }
        removed.push(path);
    }
    if !removed.is_empty() {
        sync_directory(directory)?;
    }
    removed.sort_unstable();
    Ok(removed)
}

/// How the names begin under which databases are kept.
fn kept_prefix(database: &Path) -> PathBuf {
    with_ending(database, ".before-restore-")
}

fn make_durable(file: &Path) -> Result<(), BackupError> {
    std::fs::File::open(file).and_then(|file| file.sync_all()).map_err(io_at(file))
}

/// A name that nothing has yet: there may have been another restore within the second.
fn kept_name(database: &Path, at: Timestamp) -> PathBuf {
    let time: String = at.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let first = with_ending(&kept_prefix(database), &time);
    let others = (2..).map(|number| with_ending(&first, &format!("-{number}")));
    let mut names = std::iter::once(first.clone()).chain(others);
    names.find(|name| name.symlink_metadata().is_err()).unwrap_or(first)
}

/// Puts everything of the old database into its one file, and locks it. A log beside the new one would be taken for its own.
///
/// One that is damaged cannot be completed: it stays as it is, and its log is kept with it.
fn complete(database: &Path) -> Result<Option<Connection>, BackupError> {
    match schema::open_unchanging(database) {
        Err(OpenError::Foreign(path)) => return Err(OpenError::Foreign(path).into()),
        Err(OpenError::CannotOpen { path, cause, denied: true }) => {
            return Err(OpenError::CannotOpen { path, cause, denied: true }.into());
        }
        _ => {}
    }
    let lock = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(database, flags)?;
        db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        db.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(db)
    };
    match lock() {
        Ok(db) => Ok(Some(db)),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            Err(BackupError::InUse(database.to_owned()))
        }
        Err(error) => Err(error.into()),
    }
}

/// One step of the exchange. Whatever ends the process between two of them, the database's name leads to the old one or to the new one.
#[derive(Debug)]
enum Step {
    /// The file gets a second name.
    Link(PathBuf, PathBuf),
    /// The file goes from one name to another, replacing what is there.
    Move(PathBuf, PathBuf),
    /// What was done to names in this directory survives a power cut.
    Sync(PathBuf),
}

fn plan(new: &Path, database: &Path, kept: &Path, is_there: bool) -> Vec<Step> {
    let sync = || Step::Sync(directory_of(database).to_owned());
    let mut steps = Vec::new();
    if is_there {
        steps.push(Step::Link(database.to_owned(), kept.to_owned()));
    }
    // There is none, unless the database is damaged or has been lost.
    for suffix in BESIDE {
        let log = with_ending(database, suffix);
        if log.symlink_metadata().is_ok() {
            steps.push(Step::Move(log, with_ending(kept, suffix)));
        }
    }
    if !steps.is_empty() {
        steps.push(sync());
    }
    steps.extend([Step::Move(new.to_owned(), database.to_owned()), sync()]);
    steps
}

fn take(steps: &[Step]) -> Result<(), BackupError> {
    for step in steps {
        match step {
            Step::Link(from, to) => std::fs::hard_link(from, to).map_err(io_at(to))?,
            Step::Move(from, to) => std::fs::rename(from, to).map_err(io_at(to))?,
            Step::Sync(directory) => sync_directory(directory)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
