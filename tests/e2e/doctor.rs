//! `doctor`: all well, and each thing wrong in its own way.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};

use rusqlite::Connection;
use serde_json::Value;

use crate::manager::without_privileges;
use crate::simulated_gateway::Gateway;
use crate::stand_in::{Reply, Request, StandIn};
use crate::support::*;

const TOKEN: &str = "123456:AAtelegram-token";
const ME: &str = r#"{"ok":true,"result":{"id":1,"is_bot":true,"username":"example_bot"}}"#;
/// What a gateway says that knows the key and not the order.
const NO_ORDER: &str = r#"{"code":-1,"msg":"订单号不存在"}"#;

/// What stands around a service, each part a URL.
struct Around {
    gateway: String,
    notify_url: String,
    telegram: String,
}

impl Around {
    fn config(&self) -> String {
        let Self { gateway, notify_url, telegram } = self;
        format!(
            "listen = \"127.0.0.1:0\"\n[[merchant]]\npid = \"{PID}\"\nkey = \"{KEY}\"\ngateway_url = \"{gateway}\"\n\
             notify_url = \"{notify_url}\"\nreturn_url = \"http://127.0.0.1:1/payment/return\"\n\
             [[package]]\nid = \"silver\"\nname = \"VIP白银\"\nprice = \"36.00\"\ncredits = 70\n\
             [telegram]\ntoken = \"{TOKEN}\"\nbot_username = \"example_bot\"\napi_base = \"{telegram}\"\n"
        )
    }
}

/// Writes the configuration as a careful operator does.
fn configure(sandbox: &Sandbox, config: &str) {
    sandbox.configure(config);
    fs::set_permissions(sandbox.path("webhookctl.toml"), Permissions::from_mode(0o600)).unwrap();
}

/// The files that logrotate and systemd read, as the shipped ones would be installed.
fn install_system_files(sandbox: &Sandbox) {
    let path = |name: &str| sandbox.path("root").join(name);
    for directory in ["etc/logrotate.d", "etc/systemd/system/multi-user.target.wants", "run/systemd/system"] {
        fs::create_dir_all(path(directory)).unwrap();
    }
    let here = sandbox.directory().to_str().unwrap();
    let rotation =
        include_str!("../../scripts/webhookctl.logrotate").replace("/var/log/webhookctl", &format!("{here}/logs"));
    fs::write(path("etc/logrotate.d/webhookctl"), rotation).unwrap();
    let unit = include_str!("../../scripts/webhookctl.service").replace("/etc/webhookctl/", &format!("{here}/"));
    fs::write(path("etc/systemd/system/webhookctl.service"), unit).unwrap();
    let wanted = path("etc/systemd/system/multi-user.target.wants/webhookctl.service");
    symlink("/etc/systemd/system/webhookctl.service", wanted).unwrap();
}

/// What doctor says, which never has a secret in it.
#[track_caller]
fn examine(sandbox: &Sandbox) -> (i32, Value) {
    let root = sandbox.path("root");
    let told = sandbox.run(&["doctor", "--json", "--root", root.to_str().unwrap()]);
    assert!(!told.stdout.contains(KEY) && !told.stdout.contains(TOKEN), "{told:?}");
    assert_eq!(told.stderr, "");
    let report: Value = serde_json::from_str(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
    let count = |state: &str| checks(&report).iter().filter(|check| check["state"] == state).count();
    assert_eq!(
        (report["problems"].as_u64(), report["warnings"].as_u64()),
        (Some(count("problem") as u64), Some(count("warning") as u64),)
    );
    assert_eq!(told.code, if count("problem") > 0 { 10 } else { 0 });
    (told.code, report)
}

fn checks(report: &Value) -> &Vec<Value> {
    report["checks"].as_array().unwrap()
}

/// The state and the text of the check of this name, which there is once.
#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let is_it = |check: &&Value| check["name"].as_str().unwrap().split(':').next() == Some(name);
    let found: Vec<_> = checks(report).iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{name} {report}");
    (found[0]["state"].as_str().unwrap(), found[0]["text"].as_str().unwrap())
}

/// Looks, and expects this of one check.
#[track_caller]
fn expect(sandbox: &Sandbox, name: &str, state: &str, words: &str) {
    let (_, report) = examine(sandbox);
    let (found, text) = check(&report, name);
    assert!(found == state && text.contains(words), "{name}: {state} {words:?}, not {found}: {text}");
}

fn telegram() -> StandIn {
    StandIn::start(|request| {
        assert_eq!(request.path, format!("/bot{TOKEN}/getMe"));
        Reply::of(200, ME)
    })
}

fn gateway() -> StandIn {
    StandIn::start(|_| Reply::of(200, NO_ORDER))
}

/// A sandbox in which nothing but what a test changes is wrong; without a service.
fn sandbox(gateway: &str, telegram: &str) -> Sandbox {
    let sandbox = Sandbox::empty();
    let around = Around {
        gateway: gateway.into(),
        notify_url: "http://127.0.0.1:1/payment/notify".into(),
        telegram: telegram.into(),
    };
    configure(&sandbox, &around.config());
    install_system_files(&sandbox);
    sandbox
}

#[test]
fn where_all_is_well_every_check_says_so() {
    let telegram = telegram();
    let sandbox = sandbox("http://127.0.0.1:1/", &telegram.url());
    let gateway = Gateway::start(&sandbox, &[]);
    let mut command = sandbox.command(&["serve"]);
    // As systemd would start it.
    command.env("NOTIFY_SOCKET", sandbox.path("notify"));
    let service = Service::start(command);
    let around = Around {
        gateway: format!("http://{}/", gateway.address),
        notify_url: format!("http://{}/payment/notify", service.address),
        telegram: telegram.url(),
    };
    configure(&sandbox, &around.config());
    wait_until("ready", || sandbox.run(&["status"]).code == 0);

    let (code, report) = examine(&sandbox);
    for check in checks(&report) {
        // How much room there is here, no test can know.
        if check["name"] != "disk" {
            assert_eq!(check["state"], "ok", "{check}");
        }
        let keys: Vec<_> = check.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["name", "state", "text"]);
    }
    assert_eq!(code, 0);
    let names: Vec<_> = checks(&report).iter().map(|check| check["name"].as_str().unwrap().to_owned()).collect();
    let (gateway_name, url_name) = (format!("gateway:{PID}"), format!("notify_url:{}", around.notify_url));
    assert_eq!(
        names,
        [
            "configuration",
            "secrets",
            "directories",
            "disk",
            "database",
            "service",
            "clock",
            &gateway_name,
            &url_name,
            "telegram",
            "log_rotation",
            "systemd",
        ]
    );
    // For a person, one line each, in both languages.
    for (language, words) in [("zh", "0 个问题"), ("en", "problems: 0, warnings: 0")] {
        configure(&sandbox, &format!("language = \"{language}\"\n{}", around.config()));
        let told = sandbox.run(&["doctor", "--root", sandbox.path("root").to_str().unwrap()]);
        assert_eq!((told.code, told.stdout.lines().count()), (0, names.len() + 1), "{told:?}");
        assert!(told.stdout.contains(words) && !told.stdout.contains("%{"), "{told:?}");
    }
    // The callback that was sent changed nothing but the list of refused ones.
    assert_eq!(sandbox.count("SELECT count(*) FROM receipts"), 0);
    assert_eq!(sandbox.count("SELECT count(*) FROM rejections WHERE outcome = 'unknown_merchant'"), 3);
}

#[test]
fn before_the_first_start_what_cannot_be_looked_at_is_skipped() {
    let (gateway, telegram) = (gateway(), telegram());
    let sandbox = sandbox(&gateway.url(), &telegram.url());
    let (code, report) = examine(&sandbox);
    for (name, state) in [
        ("configuration", "ok"),
        ("secrets", "ok"),
        ("directories", "ok"),
        ("database", "skipped"),
        ("service", "warning"),
        ("clock", "skipped"),
        ("gateway", "ok"),
        ("notify_url", "skipped"),
        ("telegram", "ok"),
        ("log_rotation", "ok"),
        ("systemd", "ok"),
    ] {
        assert_eq!(check(&report, name).0, state, "{name} {report}");
    }
    assert_eq!(code, 0);
    assert!(!sandbox.database_file().exists() && !sandbox.pid_file().exists(), "it changes nothing");
    // With nothing configured there is nothing to ask.
    configure(&sandbox, "");
    let (_, report) = examine(&sandbox);
    for name in ["secrets", "gateway", "notify_url", "telegram", "clock"] {
        assert_eq!(check(&report, name).0, "skipped", "{name} {report}");
    }
    assert_eq!(check(&report, "configuration").0, "warning");
}

#[test]
fn a_broken_configuration_is_the_one_problem() {
    let sandbox = sandbox("http://127.0.0.1:1/", "http://127.0.0.1:1/");
    configure(&sandbox, "listn = \"0.0.0.0:5002\"\n");
    let (code, report) = examine(&sandbox);
    assert_eq!(code, 10);
    let (state, text) = check(&report, "configuration");
    assert!(state == "problem" && text.contains("listen"), "{report}");
    assert!(checks(&report)[1..].iter().all(|check| check["state"] == "skipped"), "{report}");
}

#[test]
fn what_others_can_read_or_change_is_told() {
    let (gateway, telegram) = (gateway(), telegram());
    let sandbox = sandbox(&gateway.url(), &telegram.url());
    let config = sandbox.path("webhookctl.toml");
    let mode = |path: &std::path::Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(&config, 0o644);
    expect(&sandbox, "secrets", "problem", "chmod o-rwx");
    mode(&config, 0o620);
    expect(&sandbox, "secrets", "problem", "chmod go-w");
    mode(&config, 0o640);
    expect(&sandbox, "secrets", "ok", "");
    // Without keys in it, everyone may read it.
    let key = sandbox.path("1002.key");
    fs::write(&key, KEY).unwrap();
    mode(&key, 0o600);
    configure(&sandbox, &format!("[[merchant]]\npid = \"{PID}\"\nkey_file = \"1002.key\"\n"));
    mode(&config, 0o644);
    expect(&sandbox, "secrets", "ok", "");
    mode(&key, 0o604);
    expect(&sandbox, "secrets", "problem", "1002.key");
    // Everyone may read the key that proves callbacks, and nobody else change it.
    let public = sandbox.path("platform.pem");
    fs::write(&public, include_str!("../keys/v2_platform_public.pem")).unwrap();
    configure(
        &sandbox,
        &format!("[[merchant]]\npid = \"{PID}\"\nprotocol = \"v2\"\nplatform_public_key_file = \"platform.pem\"\n"),
    );
    mode(&public, 0o644);
    expect(&sandbox, "secrets", "skipped", "");
    mode(&public, 0o666);
    expect(&sandbox, "secrets", "problem", "platform.pem");

    fs::create_dir(sandbox.path("data")).unwrap();
    mode(&sandbox.path("data"), 0o777);
    expect(&sandbox, "directories", "problem", "chmod o-w");
    mode(&sandbox.path("data"), 0o755);
    expect(&sandbox, "directories", "ok", "");
    // The database with all that belongs to it, and the log with what was rotated.
    fs::create_dir(sandbox.path("logs")).unwrap();
    for file in [
        "data/telegram_bot_v2.db",
        "data/telegram_bot_v2.db-shm",
        "data/telegram_bot_v2.db.before-restore-20260102T030405Z",
        "logs/payment_webhook_v1.log",
        "logs/payment_webhook_v1.log.1",
    ] {
        let path = sandbox.path(file);
        fs::write(&path, "").unwrap();
        mode(&path, 0o644);
        expect(&sandbox, "directories", "problem", &format!("{file}（0644）"));
        expect(&sandbox, "directories", "problem", "chmod o-rwx");
        mode(&path, 0o640);
        expect(&sandbox, "directories", "ok", "");
    }
    fs::remove_dir_all(sandbox.path("logs")).unwrap();
    fs::write(sandbox.path("logs"), "a file").unwrap();
    expect(&sandbox, "directories", "problem", "logs");
}

#[test]
fn what_this_user_cannot_write_is_told() {
    let (gateway, telegram) = (gateway(), telegram());
    let sandbox = sandbox(&gateway.url(), &telegram.url());
    fs::set_permissions(sandbox.path("webhookctl.toml"), Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(sandbox.path("data")).unwrap();
    fs::set_permissions(sandbox.path("data"), Permissions::from_mode(0o555)).unwrap();
    let told = Outcome::of(without_privileges(&sandbox, &["doctor", "--json"]).output().unwrap());
    assert_eq!(told.code, 10, "{told:?}");
    let report = serde_json::from_str(&told.stdout).unwrap();
    let (state, text) = check(&report, "directories");
    assert!(state == "problem" && text.contains("data") && text.contains("Permission denied"), "{text}");
}

#[test]
fn a_database_that_is_damaged_foreign_or_of_another_version_is_told() {
    let (gateway, telegram) = (gateway(), telegram());
    let sandbox = sandbox(&gateway.url(), &telegram.url());
    sandbox.create_database_with_orders(200);
    expect(&sandbox, "database", "ok", "4");
    let current = sandbox.count("PRAGMA user_version");
    let version = |version: i64| sandbox.database().pragma_update(None, "user_version", version).unwrap();
    version(99);
    expect(&sandbox, "database", "problem", "99");
    version(1);
    expect(&sandbox, "database", "problem", "backup restore");
    version(current);
    sandbox.database().execute_batch("CREATE TRIGGER mint AFTER INSERT ON receipts BEGIN SELECT 1; END").unwrap();
    expect(&sandbox, "database", "problem", "mint");
    sandbox.database().execute_batch("DROP TRIGGER mint").unwrap();
    expect(&sandbox, "database", "ok", "");
    // One row that is not in its index.
    let database = sandbox.database();
    database.execute_batch("PRAGMA writable_schema = ON").unwrap();
    database.execute("DELETE FROM sqlite_schema WHERE type = 'index' AND name = 'orders_by_trade'", []).unwrap();
    drop(database);
    expect(&sandbox, "database", "problem", "audit");
    fs::write(sandbox.database_file(), "no database at all ".repeat(1000)).unwrap();
    expect(&sandbox, "database", "problem", "");
    fs::remove_file(sandbox.database_file()).unwrap();
    let first = include_str!("../../src/store/sqlite/schema.sql");
    let is_ours = "PRAGMA application_id = 0x77686b63; PRAGMA user_version = 1";
    sandbox.database().execute_batch(&format!("{first}; {is_ours}")).unwrap();
    expect(&sandbox, "database", "warning", "backup create");
    fs::remove_file(sandbox.database_file()).unwrap();
    Connection::open(sandbox.database_file()).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    expect(&sandbox, "database", "problem", "database.url");
}

#[test]
fn a_service_that_died_is_told() {
    let (gateway, telegram) = (gateway(), telegram());
    let sandbox = sandbox(&gateway.url(), &telegram.url());
    let daemon = sandbox.start();
    expect(&sandbox, "service", "ok", "");
    // Enabled for boot, and started by hand beside.
    expect(&sandbox, "systemd", "warning", "systemctl start");
    let pid = daemon.pid();
    daemon.signal(nix::sys::signal::Signal::SIGKILL);
    wait_until("it is gone", || !is_alive(pid));
    expect(&sandbox, "service", "problem", &pid.to_string());
}

#[test]
fn a_gateway_that_does_not_take_the_key_or_is_none_is_told() {
    let telegram = telegram();
    let sandbox = sandbox("http://127.0.0.1:1/", &telegram.url());
    expect(&sandbox, "gateway", "problem", "gateway_url");
    expect(&sandbox, "clock", "skipped", "");
    let with = |gateway: &str| {
        let notify_url = "http://127.0.0.1:1/payment/notify".into();
        configure(&sandbox, &Around { gateway: gateway.into(), notify_url, telegram: telegram.url() }.config());
    };
    let key = sandbox.path("other.key");
    fs::write(&key, "quite another key").unwrap();
    let other = Gateway::start(&sandbox, &["--pid", PID, "--key-file", key.to_str().unwrap()]);
    with(&format!("http://{}/", other.address));
    expect(&sandbox, "gateway", "problem", "密钥");
    for (status, body, state) in [
        (200, "<html>welcome</html>", "problem"),
        (404, "not found", "problem"),
        (429, "", "warning"),
        (200, r#"{"code":-2,"msg":"商户不存在"}"#, "problem"),
        (200, r#"{"code":1,"status":1,"money":"36.00","trade_no":"1"}"#, "problem"),
    ] {
        let strange = StandIn::start(move |_| Reply::of(status, body));
        with(&strange.url());
        expect(&sandbox, "gateway", state, "");
    }
}

#[test]
fn a_clock_that_is_off_is_told() {
    let telegram = telegram();
    for (minutes, state, words) in [(-60, "problem", "快"), (60, "problem", "慢"), (-2, "warning", "快"), (0, "ok", "")]
    {
        let gateway =
            StandIn::start(move |_| Reply::with(200, &format!("Date: {}\r\n", http_date(minutes * 60)), NO_ORDER));
        let sandbox = sandbox(&gateway.url(), &telegram.url());
        expect(&sandbox, "clock", state, words);
    }
}

/// The time in so many seconds, as HTTP writes it.
fn http_date(seconds: i64) -> String {
    let database = Connection::open_in_memory().unwrap();
    let sql = "SELECT strftime('%w', t), strftime('%d', t), strftime('%m', t), strftime('%Y %H:%M:%S', t)
               FROM (SELECT datetime(unixepoch('now') + ?, 'unixepoch') AS t)";
    let parts = |row: &rusqlite::Row| -> rusqlite::Result<[String; 4]> {
        Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?])
    };
    let [weekday, day, month, rest] = database.query_row(sql, [seconds], parts).unwrap();
    let weekday = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"][weekday.parse::<usize>().unwrap()];
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    format!("{weekday}, {day} {} {rest} GMT", months[month.parse::<usize>().unwrap() - 1])
}

#[test]
fn a_token_that_is_none_and_another_bots_are_told() {
    let gateway = gateway();
    let expect_of = |reply: Reply, state: &str, words: &str| {
        let telegram = StandIn::start(move |_: &Request| reply.clone());
        expect(&sandbox(&gateway.url(), &telegram.url()), "telegram", state, words);
    };
    expect_of(Reply::of(200, ME), "ok", "@example_bot");
    expect_of(Reply::of(200, &ME.replace("example", "another")), "warning", "@another_bot");
    expect_of(Reply::of(401, r#"{"ok":false,"description":"Unauthorized"}"#), "problem", "@BotFather");
    expect_of(Reply::of(502, ""), "warning", "502");
    expect(&sandbox(&gateway.url(), "http://127.0.0.1:1"), "telegram", "problem", "api_base");
}

#[test]
fn an_address_that_does_not_lead_here_is_told_by_what_stands_there() {
    let (gateway, telegram) = (gateway(), telegram());
    let sandbox = sandbox(&gateway.url(), &telegram.url());
    let _daemon = sandbox.start();
    let expect_at = |notify_url: String, words: &str| {
        configure(&sandbox, &Around { gateway: gateway.url(), notify_url, telegram: telegram.url() }.config());
        expect(&sandbox, "notify_url", "problem", words);
    };
    // Bound, so that nobody else gets it, and nobody listens.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = taken.local_addr().unwrap();
    drop(taken);
    expect_at(format!("http://{free}/payment/notify"), "域名解析");
    expect_at(format!("http://{}/payment/notfy", sandbox_address(&sandbox)), "404");
    for (reply, words) in [
        (Reply::of(200, "<html>Welcome to nginx!</html>"), "Welcome to nginx"),
        (Reply::of(200, "success"), "success"),
        // As another installation of this program would.
        (Reply::of(200, "fail"), "database.url"),
        (
            Reply::with(301, "Location: https://bot.example.com/payment/notify?pid=x\r\n", ""),
            "https://bot.example.com/payment/notify",
        ),
        (Reply::of(403, ""), "403"),
        (Reply::of(404, ""), "404"),
        (Reply::of(502, "<html>Bad Gateway</html>"), "proxy_pass"),
        (Reply::of(418, ""), "418"),
        (Reply::Close, ""),
    ] {
        let other = StandIn::start(move |_| reply.clone());
        expect_at(format!("{}/payment/notify", other.url()), words);
    }
}

fn sandbox_address(sandbox: &Sandbox) -> String {
    sandbox.json(&["status", "--json"])["listen"].as_str().unwrap().to_owned()
}

#[test]
fn what_the_machine_does_not_do_is_told() {
    let (gateway, telegram) = (gateway(), telegram());
    let sandbox = sandbox(&gateway.url(), &telegram.url());
    let root = sandbox.path("root");
    fs::remove_file(root.join("etc/systemd/system/multi-user.target.wants/webhookctl.service")).unwrap();
    expect(&sandbox, "systemd", "warning", "systemctl enable");
    fs::remove_file(root.join("etc/systemd/system/webhookctl.service")).unwrap();
    expect(&sandbox, "systemd", "warning", "scripts/webhookctl.service");
    fs::remove_dir_all(root.join("run")).unwrap();
    expect(&sandbox, "systemd", "skipped", "systemd");
    let rotation = root.join("etc/logrotate.d/webhookctl");
    let text = fs::read_to_string(&rotation).unwrap();
    fs::write(&rotation, text.replace("    sharedscripts", "    copytruncate")).unwrap();
    expect(&sandbox, "log_rotation", "warning", "copytruncate");
    fs::remove_file(&rotation).unwrap();
    expect(&sandbox, "log_rotation", "warning", "/etc/logrotate.d/webhookctl");
}
