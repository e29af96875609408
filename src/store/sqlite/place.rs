//! Whether the files that are open are the ones that their paths name, so that nothing is written to a file that nobody will find.
//!
//! By path and inode alone, never by opening a file: closing it again would give up the locks that this process holds on it.
//! An inode that is held open is not given to another file, so the same number is the same file.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::StoreError;
use crate::files::{FileIdentity, with_ending};
use crate::store::FilesChanged;

/// Endings of the files that SQLite keeps beside a database.
pub(super) const BESIDE: [&str; 3] = ["-wal", "-journal", "-shm"];

/// The files of a database, as they were when they were opened.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// As it is configured: a link in it can be turned to another directory.
    path: PathBuf,
    pub(super) database: FileIdentity,
    /// Who may read and write it.
    pub(super) mode: u32,
    /// The write-ahead log and its index, which stand beside the file itself and not beside a link to it.
    wal: (PathBuf, FileIdentity),
    index: (PathBuf, FileIdentity),
}

/// What stands where the files were opened.
#[derive(Debug)]
pub(super) enum Standing {
    /// What was opened there.
    Same,
    /// The database is gone.
    NoDatabase,
    /// The database is there without its write-ahead log, which may hold payments.
    NoLog,
    /// Only the index of the log is gone, or another one: it holds nothing that is not in the log.
    NoIndex,
    /// Another file stands there.
    Other(PathBuf),
    /// It cannot be seen.
    Hidden(PathBuf, io::Error),
}

/// What one of the paths names.
enum Found {
    Same,
    Nothing,
    Other { is_empty: bool },
}

impl Place {
    /// Of the database that was just opened, and read from, so that all of its files are there.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let real = path.canonicalize()?;
        let database = path.metadata()?;
        let beside = |ending: &str| {
            let path = with_ending(&real, ending);
            path.metadata().map(|metadata| (path, FileIdentity::of(&metadata)))
        };
        Ok(Self {
            path: path.to_owned(),
            database: FileIdentity::of(&database),
            mode: database.mode() & 0o777,
            wal: beside("-wal")?,
            index: beside("-shm")?,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn look(&self) -> Standing {
        self.try_look().unwrap_or_else(|(path, error)| Standing::Hidden(path, error))
    }

    fn try_look(&self) -> Result<Standing, (PathBuf, io::Error)> {
        let database = find(&self.path, self.database)?;
        let wal = find(&self.wal.0, self.wal.1)?;
        let index = find(&self.index.0, self.index.1)?;
        Ok(match (database, wal, index) {
            (Found::Other { .. }, ..) => Standing::Other(self.path.clone()),
            // SQLite makes an empty one for whoever opens the database; somebody has written to any other.
            (_, Found::Other { is_empty: false }, _) => Standing::Other(self.wal.0.clone()),
            (Found::Nothing, ..) => Standing::NoDatabase,
            (Found::Same, Found::Nothing | Found::Other { is_empty: true }, _) => Standing::NoLog,
            (Found::Same, Found::Same, Found::Nothing | Found::Other { .. }) => Standing::NoIndex,
            (Found::Same, Found::Same, Found::Same) => Standing::Same,
        })
    }

    /// Removes the log and its index where they are still those that were opened: beside another database they would be taken
    /// for that one's.
    pub(super) fn remove_log(&self) -> io::Result<()> {
        for (path, identity) in [&self.wal, &self.index] {
            if matches!(find(path, *identity), Ok(Found::Same)) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

fn find(path: &Path, opened: FileIdentity) -> Result<Found, (PathBuf, io::Error)> {
    match path.metadata() {
        Ok(metadata) if FileIdentity::of(&metadata) == opened => Ok(Found::Same),
        Ok(metadata) => Ok(Found::Other { is_empty: metadata.len() == 0 }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err((path.to_owned(), error)),
    }
}

impl Standing {
    /// The error of a read or write while the files are not what they should be.
    pub(super) fn refusal(&self, place: &Place) -> StoreError {
        StoreError::FilesChanged(match self {
            Self::Same | Self::NoDatabase | Self::NoLog | Self::NoIndex => {
                FilesChanged::Removed(place.path().to_owned())
            }
            Self::Other(other) => FilesChanged::Replaced(other.clone()),
            Self::Hidden(hidden, error) => FilesChanged::Hidden { path: hidden.clone(), cause: error.to_string() },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is said of three files after `change` was made to them.
    fn standing(change: impl FnOnce(&Path)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data/x.db");
        fs::create_dir(path.parent().unwrap()).unwrap();
        for ending in ["", "-wal", "-shm"] {
            fs::write(with_ending(&path, ending), "x").unwrap();
        }
        let place = Place::of(&path).unwrap();
        // What is open keeps its inode.
        let _open: Vec<_> =
            ["", "-wal", "-shm"].iter().map(|ending| fs::File::open(with_ending(&path, ending)).unwrap()).collect();
        change(&path);
        match place.look() {
            Standing::Other(other) => format!("Other({})", other.file_name().unwrap().display()),
            Standing::Hidden(..) => "Hidden".into(),
            standing => format!("{standing:?}"),
        }
    }

    fn remove(path: &Path, endings: &[&str]) {
        for ending in endings {
            fs::remove_file(with_ending(path, ending)).unwrap();
        }
    }

    fn replace(path: &Path, ending: &str, text: &str) {
        remove(path, &[ending]);
        fs::write(with_ending(path, ending), text).unwrap();
    }

    #[test]
    fn what_stands_there() {
        assert_eq!(standing(|_| {}), "Same");
        assert_eq!(standing(|path| remove(path, &[""])), "NoDatabase");
        assert_eq!(standing(|path| remove(path, &["-wal"])), "NoLog");
        assert_eq!(standing(|path| remove(path, &["-shm"])), "NoIndex");
        assert_eq!(standing(|path| remove(path, &["-wal", "-shm"])), "NoLog");
        assert_eq!(standing(|path| fs::remove_dir_all(path.parent().unwrap()).unwrap()), "NoDatabase");
        assert_eq!(standing(|path| replace(path, "", "y")), "Other(x.db)");
        assert_eq!(standing(|path| replace(path, "", "")), "Other(x.db)");
        assert_eq!(standing(|path| replace(path, "-wal", "y")), "Other(x.db-wal)");
        assert_eq!(standing(|path| replace(path, "-wal", "")), "NoLog");
        assert_eq!(standing(|path| replace(path, "-shm", "y")), "NoIndex");
        assert_eq!(
            standing(|path| {
                fs::remove_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path.parent().unwrap(), "no directory").unwrap();
            }),
            "Hidden"
        );
    }

    #[test]
    fn a_link_that_is_turned_to_another_directory_names_another_database() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["one", "two"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            for ending in ["", "-wal", "-shm"] {
                fs::write(directory.path().join(format!("{name}/x.db{ending}")), name).unwrap();
            }
        }
        let link = directory.path().join("data");
        std::os::unix::fs::symlink("one", &link).unwrap();
        let place = Place::of(&link.join("x.db")).unwrap();
        assert!(matches!(place.look(), Standing::Same));
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("two", &link).unwrap();
        assert!(matches!(place.look(), Standing::Other(path) if path == link.join("x.db")));
    }
}
