//! This machine's files: who may read and write them, and whether there is room for more.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use rustix::fs::statvfs;

use super::{Check, State, Subject, joined};
use crate::config::{Config, DatabaseUrl, Loaded};
use crate::domain::language::{LocalizedText, localized};
use crate::files::{is_open_to_others, octal};

/// Bits of a file's mode.
const GROUP_OR_OTHERS_WRITE: u32 = 0o022;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Less room than this, and the next days may fill it; a day of callbacks takes some megabytes.
const BYTES_WANTED: u64 = 1 << 30;
/// Less room than this, and the next hours may.
const BYTES_NEEDED: u64 = 100 << 20;
/// A rotation or a backup makes a few files.
const INODES_NEEDED: u64 = 100;

/// Whether anybody but the service's user and group can read what signatures and messages depend on.
pub(super) fn secrets(loaded: &Loaded) -> Check {
    let secrets = &loaded.secrets;
    let own = loaded.source.file.as_ref().filter(|file| file.is_absolute());
    let mut complaints = Vec::new();
    let secret = |file| (file, true);
    // Whoever can change the key that proves a callback can make callbacks.
    let public = loaded.config.merchants.iter().filter_map(|merchant| merchant.platform_public_key_file.as_ref());
    let others = own.map(|file| (file, secrets.inline)).into_iter().chain(public.map(|file| (file, false)));
    for (file, holds_secrets) in secrets.files.iter().map(secret).chain(others) {
        let Ok(metadata) = file.metadata() else { continue };
        let (path, mode) = (file.display(), octal(metadata.mode()));
        // A pipe has no readers but us.
        if !metadata.is_file() {
            continue;
        }
        if metadata.mode() & GROUP_OR_OTHERS_WRITE != 0 {
            complaints.push(localized!("doctor.secret_writable", path = path, mode = mode));
        } else if holds_secrets && is_open_to_others(metadata.mode()) {
            complaints.push(localized!("doctor.secret_readable", path = path, mode = mode));
        }
    }
    if !complaints.is_empty() {
        return Check::new(Subject::Secrets, State::Problem, joined(&complaints));
    }
    if secrets.files.is_empty() && !secrets.inline {
        return Check::new(Subject::Secrets, State::Skipped, localized!("doctor.no_secrets"));
    }
    Check::new(Subject::Secrets, State::Fine, localized!("doctor.secrets_fine"))
}

/// Whether this user can write where the service has to, and no other user read or write there.
pub(super) fn directories(config: &Config) -> Check {
    let DatabaseUrl::Sqlite(database) = &config.database.url;
    let files = [database, &config.log.file, &config.service.pid_file];
    let directories: BTreeSet<_> = files.iter().filter_map(|file| file.parent()).collect();
    let complaints = directories.into_iter().filter_map(complaint_about_directory);
    let complaints = complaints.chain(files.into_iter().filter_map(|file| complaint_about_file(file)));
    let complaints: Vec<_> =
        complaints.chain(files.into_iter().filter_map(|file| complaint_about_others(file))).collect();
    if complaints.is_empty() {
        Check::new(Subject::Directories, State::Fine, localized!("doctor.directories_fine"))
    } else {
        Check::new(Subject::Directories, State::Problem, joined(&complaints))
    }
}

fn complaint_about_directory(directory: &Path) -> Option<LocalizedText> {
    let (there, metadata) = nearest(directory)?;
    let path = there.display();
    if !metadata.is_dir() {
        return Some(localized!("doctor.not_a_directory", path = path));
    }
    if let Err(error) = access(&*there, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK) {
        return Some(localized!("doctor.not_writable", path = path, error = error.desc()));
    }
    // Where it is still to be made, it will be made for its owner.
    let is_open = there == directory && metadata.mode() & OTHERS_WRITE != 0 && metadata.mode() & STICKY == 0;
    is_open.then(|| localized!("doctor.writable_by_all", path = path))
}

fn complaint_about_file(file: &Path) -> Option<LocalizedText> {
    let (metadata, path) = (file.metadata().ok()?, file.display());
    if !metadata.is_file() {
        return Some(localized!("doctor.not_a_file", path = path));
    }
    if let Err(error) = access(file, AccessFlags::R_OK | AccessFlags::W_OK) {
        return Some(localized!("doctor.not_writable", path = path, error = error.desc()));
    }
    None
}

/// Other users can use the file, or one that was made from it: a log or a copy of the database, a log that was rotated.
fn complaint_about_others(base: &Path) -> Option<LocalizedText> {
    let name = base.file_name()?.as_encoded_bytes();
    let mut open: Vec<_> = std::fs::read_dir(base.parent()?)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(name))
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .filter(|(_, metadata)| metadata.is_file() && is_open_to_others(metadata.mode()))
        .collect();
    open.sort_by(|(one, _), (other, _)| one.cmp(other));
    let (path, metadata) = open.first()?;
    let mode = octal(metadata.mode());
    Some(localized!("doctor.open_to_all", path = path.display(), mode = mode, base = base.display()))
}

/// What there is of a path: itself, or the directory that it would be made in.
fn nearest(path: &Path) -> Option<(PathBuf, Metadata)> {
    path.ancestors().find_map(|there| Some((there.to_owned(), there.metadata().ok()?)))
}

/// Room in the file systems that the database and the log are in.
pub(super) fn disk(config: &Config) -> Check {
    let DatabaseUrl::Sqlite(database) = &config.database.url;
    let mut seen = BTreeSet::new();
    let mut worst: Option<Check> = None;
    for directory in [database, &config.log.file].into_iter().filter_map(|file| file.parent()) {
        let Some((there, metadata)) = nearest(directory) else { continue };
        if !seen.insert(metadata.dev()) {
            continue;
        }
        let check = match statvfs(&there) {
            // Some file systems make inodes as they are needed, and count none.
            Ok(room) => {
                let inodes = (room.f_files > 0).then_some(room.f_favail);
                room_at(&there, room.f_bavail.saturating_mul(room.f_frsize), inodes)
            }
            Err(error) => Check::new(
                Subject::Disk,
                State::Skipped,
                localized!("doctor.disk_unknown", path = there.display(), error = error),
            ),
        };
        let is_worse = |worst: &Check| severity(check.state) > severity(worst.state);
        if worst.as_ref().is_none_or(is_worse) {
            worst = Some(check);
        }
    }
    worst.unwrap_or_else(|| Check::new(Subject::Disk, State::Skipped, localized!("doctor.configuration_first")))
}

fn severity(state: State) -> u8 {
    match state {
        State::Fine => 0,
        State::Skipped => 1,
        State::Warning => 2,
        State::Problem => 3,
    }
}

fn room_at(path: &Path, bytes: u64, inodes: Option<u64>) -> Check {
    let (path, mib) = (path.display(), bytes >> 20);
    if inodes.is_some_and(|inodes| inodes < INODES_NEEDED) {
        return Check::new(Subject::Disk, State::Problem, localized!("doctor.disk_no_inodes", path = path));
    }
    let state = match bytes {
        0..BYTES_NEEDED => State::Problem,
        BYTES_NEEDED..BYTES_WANTED => State::Warning,
        BYTES_WANTED.. => {
            return Check::new(Subject::Disk, State::Fine, localized!("doctor.disk_fine", path = path, mib = mib));
        }
    };
    Check::new(Subject::Disk, state, localized!("doctor.disk_low", path = path, mib = mib))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_told_before_there_is_none() {
        for (bytes, inodes, state) in [
            (BYTES_WANTED, Some(INODES_NEEDED), State::Fine),
            (u64::MAX, None, State::Fine),
            (BYTES_WANTED - 1, None, State::Warning),
            (BYTES_NEEDED - 1, Some(1_000_000), State::Problem),
            (0, None, State::Problem),
            (u64::MAX, Some(INODES_NEEDED - 1), State::Problem),
        ] {
            assert_eq!(room_at(Path::new("/x"), bytes, inodes).state, state, "{bytes} {inodes:?}");
        }
    }

    #[test]
    fn what_is_not_there_yet_is_judged_by_where_it_will_be() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(complaint_about_directory(&directory.path().join("a/b/c")), None);
        std::fs::write(directory.path().join("a"), "").unwrap();
        assert!(complaint_about_directory(&directory.path().join("a/b/c")).is_some());
    }
}
