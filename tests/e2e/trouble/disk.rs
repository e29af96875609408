//! The disk is full, fails, is slow, or may not be written to; another process keeps the database locked.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Mount, Shop, forbidden, is_root, is_unwell, tell};
use crate::support::*;

/// Fills a file system to its last bytes.
fn fill(directory: &Path, room: u64) -> PathBuf {
    let path = directory.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    for size in [64 * 1024, 4096, 1] {
        let piece = vec![b'x'; size];
        while file.write_all(&piece).is_ok() {}
    }
    file.set_len(file.metadata().unwrap().len() - room).unwrap();
    path
}

#[test]
fn a_full_disk_refuses_payments_until_there_is_room() {
    let sandbox = Sandbox::new();
    let data = sandbox.path("data");
    fs::create_dir(&data).unwrap();
    let Some(mount) = Mount::new(&data, "4m") else { return };
    let mut shop = Shop::in_sandbox(sandbox, 200);
    let service = shop.sandbox.serve();
    // In the last rounds there is room for a row, and not for a payment.
    for room in [0, 0, 8192, 20_480] {
        shop.sell(&service);
        let filler = fill(&data, room);
        // What the write-ahead log has room for still settles.
        let answer = loop {
            match service.notify(&shop.next()) {
                (200, body) if body == "success" => shop.paid += 1,
                answer => break answer,
            }
        };
        assert_eq!(answer, (503, "fail".into()));
        for _ in 0..3 {
            shop.is_refused(&service);
            is_unwell(&service);
        }
        fs::remove_file(filler).unwrap();
        shop.recovers(&service);
    }
    shop.settles_the_books(service);
    drop(mount);
}

#[test]
fn a_database_that_is_removed_from_a_full_disk_is_written_back_when_there_is_room() {
    let sandbox = Sandbox::new();
    let data = sandbox.path("data");
    fs::create_dir(&data).unwrap();
    let Some(mount) = Mount::new(&data, "4m") else { return };
    let mut shop = Shop::in_sandbox(sandbox, 10);
    let service = shop.sandbox.serve();
    shop.sell(&service);
    let filler = fill(&data, 0);
    fs::remove_file(shop.sandbox.database_file()).unwrap();
    shop.is_refused(&service);
    service.wait_for_log("数据库文件暂时无法恢复");
    shop.is_refused(&service);
    fs::remove_file(filler).unwrap();
    shop.recovers(&service);
    let left: Vec<_> = fs::read_dir(&data).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("unfinished")), "{left:?}");
    shop.settles_the_books(service);
    drop(mount);
}

#[test]
fn a_full_disk_at_the_start_is_told_with_its_cause() {
    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[database]\nurl = \"sqlite:small/x.db\"\n"));
    let small = sandbox.path("small");
    fs::create_dir(&small).unwrap();
    let Some(mount) = Mount::new(&small, "1m") else { return };
    let filler = fill(&small, 0);
    let outcome = ended(&mut sandbox.command(&["serve"]));
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("small/x.db") && outcome.stderr.contains("full"), "{outcome:?}");
    fs::remove_file(filler).unwrap();
    sandbox.serve().stop();
    drop(mount);
}

#[test]
fn what_another_process_keeps_locked_is_refused_within_the_gateways_patience() {
    let mut shop = Shop::new(10);
    let service = shop.sandbox.serve();
    shop.sell(&service);
    let operator = shop.sandbox.database();
    operator.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // Longer together than a write waits for the lock.
    shop.is_refused(&service);
    shop.is_refused(&service);
    operator.execute_batch("ROLLBACK").unwrap();
    shop.recovers(&service);
    // Shorter than that costs nobody anything. A lock that this machine made longer says nothing, and is tried again.
    let is_short = (0..20).any(|_| {
        let began = Instant::now();
        operator.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let (answer, took) = std::thread::scope(|scope| {
            let payment = scope.spawn(|| service.notify(&shop.next()));
            std::thread::sleep(Duration::from_millis(200));
            operator.execute_batch("ROLLBACK").unwrap();
            (payment.join().unwrap(), began.elapsed())
        });
        let is_short = took < Duration::from_secs(1);
        assert!(answer == (200, "success".into()) || !is_short, "{answer:?} after {took:?}");
        shop.paid += usize::from(answer.0 == 200);
        answer.0 == 200
    });
    assert!(is_short, "{:#?}", service.log());
    shop.settles_the_books(service);
}

/// How a service ends that cannot start.
#[track_caller]
fn ended(command: &mut Command) -> Outcome {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Does nothing to one that has ended; the code of one that is killed is -1.
    let _ = child.kill();
    let outcome = Outcome::of(child.wait_with_output().unwrap());
    assert!(outcome.code >= 0, "it started: {outcome:?}");
    outcome
}

/// A command that has to keep to permissions, as everybody but root has to.
pub fn without_privileges(sandbox: &Sandbox, arguments: &[&str]) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        return Some(sandbox.command(arguments));
    }
    find_program("setpriv", "util-linux")?;
    let mut command = sandbox.command_of("setpriv");
    command.args(["--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]);
    command.arg(env!("CARGO_BIN_EXE_webhookctl")).args(arguments);
    Some(command)
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn a_database_that_may_not_be_written_ends_the_start_with_its_name_and_the_cause() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let (data, database) = (sandbox.path("data"), sandbox.database_file());
    for (path, mode, right_mode) in [(&database, 0o444, 0o644), (&database, 0o000, 0o644), (&data, 0o555, 0o755)] {
        set_mode(path, mode);
        let Some(mut command) = without_privileges(&sandbox, &["serve"]) else { return };
        let outcome = ended(&mut command);
        set_mode(path, right_mode);
        assert!(outcome.code == 4 || outcome.code == 1, "{outcome:?}");
        assert!(outcome.stderr.contains(data.to_str().unwrap()), "{outcome:?}");
        assert!(outcome.stderr.contains("权限") || outcome.stderr.contains("denied"), "{outcome:?}");
    }
    let service = sandbox.serve();
    assert_eq!(service.notify(&Notification::of(&order).form()), (200, "success".into()));
    service.stop();
}

#[test]
fn permissions_that_are_taken_away_while_it_runs_lose_nothing() {
    let mut shop = Shop::new(10);
    let Some(command) = without_privileges(&shop.sandbox, &["serve"]) else { return };
    let service = Service::start(command);
    shop.sell(&service);
    let (data, database) = (shop.sandbox.path("data"), shop.sandbox.database_file());
    // What is open stays open.
    set_mode(&database, 0o444);
    shop.sell(&service);
    // And where nobody can look, nothing is answered for.
    set_mode(&data, 0o000);
    shop.is_refused(&service);
    set_mode(&data, 0o755);
    shop.recovers(&service);
    set_mode(&database, 0o644);
    shop.settles_the_books(service);
}

/// Files that not even root can change, until this goes out of scope.
struct Immutable(Vec<PathBuf>);

impl Immutable {
    fn new(files: Vec<PathBuf>) -> Option<Self> {
        if !is_root() {
            return None;
        }
        find_program("chattr", "e2fsprogs")?;
        let output = Command::new("chattr").arg("+i").args(&files).output().unwrap();
        if !output.status.success() {
            // Not every file system knows this.
            tell(&format!("skipped a test: {}", String::from_utf8_lossy(&output.stderr)));
            return None;
        }
        Some(Self(files))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").args(&self.0).status();
    }
}

#[test]
fn files_that_become_read_only_while_it_runs_refuse_payments_until_they_can_be_written() {
    let mut shop = Shop::new(10);
    let service = shop.sandbox.serve();
    shop.sell(&service);
    let wal = shop.sandbox.path("data/telegram_bot_v2.db-wal");
    let Some(immutable) = Immutable::new(vec![shop.sandbox.database_file(), wal]) else { return };
    shop.is_refused(&service);
    shop.is_refused(&service);
    drop(immutable);
    shop.recovers(&service);
    shop.settles_the_books(service);
}

/// Has the system calls of a running process fail, or wait, until this goes out of scope.
struct Faults {
    strace: Process,
}

impl Faults {
    fn inject(service: &Service, calls: &str, fault: &str) -> Option<Self> {
        let program = find_program("strace", "strace")?;
        let mut command = Command::new(program);
        command.args(["-f", "-o", "/dev/null", "-p", &service.pid().to_string()]);
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{fault}")]);
        let mut strace = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()));
        let mut told = BufReader::new(strace.stderr()).lines().map_while(Result::ok);
        let first = told.next().unwrap_or_default();
        if !first.contains("attached") {
            forbidden(&first);
            return None;
        }
        std::thread::spawn(move || told.for_each(drop));
        // Every thread: also the writer's own.
        let tasks = fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap();
        for task in tasks {
            let status = task.unwrap().path().join("status");
            wait_until("traced", || fs::read_to_string(&status).is_ok_and(|text| !text.contains("TracerPid:\t0")));
        }
        Some(Self { strace })
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // It lets go of the process before it ends.
        self.strace.signal(Signal::SIGTERM);
        self.strace.wait();
    }
}

#[test]
fn a_disk_that_fails_refuses_payments_until_it_works() {
    let mut shop = Shop::new(10);
    let service = shop.sandbox.serve();
    for (calls, fault) in [
        ("fsync,fdatasync", "error=EIO"),
        ("pwrite64", "error=EIO"),
        ("pwrite64", "error=EROFS"),
        ("pwrite64", "error=EDQUOT"),
    ] {
        shop.sell(&service);
        let Some(faults) = Faults::inject(&service, calls, fault) else { return };
        shop.is_refused(&service);
        shop.is_refused(&service);
        drop(faults);
        shop.recovers(&service);
    }
    shop.settles_the_books(service);
}

#[test]
fn a_stuck_disk_costs_the_gateways_a_repetition_and_the_service_no_threads() {
    const AT_ONCE: usize = 40;
    let mut shop = Shop::new(AT_ONCE + 10);
    let service = shop.sandbox.serve();
    shop.sell(&service);
    let threads = || fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap().count();
    let before = threads();
    let Some(faults) = Faults::inject(&service, "fsync,fdatasync", "delay_enter=600000000") else { return };
    // All of them are answered while the disk is stuck, which is for longer than a test waits.
    std::thread::scope(|scope| {
        for order in &shop.orders[shop.paid..shop.paid + AT_ONCE] {
            let service = &service;
            scope.spawn(move || {
                let answer = service.notify(&Notification::of(order).form());
                assert_eq!(answer, (503, "fail".into()));
            });
        }
        wait_until("unwell", || service.get("/payment/health").status == 503);
        let most = threads();
        assert!(most <= before + 4, "{before} threads, then {most}");
    });
    drop(faults);
    wait_until("well again", || service.get("/payment/health").status == 200);
    for _ in 0..AT_ONCE {
        shop.sell(&service);
    }
    shop.settles_the_books(service);
}
