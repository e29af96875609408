//! What is added to the log file, across rotations.

use std::io;
use std::path::{Path, PathBuf};

use super::lines::Lines;
use super::{BLOCK, LogFile, ReadAt, Take};

use crate::files::FileIdentity;

/// How many files are read at once. The service writes to a renamed file until it opens the new one, so the present file and
/// those before it are read on. A deleted one takes up its room on the disk until then.
const FILES_MAX: usize = 3;

/// How many bytes before the present place are remembered, to see that they are still the same. A record begins with its time,
/// so this much is not written twice.
const SEEN_MAX: usize = 1024;

/// Reads on at the end of a file that may be renamed, made anew, cut off or missing.
pub(crate) struct Follow {
    path: PathBuf,
    /// The newest file last.
    files: Vec<Followed>,
    buffer: Vec<u8>,
    /// A new file is there and cannot be read.
    is_barred: bool,
    /// Why, until it is told.
    trouble: Option<anyhow::Error>,
}

impl Follow {
    /// Reads whatever appears at `path`, from its start.
    pub(crate) fn from_nothing(path: &Path) -> Self {
        Self { path: path.to_owned(), files: Vec::new(), buffer: vec![0; BLOCK], is_barred: false, trouble: None }
    }

    /// Reads on in an open file, and then in what takes its place at `path`.
    pub(crate) fn from(path: &Path, log: LogFile, offset: u64) -> anyhow::Result<Self> {
        let mut follow = Self::from_nothing(path);
        follow.files.push(Followed::at(log, offset)?);
        Ok(follow)
    }

    /// Hands on every line that has been completed since the last time.
    pub(crate) fn read_on(&mut self, take: Take<'_>) -> anyhow::Result<()> {
        self.look_for_a_new_file();
        for file in &mut self.files {
            file.read_on(&mut self.buffer, take)?;
        }
        let surplus = self.files.len().saturating_sub(FILES_MAX);
        self.files.drain(..surplus);
        Ok(())
    }

    /// What keeps a new file from being read; told once, until one can be read again.
    pub(crate) fn take_trouble(&mut self) -> Option<anyhow::Error> {
        self.trouble.take()
    }

    /// A file that is missing is waited for: it is on its way.
    fn look_for_a_new_file(&mut self) {
        let there = FileIdentity::at(&self.path);
        let is_known = |identity: &FileIdentity| self.files.iter().any(|file| file.log.identity == *identity);
        match there {
            Ok(identity) if is_known(&identity) => self.is_barred = false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => match LogFile::open(&self.path) {
                Ok(Some(log)) => {
                    self.is_barred = false;
                    self.files.push(Followed::from_start(log));
                }
                // A rotation may make the file first, and set its permissions then.
                Err(error) if !self.is_barred => {
                    self.is_barred = true;
                    self.trouble = Some(error);
                }
                Ok(None) | Err(_) => {}
            },
        }
    }
}

/// One file, read up to some place.
struct Followed {
    log: LogFile,
    offset: u64,
    /// The bytes just before the offset.
    seen: Vec<u8>,
    lines: Lines,
}

impl Followed {
    fn from_start(log: LogFile) -> Self {
        Self { log, offset: 0, seen: Vec::new(), lines: Lines::default() }
    }

    /// Goes on at the start of a line.
    fn at(log: LogFile, offset: u64) -> anyhow::Result<Self> {
        let seen_from = offset.saturating_sub(SEEN_MAX as u64);
        let mut buffer = [0; SEEN_MAX];
        let len = usize::try_from(offset - seen_from)?;
        let count = log.read_at(&mut buffer[..len], seen_from)?;
        let seen = buffer[..count].to_owned();
        // Where it was cut off since, this does not fit, and it is read from the start.
        Ok(Self { log, offset, seen, lines: Lines::default() })
    }

    fn read_on(&mut self, buffer: &mut [u8], take: Take<'_>) -> anyhow::Result<()> {
        loop {
            // What was seen is read again together with what follows it: nothing can happen between looking and reading.
            let from = self.offset - self.seen.len() as u64;
            let count = self.log.read_at(buffer, from)?;
            let read = &buffer[..count];
            let Some(new) = read.strip_prefix(self.seen.as_slice()) else {
                self.start_over();
                continue;
            };
            if new.is_empty() {
                return Ok(());
            }
            self.lines.feed(new, take)?;
            self.offset += new.len() as u64;
            self.seen = read[count.saturating_sub(SEEN_MAX)..].to_owned();
        }
    }

    /// The file was cut off, and has begun anew. A line that had only begun before is gone.
    fn start_over(&mut self) {
        self.offset = 0;
        self.seen.clear();
        self.lines = Lines::default();
    }
}
