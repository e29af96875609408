//! The process runs out of descriptors, its log cannot be written, its clock is set back.

use std::fs;
use std::net::TcpStream;

use super::Shop;
use super::disk::{set_mode, without_privileges};
use crate::support::*;

#[test]
fn idle_connections_up_to_the_descriptor_limit_keep_no_payment_from_being_written() {
    let mut shop = Shop::new(10);
    let Some(program) = find_program("prlimit", "util-linux") else { return };
    let mut command = shop.sandbox.command_of(program.to_str().unwrap());
    command.args(["--nofile=100:100", env!("CARGO_BIN_EXE_webhookctl"), "serve"]);
    let service = Service::start(command);
    let mut early = service.client();
    assert_eq!(early.notify(&shop.next()), (200, "success".into()));
    shop.paid += 1;
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    let before = descriptors();
    let idle: Vec<_> = (0..120).map(|_| TcpStream::connect(service.address).unwrap()).collect();
    wait_until("connections are taken", || descriptors() >= before + 40);
    // Who is connected is served, and what opens a file of its own works as well.
    assert_eq!(early.notify(&shop.next()), (200, "success".into()));
    shop.paid += 1;
    let page = early.get(&format!("/payment/return?{}", Notification::of(&shop.orders[0]).form()));
    assert_eq!(page.status, 200, "{:#?}", service.log());
    assert_eq!(early.get("/payment/health").status, 200);
    // Another one waits until somebody goes.
    let mut late = service.client();
    late.write(post(&shop.next()));
    drop(idle);
    let answer = late.response().unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "success"));
    shop.paid += 1;
    shop.sell(&service);
    shop.settles_the_books(service);
}

#[test]
fn a_log_that_is_removed_goes_on_in_a_new_file() {
    let mut shop = Shop::new(10);
    let service = shop.sandbox.serve();
    shop.sell(&service);
    let logs = shop.sandbox.path("logs");
    for is_directory in [false, true] {
        if is_directory {
            fs::remove_dir_all(&logs).unwrap();
        } else {
            fs::remove_file(logs.join("payment_webhook_v1.log")).unwrap();
        }
        let order = shop.orders[shop.paid].clone();
        shop.sell(&service);
        wait_until("a record in a new file", || shop.sandbox.log().contains(&order));
    }
    shop.settles_the_books(service);
}

#[test]
fn a_log_that_cannot_be_written_costs_records_and_no_payment() {
    let mut shop = Shop::new(10);
    let Some(command) = without_privileges(&shop.sandbox, &["serve"]) else { return };
    let service = Service::start(command);
    shop.sell(&service);
    let logs = shop.sandbox.path("logs");
    fs::remove_file(logs.join("payment_webhook_v1.log")).unwrap();
    set_mode(&logs, 0o555);
    shop.sell(&service);
    service.wait_for_log("payment_webhook_v1.log");
    shop.sell(&service);
    assert_eq!(service.get("/payment/health").status, 200);
    assert_eq!(shop.sandbox.log(), "");
    set_mode(&logs, 0o755);
    wait_until("records again", || {
        service.get("/payment/notify?pid=nobody");
        shop.sandbox.log().contains("nobody")
    });
    shop.settles_the_books(service);
}
