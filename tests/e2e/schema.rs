//! A database with something in its schema that is not this program's: every command that looks finds it, none that writes opens it.

use std::fs;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::*;

/// Gives a million credits to whoever pays, in books that add up.
const MINT: &str = "CREATE TRIGGER mint AFTER INSERT ON receipts BEGIN
    INSERT INTO ledger (telegram_id, kind, credits, reason, created_at_ms)
        SELECT telegram_id, 'grant', 1000000, 'x', 0 FROM orders WHERE id = NEW.order_id;
    UPDATE users SET credits = credits + 1000000 WHERE telegram_id = (SELECT telegram_id FROM orders WHERE id = NEW.order_id);
END";

fn schema_rows(audit: &Value) -> &Value {
    let check = audit["checks"].as_array().unwrap().iter().find(|check| check["name"] == "schema").unwrap();
    &check["rows"]
}

#[test]
fn a_doctored_backup_is_found_and_never_takes_the_databases_place() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    Connection::open(sandbox.path("copy")).unwrap().execute_batch(MINT).unwrap();
    let more = sandbox.order(1001);

    let row = json!([{ "detail": "trigger", "fault": "schema_foreign", "row": "mint", "table": "sqlite_schema" }]);
    assert_eq!(schema_rows(&sandbox.json_of(&["backup", "verify", "copy", "--json"], 10)), &row);
    for options in [&["--json"][..], &["--json", "--even-with-findings"]] {
        let refused = sandbox.json_of(&[&["backup", "restore", "copy"], options].concat(), 10);
        assert_eq!((&refused["restored"], schema_rows(&refused)), (&json!(false), &row));
    }
    assert_eq!(sandbox.status(&more), "pending");
    let service = sandbox.serve();
    assert_eq!(service.notify(&Notification::of(&order).form()), (200, "success".into()));
    assert_eq!(sandbox.credits(1001), 70);
}

#[test]
fn a_doctored_database_is_opened_by_nothing_and_a_backup_takes_its_place() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    assert_eq!(sandbox.run(&["backup", "create", "copy"]).code, 0);
    sandbox.database().execute_batch(MINT).unwrap();
    let before = fs::read(sandbox.database_file()).unwrap();
    let audit = sandbox.json_of(&["audit", "--json"], 10);
    assert_eq!((&audit["findings"], &schema_rows(&audit)[0]["row"]), (&json!(1), &json!("mint")));
    let told = sandbox.run(&["audit"]);
    assert!(told.code == 10 && told.stdout.contains("mint") && told.stderr.contains("backup restore"), "{told:?}");
    let daemon = Daemon { sandbox: &sandbox };
    for arguments in [
        &["serve"][..],
        &["start"],
        &["orders", "create", "--telegram-id", "1001", "--package", "silver", "--merchant", PID],
        &["orders", "list"],
        &["orders", "settle", &order, "--reason", "x"],
        &["users", "show", "1001"],
        &["explain", &order],
        &["reconcile"],
    ] {
        let refused = sandbox.run(arguments);
        assert_eq!(refused.code, 1, "{arguments:?} {refused:?}");
        assert!(refused.stderr.contains("trigger mint"), "{arguments:?} {refused:?}");
        assert!(refused.stderr.contains("webhookctl backup restore"), "{arguments:?} {refused:?}");
    }
    drop(daemon);
    assert!(fs::read(sandbox.database_file()).unwrap() == before);
    // Whatever is in the old one, it can be replaced, and is kept.
    let restored = sandbox.json(&["backup", "restore", "copy", "--json"]);
    assert_eq!(sandbox.status(&order), "pending");
    assert_eq!(sandbox.json(&["audit", "--json"])["findings"], 0);
    let kept = restored["kept"].as_str().unwrap();
    assert_eq!(sandbox.run(&["backup", "verify", kept]).code, 10);
}

#[test]
fn an_index_that_the_bot_added_is_refused_until_it_is_removed() {
    let sandbox = Sandbox::new();
    let order = sandbox.order(1001);
    sandbox.configure(&format!("language = \"en\"\n{CONFIG}"));
    sandbox.database().execute_batch("ANALYZE; CREATE INDEX bot_orders ON orders (created_at_ms)").unwrap();
    let refused = sandbox.run(&["orders", "list"]);
    let removal = "DROP INDEX \"bot_orders\";";
    assert!(refused.code == 1 && refused.stderr.contains("does not belong to this program"), "{refused:?}");
    assert!(refused.stderr.trim_end().ends_with(removal), "{refused:?}");
    sandbox.database().execute_batch(removal).unwrap();
    assert_eq!(sandbox.status(&order), "pending");
}
