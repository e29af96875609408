//! `start`, `stop`, `status`: the service in the background.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use serde_json::json;

use crate::support::*;

#[test]
fn start_returns_when_the_service_answers_and_stop_when_it_has_ended() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let started = sandbox.run(&["start"]);
    let daemon = Daemon { sandbox: &sandbox };
    assert_eq!(started.code, 0, "{started:?}");
    let (pid, address) = (daemon.pid(), daemon.address());
    assert!(started.stdout.contains(&format!("pid {pid}")) && started.stdout.contains(&address.to_string()));
    assert_eq!(daemon.notify(&Notification::of(&order).form()), (200, "success".into()));

    let again = sandbox.run(&["start"]);
    assert_eq!((again.code, daemon.pid()), (0, pid), "{again:?}");
    assert!(again.stdout.contains("已在运行") && again.stdout.contains(&format!("pid {pid}")), "{again:?}");

    let stopped = sandbox.run(&["stop"]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert!(stopped.stdout.contains(&format!("pid {pid}")), "{stopped:?}");
    assert!(!is_alive(pid));
    assert_eq!(fs::read_to_string(sandbox.pid_file()).unwrap(), "", "left empty, and left there");
    let again = sandbox.run(&["stop"]);
    assert_eq!((again.code, again.stdout.trim()), (0, "未在运行"));
}

#[test]
fn a_daemon_has_nothing_of_its_starter() {
    let sandbox = Sandbox::new();
    let daemon = Daemon { sandbox: &sandbox };
    // A descriptor that leaks into the daemon would keep this pipe open, and the test waiting.
    let mut shell = sandbox.command_of("sh");
    shell
        .args(["-c", "exec 9>&1; umask 0; out=$(\"$0\" start 2>&1); echo \"$out\""])
        .arg(env!("CARGO_BIN_EXE_webhookctl"));
    let output = shell.output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("已启动"), "{output:?}");

    let pid = daemon.pid();
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = links.map(|fd| fd.unwrap().path()).filter_map(|fd| Some((fd.clone(), fs::read_link(fd).ok()?)));
    for (fd, target) in links {
        let (fd, target) = (fd.file_name().unwrap().to_str().unwrap().to_owned(), target.display().to_string());
        match fd.as_str() {
            "0" | "1" | "2" => assert_eq!(target, "/dev/null", "{fd}"),
            _ => assert!(!target.starts_with("pipe:"), "{fd}: {target}"),
        }
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Umask:\t0027"), "{status}");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(fields[4], "0", "no terminal: {stat}");
    assert_ne!(getsid(Some(pid)), getsid(None), "a session of its own");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().display().to_string(), "/");
    let mode = fs::metadata(sandbox.database_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for its user alone");
}

#[test]
fn twenty_starts_at_once_make_one_service() {
    let sandbox = Sandbox::new();
    let daemon = Daemon { sandbox: &sandbox };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..20).map(|_| scope.spawn(|| sandbox.run(&["start"]))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let pid = format!("pid {}，", daemon.pid());
    for outcome in &outcomes {
        assert!(outcome.code == 0 && outcome.stdout.contains(&pid), "{pid} {outcome:?}");
    }
    assert_eq!(outcomes.iter().filter(|outcome| outcome.stdout.contains("已启动")).count(), 1);
    assert_eq!(sandbox.log().matches("数据库初始化完成").count(), 1);
}

#[test]
fn a_start_that_fails_says_why() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let own = std::process::id().to_string();
    let foreign = Sandbox::new();
    rusqlite::Connection::open(foreign.path("foreign.db")).unwrap().execute("CREATE TABLE t (x)", []).unwrap();
    for (config, code, words) in [
        (CONFIG.replace("127.0.0.1:0", &address), 1, vec!["Address already in use", &address, &own, "e2e"]),
        (format!("{CONFIG}\n[database]\nurl = \"sqlite:foreign.db\""), 1, vec!["foreign.db"]),
        (format!("{CONFIG}\n[service]\npid_file = \"/dev/null/x\""), 1, vec!["/dev/null/x", "Not a directory"]),
        (CONFIG.replace("36.00", "36.001"), 6, vec!["package[silver].price"]),
        (CONFIG.replace("key = \"another", "kye = \"another"), 6, vec!["kye", "`key`"]),
    ] {
        foreign.configure(&config);
        let outcome = foreign.run(&["start"]);
        assert_eq!(outcome.code, code, "{outcome:?}");
        for word in words {
            assert!(outcome.stderr.contains(word), "{word}: {}", outcome.stderr);
        }
        if !config.contains("/dev/null") {
            assert_eq!(code == 1, outcome.stderr.contains("初始化失败: "), "{}", outcome.stderr);
            assert_eq!(foreign.run(&["status"]).code, 3);
        }
    }
    // What came to the terminal is in the log, and its last lines to the terminal.
    foreign.configure(&CONFIG.replace("127.0.0.1:0", &address));
    let outcome = foreign.run(&["start"]);
    assert!(outcome.stderr.contains("- ERROR - 初始化失败"), "{}", outcome.stderr);
}

/// The program as a user who may do nothing; it has to be where that user can reach it.
pub fn without_privileges(sandbox: &Sandbox, arguments: &[&str]) -> Command {
    let program = sandbox.path("webhookctl");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_webhookctl"), &program).unwrap();
        fs::set_permissions(sandbox.directory(), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = sandbox.command_of(program.to_str().unwrap());
    command.args(arguments);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command
}

#[test]
fn what_may_not_be_done_exits_4() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("data")).unwrap();
    fs::set_permissions(sandbox.path("data"), PermissionsExt::from_mode(0o555)).unwrap();
    let outcome = Outcome::of(without_privileges(&sandbox, &["start"]).output().unwrap());
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stderr.contains("Permission denied") && outcome.stderr.contains("webhookctl.pid"), "{outcome:?}");
    fs::set_permissions(sandbox.path("data"), PermissionsExt::from_mode(0o755)).unwrap();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let daemon = sandbox.start();
    // Its pid file can be read by its group only.
    for command in ["stop", "restart", "reload", "status"] {
        let outcome = Outcome::of(without_privileges(&sandbox, &[command]).output().unwrap());
        assert_eq!(outcome.code, 4, "{command} {outcome:?}");
        assert!(outcome.stderr.contains("webhookctl.pid"), "{command} {outcome:?}");
    }
    fs::set_permissions(sandbox.pid_file(), PermissionsExt::from_mode(0o644)).unwrap();
    let outcome = Outcome::of(without_privileges(&sandbox, &["stop"]).output().unwrap());
    assert!(outcome.code == 4 && outcome.stderr.contains(&daemon.pid().to_string()), "{outcome:?}");
    let outcome = Outcome::of(without_privileges(&sandbox, &["restart"]).output().unwrap());
    assert!(outcome.code == 4 && outcome.stderr.contains("sudo -u"), "{outcome:?}");
    let outcome = Outcome::of(without_privileges(&sandbox, &["reload"]).output().unwrap());
    assert!(outcome.code == 4 && outcome.stderr.contains("属于另一个用户"), "{outcome:?}");
    for command in ["status", "start"] {
        let outcome = Outcome::of(without_privileges(&sandbox, &[command]).output().unwrap());
        assert_eq!(outcome.code, 0, "anyone may look: {command} {outcome:?}");
    }
}

/// Keeps every other connection out of the database, until it is dropped.
fn lock_database(sandbox: &Sandbox) -> rusqlite::Connection {
    sandbox.order(1001);
    let database = sandbox.database();
    // Nobody else may even look, as while another program has it in its exclusive mode.
    database.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    database.execute_batch("BEGIN EXCLUSIVE; UPDATE users SET language = 'zh'; COMMIT; BEGIN EXCLUSIVE").unwrap();
    database
}

#[test]
fn a_death_before_readiness_is_noticed_at_once() {
    let sandbox = Sandbox::new();
    let locked = lock_database(&sandbox);
    let mut start = Process::spawn(sandbox.command(&["start", "--timeout", "600"]).stderr(Stdio::piped()));
    let daemon = Daemon { sandbox: &sandbox };
    // It may give up by itself meanwhile: then there is nobody to kill any more.
    if let Some(pid) = pid_that_is_written(&sandbox) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    assert_eq!(start.wait().code(), Some(1));
    let mut told = String::new();
    std::io::Read::read_to_string(&mut start.stderr(), &mut told).unwrap();
    // It waits for the lock only so long: this machine may be slower than that.
    assert!(told.contains("就绪之前退出") || told.contains("locked"), "{told}");
    drop(locked);
    assert_eq!(sandbox.run(&["start"]).code, 0);
    drop(daemon);
}

#[test]
fn a_start_that_takes_too_long_is_ended() {
    let sandbox = Sandbox::new();
    let locked = lock_database(&sandbox);
    let outcome = sandbox.run(&["start", "--timeout", "0.2"]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("没有就绪"), "{outcome:?}");
    assert_ne!(sandbox.run(&["status"]).code, 0);
    drop(locked);
    let daemon = sandbox.start();
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

#[test]
fn stop_lets_requests_finish_and_needs_no_sound_configuration() {
    let sandbox = Sandbox::new();
    for broken in ["listen = \"x\"\n[[merchant]]\npid = \"1\"\nkey_file = \"none\"\n", "[[merchant\nlisten"] {
        sandbox.configure(CONFIG);
        let order = sandbox.order(1001);
        let daemon = sandbox.start();
        let pid = daemon.pid();
        let mut half = HalfSent::over(daemon.client(), &Notification::of(&order));
        sandbox.configure(broken);
        let stopped_before = sandbox.log().matches("SIGTERM").count();
        let stop = std::thread::scope(|scope| {
            let stop = scope.spawn(|| sandbox.run(&["stop"]));
            wait_until("a SIGTERM", || sandbox.log().matches("SIGTERM").count() > stopped_before);
            assert_eq!(half.finish().body, "success");
            stop.join().unwrap()
        });
        assert_eq!(stop.code, 0, "{stop:?}");
        assert!(stop.stdout.contains(&format!("pid {pid}")) && !is_alive(pid), "{stop:?}");
    }
    assert_eq!(sandbox.count("SELECT credits FROM users WHERE telegram_id = 1001"), 140);
}

#[test]
fn a_broken_line_does_not_hide_where_the_pid_file_is() {
    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[service]\npid_file = \"run/own.pid\"\n"));
    let daemon = Daemon { sandbox: &sandbox };
    assert_eq!(sandbox.run(&["start"]).code, 0);
    sandbox.configure("garbage here\n[service]\npid_file = \"run/own.pid\"\n");
    let stop = sandbox.run(&["stop"]);
    assert!(stop.code == 0 && stop.stdout.contains("pid "), "{stop:?}");
    assert_eq!(fs::read_to_string(sandbox.path("run/own.pid")).unwrap(), "");
    drop(daemon);
}

#[test]
fn a_second_stop_cuts_nothing_and_a_start_waits_for_the_end() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let daemon = sandbox.start();
    let pid = daemon.pid();
    let mut half = HalfSent::over(daemon.client(), &Notification::of(&order));
    let (stops, start) = std::thread::scope(|scope| {
        let stop = || {
            let stop = scope.spawn(|| sandbox.run(&["stop"]));
            wait_until("a SIGTERM", || sandbox.log().contains("SIGTERM"));
            stop
        };
        let stops = [stop(), stop(), stop()];
        let impatient = sandbox.run(&["start", "--timeout", "0.1"]);
        assert!(impatient.code == 1 && impatient.stderr.contains(&pid.to_string()), "{impatient:?}");
        let start = scope.spawn(|| sandbox.run(&["start"]));
        assert_eq!(half.finish().body, "success");
        (stops.map(|stop| stop.join().unwrap()), start.join().unwrap())
    });
    assert!(!sandbox.log().contains("第二个信号"), "{}", sandbox.log());
    assert!(!is_alive(pid));
    assert!(stops.iter().all(|stop| stop.code == 0) && start.code == 0, "{stops:?} {start:?}");
}

#[test]
fn a_log_that_cannot_be_written_is_told_by_start() {
    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[log]\nfile = \"/dev/null/x.log\"\n"));
    let daemon = Daemon { sandbox: &sandbox };
    let start = sandbox.run(&["start"]);
    assert!(start.code == 0 && start.stderr.contains("/dev/null/x.log"), "payments go on: {start:?}");
    let reload = sandbox.run(&["reload"]);
    assert!(reload.code == 1 && reload.stderr.contains("/dev/null/x.log"), "{reload:?}");
    drop(daemon);
}

#[test]
fn what_a_starter_ignores_does_not_matter() {
    let sandbox = Sandbox::new();
    let mut shell = sandbox.command_of("sh");
    shell.args(["-c", "trap '' CHLD PIPE HUP; exec \"$0\" start"]).arg(env!("CARGO_BIN_EXE_webhookctl"));
    let daemon = Daemon { sandbox: &sandbox };
    let start = Outcome::of(shell.output().unwrap());
    assert_eq!(start.code, 0, "{start:?}");
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

#[test]
fn a_service_that_does_not_end_is_killed_and_that_is_said() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let pid = daemon.pid();
    daemon.signal(Signal::SIGSTOP);
    let status = sandbox.run(&["status", "--json"]);
    assert_eq!(status.code, 4, "{status:?}");
    assert!(status.stdout.contains("\"state\":\"running\"") && !status.stdout.contains("\"ok\""), "{status:?}");
    let stop = sandbox.run(&["stop", "--timeout", "0.1", "--no-force"]);
    assert!(stop.code == 1 && is_alive(pid), "{stop:?}");
    let stop = sandbox.run(&["stop", "--timeout", "0.1"]);
    assert!(stop.code == 0 && stop.stderr.contains("SIGKILL"), "{stop:?}");
    assert!(!is_alive(pid));
    let status = sandbox.run(&["status"]);
    assert!(status.code == 1 && status.stdout.contains("意外退出"), "{status:?}");
    assert_eq!(sandbox.json_of(&["status", "--json"], 1)["state"], "dead");
    let stop = sandbox.run(&["stop"]);
    assert!(stop.code == 0 && stop.stderr.contains(&pid.to_string()), "it is told whose file is left: {stop:?}");
    assert_eq!(sandbox.run(&["start"]).code, 0, "and the next start does not mind");
}

#[test]
fn status_tells_how_it_is() {
    let sandbox = Sandbox::new();
    let stopped = sandbox.json_of(&["status", "--json"], 3);
    let nothing =
        json!({"health": null, "listen": null, "pid": null, "state": "stopped", "uptime_s": null, "version": null});
    assert_eq!(stopped, nothing);
    let daemon = sandbox.start();
    let pid = daemon.pid().as_raw();
    let running = sandbox.json(&["status", "--json"]);
    let expected = json!({
        "health": "ok", "listen": daemon.address().to_string(), "pid": pid, "state": "running",
        "uptime_s": running["uptime_s"].as_u64().unwrap(), "version": env!("CARGO_PKG_VERSION"),
    });
    assert_eq!(running, expected);
    let text = sandbox.run(&["status"]).stdout;
    let log_file = sandbox.path("logs/payment_webhook_v1.log").display().to_string();
    for word in ["● 运行中", &pid.to_string(), &daemon.address().to_string(), "MiB", "毫秒", &log_file] {
        assert!(text.contains(word), "{word}: {text}");
    }
    sandbox.configure(&format!("language = \"en\"\n{CONFIG}"));
    let text = sandbox.run(&["status"]).stdout;
    assert!(text.contains("● running") && text.contains("ok ("), "{text}");
}

#[test]
fn a_second_serve_beside_a_daemon_is_refused() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let second = sandbox.run(&["serve"]);
    assert!(second.code == 1 && second.stderr.contains(&format!("pid {}", daemon.pid())), "{second:?}");
    // Where the port is taken as well, that is said in the system's words.
    sandbox.configure(&CONFIG.replace("127.0.0.1:0", &daemon.address().to_string()));
    let second = sandbox.run(&["serve"]);
    assert!(second.code == 1 && second.stderr.contains("Address already in use"), "{second:?}");
    assert!(second.stderr.contains(&format!("pid {}", daemon.pid())), "{second:?}");
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

#[test]
fn a_configuration_that_cannot_be_read_twice_starts_no_daemon() {
    let sandbox = Sandbox::new();
    let mut shell = sandbox.command_of("sh");
    shell.args(["-c", "cat webhookctl.toml | \"$0\" --config /dev/stdin start"]).arg(env!("CARGO_BIN_EXE_webhookctl"));
    let outcome = Outcome::of(shell.output().unwrap());
    assert!(outcome.code == 6 && outcome.stderr.contains("普通文件"), "{outcome:?}");
}

/// The pid in the pid file as soon as there is one.
fn pid_that_is_written(sandbox: &Sandbox) -> Option<Pid> {
    let read = || fs::read_to_string(sandbox.pid_file()).unwrap_or_default();
    wait_until("a pid in the file", || read().contains('\n') || sandbox.log().contains("初始化失败"));
    read().lines().next()?.parse().ok().map(Pid::from_raw)
}

#[test]
fn who_starts_it_may_go_away() {
    let sandbox = Sandbox::new();
    let locked = lock_database(&sandbox);
    let start = Process::spawn(sandbox.command(&["start"]).stdout(Stdio::null()).stderr(Stdio::null()));
    let daemon = Daemon { sandbox: &sandbox };
    pid_that_is_written(&sandbox);
    start.signal(Signal::SIGKILL);
    drop(locked);
    // Unless the lock was held for too long, it comes up all the same.
    wait_until("a service", || sandbox.run(&["status"]).code == 0 || sandbox.log().contains("初始化失败"));
    assert!(sandbox.run(&["status"]).code == 0 || sandbox.log().contains("locked"), "{}", sandbox.log());
    drop(daemon);
}

#[test]
fn stops_at_the_same_time_cut_nothing() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let daemon = sandbox.start();
    let mut half = HalfSent::over(daemon.client(), &Notification::of(&order));
    std::thread::scope(|scope| {
        let stops: Vec<_> = (0..5).map(|_| scope.spawn(|| sandbox.run(&["stop"]))).collect();
        wait_until("a SIGTERM", || sandbox.log().contains("SIGTERM"));
        assert_eq!(half.finish().body, "success");
        assert!(stops.into_iter().all(|stop| stop.join().unwrap().code == 0));
    });
}

#[test]
fn a_stop_leaves_alone_what_was_started_after_it() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let mut slow = daemon.client();
    slow.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx");
    let mut stop = Process::spawn(sandbox.command(&["stop"]).stdout(Stdio::null()));
    wait_until("a SIGTERM", || sandbox.log().contains("SIGTERM"));
    // It looks away while one service ends and another one begins.
    stop.signal(Signal::SIGSTOP);
    let old = daemon.pid();
    slow.write("123456789");
    assert_eq!(slow.response().unwrap().body, "fail");
    wait_until("its end", || !is_alive(old));
    assert_eq!(sandbox.run(&["start"]).code, 0);
    stop.signal(Signal::SIGCONT);
    assert_eq!(stop.wait().code(), Some(0));
    assert_eq!(sandbox.run(&["status"]).code, 0);
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}
