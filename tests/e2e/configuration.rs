//! `config init`, `config check`, `config show`, and what each mistake is answered with.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::support::*;

#[test]
fn what_init_writes_works_at_once() {
    let sandbox = Sandbox::empty();
    let outcome = sandbox.run(&["config", "init"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let file = sandbox.path("webhookctl.toml");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "it holds a key");
    assert_eq!(sandbox.run(&["config", "check"]).code, 0);
    let order = sandbox.json(&["orders", "create", "--telegram-id", "1001", "--package", "silver", "--json"]);
    assert_eq!(order["merchant"], "sandbox");

    let before = fs::read(&file).unwrap();
    let again = sandbox.run(&["config", "init"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("webhookctl.toml"), "{again:?}");
    assert_eq!(fs::read(&file).unwrap(), before, "never written over");
    let elsewhere = sandbox.run(&["--config", "other.toml", "config", "init"]);
    assert_eq!(elsewhere.code, 0);
    assert_ne!(fs::read(sandbox.path("other.toml")).unwrap(), before, "each has a key of its own");
    let english = sandbox.run(&["--config", "en.toml", "config", "init", "--language", "en"]);
    assert!(english.stderr.contains("Written"), "{english:?}");
    assert!(sandbox.run(&["--config", "en.toml", "config", "check"]).stdout.contains("nothing wrong"));
}

#[test]
fn each_mistake_names_file_key_and_remedy_and_exits_6() {
    let merchant = "[[merchant]]\npid = \"1002\"\nkey = \"k\"\n";
    let package = "[[package]]\nid = \"p\"\nname = \"N\"\nprice = \"1.00\"\ncredits = 1\n";
    for (config, key, remedy) in [
        ("lisen = \"0.0.0.0:1\"".to_owned(), "lisen", "`listen`"),
        ("[log]\nfiel = \"x\"".into(), "fiel", "`file`"),
        (merchant.replace("key", "kye"), "kye", "`key`"),
        (merchant.replace("\"k\"", "\"\""), "merchant[1002].key", "请填写"),
        (merchant.replace("key = \"k\"", ""), "merchant[1002].key", "key_file"),
        (format!("{merchant}{merchant}"), "merchant.pid", "1002"),
        (package.replace("1.00", "1.001"), "package[p].price", "\"36.00\""),
        (package.replace("\"N\"", "\"A&B\""), "package[p].name", "`&`"),
        (package.replace("\"N\"", "\"A=B\""), "package[p].name", "`=`"),
        (package.replace("\"N\"", "\"A+B\""), "package[p].name", "`+`"),
        (package.replace("\"N\"", "\"A%B\""), "package[p].name", "`%`"),
        (package.replace("\"N\"", "\"A\\u0007B\""), "package[p].name", "`U+0007`"),
        (merchant.replace("key = \"k\"", "key_file = \"none\""), "merchant[1002].key_file", "No such file"),
        ("listen = ".into(), "listen", "第 1 行"),
    ] {
        let sandbox = Sandbox::with_config(&config);
        for command in [&["config", "check"][..], &["serve"], &["orders", "list"]] {
            let outcome = sandbox.run(command);
            assert_eq!(outcome.code, 6, "{config}: {outcome:?}");
            assert_eq!(outcome.stderr.starts_with("初始化失败: "), command == ["serve"], "{outcome:?}");
            for part in [sandbox.path("webhookctl.toml").to_str().unwrap(), key, remedy] {
                assert!(outcome.stderr.contains(part), "{config}: {part} is not in {}", outcome.stderr);
            }
        }
        let outcome = sandbox.run(&["config", "check", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!((outcome.code, &report["errors"][0]["key"]), (6, &key.into()), "{config}");
    }
}

#[test]
fn a_key_without_quotes_is_not_repeated() {
    for config in [
        "[[merchant]]\npid = \"1002\"\nkey = 98765432101234\n",
        "merchant = [{ pid = \"1002\", key = 98765432101234 }]",
        "telegram.token = 98765432101234",
    ] {
        let outcome = Sandbox::with_config(config).run(&["config", "check"]);
        assert_eq!(outcome.code, 6);
        assert!(outcome.stderr.contains("引号") && !outcome.stderr.contains("98765432101234"), "{outcome:?}");
    }
}

#[test]
fn the_file_may_be_a_pipe() {
    let sandbox = Sandbox::empty();
    let mut child = sandbox
        .command(&["--config", "/dev/stdin", "config", "show", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(CONFIG.as_bytes()).unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(shown["merchant"][0]["pid"], PID);
}

#[test]
fn an_unreadable_key_file_is_named() {
    let sandbox = Sandbox::with_config("[[merchant]]\npid = \"1\"\nkey_file = \"secrets\"\n");
    fs::create_dir(sandbox.path("secrets")).unwrap();
    let outcome = sandbox.run(&["config", "check"]);
    assert_eq!(outcome.code, 6);
    assert!(outcome.stderr.contains(sandbox.path("secrets").to_str().unwrap()), "{outcome:?}");
}

#[test]
fn a_named_file_must_be_there_and_the_default_one_need_not() {
    let sandbox = Sandbox::empty();
    let outcome = sandbox.run(&["--config", "none.toml", "config", "check"]);
    assert_eq!(outcome.code, 6);
    assert!(outcome.stderr.contains("none.toml"), "{outcome:?}");
    let by_environment = sandbox.command(&["config", "check"]).env("WEBHOOKCTL_CONFIG", "none.toml").output().unwrap();
    assert_eq!(by_environment.status.code(), Some(6));
    // No file and no merchant: it runs, and it is a finding.
    assert_eq!(sandbox.run(&["config", "check"]).code, 10);
}

#[test]
fn the_file_is_found_by_option_then_environment_then_name() {
    let sandbox = Sandbox::with_config("listen = \"127.0.0.1:1001\"");
    fs::write(sandbox.path("two.toml"), "listen = \"127.0.0.1:1002\"").unwrap();
    fs::write(sandbox.path("three.toml"), "listen = \"127.0.0.1:1003\"").unwrap();
    let listen = |arguments: &[&str], environment: &str| {
        let output = sandbox.command(arguments).env("WEBHOOKCTL_CONFIG", environment).output().unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        shown["listen"].as_str().unwrap().to_owned()
    };
    assert_eq!(listen(&["config", "show", "--json"], ""), "127.0.0.1:1001");
    assert_eq!(listen(&["config", "show", "--json"], "two.toml"), "127.0.0.1:1002");
    assert_eq!(listen(&["--config", "three.toml", "config", "show", "--json"], "two.toml"), "127.0.0.1:1003");
    assert_eq!(listen(&["config", "show", "--json", "--config", "three.toml"], ""), "127.0.0.1:1003");
}

#[test]
fn what_is_in_force_is_shown_with_secrets_masked() {
    let sandbox = Sandbox::with_config(&format!("{CONFIG}\n[telegram]\ntoken_file = \"token\"\n"));
    fs::write(sandbox.path("token"), "1:hunter2\n").unwrap();
    let outcome = sandbox.run(&["config", "show"]);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for secret in [KEY, OTHER_KEY, "hunter2"] {
        assert!(!outcome.stdout.contains(secret));
    }
    for shown in ["***", "expire_after_s = 1800", "price = \"36.00\"", sandbox.database_file().to_str().unwrap()] {
        assert!(outcome.stdout.contains(shown), "{shown}: {}", outcome.stdout);
    }
    // What is shown must not be taken for a configuration with keys that everybody knows.
    fs::write(sandbox.path("shown.toml"), &outcome.stdout).unwrap();
    let masked = sandbox.run(&["--config", "shown.toml", "config", "check"]);
    assert_eq!(masked.code, 6);
    assert!(masked.stderr.contains("merchant[1002].key"), "{masked:?}");
    fs::write(sandbox.path("shown.toml"), outcome.stdout.replace("***", "k")).unwrap();
    assert_eq!(sandbox.run(&["--config", "shown.toml", "config", "check"]).code, 0);
}

#[test]
fn the_older_services_environment_still_works() {
    let sandbox = Sandbox::with_config("listen = \"127.0.0.1:0\"");
    let mut command = sandbox.command(&["serve"]);
    command.env("PAYMENT_PID", PID).env("PAYMENT_KEY", KEY);
    let service = Service::start(command);
    let create = ["orders", "create", "--telegram-id", "1001", "--amount", "36.00", "--credits", "70", "--json"];
    let output = sandbox.command(&create).env("PAYMENT_PID", PID).env("PAYMENT_KEY", KEY).output().unwrap();
    let order: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(service.notify(&Notification::of(order["order_no"].as_str().unwrap()).form()).1, "success");
    let without_key = sandbox.command(&["config", "check"]).env("PAYMENT_PID", PID).output().unwrap();
    assert_eq!(without_key.status.code(), Some(6));
    assert!(String::from_utf8(without_key.stderr).unwrap().contains("PAYMENT_KEY"));
}

#[test]
fn errors_speak_the_language_of_the_file() {
    let sandbox = Sandbox::with_config("language = \"en\"\nlisen = 1");
    let outcome = sandbox.run(&["config", "check"]);
    assert!(outcome.stderr.contains("Did you mean `listen`?"), "{outcome:?}");
}
