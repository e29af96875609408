//! `reload` and SIGHUP: another configuration in the running service.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;

use crate::support::*;

#[test]
fn reload_puts_everything_in_force_that_needs_no_restart() {
    let sandbox = Sandbox::new();
    let order = sandbox.order_of(OTHER_PID, 1001);
    let daemon = sandbox.start();
    let before = daemon.pid();
    let paid = Notification::of(&order).with("pid", OTHER_PID).signed_with("a new key");
    assert_eq!(daemon.notify(&paid.form()).1, "fail");

    let config = CONFIG.replace(OTHER_KEY, "a new key");
    sandbox.configure(&format!("language = \"en\"\n{config}\n[log]\nlevel = \"debug\"\n"));
    let reload = sandbox.run(&["reload"]);
    assert_eq!(reload.code, 0, "{reload:?}");
    assert!(reload.stdout.contains("reloaded") && reload.stderr.is_empty(), "{reload:?}");
    assert_eq!(daemon.notify(&paid.form()).1, "success");
    assert_eq!(daemon.client().get("/nowhere").status, 404);
    wait_until("a debug record", || sandbox.log().contains(" - DEBUG - "));
    assert!(sandbox.log().contains("configuration read again"), "{}", sandbox.log());

    let moved = config.replace("127.0.0.1:0", "127.0.0.1:1");
    let rest = "[database]\nurl = \"sqlite:other.db\"\n[service]\npid_file = \"data/webhookctl.pid\"\n";
    sandbox.configure(&format!("language = \"en\"\n{moved}\n{rest}"));
    let reload = sandbox.run(&["reload"]);
    assert_eq!(reload.code, 0, "{reload:?}");
    assert!(reload.stderr.contains("listen, database.url"), "what takes a restart is named: {reload:?}");
    assert_eq!((daemon.pid(), daemon.notify(&paid.form()).1), (before, "success".into()));
    assert!(!sandbox.path("other.db").exists());
}

#[test]
fn a_bad_file_leaves_everything_as_it_was() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let daemon = sandbox.start();
    for (config, word) in [
        (CONFIG.replace("36.00", "36.001"), "package[silver].price"),
        (CONFIG.replace("[[package]]", "[[pakage]]"), "pakage"),
        ("[[merchant".to_owned(), "TOML"),
        // As an editor leaves it for a moment.
        (String::new(), "merchant"),
    ] {
        sandbox.configure(&config);
        let reload = sandbox.run(&["reload"]);
        assert_eq!(reload.code, 6, "{reload:?}");
        assert!(word == "TOML" || reload.stderr.contains(word), "{word}: {reload:?}");
    }
    fs::remove_file(sandbox.path("webhookctl.toml")).unwrap();
    assert_eq!(sandbox.run(&["reload"]).code, 6, "nor does a file that has gone");
    wait_until("five records", || sandbox.log().matches(" - ERROR - 未重新加载").count() == 5);
    assert_eq!(daemon.notify(&Notification::of(&order).form()).1, "success");
}

#[test]
fn sighup_reopens_the_log_and_reads_the_file() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let file = sandbox.path("logs/payment_webhook_v1.log");
    let old = sandbox.path("logs/old.log");
    fs::rename(&file, &old).unwrap();
    sandbox.configure(&CONFIG.replace("36.00", "x"));
    service.signal(Signal::SIGHUP);
    service.wait_for_log("未重新加载");
    assert!(!file.exists(), "a bad file changes nothing at all");
    sandbox.configure(CONFIG);
    service.signal(Signal::SIGHUP);
    service.wait_for_log("已重新读取配置");
    wait_until("a new file", || sandbox.log().contains("已重新读取配置"));
    assert!(fs::read_to_string(old).unwrap().contains("未重新加载"));
    assert_eq!(service.get("/payment/health").status, 200, "and it goes on");
    service.stop();
}

#[test]
fn a_key_is_changed_without_refusing_a_callback() {
    let sandbox = Sandbox::new();
    let orders = sandbox.create_database_with_orders(400);
    let daemon = sandbox.start();
    let address = daemon.address();
    // The gateway signs with the old key until it is told of the new one, which is when both are in force.
    let (changed, over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for half in orders.chunks(200) {
            let (changed, over) = (&changed, &over);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for order in half.iter().cycle().take_while(|_| !over.load(Ordering::Relaxed)) {
                    let key = if changed.load(Ordering::Acquire) { "the new key" } else { KEY };
                    let answer = client.notify(&Notification::of(order).signed_with(key).form());
                    assert_eq!(answer, (200, "success".into()), "{key}");
                }
            });
        }
        let new = "key = \"the new key\"";
        let previous = format!("{new}\nkey_previous_file = \"old.key\"");
        let old = format!("key = \"{KEY}\"");
        fs::write(sandbox.path("old.key"), KEY).unwrap();
        sandbox.configure(&CONFIG.replace(&old, &previous));
        assert_eq!(sandbox.run(&["reload"]).code, 0);
        changed.store(true, Ordering::Release);
        // Some of what the old key signed is still on its way.
        for order in &orders[..20] {
            assert_eq!(daemon.notify(&Notification::of(order).form()).1, "success");
        }
        over.store(true, Ordering::Relaxed);
        wait_until("a hint", || sandbox.log().contains("key_previous"));
    });
    sandbox.configure(&CONFIG.replace(KEY, "the new key"));
    assert_eq!(sandbox.run(&["reload"]).code, 0);
    assert_eq!(daemon.notify(&Notification::of(&orders[0]).form()).1, "fail", "its time is over");
    assert_eq!(daemon.notify(&Notification::of(&orders[0]).signed_with("the new key").form()).1, "success");
}

#[test]
fn there_must_be_something_to_reload() {
    let sandbox = Sandbox::new();
    let reload = sandbox.run(&["reload"]);
    assert!(reload.code == 1 && reload.stderr.contains("webhookctl start"), "{reload:?}");
}

#[test]
fn a_configuration_from_a_pipe_is_not_read_again() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    let script = "cat webhookctl.toml | \"$0\" --config /dev/stdin serve";
    let mut shell = sandbox.command_of("sh");
    shell.args(["-c", script]).arg(env!("CARGO_BIN_EXE_webhookctl"));
    // /dev is where its relative paths would start.
    let paths = format!(
        "[database]\nurl = \"sqlite:{0}/data/telegram_bot_v2.db\"\n[service]\npid_file = \"{0}/data/webhookctl.pid\"\n[log]\nfile = \"{0}/x.log\"\n",
        sandbox.directory().display()
    );
    sandbox.configure(&format!("{CONFIG}{paths}"));
    let service = Service::start(shell);
    let reload = sandbox.run(&["reload"]);
    assert!(reload.code == 6 && reload.stderr.contains("普通文件"), "{reload:?}");
    assert_eq!(service.notify(&Notification::of(&order).form()).1, "success");
    assert_eq!(sandbox.run(&["stop"]).code, 0);
}

#[test]
fn a_closed_terminal_ends_the_service_and_a_signal_does_not() {
    // `script` gives it a terminal, and closes it when its own input ends.
    if Command::new("script").arg("--version").output().is_err() {
        eprintln!("skipped: script (Debian: bsdutils) is not installed");
        return;
    }
    let sandbox = Sandbox::new();
    let program = env!("CARGO_BIN_EXE_webhookctl");
    let mut command = sandbox.command_of("script");
    command.args(["--quiet", "--command", &format!("{program} serve"), "/dev/null"]);
    let terminal = Process::spawn(command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()));
    let daemon = Daemon { sandbox: &sandbox };
    wait_until("a service", || sandbox.run(&["status"]).code == 0);
    let pid = daemon.pid();
    daemon.signal(Signal::SIGHUP);
    wait_until("a reload", || sandbox.log().contains("已重新读取配置"));
    terminal.signal(Signal::SIGKILL);
    wait_until("its end", || !is_alive(pid));
    assert!(sandbox.log().contains("SIGHUP") && sandbox.log().contains("服务已停止"), "{}", sandbox.log());
}

#[test]
fn a_reload_that_hangs_keeps_no_service_from_ending() {
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    // Nobody writes to it, so whoever reads it waits: as a network file system does that is gone.
    assert!(Command::new("mkfifo").arg(sandbox.path("key")).status().unwrap().success());
    sandbox.configure(&CONFIG.replace(&format!("key = \"{KEY}\""), "key_file = \"key\""));
    service.signal(Signal::SIGHUP);
    assert_eq!(service.get("/payment/health").status, 200);
    service.signal(Signal::SIGTERM);
    service.wait_for_log("SIGTERM");
    assert_eq!(service.wait().code(), Some(0));
}
