//! `restart`: another process in the place of the one that runs, without a lost or refused request.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::*;

#[test]
fn restart_starts_what_is_not_running() {
    let sandbox = Sandbox::new();
    let daemon = Daemon { sandbox: &sandbox };
    let outcome = sandbox.run(&["restart"]);
    assert!(outcome.code == 0 && outcome.stdout.contains("已启动"), "{outcome:?}");
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

/// One request over a connection of its own; what came back, or what went wrong.
fn request_once(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A client that keeps its connection for as long as the service lets it.
fn requests_kept_alive(address: SocketAddr, mut next: impl FnMut() -> Option<String>) {
    let mut client = Client::connect(address);
    while let Some(request) = next() {
        let response = client.send(&request);
        assert_eq!((response.status, response.body.as_str()), (200, "success"));
        if response.headers.get("connection").is_some_and(|value| value == "close") {
            client = Client::connect(address);
        }
    }
}

/// Tells the clients to end, even where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn twenty_restarts_under_load_lose_no_request() {
    let sandbox = Sandbox::new();
    let orders = sandbox.create_database_with_orders(20_000);
    let daemon = sandbox.start();
    let address = daemon.address();
    let (taken, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let next = || {
        let at = taken.fetch_add(1, Ordering::Relaxed);
        let form = Notification::of(&orders[at % orders.len()]).form();
        (!over.load(Ordering::Relaxed)).then(|| format!("GET /payment/notify?{form} HTTP/1.1\r\nHost: x\r\n\r\n"))
    };
    let mut pids = vec![daemon.pid()];
    std::thread::scope(|scope| {
        let next = &next;
        for _ in 0..3 {
            scope.spawn(move || requests_kept_alive(address, next));
            scope.spawn(move || {
                while let Some(request) = next() {
                    let answer = request_once(address, &request).unwrap();
                    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nsuccess"), "{answer:?}");
                }
            });
        }
        let _over = Over(&over);
        for _ in 0..20 {
            let restart = sandbox.run(&["restart"]);
            assert_eq!(restart.code, 0, "{restart:?}");
            let pid = daemon.pid();
            assert!(!pids.contains(&pid), "{pid} {pids:?}");
            pids.push(pid);
        }
    });
    assert_eq!(daemon.address(), address);
    let answered = taken.load(Ordering::Relaxed).min(orders.len());
    assert!(answered > 100, "{answered}");
    let paid = sandbox.count("SELECT count(*) FROM orders WHERE status = 'paid'");
    let credited = sandbox.count("SELECT credits FROM users WHERE telegram_id = 1001");
    assert_eq!(credited, 70 * paid);
    // All but those that were taken and not sent any more.
    assert!(usize::try_from(paid).unwrap() + 6 >= answered, "{paid} of {answered}");
    let (last, earlier) = pids.split_last().unwrap();
    wait_until("the end of all but the last", || earlier.iter().all(|pid| !is_alive(*pid)));
    assert!(is_alive(*last));
}

#[test]
fn a_new_process_that_fails_leaves_the_old_one_as_it_was() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let daemon = sandbox.start();
    let (pid, text) = (daemon.pid(), fs::read_to_string(sandbox.pid_file()).unwrap());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (config, code, word) in [
        (CONFIG.replace("36.00", "36.001"), 6, "package[silver].price"),
        ("[[merchant".to_owned(), 6, "webhookctl.toml"),
        (format!("{CONFIG}\n[database]\nurl = \"sqlite:webhookctl.toml\""), 1, "webhookctl.toml"),
        (CONFIG.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string()), 1, "Address already in use"),
    ] {
        sandbox.configure(&config);
        let restart = sandbox.run(&["restart"]);
        assert_eq!(restart.code, code, "{restart:?}");
        assert!(restart.stderr.contains(word), "{word}: {restart:?}");
        assert_eq!(code == 1, restart.stderr.contains(&format!("pid {pid} 照常运行")), "{restart:?}");
        assert_eq!(fs::read_to_string(sandbox.pid_file()).unwrap(), text);
        assert_eq!(daemon.client().get("/payment/health").status, 200);
    }
    sandbox.configure(CONFIG);
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    assert_ne!(daemon.pid(), pid);
    assert_eq!(daemon.notify(&Notification::of(&order).form()).1, "success");
}

#[test]
fn a_new_process_that_does_not_get_ready_is_ended() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    let daemon = sandbox.start();
    let pid = daemon.pid();
    let locked = sandbox.database();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    let restart = sandbox.run(&["restart", "--timeout", "0.3"]);
    // Opening the database may have failed before the time was over.
    assert!(restart.code == 1 && restart.stderr.contains("照常运行"), "{restart:?}");
    locked.execute_batch("ROLLBACK").unwrap();
    assert_eq!(daemon.pid(), pid);
    wait_until("health", || daemon.client().get("/payment/health").status == 200);
    assert_eq!(sandbox.run(&["restart"]).code, 0, "and another one can take over");
}

#[test]
fn what_the_old_process_has_begun_it_finishes() {
    let sandbox = Sandbox::new();
    let (paid_late, paid_last) = (sandbox.order(1001), sandbox.order(1001));
    let daemon = sandbox.start();
    let old = daemon.pid();
    let mut idle = daemon.client();
    assert_eq!(idle.get("/payment/status").status, 200);
    let mut half = HalfSent::over(daemon.client(), &Notification::of(&paid_late));
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    assert!(is_alive(old), "it has something to finish");
    let answer = half.finish();
    assert_eq!((answer.body.as_str(), answer.headers["connection"].as_str()), ("success", "close"));
    assert!(half.client.is_closed());
    // A connection that was silent is good for one request more: it may be on its way already.
    let form = Notification::of(&paid_last).form();
    let answer = idle.get(&format!("/payment/notify?{form}"));
    assert_eq!((answer.body.as_str(), answer.headers["connection"].as_str()), ("success", "close"));
    assert!(idle.is_closed());
    wait_until("its end", || !is_alive(old));
    assert_eq!(sandbox.credits(1001), 140);
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

#[test]
fn a_stop_ends_what_earlier_restarts_have_left_too() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let mut pids = vec![daemon.pid()];
    // Each keeps a process alive that has been replaced.
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut client = daemon.client();
        assert_eq!(client.get("/payment/status").status, 200);
        idle.push(client);
        assert_eq!(sandbox.run(&["restart"]).code, 0);
        pids.push(daemon.pid());
    }
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    assert_eq!(sandbox.run(&["stop"]).code, 0);
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
    assert_eq!(sandbox.run(&["status"]).code, 3);
}

#[test]
fn when_the_new_process_is_killed_no_old_one_stays_behind() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let old = daemon.pid();
    let mut idle = daemon.client();
    assert_eq!(idle.get("/payment/status").status, 200);
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    daemon.signal(Signal::SIGKILL);
    wait_until("the end of both", || !is_alive(old));
    assert_eq!(sandbox.run(&["status"]).code, 1);
    assert_eq!(sandbox.run(&["start"]).code, 0);
}

#[test]
fn restarts_at_once_take_turns() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let restarts: Vec<_> = (0..6).map(|_| scope.spawn(|| sandbox.run(&["restart"]))).collect();
        restarts.into_iter().map(|restart| restart.join().unwrap()).collect()
    });
    assert!(outcomes.iter().all(|outcome| outcome.code == 0), "{outcomes:?}");
    assert_eq!(sandbox.run(&["status"]).code, 0);
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

#[test]
fn a_start_during_a_restart_finds_a_service() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    std::thread::scope(|scope| {
        let starts: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..5).map(|_| sandbox.run(&["start"])).collect::<Vec<_>>())).collect();
        for _ in 0..5 {
            assert_eq!(sandbox.run(&["restart"]).code, 0);
        }
        for start in starts.into_iter().flat_map(|starts| starts.join().unwrap()) {
            assert!(start.code == 0 && start.stdout.contains("已在运行"), "{start:?}");
        }
    });
    drop(daemon);
}

#[test]
fn what_is_changed_during_a_restart_is_in_force_after_it() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    let daemon = sandbox.start();
    let locked = sandbox.database();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (restart, reload) = std::thread::scope(|scope| {
        let restart = scope.spawn(|| sandbox.run(&["restart"]));
        wait_until("a handover", || sandbox.log().contains("新进程请求接管"));
        // By now the new process has read the file.
        sandbox.configure(&CONFIG.replace(KEY, "a new key"));
        fs::rename(sandbox.path("logs/payment_webhook_v1.log"), sandbox.path("logs/old.log")).unwrap();
        let reload = sandbox.run(&["reload"]);
        locked.execute_batch("ROLLBACK").unwrap();
        (restart.join().unwrap(), reload)
    });
    assert_eq!((restart.code, reload.code), (0, 0), "{restart:?} {reload:?}");
    let order = sandbox.order(1002);
    wait_until("the new key", || {
        daemon.notify(&Notification::of(&order).signed_with("a new key").form()).1 == "success"
    });
    wait_until("the new log", || sandbox.log().contains("settled"));
}

#[test]
fn a_stop_during_a_stuck_restart_means_the_new_process_too() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    let daemon = sandbox.start();
    let locked = sandbox.database();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (restart, stop) = std::thread::scope(|scope| {
        let restart = scope.spawn(|| sandbox.run(&["restart"]));
        wait_until("a handover", || sandbox.log().contains("新进程请求接管"));
        let stop = sandbox.run(&["stop"]);
        (restart.join().unwrap(), stop)
    });
    assert_eq!((restart.code, stop.code), (1, 0), "{restart:?} {stop:?}");
    assert!(!restart.stderr.contains("照常运行"), "{restart:?}");
    assert_eq!(sandbox.run(&["status"]).code, 3);
    drop((locked, daemon));
}

#[test]
fn an_older_generation_keeps_its_time_when_a_younger_one_ends() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let oldest = daemon.pid();
    let (mut idle, mut half) = (daemon.client(), daemon.client());
    assert_eq!(idle.get("/payment/status").status, 200);
    half.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nx");
    // The second one has nothing to finish, and could end at once.
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    assert_eq!(idle.get("/payment/status").status, 200, "one request more");
    let stop = std::thread::scope(|scope| {
        let stop = scope.spawn(|| sandbox.run(&["stop"]));
        wait_until("a SIGTERM", || sandbox.log().contains("SIGTERM"));
        assert_eq!(half.send("=1").body, "fail");
        stop.join().unwrap()
    });
    assert!(stop.code == 0 && !is_alive(oldest), "{stop:?}");
}

#[test]
fn the_program_on_disk_is_the_one_that_takes_over() {
    let sandbox = Sandbox::new();
    let program = sandbox.path("webhookctl");
    let install = || {
        fs::copy(env!("CARGO_BIN_EXE_webhookctl"), sandbox.path("new")).unwrap();
        fs::rename(sandbox.path("new"), &program).unwrap();
    };
    let run = |arguments: &[&str]| {
        let mut command = sandbox.command_of(program.to_str().unwrap());
        Outcome::of(command.args(arguments).output().unwrap())
    };
    install();
    let daemon = Daemon { sandbox: &sandbox };
    assert_eq!(run(&["start"]).code, 0);
    assert!(!run(&["status"]).stdout.contains('!'));
    install();
    let status = run(&["status"]);
    assert!(status.code == 0 && status.stdout.contains("webhookctl restart"), "{status:?}");
    assert_eq!(run(&["restart"]).code, 0);
    assert!(!run(&["status"]).stdout.contains('!'));
    assert_eq!(fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap(), fs::canonicalize(&program).unwrap());
}

#[test]
fn a_service_in_the_foreground_is_replaced_by_one_in_the_background() {
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    let daemon = Daemon { sandbox: &sandbox };
    let address = service.address;
    wait_until("readiness", || sandbox.run(&["status"]).code == 0);
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    assert_eq!(service.wait().code(), Some(0));
    assert_eq!(daemon.address(), address);
    assert_eq!(daemon.client().get("/payment/health").status, 200);
}

#[test]
fn another_address_is_taken_while_the_old_one_drains() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let old = daemon.address();
    let free = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    sandbox.configure(&CONFIG.replace("127.0.0.1:0", &free.to_string()));
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    assert_eq!(daemon.address(), free);
    assert_eq!(daemon.client().get("/payment/health").status, 200);
    assert!(TcpStream::connect(old).is_err(), "nobody serves it any more");
}

#[test]
fn a_service_that_does_not_answer_is_not_replaced() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let pid = daemon.pid();
    daemon.signal(Signal::SIGSTOP);
    let mut restart = Process::spawn(sandbox.command(&["restart", "--timeout", "0.5"]).stderr(Stdio::piped()));
    assert_eq!(restart.wait().code(), Some(1));
    let mut told = String::new();
    restart.stderr().read_to_string(&mut told).unwrap();
    assert!(told.contains(&format!("（pid {pid}）没有回应")) && !told.contains("照常运行"), "{told}");
    kill(pid, Signal::SIGCONT).unwrap();
    wait_until("health", || sandbox.run(&["status"]).code == 0);
    assert_eq!(daemon.pid(), pid);
}

#[test]
fn a_stop_during_a_restart_leaves_nobody() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    for round in 0..12 {
        sandbox.configure(CONFIG);
        let daemon = sandbox.start();
        let mut pids = vec![daemon.pid()];
        let (restart, stop) = std::thread::scope(|scope| {
            let restart = scope.spawn(|| sandbox.run(&["restart"]));
            // At another moment of it each time.
            std::thread::sleep(std::time::Duration::from_millis(3 * round));
            let stop = sandbox.run(&["stop"]);
            (restart.join().unwrap(), stop)
        });
        assert_eq!(stop.code, 0, "{stop:?} {restart:?}");
        // A restart that found nobody any more has started one: then that is what was asked for last.
        let has_started_anew = restart.code == 0 && restart.stdout.contains("已启动");
        let status = sandbox.run(&["status"]);
        assert_eq!(status.code, if has_started_anew { 0 } else { 3 }, "{status:?} {stop:?} {restart:?}");
        pids.extend(
            restart
                .stdout
                .split_once("→ ")
                .and_then(|(_, rest)| rest.split('，').next()?.parse().ok())
                .map(Pid::from_raw),
        );
        assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?} {restart:?}");
    }
}

#[test]
fn a_stop_after_a_restart_waits_for_what_the_old_process_has_begun() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let daemon = sandbox.start();
    let old = daemon.pid();
    let mut half = HalfSent::over(daemon.client(), &Notification::of(&order));
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    let stop = std::thread::scope(|scope| {
        let stop = scope.spawn(|| sandbox.run(&["stop"]));
        wait_until("a SIGTERM", || sandbox.log().contains("SIGTERM"));
        assert_eq!(half.finish().body, "success");
        stop.join().unwrap()
    });
    assert!(stop.code == 0 && !is_alive(old), "{stop:?}");
    assert_eq!(sandbox.run(&["status"]).code, 3);
}

#[test]
fn a_new_process_that_is_killed_is_followed_by_a_new_start_at_once() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let old = daemon.pid();
    let mut slow = daemon.client();
    slow.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx");
    assert_eq!(sandbox.run(&["restart"]).code, 0);
    daemon.signal(Signal::SIGKILL);
    wait_until("its death", || sandbox.run(&["status"]).code == 1);
    assert!(is_alive(old), "it has something to finish, and is in nobody's way");
    assert_eq!(sandbox.run(&["start"]).code, 0);
    assert_eq!(daemon.client().get("/payment/health").status, 200);
    drop(slow);
}

#[test]
fn merchants_that_only_the_old_process_knows_are_not_lost() {
    let sandbox = Sandbox::with_config("listen = \"127.0.0.1:0\"\n");
    let daemon = Daemon { sandbox: &sandbox };
    let mut command = sandbox.command(&["start"]);
    assert!(command.env("PAYMENT_PID", "1002").env("PAYMENT_KEY", KEY).output().unwrap().status.success());
    let pid = daemon.pid();
    let restart = sandbox.run(&["restart"]);
    assert!(restart.code == 6 && restart.stderr.contains("merchant"), "{restart:?}");
    assert_eq!(daemon.pid(), pid);
    let mut command = sandbox.command(&["restart"]);
    assert!(command.env("PAYMENT_PID", "1002").env("PAYMENT_KEY", KEY).output().unwrap().status.success());
    assert_ne!(daemon.pid(), pid);
}
