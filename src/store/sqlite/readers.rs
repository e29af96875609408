//! Connections for reading, opened when they are first needed, and anew when the writer has put the files right.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tokio::sync::Semaphore;

use super::place::{Place, Standing};
use super::{StoreError, schema};
use crate::sync::lock;

/// How many connections read at the same time.
const READERS_MAX: usize = 4;

pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    pub(super) permits: Arc<Semaphore>,
    /// What they read. Held by each query for as long as it takes, and by the writer while it opens the files anew: all connections of
    /// a process to a file share what they know of it.
    ///
    /// Missing where the database was opened for reading only: nobody puts files right then.
    place: RwLock<Option<Place>>,
    path: PathBuf,
}

impl Readers {
    /// Readers beside a writer, which has the database open at `place`.
    pub(super) fn beside_writer(place: Place) -> Self {
        Self::new(place.path().to_owned(), Some(place), Vec::new())
    }

    /// Readers of a database that this process does not write to; one is open already.
    pub(super) fn alone(path: PathBuf, first: Connection) -> Self {
        Self::new(path, None, vec![first])
    }

    fn new(path: PathBuf, place: Option<Place>, idle: Vec<Connection>) -> Self {
        let permits = Arc::new(Semaphore::new(READERS_MAX));
        Self { idle: Mutex::new(idle), permits, place: RwLock::new(place), path }
    }

    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
        let idle = lock(&self.idle).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => match place.as_ref().map(|place| (place, place.look())) {
                None | Some((_, Standing::Same)) => schema::open_reader(&self.path)?,
                // It would read another file, or make one beside ours.
                Some((place, standing)) => return Err(standing.refusal(place)),
            },
        };
        let result = query(&connection)?;
        lock(&self.idle).push(connection);
        Ok(result)
    }

    /// Closes all connections when the queries under way are done, and lets nobody read until the guard is dropped.
    pub(super) fn stop(&self) -> RwLockWriteGuard<'_, Option<Place>> {
        let place = self.place.write().unwrap_or_else(PoisonError::into_inner);
        for connection in lock(&self.idle).drain(..) {
            leave_files(&connection);
        }
        place
    }
}

/// Lets go of the database without touching its write-ahead log, which may not be the one at the path any more.
pub(super) fn leave_files(connection: &Connection) {
    if let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
        log::debug!(target: "webhookctl::store", "{error}");
    }
}
