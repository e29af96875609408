//! `logs`: the last lines of the log file, what may be asked of them, and following it across rotations.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::support::*;

/// A sandbox with a log file that holds this.
fn sandbox_with_log(text: impl AsRef<[u8]>) -> Sandbox {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("logs")).unwrap();
    fs::write(log_file(&sandbox), text).unwrap();
    sandbox
}

fn log_file(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("logs/payment_webhook_v1.log")
}

/// A file to write records to, made where there is none.
fn writer(sandbox: &Sandbox) -> File {
    OpenOptions::new().append(true).create(true).open(log_file(sandbox)).unwrap()
}

fn record(minute: usize, level: &str, message: &str) -> String {
    format!("2026-01-02 03:{minute:02}:00,000 - webhookctl::test - {level} - {message}\n")
}

fn info(message: &str) -> String {
    record(4, "INFO", message)
}

/// The messages of printed records.
fn messages(stdout: &str) -> Vec<&str> {
    stdout.lines().map(|line| line.rsplit(" - ").next().unwrap()).collect()
}

#[track_caller]
fn printed(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let outcome = sandbox.run(&[&["logs"], arguments].concat());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{outcome:?}");
    outcome.stdout
}

/// A running `logs -f`.
struct Follower {
    process: Process,
    lines: Receiver<String>,
    complaints: Receiver<String>,
}

impl Follower {
    fn start(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let arguments = [&["logs", "-f"], arguments].concat();
        let mut command = sandbox.command(&arguments);
        let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let (lines, complaints) = (lines_of(process.stdout()), lines_of(process.stderr()));
        Self { process, lines, complaints }
    }

    /// The next lines have exactly these messages.
    #[track_caller]
    fn expect(&self, expected: &[&str]) {
        for expected in expected {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{expected:?}: {error}"));
            assert_eq!(messages(&line), [*expected]);
        }
    }

    /// Ends it; it had nothing more to say.
    #[track_caller]
    fn end(mut self) {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        self.process.wait();
        assert_eq!(self.lines.iter().collect::<Vec<_>>(), [""; 0]);
        assert_eq!(self.complaints.iter().collect::<Vec<_>>(), [""; 0]);
    }
}

/// Lines as they come, with the end of the stream as the end of the channel.
fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        // Ends with the stream, or when the test no longer listens.
        BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

#[test]
fn the_last_lines_of_what_the_service_logged() {
    let sandbox = Sandbox::new();
    sandbox.serve().stop();
    let outcome = printed(&sandbox, &["-n", "99", "--level", "info"]);
    let written = fs::read_to_string(log_file(&sandbox)).unwrap();
    assert_eq!(outcome, written);
    assert!(written.contains("服务已停止"), "{written}");
    assert_eq!(printed(&sandbox, &["--level", "error"]), "");
}

#[test]
fn twenty_lines_or_as_many_as_asked_for() {
    let all: Vec<_> = (0..30).map(|n| n.to_string()).collect();
    let text: String = all.iter().map(|n| info(n)).collect();
    let sandbox = sandbox_with_log(&text);
    for (arguments, count) in
        [(&[][..], 20), (&["-n", "3"], 3), (&["--lines", "25"], 25), (&["-n", "99"], 30), (&["-n", "0"], 0)]
    {
        assert_eq!(messages(&printed(&sandbox, arguments)), all[30 - count..], "{arguments:?}");
    }
    let usage = sandbox.run(&["logs", "-n", "some"]);
    assert_eq!(usage.code, 2);
}

#[test]
fn a_level_is_applied_before_lines_are_counted() {
    let mut text = record(1, "ERROR", "old") + "no record of ours\n";
    for (minute, level) in [(2, "DEBUG"), (3, "INFO"), (4, "WARNING"), (5, "ERROR"), (6, "INFO")] {
        text += &record(minute, level, &format!("{level} {minute}"));
    }
    let sandbox = sandbox_with_log(&text);
    for (arguments, expected) in [
        (&["--level", "warning"][..], &["old", "WARNING 4", "ERROR 5"][..]),
        (&["--level", "error", "-n", "1"], &["ERROR 5"]),
        (&["--level", "info", "-n", "2"], &["ERROR 5", "INFO 6"]),
        (&["--level", "error", "-n", "0"], &[]),
    ] {
        assert_eq!(messages(&printed(&sandbox, arguments)), expected, "{arguments:?}");
    }
    let outcome = sandbox.run(&["logs", "--level=loud"]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("warning"), "{outcome:?}");
}

#[test]
fn what_stands_in_the_file_cannot_move_the_terminal() {
    let sandbox = sandbox_with_log(b"\x1b[2J\xff\r\ntorn");
    assert_eq!(printed(&sandbox, &[]), "\\u{1b}[2J\u{fffd}\\r\ntorn\n");
}

#[test]
fn colours_on_a_terminal_unless_they_are_unwanted() {
    let sandbox = sandbox_with_log(record(1, "WARNING", "w") + &record(2, "ERROR", "e") + &info("i"));
    for (no_color, coloured) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let other_end = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, rustix::fs::Mode::empty()).unwrap();
        let mut command = sandbox.command(&["logs"]);
        command.env_remove("NO_COLOR");
        command.envs(no_color.map(|value| ("NO_COLOR", value))).stdout(other_end);
        let mut process = Process::spawn(&mut command);
        let shown = lines_of(File::from(terminal));
        let next = || shown.recv_timeout(PATIENCE).unwrap();
        let (warning, error, info) = (next(), next(), next());
        process.wait();
        assert_eq!(warning.starts_with("\u{1b}[33m"), coloured, "{warning:?}");
        assert_eq!(error.starts_with("\u{1b}[31m"), coloured, "{error:?}");
        assert!(info.starts_with("2026"), "{info:?}");
    }
    assert!(!printed(&sandbox, &[]).contains('\u{1b}'));
}

#[test]
fn a_missing_or_forbidden_file_is_told_with_a_remedy() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&["logs"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    let file = log_file(&sandbox);
    for part in [file.to_str().unwrap(), "webhookctl start", "log.file"] {
        assert!(outcome.stderr.contains(part), "{outcome:?}");
    }
    let sandbox = sandbox_with_log(info("x"));
    let file = log_file(&sandbox);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    // Someone who may read everything, such as root, sees no difference.
    if File::open(&file).is_err() {
        for arguments in [&["logs"][..], &["logs", "-f"]] {
            let outcome = sandbox.run(arguments);
            assert_eq!(outcome.code, 4, "{outcome:?}");
            assert!(outcome.stderr.contains(file.to_str().unwrap()), "{outcome:?}");
        }
    }
}

#[test]
fn a_huge_file_is_not_read_whole() {
    let sandbox = sandbox_with_log("");
    let mut file = writer(&sandbox);
    file.set_len(4 << 30).unwrap();
    let lines: String = (0..30).map(|n| info(&n.to_string())).collect();
    write!(file, "\n{lines}").unwrap();
    let follower = Follower::start(&sandbox, &[]);
    let last: Vec<_> = (10..30).map(|n| n.to_string()).collect();
    follower.expect(&last.iter().map(String::as_str).collect::<Vec<_>>());
    let io = fs::read_to_string(format!("/proc/{}/io", follower.process.pid())).unwrap();
    let read: u64 = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
    assert!(read < 8 << 20, "{read} bytes");
    follower.end();
}

#[test]
fn follows_with_a_level_and_prints_only_complete_records() {
    let sandbox = sandbox_with_log(info("one!") + &record(2, "DEBUG", "x") + "2026-01-02 03:04:00,000 - t - INFO - ha");
    let follower = Follower::start(&sandbox, &["--level", "info"]);
    follower.expect(&["one!"]);
    let mut file = writer(&sandbox);
    let unwanted = record(4, "DEBUG", "debug!") + "garbage!\n";
    write!(file, "lf!\n{unwanted}{}", info("two!")).unwrap();
    follower.expect(&["half!", "two!"]);
    follower.end();
}

#[test]
fn follows_a_renamed_file_and_the_new_one() {
    let sandbox = sandbox_with_log(info("a"));
    let mut old = writer(&sandbox);
    let follower = Follower::start(&sandbox, &[]);
    follower.expect(&["a"]);
    write!(old, "{}", info("b")).unwrap();
    fs::rename(log_file(&sandbox), sandbox.path("logs/1")).unwrap();
    write!(old, "{}2026-01-02 03:04:00,000 - t - INFO - la", info("c")).unwrap();
    let mut new = writer(&sandbox);
    write!(new, "{}", info("d")).unwrap();
    follower.expect(&["b", "c", "d"]);
    // The service has not opened the new file yet.
    writeln!(old, "te").unwrap();
    follower.expect(&["late"]);
    write!(new, "{}", info("e")).unwrap();
    follower.expect(&["e"]);

    for round in ["2", "3", "4", "5"] {
        fs::rename(log_file(&sandbox), sandbox.path("logs").join(round)).unwrap();
        let before = std::mem::replace(&mut new, writer(&sandbox));
        write!(&before, "{}", info("old")).unwrap();
        follower.expect(&["old"]);
        write!(new, "{}", info(round)).unwrap();
        follower.expect(&[round]);
    }
    follower.end();
}

#[test]
fn follows_a_file_that_is_copied_and_cut_off() {
    let sandbox = sandbox_with_log(info("a") + &info("b"));
    let mut file = writer(&sandbox);
    let follower = Follower::start(&sandbox, &["-n", "1"]);
    follower.expect(&["b"]);
    file.set_len(0).unwrap();
    write!(file, "{}", info("shorter")).unwrap();
    follower.expect(&["shorter"]);
    write!(file, "{}", info("c")).unwrap();
    follower.expect(&["c"]);

    // Cut off and longer than before, with nobody looking in between; the record that had begun is gone.
    write!(file, "2026-01-02 03:04:00,000 - t - INFO - beg").unwrap();
    follower.process.signal(nix::sys::signal::Signal::SIGSTOP);
    file.set_len(0).unwrap();
    let many: Vec<_> = (0..50).map(|n| format!("again {n}")).collect();
    file.write_all(many.iter().map(|message| info(message)).collect::<String>().as_bytes()).unwrap();
    follower.process.signal(nix::sys::signal::Signal::SIGCONT);
    follower.expect(&many.iter().map(String::as_str).collect::<Vec<_>>());
    write!(file, "{}", info("d")).unwrap();
    follower.expect(&["d"]);
    follower.end();
}

#[test]
fn follows_a_file_that_vanishes_and_comes_back() {
    let sandbox = sandbox_with_log(info("a"));
    let mut file = writer(&sandbox);
    let follower = Follower::start(&sandbox, &[]);
    follower.expect(&["a"]);
    let away = sandbox.path("logs/away");
    fs::rename(log_file(&sandbox), &away).unwrap();
    write!(file, "{}", info("b")).unwrap();
    follower.expect(&["b"]);
    fs::rename(&away, log_file(&sandbox)).unwrap();
    write!(file, "{}", info("c")).unwrap();
    follower.expect(&["c"]);

    fs::remove_dir_all(sandbox.path("logs")).unwrap();
    write!(file, "{}", info("d")).unwrap();
    follower.expect(&["d"]);
    fs::create_dir(sandbox.path("logs")).unwrap();
    let mut file = writer(&sandbox);
    write!(file, "{}", info("e")).unwrap();
    follower.expect(&["e"]);
    follower.end();
}

#[test]
fn waits_for_a_file_that_is_not_there_yet() {
    let sandbox = Sandbox::new();
    let follower = Follower::start(&sandbox, &["-n", "1"]);
    let told = follower.complaints.recv_timeout(PATIENCE).unwrap();
    assert!(told.contains(log_file(&sandbox).to_str().unwrap()), "{told}");
    fs::create_dir(sandbox.path("logs")).unwrap();
    let mut file = writer(&sandbox);
    write!(file, "{}{}", info("a"), info("b")).unwrap();
    follower.expect(&["a", "b"]);
    follower.end();
}

#[test]
fn something_else_in_the_files_place_is_told_once() {
    let sandbox = sandbox_with_log(info("a"));
    let follower = Follower::start(&sandbox, &[]);
    follower.expect(&["a"]);
    fs::remove_file(log_file(&sandbox)).unwrap();
    fs::create_dir(log_file(&sandbox)).unwrap();
    let told = follower.complaints.recv_timeout(PATIENCE).unwrap();
    assert!(told.contains(log_file(&sandbox).to_str().unwrap()), "{told}");
    fs::remove_dir(log_file(&sandbox)).unwrap();
    write!(writer(&sandbox), "{}", info("b")).unwrap();
    follower.expect(&["b"]);
    follower.end();
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let sandbox = sandbox_with_log(info(&"x".repeat(200)).repeat(5000));
    // Much more than a pipe holds; and nothing further, with a reader that goes while there is nothing to write.
    for arguments in [&["logs", "-n", "5000"][..], &["logs", "-f", "-n", "5000"], &["logs", "-f", "-n", "1"]] {
        let mut command = sandbox.command(arguments);
        let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let complaints = lines_of(process.stderr());
        let mut reader = BufReader::with_capacity(64, process.stdout());
        let (sender, has_read_a_line) = channel();
        std::thread::spawn(move || reader.read_line(&mut String::new()).map(|_| sender.send(reader)));
        drop(has_read_a_line.recv_timeout(PATIENCE).unwrap());
        let end = complaints.recv_timeout(PATIENCE);
        assert_eq!(end, Err(RecvTimeoutError::Disconnected), "{arguments:?}");
        assert_eq!(process.wait().code(), Some(0), "{arguments:?}");
    }
}
