//! The pretend gateway as a process, for tests of it and with it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::*;

/// A running `webhookctl gateway simulate`; a minute takes 50 ms.
pub struct Gateway {
    pub process: Process,
    pub address: SocketAddr,
    pub events: Arc<Mutex<Vec<Value>>>,
}

impl Gateway {
    pub fn start(sandbox: &Sandbox, options: &[&str]) -> Self {
        let usual = ["gateway", "simulate", "--listen", "127.0.0.1:0", "--json", "--minute", "0.05", "--seed", "1"];
        Self::run(&mut sandbox.command(&[&usual, options].concat()))
    }

    pub fn run(command: &mut Command) -> Self {
        let mut process = Process::spawn(command.stdout(Stdio::piped()));
        let mut lines = BufReader::new(process.stdout()).lines().map_while(Result::ok);
        let listening: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
        assert_eq!(listening["event"], "listening");
        let url = listening["url"].as_str().unwrap();
        let address = url.strip_prefix("http://").unwrap().strip_suffix('/').unwrap().parse().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in lines {
                told.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { process, address, events }
    }

    pub fn get(&self, target: &str) -> Response {
        Client::connect(self.address).get(target)
    }

    pub fn post(&self, path: &str, form: &str) -> Response {
        Client::connect(self.address).send(request(path, form))
    }

    pub fn json(&self, path: &str, form: &str) -> Value {
        let response = self.post(path, form);
        serde_json::from_str(&response.body).unwrap_or_else(|_| panic!("{response:?}"))
    }

    pub fn pay(&self, order: &str) {
        assert_eq!(self.post("/simulate/pay", &format!("out_trade_no={order}")).status, 200);
    }

    pub fn query(&self, order: &str) -> Value {
        let response = self.get(&format!("/api.php?act=order&pid={PID}&key={KEY}&out_trade_no={order}"));
        serde_json::from_str(&response.body).unwrap()
    }

    /// What the gateway knows of an order.
    pub fn order(&self, order: &str) -> Value {
        let orders: Vec<Value> = serde_json::from_str(&self.get("/simulate/orders").body).unwrap();
        orders.into_iter().find(|known| known["out_trade_no"] == order).unwrap()
    }

    #[track_caller]
    pub fn wait_for_callbacks(&self, order: &str, count: u64) {
        wait_until(&format!("{count} callbacks"), || self.order(order)["callbacks"].as_u64() >= Some(count));
    }

    #[track_caller]
    pub fn wait_for_delivery(&self, order: &str) {
        wait_until("delivered", || self.order(order)["delivered"] == true);
    }

    /// Waits for so many events of a kind about an order.
    #[track_caller]
    pub fn wait_for_events(&self, kind: &str, order: &str, count: usize) -> Vec<Value> {
        let found = || -> Vec<Value> {
            let events = self.events.lock().unwrap();
            let fits = |event: &&Value| event["event"] == kind && event["out_trade_no"] == order;
            events.iter().filter(fits).cloned().collect()
        };
        wait_until(&format!("{count} × {kind}"), || found().len() >= count);
        found()
    }

    pub fn stop(mut self) {
        self.process.signal(Signal::SIGTERM);
        assert_eq!(self.process.wait().code(), Some(0));
    }
}

pub fn request(path: &str, form: &str) -> String {
    let length = form.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {length}\r\n\r\n{form}"
    )
}
