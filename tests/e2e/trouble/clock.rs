//! The machine's clock is set back by an hour.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Shop;
use crate::simulated_gateway::Gateway;
use crate::stand_in::{Reply, StandIn};
use crate::support::*;

/// A clock that a test can set.
struct Clock(PathBuf);

impl Clock {
    /// For what `command` starts.
    fn of(sandbox: &Sandbox, command: &mut Command) -> Option<Self> {
        let program = find_program("faketime", "faketime")?;
        let library =
            sandbox.command_of(program.to_str().unwrap()).args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"]).output();
        let clock = Self(sandbox.path("clock"));
        clock.set("+0");
        command.env("LD_PRELOAD", String::from_utf8(library.unwrap().stdout).unwrap().trim());
        command.env("FAKETIME_TIMESTAMP_FILE", &clock.0).env("FAKETIME_NO_CACHE", "1");
        // Nobody can set that one.
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Some(clock)
    }

    /// So far from the real time.
    fn set(&self, offset: &str) {
        let new = self.0.with_extension("new");
        fs::write(&new, offset).unwrap();
        fs::rename(&new, &self.0).unwrap();
    }
}

#[test]
fn what_is_due_comes_no_later_when_the_clock_is_set_back_by_an_hour() {
    let telegram = StandIn::start({
        let first = AtomicBool::new(true);
        move |_| {
            if first.swap(false, Ordering::Relaxed) {
                Reply::of(429, r#"{"ok":false,"parameters":{"retry_after":4}}"#)
            } else {
                Reply::of(200, r#"{"ok":true,"result":{}}"#)
            }
        }
    });
    let sandbox = Sandbox::new();
    let gateway = Gateway::start(&sandbox, &["--fault", "never"]);
    sandbox.configure(&format!(
        "listen = \"127.0.0.1:0\"\n[[merchant]]\npid = \"{PID}\"\nkey = \"{KEY}\"\ngateway_url = \"http://{}/\"\n\
         notify_url = \"http://127.0.0.1:9/payment/notify\"\nreturn_url = \"http://127.0.0.1:9/payment/return\"\n\
         [[package]]\nid = \"silver\"\nname = \"VIP白银\"\nprice = \"36.00\"\ncredits = 70\n\
         [telegram]\ntoken = \"123456:AAsecret-token\"\napi_base = \"{}\"\n\
         [reconcile]\nschedule_s = [5, 10, 15, 20, 25, 30, 60]\nper_minute = 6000\n",
        gateway.address,
        telegram.url(),
    ));
    let mut shop = Shop::in_sandbox(sandbox, 10);
    let mut command = shop.sandbox.command(&["serve"]);
    let Some(clock) = Clock::of(&shop.sandbox, &mut command) else { return };
    let service = Service::start(command);
    let (lost, unpaid) = (shop.sandbox.order(1001), shop.sandbox.order(2001));
    shop.sell(&service);
    telegram.wait_for(1);
    wait_until("put off", || {
        shop.sandbox.count("SELECT count(*) FROM outbox WHERE error IS NOT NULL OR state <> 'due'") >= 1
    });

    clock.set("-3600");
    service.wait_for_log("系统时钟被调回 3");
    // The message that is to be tried again, the order whose callback never comes, and the one that nobody pays.
    telegram.wait_for(2);
    gateway.pay(&lost);
    wait_until("reconciled", || shop.sandbox.status(&lost) == "paid");
    shop.paid += 1;
    let lasts = format!("SELECT expires_at_ms - created_at_ms FROM orders WHERE order_no = '{unpaid}'");
    let left_s = shop.sandbox.count(&lasts) / 1000 + 3600;
    assert!((1790..=1810).contains(&left_s), "{left_s}");

    // And back where it was.
    clock.set("+0");
    shop.sell(&service);
    shop.settles_the_books(service);
}
