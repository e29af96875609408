//! Files that the program writes are readable by its user, the log also by the group, and by nobody else, whatever the umask.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::manager::without_privileges;
use crate::support::*;

const API: &str = "[api]\nlisten = \"unix:data/api.sock\"\ntoken = \"the bot's token, which is long enough\"\n";

/// The program, started by somebody with this umask.
fn under(sandbox: &Sandbox, umask: &str, arguments: &[&str]) -> Command {
    let mut command = sandbox.command_of("sh");
    command.args(["-c", "umask \"$0\"; exec \"$@\"", umask, env!("CARGO_BIN_EXE_webhookctl")]).args(arguments);
    command
}

#[track_caller]
fn run_under(sandbox: &Sandbox, umask: &str, arguments: &[&str]) -> Outcome {
    let outcome = Outcome::of(under(sandbox, umask, arguments).output().unwrap());
    assert_eq!(outcome.code, 0, "{arguments:?} {outcome:?}");
    outcome
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The mode of every file and directory below, by its path from there.
fn modes(directory: &Path) -> BTreeMap<String, u32> {
    let mut modes = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            modes.insert(path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned(), mode(&path));
            if path.is_dir() {
                directories.push(path);
            }
        }
    }
    modes
}

impl Sandbox {
    fn beside(&self, ending: &str) -> PathBuf {
        self.path(&format!("data/telegram_bot_v2.db{ending}"))
    }

    /// Everything that the program has made here is closed to others, and what has buyers' data in it to the group as well.
    #[track_caller]
    fn is_private(&self, expected: &[&str]) {
        let modes = modes(self.directory());
        for name in expected {
            assert!(modes.keys().any(|file| file.starts_with(name)), "{name} {modes:?}");
        }
        for (name, mode) in modes.iter().filter(|(name, _)| *name != "webhookctl.toml") {
            let for_group = ["data", "logs", "logs/payment_webhook_v1.log", "data/webhookctl.pid", "data/api.sock"];
            let forbidden = if for_group.contains(&name.as_str()) { 0o007 } else { 0o077 };
            assert_eq!(mode & forbidden, 0, "{name} {mode:o}");
        }
    }
}

#[test]
fn whatever_the_umask_every_file_is_private() {
    for umask in ["000", "022", "027"] {
        let sandbox = Sandbox::with_config(&format!("{CONFIG}{API}"));
        run_under(&sandbox, umask, &["--config", "own.toml", "config", "init"]);
        let mut service = Service::start(under(&sandbox, umask, &["serve"]));
        let order = sandbox.order(1001);
        assert_eq!(service.notify(&Notification::of(&order).form()), (200, "success".into()));
        run_under(&sandbox, umask, &["backup", "create", "copy"]);
        sandbox.is_private(&[
            "own.toml",
            "data/telegram_bot_v2.db-shm",
            "data/telegram_bot_v2.db-wal",
            "data/api.sock",
            "copy",
        ]);

        // Written back, with its directory.
        fs::remove_dir_all(sandbox.path("data")).unwrap();
        service.wait_for_log("已用服务手中打开的内容恢复文件");
        wait_until("a pid file", || sandbox.pid_file().exists());
        sandbox.is_private(&["data/telegram_bot_v2.db-shm", "data/telegram_bot_v2.db-wal"]);

        // Kept beside what somebody has put in its place.
        let aside = sandbox.path("aside.db");
        fs::rename(sandbox.database_file(), &aside).unwrap();
        fs::write(sandbox.database_file(), "somebody's file").unwrap();
        set_mode(&sandbox.database_file(), 0o600);
        assert_eq!(service.notify(&Notification::of(&order).form()), (503, "fail".into()));
        sandbox.is_private(&["data/telegram_bot_v2.db.rescued-"]);
        fs::rename(&aside, sandbox.database_file()).unwrap();
        service.signal(Signal::SIGTERM);
        service.wait();

        run_under(&sandbox, umask, &["backup", "verify", "copy"]);
        // One that an older version has left open to everybody.
        set_mode(&sandbox.database_file(), 0o644);
        run_under(&sandbox, umask, &["backup", "restore", "copy"]);
        sandbox.is_private(&["data/telegram_bot_v2.db.before-restore-"]);
        assert_eq!(mode(&sandbox.database_file()), 0o600);
    }
}

#[test]
fn a_command_makes_the_database_as_private_as_the_service_does() {
    for umask in ["000", "022"] {
        let sandbox = Sandbox::new();
        let create = ["orders", "create", "--telegram-id", "1001", "--package", "silver", "--merchant", PID];
        run_under(&sandbox, umask, &create);
        sandbox.is_private(&["data/telegram_bot_v2.db"]);
        // A link that leads to a file which is still to be made.
        fs::remove_dir_all(sandbox.path("data")).unwrap();
        fs::create_dir(sandbox.path("data")).unwrap();
        set_mode(&sandbox.path("data"), 0o700);
        symlink(sandbox.path("elsewhere.db"), sandbox.database_file()).unwrap();
        run_under(&sandbox, umask, &create);
        assert_eq!(mode(&sandbox.path("elsewhere.db")), 0o600);
        // A stricter umask stays in force.
        let strict = Sandbox::new();
        let mut service = Service::start(under(&strict, "077", &["serve"]));
        service.signal(Signal::SIGTERM);
        service.wait();
        assert_eq!(mode(&strict.path("logs/payment_webhook_v1.log")), 0o600);
    }
}

#[test]
fn files_that_are_open_to_everybody_are_closed_at_the_start_and_that_is_told() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    // A reader stays open, so that the log and its index stay.
    let reader = sandbox.database();
    reader.execute_batch("BEGIN; SELECT count(*) FROM orders").unwrap();
    fs::create_dir(sandbox.path("logs")).unwrap();
    let log = sandbox.path("logs/payment_webhook_v1.log");
    fs::write(&log, "").unwrap();
    fs::write(sandbox.pid_file(), "").unwrap();
    let files = [sandbox.database_file(), sandbox.beside("-wal"), sandbox.beside("-shm"), log, sandbox.pid_file()];
    for file in &files {
        set_mode(file, 0o644);
    }
    let service = sandbox.serve();
    assert_eq!(files.each_ref().map(|file| mode(file)), [0o600, 0o600, 0o600, 0o640, 0o640]);
    for file in &files[..4] {
        service.wait_for_log(&format!("{} 此前对本机所有用户开放（权限 0644）", file.display()));
    }
    let told: Vec<_> = sandbox.log().lines().filter(|line| line.contains("0644")).map(str::to_owned).collect();
    assert!(told.len() == 4 && told.iter().all(|line| line.contains(" - WARNING - ")), "{told:?}");
    assert_eq!(service.notify(&Notification::of(&order).form()), (200, "success".into()));
    drop(reader);
    service.stop();

    // A mode without anything for others stays: a group that was let in on purpose keeps its access.
    for kept in [0o640, 0o660] {
        set_mode(&sandbox.database_file(), kept);
        assert_eq!(sandbox.status(&order), "paid");
        assert_eq!(mode(&sandbox.database_file()), kept);
    }
    set_mode(&sandbox.database_file(), 0o664);
    assert_eq!(sandbox.status(&order), "paid");
    assert_eq!(mode(&sandbox.database_file()), 0o660);
}

#[test]
fn a_file_that_belongs_to_another_user_is_closed_by_root_and_refused_by_anybody_else() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    chown(sandbox.path("data"), Some(NOBODY), Some(NOBODY)).unwrap();
    set_mode(&sandbox.database_file(), 0o666);
    let show = ["orders", "show", &order];
    let refused = Outcome::of(without_privileges(&sandbox, &show).output().unwrap());
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.stderr.contains("0666") && refused.stderr.contains("chmod o-rwx"), "{refused:?}");
    assert_eq!(mode(&sandbox.database_file()), 0o666);

    // Root can, and what it makes beside belongs to the owner of the database.
    chown(sandbox.database_file(), Some(NOBODY), Some(NOBODY)).unwrap();
    for file in [sandbox.beside("-wal"), sandbox.beside("-shm")] {
        let _ = fs::remove_file(file);
    }
    let service = sandbox.serve();
    for file in ["", "-wal", "-shm"].map(|ending| sandbox.beside(ending)) {
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o007), (NOBODY, 0), "{file:?}");
    }
    service.stop();
}
