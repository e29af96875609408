//! `backup`: copies made beside a running service, proved, and put back while it is stopped.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use rusqlite::Connection;
use serde_json::json;

use crate::support::*;

fn files(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn copies_made_while_callbacks_settle_orders_audit_clean() {
    const SENDERS: usize = 4;
    let sandbox = Sandbox::new();
    let orders = sandbox.create_database_with_orders(1200);
    let service = sandbox.serve();
    let settled = AtomicUsize::new(0);
    fs::create_dir(sandbox.path("copies")).unwrap();
    let mut counts = Vec::new();
    std::thread::scope(|scope| {
        for part in orders.chunks(orders.len() / SENDERS) {
            let (service, settled) = (&service, &settled);
            scope.spawn(move || {
                let mut client = service.client();
                for order in part {
                    let form = Notification::of(order).form();
                    // A disk that is too busy is no fault of anybody's: gateways send again.
                    let is_settled = (0..10).any(|_| match client.notify(&form) {
                        (200, answer) if answer == "success" => true,
                        (503, answer) if answer == "fail" => false,
                        other => panic!("{other:?}"),
                    });
                    assert!(is_settled, "{:#?}", service.log());
                    settled.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for number in 0..4 {
            // In the midst of it.
            wait_until("callbacks", || settled.load(Ordering::SeqCst) > number * 200);
            let before = settled.load(Ordering::SeqCst);
            let file = format!("copies/{number}");
            let created = sandbox.json(&["backup", "create", &file, "--json"]);
            assert_eq!(created["bytes"], sandbox.path(&file).metadata().unwrap().len());
            // Senders in whose hands an answer is count a moment after the commit.
            counts.push((before, settled.load(Ordering::SeqCst) + SENDERS));
        }
    });
    for (number, (before, after)) in counts.into_iter().enumerate() {
        let file = format!("copies/{number}");
        let audit = sandbox.json(&["backup", "verify", &file, "--json"]);
        assert_eq!((&audit["findings"], &audit["orders"]), (&json!(0), &json!(1201)), "{audit}");
        let settled = usize::try_from(audit["settled"].as_u64().unwrap()).unwrap();
        assert!((before..=after).contains(&settled), "{before} {settled} {after}");
        assert_eq!(sandbox.path(&file).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(files(&sandbox.path("copies")), ["0", "1", "2", "3"].map(str::to_owned).into());
    service.stop();
}

#[test]
fn a_file_that_is_there_is_kept_unless_it_is_said_otherwise() {
    let sandbox = Sandbox::new();
    let nothing = sandbox.run(&["backup", "create", "copy"]);
    assert_eq!(nothing.code, 1, "{nothing:?}");
    assert!(!sandbox.database_file().exists());
    sandbox.order(1001);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    sandbox.order(1001);
    let refused = sandbox.run(&["backup", "create", "copy"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("--overwrite"), "{refused:?}");
    assert_eq!(sandbox.json(&["backup", "verify", "copy", "--json"])["orders"], 1);
    assert_eq!(sandbox.run(&["backup", "create", "copy", "--overwrite"]).code, 0);
    assert_eq!(sandbox.json(&["backup", "verify", "copy", "--json"])["orders"], 2);
    let itself = sandbox.run(&["backup", "create", "data/telegram_bot_v2.db", "--overwrite"]);
    assert_eq!(itself.code, 1, "{itself:?}");
    assert_eq!(sandbox.count("SELECT count(*) FROM orders"), 2);
}

#[test]
fn a_damaged_copy_is_found_and_does_not_take_the_databases_place() {
    let sandbox = Sandbox::new();
    sandbox.create_database_with_orders(300);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    let mut copy = fs::OpenOptions::new().write(true).open(sandbox.path("copy")).unwrap();
    copy.seek(SeekFrom::Start(5 * 4096)).unwrap();
    copy.write_all(&[0x5a; 4 * 4096]).unwrap();
    let bytes = fs::read(sandbox.path("copy")).unwrap();

    let audit = sandbox.json_of(&["backup", "verify", "copy", "--json"], 10);
    assert_eq!(audit["checks"][0]["name"], "integrity");
    assert!(audit["checks"][0]["findings"].as_u64().unwrap() > 0, "{audit}");
    assert_eq!(sandbox.run(&["backup", "verify", "copy"]).code, 10);
    let refused = sandbox.json_of(&["backup", "restore", "copy", "--json"], 10);
    assert_eq!(refused["restored"], false);
    assert!(fs::read(sandbox.path("copy")).unwrap() == bytes);
    assert_eq!(sandbox.json(&["audit", "--json"])["orders"], 301);

    // Books that are wrong can be taken all the same, and a buyer who paid twice is no reason not to.
    sandbox.run(&["backup", "create", "copy", "--overwrite"]);
    Connection::open(sandbox.path("copy"))
        .unwrap()
        .execute("UPDATE users SET credits = 5 WHERE telegram_id = 1001", [])
        .unwrap();
    assert_eq!(sandbox.json_of(&["backup", "restore", "copy", "--json"], 10)["findings"], 1);
    let taken = sandbox.json(&["backup", "restore", "copy", "--json", "--even-with-findings"]);
    assert_eq!((&taken["restored"], &taken["findings"]), (&json!(true), &json!(1)));
    assert_eq!(sandbox.credits(1001), 5);
}

#[test]
fn a_restore_waits_for_nobody_and_goes_back_to_the_copy() {
    let sandbox = Sandbox::new();
    let (kept, lost) = {
        let daemon = sandbox.start();
        let kept = sandbox.order(1001);
        assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
        let lost = sandbox.order(1001);
        assert_eq!(daemon.notify(&Notification::of(&kept).form()), (200, "success".into()));
        let refused = sandbox.run(&["backup", "restore", "copy"]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("webhookctl stop"), "{refused:?}");
        assert_eq!(sandbox.status(&kept), "paid");
        assert_eq!(sandbox.run(&["stop"]).code, 0);
        (kept, lost)
    };
    let restored = sandbox.json(&["backup", "restore", "copy", "--json"]);
    assert_eq!((&restored["restored"], &restored["orders"]), (&json!(true), &json!(1)));
    let old = restored["kept"].as_str().unwrap();
    assert!(old.contains(".before-restore-"), "{old}");
    assert_eq!(sandbox.status(&kept), "pending");
    assert_eq!(sandbox.run(&["orders", "show", &lost]).code, 1);

    let daemon = sandbox.start();
    // The order may have been settled, refunded or made good since the copy, and there is no gateway to ask.
    assert_eq!(daemon.notify(&Notification::of(&kept).form()), (200, "fail".into()));
    let settled = sandbox.json(&["orders", "settle", &kept, "--reason", "paid after the backup", "--json"]);
    assert_eq!((&settled["trade_no"], sandbox.credits(1001)), (&json!(format!("T{kept}")), 70));
    assert_eq!(daemon.notify(&Notification::of(&kept).form()), (200, "success".into()));
    assert_eq!(sandbox.json(&["audit", "--json"])["findings"], 0);
    // What was put aside is whole, too.
    assert_eq!(sandbox.json(&["backup", "verify", old, "--json"])["settled"], 1);
}

#[test]
fn a_restore_that_is_killed_leaves_the_old_database_or_the_new_one() {
    let sandbox = Sandbox::new();
    sandbox.create_database_with_orders(300);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    let more = sandbox.order(1001);
    let is_there = || sandbox.run(&["orders", "show", &more]).code == 0;
    for number in 0..12 {
        assert!(is_there());
        let mut restoring =
            Process::spawn(sandbox.command(&["backup", "restore", "copy"]).stdout(Stdio::null()).stderr(Stdio::null()));
        std::thread::sleep(Duration::from_millis(4 * number));
        restoring.signal(Signal::SIGKILL);
        restoring.wait();
        assert_eq!(sandbox.json(&["audit", "--json"])["findings"], 0);
        let kept = files(&sandbox.path("data")).into_iter().filter(|name| name.contains(".before-restore-")).min();
        if let Some(kept) = kept.map(|kept| sandbox.path("data").join(kept)) {
            // Between two steps: the name is a second one of the database, which is still the old one.
            if is_same_file(&kept, &sandbox.database_file()) {
                assert!(is_there());
                sandbox.serve().stop();
                assert!(!kept.exists() && is_there());
                continue;
            }
            assert_eq!(sandbox.json(&["backup", "verify", kept.to_str().unwrap(), "--json"])["orders"], 302);
            if !is_there() {
                assert_eq!(sandbox.run(&["backup", "restore", kept.to_str().unwrap()]).code, 0);
            }
            for name in files(&sandbox.path("data")).iter().filter(|name| name.contains(".before-restore-")) {
                fs::remove_file(sandbox.path("data").join(name)).unwrap();
            }
        }
    }
    sandbox.serve().stop();
    let left = files(&sandbox.path("data"));
    assert!(!left.iter().any(|name| name.starts_with(".webhookctl-")), "{left:?}");
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino())).unwrap();
    id(one) == id(other)
}

#[test]
fn an_operator_hears_what_an_interrupted_restore_left_and_loses_nothing() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    let interrupt = || {
        let link = sandbox.path("data/telegram_bot_v2.db.before-restore-20261128T100000Z");
        fs::hard_link(sandbox.database_file(), &link).unwrap();
        link
    };
    let link = interrupt();
    let service = sandbox.serve();
    service.wait_for_log(link.to_str().unwrap());
    assert!(!link.exists());
    assert_eq!(service.notify(&Notification::of(&order).form()), (200, "success".into()));
    service.stop();
    assert_eq!(sandbox.credits(1001), 70);

    let link = interrupt();
    let restored = sandbox.run(&["backup", "restore", "copy"]);
    assert!(restored.code == 0 && restored.stderr.contains(link.to_str().unwrap()), "{restored:?}");
    assert!(!link.exists());
    assert_eq!(sandbox.status(&order), "pending");
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let sandbox = Sandbox::new();
    sandbox.order(1001);
    let database = sandbox.database();
    database.execute_batch("CREATE TABLE filler (a)").unwrap();
    for _ in 0..24 {
        database.execute("INSERT INTO filler VALUES (zeroblob(1 << 20))", []).unwrap();
    }
    drop(database);
    fs::create_dir(sandbox.path("copies")).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = sandbox.command(&["backup", "create", "copies/a"]);
        let mut creating = Process::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        wait_until("it has begun", || !files(&sandbox.path("copies")).is_empty());
        creating.signal(signal);
        let code = creating.wait().code();
        // It may have been done by then.
        let expected: &[&str] = if code == Some(0) { &["a"] } else { &[] };
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
        assert_eq!(files(&sandbox.path("copies")), expected.iter().map(|name| (*name).to_owned()).collect());
        let _ = fs::remove_file(sandbox.path("copies/a"));
    }
}

#[test]
fn root_does_not_put_a_file_there_that_the_services_user_cannot_open() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    std::os::unix::fs::chown(sandbox.database_file(), Some(12345), None).unwrap();
    let before = files(&sandbox.path("data"));
    let refused = sandbox.run(&["backup", "restore", "copy"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert_eq!(files(&sandbox.path("data")), before);
    assert_eq!(sandbox.status(&order), "pending");
}
