//! A service that its own user cannot look into: what is in `/proc` of its descriptors is not for that user, as under
//! `PrivateUsers=` of the shipped unit. Commands work all the same, and still believe no stranger.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::pid_file::start_time;
use crate::support::*;

/// Users of no name, as which the tests run when they are run by root.
const USER: u32 = 60001;
const OTHER_USER: u32 = 60002;

/// A directory of an ordinary user's, with the program in it.
struct Home {
    sandbox: Sandbox,
}

impl Home {
    fn new() -> Self {
        let home = Self { sandbox: Sandbox::new() };
        home.install("webhookctl", 0o755);
        // A file that its user may execute and not read gives a process that is not dumpable.
        home.install("unreadable", 0o111);
        fs::set_permissions(home.sandbox.directory(), PermissionsExt::from_mode(0o755)).unwrap();
        if is_root() {
            chown(home.sandbox.directory(), Some(USER), Some(USER)).unwrap();
        }
        home
    }

    /// By another program: a file that this process writes may be open in another test's child when it is to be executed.
    fn install(&self, name: &str, mode: u32) {
        let mode = format!("{mode:o}");
        let mut install = self.sandbox.command_of("install");
        let status = install.args(["-m", &mode, env!("CARGO_BIN_EXE_webhookctl"), name]).status().unwrap();
        assert!(status.success());
    }

    fn program(&self, name: &str) -> String {
        self.sandbox.path(name).to_str().unwrap().to_owned()
    }

    /// The user's own way to call the program.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.command_of(&self.program(program));
        command.args(arguments);
        be(&mut command, USER);
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(self.command("webhookctl", arguments).output().unwrap())
    }

    /// Every command of the manager finds the service, and the last one ends it though it is stopped.
    #[track_caller]
    fn commands_work(&self, mut service: Service) {
        let pid = service.pid();
        let link = format!("/proc/{pid}/fd/0");
        let by_user = be(Command::new("readlink").arg(link), USER).output().unwrap();
        assert!(!by_user.status.success(), "the user can look into it: {by_user:?}");
        let status = self.run(&["status", "--json"]);
        assert!(status.code == 0 && status.stdout.contains(&format!("\"pid\":{pid},")), "{status:?}");
        let reload = self.run(&["reload"]);
        assert!(reload.code == 0 && reload.stdout.contains(&format!("pid {pid}")), "{reload:?}");
        let start = self.run(&["start"]);
        assert!(start.code == 0 && start.stdout.contains("已在运行"), "{start:?}");
        let doctor = self.run(&["doctor", "--json"]);
        let doctor: serde_json::Value = serde_json::from_str(&doctor.stdout).unwrap();
        let checks = doctor["checks"].as_array().unwrap();
        let found = checks.iter().find(|check| check["name"] == "service").unwrap();
        assert!(found["state"] == "ok" && found["text"].as_str().unwrap().contains(&pid.to_string()), "{found}");
        // Nor can it answer any more.
        service.signal(Signal::SIGSTOP);
        let status = self.run(&["status", "--json"]);
        assert!(status.code == 4 && status.stdout.contains("\"state\":\"running\""), "{status:?}");
        let stop = self.run(&["stop", "--timeout", "0.1"]);
        assert!(stop.code == 0 && stop.stderr.contains("SIGKILL"), "{stop:?}");
        assert!(!service.wait().success());
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Has the command run as this user, if we may choose.
fn be(command: &mut Command, user: u32) -> &mut Command {
    if is_root() { command.uid(user).gid(user) } else { command }
}

/// A named pipe that this test shares with a shell.
fn pipe(home: &Home, name: &str) -> PathBuf {
    let path = home.sandbox.path(name);
    mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    path
}

#[test]
fn a_service_that_is_not_dumpable_is_found_by_its_user() {
    let home = Home::new();
    home.commands_work(Service::start(home.command("unreadable", &["serve"])));
}

#[test]
fn a_service_that_is_not_dumpable_is_restarted_by_its_user() {
    let home = Home::new();
    let daemon = Daemon { sandbox: &home.sandbox };
    let run = |argument| Outcome::of(home.command("unreadable", &[argument]).output().unwrap());
    assert_eq!(run("start").code, 0);
    for _ in 0..2 {
        let old = daemon.pid();
        let restart = run("restart");
        assert_eq!(restart.code, 0, "{restart:?}");
        assert_ne!(daemon.pid(), old);
        let status = home.run(&["status", "--json"]);
        assert!(status.code == 0 && status.stdout.contains(&format!("\"pid\":{},", daemon.pid())), "{status:?}");
    }
    let is_told = || home.run(&["status"]).stdout.contains("磁盘上的程序已更换；换用它：webhookctl restart");
    assert!(!is_told());
    home.install("unreadable", 0o111);
    assert!(is_told());
    // A restart that comes to nothing: the old one goes on, and can still be told of.
    let pid = daemon.pid();
    home.sandbox.configure(&CONFIG.replace("127.0.0.1:0", "192.0.2.1:1"));
    let restart = run("restart");
    assert!(restart.code == 1 && restart.stderr.contains(&format!("pid {pid}")), "{restart:?}");
    let stop = run("stop");
    assert!(stop.code == 0 && stop.stdout.contains(&format!("pid {pid}")), "{stop:?}");
    assert!(!is_alive(pid));
}

#[test]
fn a_service_in_a_user_namespace_is_found_by_its_user() {
    if !is_root() {
        // Whoever makes a namespace may look into it, so it takes root to hide something from a user.
        return skipped("it takes root");
    }
    let (Some(_), Some(_)) = (find_program("unshare", "util-linux"), find_program("setpriv", "util-linux")) else {
        return;
    };
    let home = Home::new();
    let (begun, mapped) = (pipe(&home, "begun"), pipe(&home, "mapped"));
    let user = USER.to_string();
    let script = "echo $$ > begun && read go < mapped &&
        exec setpriv --reuid \"$1\" --regid \"$1\" --clear-groups \"$0\" serve";
    let mut command = home.sandbox.command_of("unshare");
    command.args(["--user", "sh", "-c", script, &home.program("webhookctl"), &user]);
    let service = std::thread::scope(|scope| {
        let service = scope.spawn(|| Service::start(command));
        let pid = fs::read_to_string(begun).unwrap();
        // As systemd does for `PrivateUsers=yes`: root and the service's user are themselves, all others are nobody.
        for of in ["uid", "gid"] {
            fs::write(format!("/proc/{}/{of}_map", pid.trim()), format!("0 0 1\n{user} {user} 1\n")).unwrap();
        }
        fs::write(mapped, "go\n").unwrap();
        service.join().unwrap()
    });
    let by_root = home.sandbox.run(&["reload"]);
    assert_eq!(by_root.code, 0, "{by_root:?}");
    fs::set_permissions(home.sandbox.pid_file(), PermissionsExt::from_mode(0o644)).unwrap();
    fs::set_permissions(home.sandbox.path("data"), PermissionsExt::from_mode(0o755)).unwrap();
    let mut by_another = home.sandbox.command_of(&home.program("webhookctl"));
    let by_another = Outcome::of(be(by_another.arg("reload"), OTHER_USER).output().unwrap());
    assert!(by_another.code == 4 && by_another.stderr.contains("属于另一个用户"), "{by_another:?}");
    home.commands_work(service);
}

#[test]
fn a_service_that_cannot_tell_its_user_from_others_obeys_neither() {
    if !is_root() {
        return skipped("it takes root");
    }
    let Some(_) = find_program("unshare", "util-linux") else { return };
    let home = Home::new();
    // Nobody is mapped: it takes itself for nobody, and everybody else as well.
    let mut command = home.sandbox.command_of("unshare");
    command.args(["--user", &home.program("webhookctl"), "serve"]);
    be(&mut command, USER);
    let mut service = Service::start(command);
    fs::set_permissions(home.sandbox.pid_file(), PermissionsExt::from_mode(0o644)).unwrap();
    fs::set_permissions(home.sandbox.path("data"), PermissionsExt::from_mode(0o755)).unwrap();
    for user in [OTHER_USER, USER] {
        let mut reload = home.sandbox.command_of(&home.program("webhookctl"));
        let reload = Outcome::of(be(reload.arg("reload"), user).output().unwrap());
        assert_eq!(reload.code, 4, "{user} {reload:?}");
    }
    let stop = home.run(&["stop"]);
    assert_eq!(stop.code, 0, "its user may still signal it: {stop:?}");
    assert!(service.wait().success());
}

#[test]
fn a_stranger_that_its_user_cannot_look_into_is_left_alone() {
    let home = Home::new();
    // Such as an agent that keeps a user's keys.
    let mut stranger = home.command("unreadable", &["gateway", "simulate", "--listen", "127.0.0.1:0"]);
    let stranger = Process::spawn(stranger.stdout(Stdio::null()).stderr(Stdio::null()));
    let pid = stranger.pid();
    wait_until("a process that is not dumpable", || {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("simulate"))
    });
    fs::create_dir(home.sandbox.path("data")).unwrap();
    let text = format!("{pid}\nstart_time={}\nversion=0.1.0\nlisten=127.0.0.1:1\n", start_time(pid));
    fs::write(home.sandbox.pid_file(), text).unwrap();
    let held = File::open(home.sandbox.pid_file()).unwrap();
    held.lock().unwrap();
    for (command, code) in [("stop", 1), ("reload", 1), ("restart", 1), ("status", 4)] {
        let outcome = home.run(&[command]);
        let told = outcome.stdout.clone() + &outcome.stderr;
        assert!(outcome.code == code && told.contains("身份不明"), "{command} {outcome:?}");
    }
    assert!(is_alive(pid));
}

/// Straight to the terminal: what a passing test prints is not shown.
fn skipped(cause: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("skipped a test: {cause}\n").as_bytes());
}
