//! Reading the log file back: its last lines, and what is added to it while someone looks on.
//!
//! [`tail`] finds where the wanted lines begin, from the end backwards, and reads on from there; [`follow`] goes on, across
//! rotations. Both hold a block and a line in memory, however large the file is.

mod follow;
mod level;
mod lines;
mod tail;

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::domain::failure::{OrFailure, failure};
use crate::domain::language::{LocalizedText, localized};
use crate::files::FileIdentity;

pub(crate) use follow::Follow;
pub(crate) use level::{is_wanted, level_of};
pub(crate) use lines::Line;
pub(crate) use tail::{complete_end, last_lines};

/// How much is read at once.
const BLOCK: usize = 256 * 1024;

/// Takes the lines that are found, one after the other.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Line<'_>) -> anyhow::Result<()>;

/// Something that can be read at any place.
pub(crate) trait ReadAt {
    /// Reads from `offset` until the buffer is full or the end is reached; how much was read.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> anyhow::Result<usize>;
}

/// An open log file.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    identity: FileIdentity,
    len: u64,
}

impl LogFile {
    /// Opens the file; `None` where there is none.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Option<Self>> {
        match Self::try_open(path) {
            Ok((_, metadata)) if !metadata.is_file() => Err(failure!("logs.no_regular_file", path = path.display())),
            Ok((file, metadata)) => Ok(Some(Self {
                path: path.to_owned(),
                file,
                identity: FileIdentity::of(&metadata),
                len: metadata.len(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).or_failure(|| unreadable(path)),
        }
    }

    fn try_open(path: &Path) -> io::Result<(File, Metadata)> {
        // A named pipe would wait for its writer.
        let without_waiting = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(without_waiting).open(path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    }

    /// How long it was when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

impl ReadAt for LogFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> anyhow::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).or_failure(|| unreadable(&self.path)),
            }
        }
        Ok(filled)
    }
}

fn unreadable(path: &Path) -> LocalizedText {
    localized!("logs.unreadable", path = path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_opened_and_nothing_waits() {
        let directory = tempfile::tempdir().unwrap();
        assert!(LogFile::open(&directory.path().join("none")).unwrap().is_none());
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&pipe, directory.path(), Path::new("/dev/null")] {
            assert!(LogFile::open(path).is_err(), "{}", path.display());
        }
    }
}
