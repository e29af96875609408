//! What a service has logged since a moment ago.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How many lines are shown at most, and how many bytes are looked at for them.
const LINES_MAX: usize = 10;
const BYTES_MAX: u64 = 64 * 1024;

/// Where a log file ended.
pub(super) struct LogEnd {
    path: PathBuf,
    length: u64,
}

impl LogEnd {
    pub(super) fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), length: std::fs::metadata(path).map_or(0, |file| file.len()) }
    }

    /// The last lines behind that; none where they cannot be read.
    pub(super) fn lines_since(&self) -> Vec<String> {
        let read = || {
            let mut file = File::open(&self.path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.length.max(length.saturating_sub(BYTES_MAX))))?;
            let mut bytes = Vec::new();
            file.take(BYTES_MAX).read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_MAX)..].iter().map(ToString::to_string).collect()
    }
}
