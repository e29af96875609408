//! The operator's commands, beside a running service and without one.

use std::process::Stdio;

use serde_json::json;

use crate::support::*;

#[test]
fn an_orders_json_has_just_the_keys_of_the_contract() {
    let sandbox = Sandbox::new();
    let arguments = ["orders", "create", "--telegram-id", "1001", "--package", "silver", "--merchant", PID, "--json"];
    let outcome = sandbox.run(&arguments);
    let order: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let order_no = order["order_no"].as_str().unwrap();
    assert!((1..=32).contains(&order_no.len()) && order_no.bytes().all(|b| b.is_ascii_alphanumeric()), "{order_no}");
    let created_at = order["created_at"].as_str().unwrap();
    assert_eq!(
        outcome.stdout,
        format!(
            "{{\"amount\":\"36.00\",\"created_at\":\"{created_at}\",\"credits\":70,\"merchant\":\"1002\",\
             \"order_no\":\"{order_no}\",\"package\":\"silver\",\"paid_at\":null,\"pay_url\":null,\"review_reason\":null,\
             \"settled_by\":null,\"status\":\"pending\",\"telegram_id\":1001,\"trade_no\":null,\"type\":\"alipay\"}}\n"
        )
    );
    assert_eq!(sandbox.run(&["orders", "show", order_no, "--json"]).stdout, outcome.stdout);
    assert_eq!(sandbox.json(&["orders", "list", "--json"]), json!([order]));
    assert_eq!(
        sandbox.run(&["users", "show", "1001", "--json"]).stdout,
        "{\"credits\":0,\"orders_paid\":0,\"telegram_id\":1001}\n"
    );
}

#[test]
fn an_order_needs_no_package() {
    let sandbox = Sandbox::new();
    let order = sandbox.json(&[
        "orders",
        "create",
        "--telegram-id",
        "7",
        "--amount",
        "0.5",
        "--credits",
        "3",
        "--type",
        "usdt",
        "--merchant",
        OTHER_PID,
        "--json",
    ]);
    assert_eq!(order["amount"], "0.50");
    assert_eq!(order["package"], json!(null));
    assert_eq!((&order["credits"], &order["type"], &order["merchant"]), (&json!(3), &json!("usdt"), &json!("2003")));
}

#[test]
fn wrong_usage_says_what_is_right_and_exits_2() {
    let sandbox = Sandbox::new();
    let create = ["orders", "create", "--telegram-id", "1001"];
    for (more, text) in [
        (&["--package", "silver"][..], "1002, 2003"),
        (&["--package", "gold", "--merchant", PID], "silver"),
        (&["--package", "silver", "--merchant", "7"], "1002, 2003"),
        (&["--merchant", PID], "--package"),
        (&["--amount", "1.00", "--merchant", PID], "--credits"),
        (&["--amount", "1.001", "--credits", "1", "--merchant", PID], "36.00"),
        (&["--amount", "-1", "--credits", "1", "--merchant", PID], "36.00"),
        (&["--amount", "0", "--credits", "1", "--merchant", PID], "36.00"),
        (&["--amount", "1.00", "--credits", "0", "--merchant", PID], "credits"),
        (&["--package", "silver", "--amount", "1.00", "--credits", "1"], "--amount"),
        (&["--package", "silver", "--merchant", PID, "--param", "a&b"], "&"),
        (&["--package", "silver", "--merchant", PID, "--type", "a b"], "alipay"),
    ] {
        let outcome = sandbox.run(&[&create[..], more].concat());
        assert_eq!(outcome.code, 2, "{more:?}: {outcome:?}");
        assert!(outcome.stderr.contains(text), "{more:?}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
    }
    for arguments in [
        &["orders", "create", "--telegram-id", "0", "--package", "silver"][..],
        &["orders", "list", "--status", "odd"],
        &["users", "grant", "1001", "0", "--reason", "x"],
        &["users", "grant", "1001", "5"],
        &["users", "grant", "1001", "5", "--reason", " "],
        &["orders", "show", "x\ny"],
        &["unheard-of"],
    ] {
        assert_eq!(sandbox.run(arguments).code, 2, "{arguments:?}");
    }
    assert!(!sandbox.database_file().exists(), "nothing was touched");
}

#[test]
fn what_is_not_there_is_told_and_exits_1() {
    let sandbox = Sandbox::new();
    for arguments in [&["orders", "list"][..], &["orders", "show", "X"], &["users", "show", "1001"]] {
        let outcome = sandbox.run(arguments);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stderr.contains("telegram_bot_v2.db"), "{outcome:?}");
    }
    assert!(!sandbox.database_file().exists(), "looking creates nothing");
    sandbox.order(1001);
    for arguments in [
        &["orders", "show", "X"][..],
        &["users", "show", "1002"],
        &["users", "grant", "1002", "5", "--reason", "x"],
        &["users", "grant", "1001", "-5", "--reason", "x"],
    ] {
        let outcome = sandbox.run(arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (1, ""), "{outcome:?}");
        assert!(outcome.stderr.starts_with("错误："), "{outcome:?}");
    }
}

#[test]
fn grants_are_kept_with_their_reason() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    let granted = sandbox.json(&["users", "grant", "1001", "5", "--reason", "补偿", "--json"]);
    assert_eq!(granted, json!({ "credits": 5, "orders_paid": 0, "telegram_id": 1001 }));
    assert_eq!(sandbox.run(&["users", "grant", "1001", "-2", "--reason", "误发"]).code, 0);
    let shown = sandbox.run(&["users", "show", "1001"]).stdout;
    for part in ["3 积分", "+5", "补偿", "-2", "误发"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn commands_work_beside_a_running_service() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let orders: Vec<_> = (0..5).map(|_| sandbox.order(1001)).collect();
    assert_eq!(service.notify(&Notification::of(&orders[2]).form()).1, "success");
    sandbox.run(&["users", "grant", "1001", "1", "--reason", "x"]);
    assert_eq!(sandbox.credits(1001), 71);
    let listed = |status: &str| {
        let list = sandbox.json(&["orders", "list", "--status", status, "--json"]);
        list.as_array().unwrap().iter().map(|order| order["order_no"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(listed("paid"), [orders[2].clone()]);
    assert_eq!(listed("pending"), [4, 3, 1, 0].map(|n: usize| orders[n].clone()));
    let text = sandbox.run(&["orders", "list"]).stdout;
    assert_eq!(text.lines().count(), 6, "{text}");
}

#[test]
fn what_a_gateway_sends_cannot_move_the_terminals_cursor() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let evil = Notification::of(&order).with("trade_no", "\u{1b}[31mT\nX\u{202e}");
    assert_eq!(service.notify(&evil.form()).1, "success");
    let shown = sandbox.run(&["orders", "show", &order]).stdout;
    assert!(shown.contains(r"\u{1b}[31mT\nX\u{202e}"), "{shown:?}");
    assert!(!shown.contains('\u{1b}') && !shown.contains('\u{202e}'), "{shown:?}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    let mut child = sandbox.command(&["orders", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn trigger_pays_an_order_as_the_gateway_would() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let address = service.address.to_string();
    let trigger = |order: &str, more: &[&str]| {
        let outcome = sandbox.run(&[&["trigger", order, "--address", &address][..], more].concat());
        (outcome.code, outcome.stdout)
    };
    let order = sandbox.order(1001);
    let (code, stdout) = trigger(&order, &["--method", "post"]);
    assert_eq!(code, 0, "{stdout}");
    assert!(stdout.contains("POST") && stdout.contains("sign=***") && stdout.contains("200 success"), "{stdout}");
    assert!(!stdout.contains(&Notification::of(&order).sign()), "{stdout}");
    assert_eq!(sandbox.credits(1001), 70);
    let (code, stdout) = trigger(&order, &["--repeat", "50", "--concurrency", "10", "--json"]);
    assert_eq!(code, 0);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["answers"], json!([{ "body": "success", "count": 50, "status": 200 }]));
    assert_eq!(report["sent"]["method"], "GET");
    assert_eq!(sandbox.credits(1001), 70);

    let fresh = sandbox.order(1001);
    for (more, outcome) in [
        (&["--bad-sign"][..], "bad_signature"),
        (&["--pid", "9999"], "unknown_merchant"),
        (&["--name", "a&b=c"], "malformed ambiguous_value name"),
        (&["--param", "x&y"], "malformed ambiguous_value param"),
        (&["--trade-no", &format!("T{order}")], "trade_reused"),
        (&["--money", "0.01"], "amount_mismatch"),
    ] {
        let (code, stdout) = trigger(&fresh, more);
        assert_eq!(code, 1, "{more:?}: {stdout}");
        assert!(stdout.contains("200 fail"), "{more:?}: {stdout}");
        service.wait_for_log(&format!(" - {outcome}"));
    }
    assert_eq!(trigger(&fresh, &["--status", "TRADE_CLOSED"]).0, 0);
    service.wait_for_log(" - not_paid");
    assert_eq!(trigger("NOSUCHORDER", &["--pid", PID, "--money", "1.00"]).0, 1);
    service.wait_for_log(" - unknown_order");
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn trigger_pays_no_real_merchants_order_unless_told_so() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let address = service.address.to_string();
    let order = sandbox.order_of(OTHER_PID, 1001);
    let refused = sandbox.run(&["trigger", &order, "--address", &address]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.contains("--live"), "{refused:?}");
    // Nor by naming a sandbox for its sender.
    assert_eq!(sandbox.run(&["trigger", &order, "--address", &address, "--pid", PID]).code, 1);
    assert_eq!(sandbox.credits(1001), 0);
    assert_eq!(sandbox.run(&["trigger", &order, "--address", &address, "--live"]).code, 0);
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn trigger_says_when_nobody_listens() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    // A port that the system picks for nobody.
    let outcome = sandbox.run(&["trigger", &order, "--address", "127.0.0.1:1"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("webhookctl start") && outcome.stderr.contains("refused"), "{outcome:?}");
    let unknown_port = sandbox.run(&["trigger", &order]);
    assert_eq!(unknown_port.code, 2);
    assert!(unknown_port.stderr.contains("--address"), "{unknown_port:?}");
}

#[test]
fn help_speaks_the_configured_language() {
    let chinese = Sandbox::new();
    let english = Sandbox::with_config(&format!("language = \"en\"\n{CONFIG}"));
    for arguments in [&["--help"][..], &["orders", "create", "-h"], &["help", "orders", "create"]] {
        let (zh, en) = (chinese.run(arguments), english.run(arguments));
        assert_eq!((zh.code, en.code), (0, 0), "{zh:?} {en:?}");
        assert!(zh.stdout.contains("用法：") && en.stdout.contains("Usage: "), "{zh:?} {en:?}");
    }
    let path = english.path("webhookctl.toml");
    let named = chinese.run(&["--config", path.to_str().unwrap(), "--help"]);
    assert!(named.stdout.contains("Usage: "), "{named:?}");
    assert_eq!(chinese.run(&["--version"]).stdout, format!("webhookctl {}\n", env!("CARGO_PKG_VERSION")));
}

/// What is wrong with an argument is told in the middle of a message of the command line's own.
#[test]
fn a_wrong_argument_is_told_in_the_configured_language() {
    let chinese = Sandbox::new();
    let english = Sandbox::with_config(&format!("language = \"en\"\n{CONFIG}"));
    for (arguments, zh_word, en_word) in [
        (&["logs", "--level", "loud"][..], "其中之一", "one of"),
        (&["users", "grant", "1001", "0", "--reason", "x"], "积分", "credits"),
        (&["stop", "--timeout", "soon"], "秒", "seconds"),
    ] {
        let (zh, en) = (chinese.run(arguments), english.run(arguments));
        assert_eq!((zh.code, en.code), (2, 2), "{zh:?} {en:?}");
        let told = |outcome: &Outcome| outcome.stderr.lines().next().unwrap_or_default().to_owned();
        let (zh, en) = (told(&zh), told(&en));
        assert!(zh.contains(zh_word) && en.contains(en_word) && en.is_ascii(), "{zh}\n{en}");
        let value = |line: &str| line.split(": ").take(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(value(&zh), value(&en), "the rest is clap's");
    }
}

#[test]
fn the_demo_needs_nothing_and_leaves_nothing() {
    for language in ["zh", "en"] {
        let sandbox = Sandbox::empty();
        let temporary = sandbox.path("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let output = sandbox.command(&["demo", "--language", language]).env("TMPDIR", &temporary).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{stdout}");
        assert_eq!(stdout.lines().filter(|line| line.starts_with("✓ ")).count(), 9, "{stdout}");
        assert!(!stdout.contains('✗') && stdout.contains("140"), "{stdout}");
        assert_eq!(language == "zh", stdout.contains("积分"), "{stdout}");
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(sandbox.directory()).unwrap().count(), 1, "only the directory made above");
    }
}

#[test]
fn every_shell_gets_completions_and_every_command_a_page_of_the_manual() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = sandbox.run(&["completions", shell]);
        assert_eq!(script.code, 0, "{script:?}");
        assert!(script.stdout.contains("reconcile"), "{shell}");
    }
    assert_eq!(sandbox.run(&["completions", "cmd.exe"]).code, 2);

    let page = sandbox.run(&["man"]);
    assert!(page.code == 0 && page.stdout.contains(".TH webhookctl 1"), "{page:?}");
    assert_eq!(sandbox.run(&["man", "--directory", "share/man1"]).code, 0);
    for name in ["webhookctl.1", "webhookctl-orders-create.1", "webhookctl-audit.1"] {
        assert!(sandbox.path("share/man1").join(name).is_file(), "{name}");
    }
    std::fs::write(sandbox.path("file"), "").unwrap();
    let refused = sandbox.run(&["man", "--directory", "file"]);
    assert!(refused.code == 1 && refused.stderr.contains("file"), "{refused:?}");
}

#[test]
fn completions_work_in_a_real_shell() {
    let Some(bash) = find_program("bash", "bash") else { return };
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("complete.sh"), sandbox.run(&["completions", "bash"]).stdout).unwrap();
    let script = "source ./complete.sh && COMP_WORDS=(webhookctl rec) COMP_CWORD=1 && \
                  _webhookctl webhookctl rec webhookctl && echo \"${COMPREPLY[@]}\"";
    let completed = Outcome::of(sandbox.command_of(bash.to_str().unwrap()).args(["-c", script]).output().unwrap());
    assert_eq!(completed.stdout.trim(), "reconcile", "{completed:?}");
}
