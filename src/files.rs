//! Files: their names and identities; and those that hold buyers' data, made private whatever the umask, and closed to other users
//! where they were open to them.
//!
//! Another user who can read the shared-memory file of a database can also lock it, and so stop every payment.

use std::ffi::OsString;
use std::fmt;
use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, FileType, Mode, OFlags, chmod, fchmod, fstat, mknodat, open};
use rustix::io::Errno;

/// Bits of a mode.
const OTHERS: u32 = 0o007;
const GROUP: u32 = 0o070;
const GROUP_WRITES: u32 = 0o020;
const PERMISSIONS: u32 = 0o777;

/// Directories are for the owner and the group: a group that may read the log has to get to it.
const DIRECTORY_MODE: u32 = 0o750;

/// The users who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// The owner alone.
    Owner,
    /// The owner, and the owner's group for reading.
    Group,
}

impl Audience {
    /// The mode that a new file gets. A stricter umask makes it stricter still.
    pub(crate) fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Group => 0o640,
        }
    }

    /// The mode without what it gives to others.
    ///
    /// A careless umask that let others read an owner's file let the group read it as well. A group that may write was let in on
    /// purpose: a bot with a user of its own shares the database so.
    pub(crate) fn narrowed(self, mode: u32) -> u32 {
        let group_goes = self == Self::Owner && mode & OTHERS != 0 && mode & GROUP_WRITES == 0;
        mode & PERMISSIONS & !(if group_goes { OTHERS | GROUP } else { OTHERS })
    }
}

/// What tells one file from another, whatever their names: the device and the inode.
///
/// An inode is used again when its file is gone, so the identity is certain only while the file is held open or has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// The file that a path names. A link is followed.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        path.metadata().map(|metadata| Self::of(&metadata))
    }

    /// An open file, a pipe or a socket.
    pub(crate) fn of_open(file: impl AsFd) -> io::Result<Self> {
        let stat = fstat(file)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// `DEVICE:INODE`, as systemd writes it in `JOURNAL_STREAM`.
impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)
    }
}

impl FromStr for FileIdentity {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (device, inode) = text.split_once(':').ok_or(())?;
        Ok(Self { device: device.parse().map_err(drop)?, inode: inode.parse().map_err(drop)? })
    }
}

/// The path with more at its end: `x.db` and `-wal` are `x.db-wal`.
pub(crate) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Whether users beside the owner and the group can read or change a file of this mode.
pub(crate) fn is_open_to_others(mode: u32) -> bool {
    mode & OTHERS != 0
}

/// A mode as `ls` and `chmod` users know it.
pub(crate) fn octal(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// Makes a directory, and those above it, where they are missing.
pub(crate) fn create_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)
}

/// Makes an empty file for its owner alone where there is nothing of that name, and the file system can do that.
///
/// Without opening it: closing a database file gives up the locks that another thread of this process holds on it.
pub(crate) fn create_unopened(path: &Path) -> io::Result<()> {
    let mode = Mode::from_raw_mode(Audience::Owner.mode());
    match mknodat(CWD, path, FileType::RegularFile, mode, 0) {
        // Some file systems make files only by opening them: whoever opens this one has to close it to others.
        Err(Errno::EXIST | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        other => Ok(other?),
    }
}

/// A mode that let other users in, and the one in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Narrowed {
    pub(crate) from: u32,
    pub(crate) to: u32,
}

/// Other users can read or change a file, and this user cannot keep them out.
#[derive(Debug)]
pub(crate) struct OpenToOthers {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
}

/// Keeps others out of a regular file. A link is not followed, and what is not there is no danger.
///
/// By a descriptor that only names the file: closing it gives up no locks, and no other file can take the name in between.
pub(crate) fn close_to_others(path: &Path, audience: Audience) -> Result<Option<Narrowed>, OpenToOthers> {
    match open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => close_opened_to_others(&file, path, audience),
        Err(_) => Ok(None),
    }
}

/// Keeps others out of an open file, if it is a regular one.
pub(crate) fn close_opened_to_others(
    file: impl AsFd,
    path: &Path,
    audience: Audience,
) -> Result<Option<Narrowed>, OpenToOthers> {
    let file = file.as_fd();
    let Ok(stat) = fstat(file) else { return Ok(None) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !is_open_to_others(stat.st_mode) {
        return Ok(None);
    }
    let (from, to) = (stat.st_mode & PERMISSIONS, audience.narrowed(stat.st_mode));
    let mode = Mode::from_raw_mode(to);
    let changed = match fchmod(file, mode) {
        // A descriptor that only names the file.
        Err(Errno::BADF) => chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode),
        changed => changed,
    };
    match changed {
        Ok(()) => Ok(Some(Narrowed { from, to })),
        Err(_) => Err(OpenToOthers { path: path.to_owned(), mode: from }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_has_one_identity_under_all_its_names_and_no_other_file_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.db");
        let [link, hard, other] = ["-link", "-hard", "-other"].map(|ending| with_ending(&file, ending));
        assert_eq!(link, directory.path().join("x.db-link"));
        fs::write(&file, "").unwrap();
        fs::write(&other, "").unwrap();
        symlink(&file, &link).unwrap();
        fs::hard_link(&file, &hard).unwrap();
        let identity = FileIdentity::at(&file).unwrap();
        assert_eq!((FileIdentity::at(&link).unwrap(), FileIdentity::at(&hard).unwrap()), (identity, identity));
        assert_eq!(FileIdentity::of_open(File::open(&file).unwrap()).unwrap(), identity);
        assert_ne!(FileIdentity::at(&other).unwrap(), identity);
        assert_ne!(FileIdentity::of(&fs::symlink_metadata(&link).unwrap()), identity, "the link itself");
        assert_eq!(identity.to_string().parse(), Ok(identity));
        assert_eq!("8:x".parse::<FileIdentity>(), Err(()));
    }

    #[test]
    fn others_lose_everything_and_a_group_that_writes_stays() {
        for (before, owner, group) in [
            (0o600, 0o600, 0o600),
            (0o640, 0o640, 0o640),
            (0o660, 0o660, 0o660),
            (0o644, 0o600, 0o640),
            (0o664, 0o660, 0o660),
            (0o666, 0o660, 0o660),
            (0o604, 0o600, 0o600),
            (0o602, 0o600, 0o600),
        ] {
            let narrowed = (Audience::Owner.narrowed(before), Audience::Group.narrowed(before));
            assert_eq!(narrowed, (owner, group), "{before:o}");
            assert!(!is_open_to_others(owner) && !is_open_to_others(group));
        }
    }

    #[test]
    fn a_file_is_closed_and_a_link_or_a_pipe_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link, pipe) = (directory.path().join("f"), directory.path().join("l"), directory.path().join("p"));
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        symlink(&file, &link).unwrap();
        mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        fs::set_permissions(&pipe, Permissions::from_mode(0o666)).unwrap();
        for untouched in [&link, &pipe, &directory.path().to_owned(), &directory.path().join("missing")] {
            assert_eq!(close_to_others(untouched, Audience::Owner).unwrap(), None);
        }
        assert_eq!((mode(&file), mode(&pipe)), (0o644, 0o666));
        let narrowed = close_to_others(&file, Audience::Owner).unwrap();
        assert_eq!(narrowed, Some(Narrowed { from: 0o644, to: 0o600 }));
        assert_eq!((mode(&file), close_to_others(&file, Audience::Owner).unwrap()), (0o600, None));
        fs::set_permissions(&file, Permissions::from_mode(0o666)).unwrap();
        close_opened_to_others(File::open(&file).unwrap(), &file, Audience::Group).unwrap();
        assert_eq!(mode(&file), 0o660);
    }

    #[test]
    fn a_new_file_is_the_owners_and_one_that_is_there_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/f");
        create_directory(path.parent().unwrap()).unwrap();
        assert_eq!(mode(&directory.path().join("a")) & 0o007, 0);
        create_unopened(&path).unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, Vec::new()));
        fs::write(&path, "x").unwrap();
        create_unopened(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        let error = create_unopened(&directory.path().join("none/f")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
