//! The pid file: whatever is in it, no stranger is signalled, and what was found is told.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use nix::unistd::Pid;

use crate::support::*;

/// A process that is not ours to end.
fn stranger() -> Process {
    Process::spawn(Command::new("cat").stdin(Stdio::piped()))
}

/// As the pid file has it.
pub fn start_time(pid: Pid) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned()
}

#[test]
fn a_file_that_nobody_holds_is_only_told_of() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("data")).unwrap();
    let stranger = stranger();
    // The pid of a process that has started at another time, garbage of all kinds, and what an older tool writes.
    for text in [
        format!("{}\nstart_time=1\nversion=0.1.0\nlisten=127.0.0.1:1\n", stranger.pid()),
        format!("{}\n", stranger.pid()),
        "\u{1b}[2Jgarbage".to_owned(),
        "-1\nstart_time=0\nversion=x\n".to_owned(),
        "\0\0\0\0".to_owned(),
        "x".repeat(100_000),
    ] {
        fs::write(sandbox.pid_file(), &text).unwrap();
        let status = sandbox.run(&["status"]);
        assert_eq!(status.code, 1, "{status:?}");
        let stop = sandbox.run(&["stop"]);
        assert_eq!(stop.code, 0, "{stop:?}");
        assert!(
            stop.stdout.contains("未在运行") && stop.stderr.contains("pid") && !stop.stderr.contains('\u{1b}'),
            "{stop:?}"
        );
        let reload = sandbox.run(&["reload"]);
        assert_eq!(reload.code, 1, "{reload:?}");
        assert!(is_alive(stranger.pid()));
    }
    let daemon = sandbox.start();
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

#[test]
fn a_file_that_a_stranger_holds_is_left_alone() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("data")).unwrap();
    let stranger = stranger();
    let started = start_time(stranger.pid());
    for (text, told) in [
        // Everything in it is right, but that process has nothing to do with it.
        (format!("{}\nstart_time={started}\nversion=0.1.0\n", stranger.pid()), stranger.pid().to_string()),
        (format!("{}\nstart_time=1\nversion=0.1.0\nlisten=127.0.0.1:1\n", stranger.pid()), stranger.pid().to_string()),
        ("garbage".to_owned(), "garbage".to_owned()),
        (String::new(), "fuser".to_owned()),
    ] {
        fs::write(sandbox.pid_file(), &text).unwrap();
        let held = File::open(sandbox.pid_file()).unwrap();
        held.lock().unwrap();
        for command in ["stop", "start", "restart", "reload", "status"] {
            let outcome = sandbox.run(&[command]);
            let (code, output) = if command == "status" { (4, outcome.stdout) } else { (1, outcome.stderr) };
            assert_eq!(outcome.code, code, "{command} {output}");
            assert!(output.contains(&told), "{command}: {told}: {output}");
        }
        assert!(is_alive(stranger.pid()));
        assert_eq!(fs::read_to_string(sandbox.pid_file()).unwrap(), text, "and what is in it stays");
    }
}

#[test]
fn what_is_no_file_is_told() {
    let (directory, pipe) = (Sandbox::new(), Sandbox::new());
    fs::create_dir_all(directory.pid_file()).unwrap();
    fs::create_dir(pipe.path("data")).unwrap();
    // Whoever opened it would wait for somebody at its other end.
    assert!(Command::new("mkfifo").arg(pipe.pid_file()).status().unwrap().success());
    for (sandbox, word) in [(directory, "directory"), (pipe, "not a regular file")] {
        for command in ["start", "stop", "status", "restart", "reload", "serve"] {
            let outcome = sandbox.run(&[command]);
            assert_eq!(outcome.code, 1, "{command} {outcome:?}");
            assert!(
                outcome.stderr.contains("webhookctl.pid") && outcome.stderr.contains(word),
                "{command} {outcome:?}"
            );
        }
    }
}

#[test]
fn it_is_written_again_where_somebody_has_removed_it() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let (pid, address) = (daemon.pid(), daemon.address());
    fs::remove_file(sandbox.pid_file()).unwrap();
    // Until then nobody can know, but that somebody listens there.
    sandbox.configure(&CONFIG.replace("127.0.0.1:0", &address.to_string()));
    let stop = sandbox.run(&["stop"]);
    assert!(stop.code == 0 && stop.stderr.contains(&pid.to_string()), "{stop:?}");
    wait_until("the file", || sandbox.run(&["status"]).code == 0);
    assert_eq!(daemon.pid(), pid);
    assert!(sandbox.log().contains("pid 文件被删除或改动"), "{}", sandbox.log());
    assert_eq!(sandbox.run(&["stop"]).code, 0);
    assert!(!is_alive(pid));
}

#[test]
fn it_is_written_again_where_somebody_has_changed_it() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let text = fs::read_to_string(sandbox.pid_file()).unwrap();
    for changed in ["", "1\n"] {
        fs::write(sandbox.pid_file(), changed).unwrap();
        wait_until("the text", || fs::read_to_string(sandbox.pid_file()).unwrap() == text);
    }
    // A restart that finds it like that waits, and restarts.
    let pid = daemon.pid();
    fs::write(sandbox.pid_file(), "").unwrap();
    let restart = sandbox.run(&["restart"]);
    assert!(restart.code == 0 && daemon.pid() != pid, "{restart:?}");
    assert_eq!(sandbox.run(&["stop"]).code, 0);
    drop(daemon);
}

#[test]
fn a_clean_end_always_leaves_it_empty() {
    let sandbox = Sandbox::new();
    for _ in 0..10 {
        sandbox.configure(CONFIG);
        let daemon = sandbox.start();
        assert_eq!(sandbox.run(&["stop"]).code, 0);
        assert_eq!(fs::read_to_string(sandbox.pid_file()).unwrap(), "");
        drop(daemon);
    }
}

#[test]
fn looking_at_it_never_keeps_a_service_from_starting() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..30).for_each(|_| drop(sandbox.run(&["status"]))));
        }
        for _ in 0..5 {
            sandbox.configure(CONFIG);
            drop(sandbox.start());
        }
    });
}

#[test]
fn it_tells_pid_start_time_address_and_version() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let text = fs::read_to_string(sandbox.pid_file()).unwrap();
    let start_time = start_time(daemon.pid());
    let version = env!("CARGO_PKG_VERSION");
    let (before, rest) = text.split_once("seat=").unwrap();
    assert_eq!(before, format!("{}\nstart_time={start_time}\nversion={version}\n", daemon.pid()));
    assert!(rest.ends_with(&format!("\nlisten={}\n", daemon.address())), "{text}");
    assert!(File::open(sandbox.pid_file()).unwrap().try_lock().is_err(), "locked");
}
