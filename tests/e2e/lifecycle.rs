//! Starting, logging, stopping, and what goes wrong at each.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{ChildStderr, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::support::*;

#[test]
fn a_normal_start_writes_three_lines_to_file_and_console_alike() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let port = service.address.port();
    let expected = [
        "webhookctl::store - INFO - 数据库初始化完成".to_owned(),
        "webhookctl::service - INFO - 支付webhook服务V1初始化成功".to_owned(),
        format!("webhookctl::service - INFO - 启动支付webhook服务V1在端口{port}..."),
    ];
    let console = service.log();
    service.stop();
    let file = fs::read_to_string(sandbox.path("logs/payment_webhook_v1.log")).unwrap();
    for lines in [console.clone(), file.lines().map(str::to_owned).collect()] {
        for (line, expected) in lines.iter().zip(&expected) {
            let (time, rest) = line.split_once(" - ").unwrap();
            assert_eq!(rest, expected);
            assert_time(time);
        }
    }
    assert!(file.starts_with(&console[0]));
}

/// `2025-07-31 10:50:09,246`
fn assert_time(time: &str) {
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00 00:00:00,000");
}

#[test]
fn the_defaults_start_and_warn_that_there_is_no_merchant() {
    let sandbox = Sandbox::with_config("listen = \"127.0.0.1:0\"");
    let service = sandbox.serve();
    let warning = service.wait_for_log(" - WARNING - ");
    assert!(warning.contains("merchant"), "{warning}");
    assert_eq!(service.notify(&Notification::of("X").form()), (200, "fail".into()));
    service.wait_for_log("unknown_merchant");
}

#[test]
fn english_speaks_english() {
    let sandbox = Sandbox::with_config(&format!("language = \"en\"\n{CONFIG}"));
    let mut process = Process::spawn(sandbox.command(&["serve"]).stderr(Stdio::piped()).stdout(Stdio::null()));
    let mut lines = BufReader::new(process.stderr()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.ends_with("webhookctl::store - INFO - database ready"), "{first}");
}

#[test]
fn a_port_in_use_is_told_in_the_systems_own_words() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let second = Sandbox::with_config(&CONFIG.replace("127.0.0.1:0", &service.address.to_string()));
    let outcome = second.run(&["serve"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("初始化失败: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("Address already in use"), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.matches("初始化失败").count(), 1, "told once: {}", outcome.stderr);
    let file = fs::read_to_string(second.path("logs/payment_webhook_v1.log")).unwrap();
    assert!(file.contains(" - ERROR - 初始化失败: ") && file.contains("Address already in use"), "{file}");
    assert!(!second.database_file().exists(), "a start that fails leaves the database alone");
}

#[test]
fn without_a_console_the_cause_still_reaches_the_terminal() {
    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[log]\nconsole = false\n"));
    fs::create_dir(sandbox.path("data")).unwrap();
    fs::write(sandbox.database_file(), "this is not a database, whatever its name says".repeat(50)).unwrap();
    let outcome = sandbox.run(&["serve"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.starts_with("初始化失败: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("telegram_bot_v2.db"), "{}", outcome.stderr);
}

#[test]
fn another_programs_database_and_a_newer_one_are_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("data")).unwrap();
    sandbox.database().execute_batch("CREATE TABLE users (id INTEGER)").unwrap();
    let before = fs::read(sandbox.database_file()).unwrap();
    let outcome = sandbox.run(&["serve"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("初始化失败: ") && outcome.stderr.contains("database.url"), "{}", outcome.stderr);
    assert_eq!(fs::read(sandbox.database_file()).unwrap(), before);

    let sandbox = Sandbox::new();
    sandbox.order(1001);
    sandbox.database().pragma_update(None, "user_version", 99).unwrap();
    let outcome = sandbox.run(&["serve"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("99"), "{}", outcome.stderr);
}

#[test]
fn sigterm_and_sigint_drain_and_exit_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let sandbox = Sandbox::new();
        let mut service = sandbox.serve();
        let form = Notification::of(&sandbox.order(1001)).form();
        let mut idle = service.client();
        assert_eq!(idle.get("/payment/health").status, 200);
        // A request under way when the signal comes, and finished after it.
        let mut busy = service.client();
        let request = post(&form);
        let (first, rest) = request.split_at(request.len() - 5);
        busy.write(first);
        assert_eq!(service.get("/payment/health").status, 200);
        service.signal(signal);
        service.wait_for_log(signal.as_str());
        assert!(idle.is_closed());
        busy.write(rest);
        assert_eq!(busy.response().unwrap().body, "success");
        assert_eq!(service.wait().code(), Some(0), "{signal}");
        assert_eq!(sandbox.credits(1001), 70);
        service.wait_for_log("服务已停止");
        assert!(!sandbox.path("data/telegram_bot_v2.db-wal").exists(), "closed properly");
    }
}

#[test]
fn a_request_that_has_begun_is_answered_when_the_service_stops() {
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    let orders = sandbox.insert_orders(3);
    let request = |order: &str| post(&Notification::of(order).form());
    // Half a head on a new connection, half a head on a used one, and a connection that has said nothing yet.
    let (mut new, mut used, mut silent) = (service.client(), service.client(), service.client());
    assert_eq!(used.get("/payment/health").status, 200);
    let requests = [&orders[0], &orders[1], &orders[2]].map(|order| request(order));
    new.write(&requests[0][..30]);
    used.write(&requests[1][..30]);
    assert_eq!(service.get("/payment/health").status, 200);
    service.signal(Signal::SIGTERM);
    silent.write(&requests[2]);
    service.wait_for_log("SIGTERM");
    new.write(&requests[0][30..]);
    used.write(&requests[1][30..]);
    for client in [&mut new, &mut used, &mut silent] {
        let answer = client.response().unwrap();
        assert_eq!(answer.body, "success");
        assert!(client.is_closed());
    }
    assert_eq!(service.wait().code(), Some(0));
    assert_eq!(sandbox.credits(1001), 210);
}

#[test]
fn a_second_signal_exits_at_once_even_when_the_console_is_stuck() {
    let sandbox = Sandbox::new();
    let (mut process, address, _unread) = serve_with_stuck_console(&sandbox);
    let mut unfinished = Client::connect(address);
    unfinished.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(Client::connect(address).get("/payment/health").status, 200);
    process.signal(Signal::SIGTERM);
    // It has taken the first signal as soon as it takes no more connections.
    let until = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(address).is_ok() && Instant::now() < until {
        std::thread::yield_now();
    }
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(1));
}

#[test]
fn a_second_signal_exits_at_once() {
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    let mut unfinished = service.client();
    unfinished.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(service.get("/payment/health").status, 200);
    service.signal(Signal::SIGTERM);
    service.wait_for_log("SIGTERM");
    service.signal(Signal::SIGTERM);
    assert_eq!(service.wait().code(), Some(1));
    // Waiting for it would have ended in an answer, 408 after ten seconds.
    assert!(unfinished.response().is_none());
}

#[test]
fn signals_that_it_was_started_with_ignored_stay_so() {
    let sandbox = Sandbox::new();
    // As nohup does, and a shell with a command behind which there is an `&`.
    let mut command = sandbox.command_of("sh");
    command.args(["-c", &format!("trap '' HUP INT; exec {} serve", env!("CARGO_BIN_EXE_webhookctl"))]);
    let service = Service::start(command);
    service.signal(Signal::SIGHUP);
    service.signal(Signal::SIGINT);
    assert_eq!(service.get("/payment/health").status, 200);
    assert!(!service.log().iter().any(|line| line.contains("SIG")));
    service.stop();
}

#[test]
fn a_stop_under_load_answers_every_request_that_it_took() {
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    let forged = Notification::of("X").signed_with("guess").form();
    let (address, form) = (service.address, Arc::new(forged));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (form, answered) = (Arc::clone(&form), Arc::clone(&answered));
            std::thread::spawn(move || {
                // A connection for each request, until there is nobody to connect to.
                while let Ok(stream) = std::net::TcpStream::connect(address) {
                    let mut client = Client::over(stream);
                    let request = format!("GET /payment/notify?{form} HTTP/1.1\r\nHost: x\r\n\r\n");
                    match client.stream.write_all(request.as_bytes()).ok().and_then(|()| client.response()) {
                        Some(answer) => assert_eq!(answer.body, "fail"),
                        None => return 1,
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                0
            })
        })
        .collect();
    while answered.load(Ordering::Relaxed) < 200 {
        std::thread::yield_now();
    }
    service.signal(Signal::SIGTERM);
    let unanswered: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert_eq!(unanswered, 0, "so many connected and were not answered");
    assert_eq!(service.wait().code(), Some(0));
}

#[test]
fn a_connection_that_does_not_end_is_cut_after_the_stop_timeout() {
    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[service]\nstop_timeout_s = 1\n"));
    let mut service = sandbox.serve();
    let mut unfinished = service.client();
    unfinished.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(service.get("/payment/health").status, 200);
    service.signal(Signal::SIGTERM);
    assert_eq!(service.wait().code(), Some(0));
    service.wait_for_log("1 个连接");
}

/// A service whose standard error is a full pipe: the first lines are read to learn the address, and then nothing more.
fn serve_with_stuck_console(sandbox: &Sandbox) -> (Process, SocketAddr, ChildStderr) {
    let mut process = Process::spawn(sandbox.command(&["serve"]).stderr(Stdio::piped()).stdout(Stdio::null()));
    let mut stderr = process.stderr();
    let mut read = String::new();
    let address = loop {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        // The address is ASCII behind a Chinese word.
        read.push(char::from(byte[0]));
        if let Some((_, rest)) = read.split_once("127.0.0.1:")
            && let Some(end) = rest.find(|c: char| !c.is_ascii_digit())
        {
            break format!("127.0.0.1:{}", &rest[..end]).parse().unwrap();
        }
    };
    // Settlements are all logged: each is a record of about 200 bytes, and a pipe holds 64 KiB.
    let mut client = Client::connect(address);
    for order in &sandbox.insert_orders(1000) {
        assert_eq!(client.notify(&Notification::of(order).form()), (200, "success".into()));
    }
    (process, address, stderr)
}

#[test]
fn a_console_that_nobody_reads_blocks_no_payment() {
    let sandbox = Sandbox::new();
    let (mut process, _, _unread) = serve_with_stuck_console(&sandbox);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(0), "it stops, too");
    let file = fs::read_to_string(sandbox.path("logs/payment_webhook_v1.log")).unwrap();
    assert_eq!(file.matches(" - settled").count(), 1000, "the file is not affected");
}

#[test]
fn a_log_file_that_cannot_be_written_blocks_no_payment() {
    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[log]\nfile = \"/dev/full\"\n"));
    let service = sandbox.serve();
    let form = Notification::of(&sandbox.order(1001)).form();
    assert_eq!(service.notify(&form), (200, "success".into()));
    assert_eq!(service.wait_for_log("/dev/full").matches("No space left").count(), 1);
    service.stop();

    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[log]\nfile = \"webhookctl.toml/x.log\"\n"));
    let service = sandbox.serve();
    assert!(service.wait_for_log("webhookctl.toml/x.log").contains("File exists"));
    assert_eq!(service.get("/payment/health").status, 200);
}

#[test]
fn a_flood_is_logged_by_number() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let forged = Notification::of("X").signed_with("guess").form();
    let mut client = service.client();
    for _ in 0..300 {
        assert_eq!(client.notify(&forged), (200, "fail".into()));
    }
    service.stop();
    let file = fs::read_to_string(sandbox.path("logs/payment_webhook_v1.log")).unwrap();
    let named = file.matches(" - WARNING - bad_signature：").count();
    let counted: usize =
        file.lines().filter_map(|line| line.split_once("此前另有 ")?.1.split(' ').next()?.parse::<usize>().ok()).sum();
    assert!(named >= 50, "{named} named, {counted} counted");
    assert_eq!(named + counted, 300);
    assert_eq!(sandbox.count("SELECT count(*) FROM rejections"), 300);
}

#[test]
fn what_strangers_send_never_breaks_a_line_and_secrets_never_appear() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let evil = "A\nB\r\u{1b}[31m\u{2028}2099-01-01 00:00:00,000 - x - ERROR - forged";
    let settled = Notification::of(&order).with("trade_no", evil);
    assert_eq!(service.notify(&settled.form()).1, "success");
    for form in [
        Notification::of(evil).form(),
        Notification::of(evil).signed_with("x").form(),
        Notification::of(&order).with("pid", evil).form(),
        Notification::of(&order).with("a&b", "x").form(),
    ] {
        assert_eq!(service.notify(&form).1, "fail");
    }
    let signs = [settled.sign(), Notification::of(evil).sign(), Notification::of(evil).signed_with("x").sign()];
    service.stop();
    let file = fs::read_to_string(sandbox.path("logs/payment_webhook_v1.log")).unwrap();
    for line in file.lines() {
        assert_time(line.split_once(" - ").unwrap().0);
        assert!(!line.starts_with("2099"), "{line}");
    }
    assert!(file.contains(r"A\nB\r\u{1b}[31m\u{2028}2099"), "{file}");
    for secret in signs.iter().map(String::as_str).chain([KEY, OTHER_KEY]) {
        assert!(!file.contains(secret));
    }
    assert!(!file.contains('\u{1b}'));
}
