//! The database that is written to: it has to be the one that others find at its path.
//!
//! Where its files were removed, what is still open here is all that there is, and is written back. Where another file has taken their
//! place, somebody has to decide which one it is to be: nothing is written until then, and what is open here is kept beside it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::place::{Place, Standing};
use super::readers::{Readers, leave_files};
use super::{Failure, OpenError, StoreError, copy, schema};
use crate::domain::clock::Timestamp;
use crate::domain::language::Localized;
use crate::files::{self, Audience, FileIdentity, with_ending};
use crate::logging::{self, log_text};
use crate::store::FilesChanged;

const TARGET: &str = "webhookctl::store";
/// How long files that could not be put right are left alone.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How many pages are copied in a step.
const COPY_PAGES: i32 = 4096;

pub(super) struct Database {
    /// `None` while the files are closed and could not be opened again; nothing is in memory alone then.
    connection: Option<Connection>,
    place: Place,
    readers: Arc<Readers>,
    trouble: Option<Trouble>,
}

/// The files are not what they should be.
struct Trouble {
    tried_at: Instant,
    refusal: StoreError,
    /// Where what was open is kept.
    rescued: Option<PathBuf>,
    /// The failure to put them right that was told last.
    told: Option<String>,
}

impl Database {
    pub(super) fn new(connection: Connection, place: Place, readers: Arc<Readers>) -> Self {
        Self { connection: Some(connection), place, readers, trouble: None }
    }

    /// The connection, as long as what it writes to is what its path names. Puts the files right where that can be done.
    pub(super) fn in_place(&mut self) -> Result<&Connection, StoreError> {
        let standing = self.place.look();
        if !matches!(standing, Standing::Same) || self.connection.is_none() {
            self.put_right(&standing)?;
        } else if self.trouble.take().is_some() {
            log::warn!(target: TARGET, "{}", log_text!("log.place_found", path = self.place.path().display()));
        }
        self.connection.as_ref().ok_or(StoreError::Closed)
    }

    /// Whether what was just written can be found by others.
    pub(super) fn is_in_place(&self) -> Result<(), StoreError> {
        match self.place.look() {
            Standing::Same => Ok(()),
            standing => Err(standing.refusal(&self.place)),
        }
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        self.connection.as_ref()
    }

    /// Closes it. The last connection to close copies the write-ahead log into the database and removes it: ours, and no other.
    pub(super) fn close(mut self) {
        // What was removed can be written back now or never.
        if let Some(trouble) = &mut self.trouble
            && let Some(earlier) = trouble.tried_at.checked_sub(RETRY_PAUSE)
        {
            trouble.tried_at = earlier;
        }
        let is_ours = self.in_place().is_ok();
        let Some(connection) = self.connection else { return };
        if !is_ours {
            leave_files(&connection);
            drop(self.readers.stop());
        }
        if let Err((_, error)) = connection.close() {
            log::warn!(target: TARGET, "{error}");
        }
    }

    fn put_right(&mut self, standing: &Standing) -> Result<(), StoreError> {
        if let Some(trouble) = self.trouble.as_ref().filter(|trouble| trouble.tried_at.elapsed() < RETRY_PAUSE) {
            return Err(trouble.refusal.clone());
        }
        let refusal = standing.refusal(&self.place);
        if self.trouble.is_none() {
            log::error!(target: TARGET, "{}", refusal.text(logging::language()));
        }
        let earlier = self.trouble.take();
        let (mut rescued, told) = earlier.map(|trouble| (trouble.rescued, trouble.told)).unwrap_or_default();
        // The error of putting the files right; none where a person has to do that.
        let result = match standing {
            _ if self.connection.is_none() => self.open_again().map_err(Some),
            Standing::NoDatabase => self.write_back().map_err(Some),
            Standing::NoLog => self.empty_log().and_then(|()| self.open_again()).map_err(Some),
            Standing::NoIndex | Standing::Same => self.open_again().map_err(Some),
            Standing::Other(_) if rescued.is_none() => {
                self.rescue().map(|path| rescued = Some(path)).map_err(Some).and(Err(None))
            }
            Standing::Other(_) | Standing::Hidden(..) => Err(None),
        };
        let Err(error) = result else {
            log::warn!(target: TARGET, "{}", log_text!("log.place_restored", path = self.place.path().display()));
            return Ok(());
        };
        let cause = error.map(|error| error.text(logging::language()));
        if let Some(cause) = cause.as_ref().filter(|cause| told.as_ref() != Some(cause)) {
            log::error!(target: TARGET, "{}", log_text!("log.place_not_restored", error = cause));
        }
        let told = cause.or(told);
        self.trouble = Some(Trouble { tried_at: Instant::now(), refusal: refusal.clone(), rescued, told });
        Err(refusal)
    }

    /// Makes the database anew from what is open, and goes on in that.
    fn write_back(&mut self) -> Result<(), OpenError> {
        let connection = self.connection.as_ref().ok_or_else(closed)?;
        let path = self.place.path().to_owned();
        let mut reading = self.readers.stop();
        let written = copy_durably(connection, &path, self.place.mode)?;
        let removed = self.place.remove_log().map_err(failed);
        let (connection, place) = removed.and_then(|()| open_there(&path, written)).inspect_err(|error| {
            // Or it would stand in its own place as another file the next time. One that this program refuses for its schema does so
            // until somebody has looked at it.
            let is_refused = matches!(error, OpenError::OtherSchema { .. });
            if !is_refused && is_there(&path, written) {
                let _ = fs::remove_file(&path);
            }
        })?;
        if let Some(old) = self.connection.replace(connection) {
            leave_files(&old);
        }
        self.place = place.clone();
        *reading = Some(place);
        Ok(())
    }

    /// Copies the write-ahead log that is still open into the database.
    fn empty_log(&self) -> Result<(), OpenError> {
        // Read by the writer as well: with a reader in the way the log is not copied to its end.
        let _reading = self.readers.stop();
        let Some(connection) = &self.connection else { return Ok(()) };
        let is_busy: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if is_busy { Err(OpenError::Failed(Failure::new("wal_checkpoint is busy"))) } else { Ok(()) }
    }

    /// Opens the files that are there, with a new log or index where there is none. All connections have to be closed for that: they
    /// share one index.
    fn open_again(&mut self) -> Result<(), OpenError> {
        let mut reading = self.readers.stop();
        if let Some(connection) = self.connection.take() {
            leave_files(&connection);
        }
        let (connection, place) = open_there(self.place.path(), self.place.database)?;
        self.connection = Some(connection);
        self.place = place.clone();
        *reading = Some(place);
        Ok(())
    }

    /// Keeps what is open beside the file that stands in its place.
    fn rescue(&self) -> Result<PathBuf, OpenError> {
        let connection = self.connection.as_ref().ok_or_else(closed)?;
        let time = Timestamp::now().to_string().replace(['-', ':'], "");
        let rescued = with_ending(self.place.path(), &format!(".rescued-{time}"));
        copy_durably(connection, &rescued, self.place.mode)?;
        log::error!(target: TARGET, "{}", log_text!("log.place_rescued", rescued = rescued.display()));
        Ok(rescued)
    }
}

/// Opens the database, which must be this very file.
fn open_there(path: &Path, expected: FileIdentity) -> Result<(Connection, Place), OpenError> {
    let other = || OpenError::Failed(Failure::new(FilesChanged::Replaced(path.to_owned())));
    if !is_there(path, expected) {
        return Err(other());
    }
    let (connection, place) = schema::open_existing(path)?;
    if place.database == expected {
        return Ok((connection, place));
    }
    leave_files(&connection);
    Err(other())
}

fn is_there(path: &Path, expected: FileIdentity) -> bool {
    FileIdentity::at(path).is_ok_and(|found| found == expected)
}

/// Writes all that is open here to a new file, which is there wholly or not at all, and replaces none.
fn copy_durably(connection: &Connection, target: &Path, mode: u32) -> Result<FileIdentity, OpenError> {
    let unfinished = with_ending(target, ".unfinished");
    let copied = create_alone(&unfinished)
        .map_err(failed)
        .and_then(|()| copy::copy(connection, &unfinished, COPY_PAGES, |_| Ok(())))
        .and_then(|()| finish(&unfinished, target, mode).map_err(failed));
    let _ = remove_if_there(&unfinished);
    copied
}

/// Makes an empty file that nobody else may read.
fn create_alone(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        files::create_directory(directory)?;
    }
    remove_if_there(path)?;
    OpenOptions::new().write(true).create_new(true).mode(Audience::Owner.mode()).open(path).map(drop)
}

/// Gives a copy its name and its permissions, durably.
fn finish(unfinished: &Path, target: &Path, mode: u32) -> io::Result<FileIdentity> {
    fs::set_permissions(unfinished, Permissions::from_mode(mode))?;
    File::open(unfinished)?.sync_all()?;
    // Both fail where something is there, and there are file systems that know only one of them.
    if fs::hard_link(unfinished, target).is_err() {
        renameat_with(CWD, unfinished, CWD, target, RenameFlags::NOREPLACE)?;
    }
    let directory = target.parent().filter(|directory| !directory.as_os_str().is_empty());
    let synced = File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
    let copied = synced.and_then(|()| target.metadata()).inspect_err(|_| {
        let _ = fs::remove_file(target);
    })?;
    Ok(FileIdentity::of(&copied))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A connection that could not be opened again has no pages to copy.
fn closed() -> OpenError {
    OpenError::Failed(Failure::new(StoreError::Closed))
}

fn failed(error: io::Error) -> OpenError {
    OpenError::Failed(error.into())
}
