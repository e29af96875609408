//! Hostile clients on real sockets, while honest callbacks keep coming: none of these waits for a stranger, see [`honest`].
//!
//! A case names what strangers do; [`under_attack`] is the rest. Strangers have addresses of their own in 127.0.0.0/8, and the
//! gateway has another one; 127.0.0.1 is a trusted proxy, and no limit for one client holds for it.

mod connections;
mod flood;
mod framing;
mod honest;

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::support::*;
use honest::{Honest, SENDERS};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const PROXY: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// How much memory the service may ever have taken, in KiB.
const MEMORY_KIB_MAX: u64 = 100 * 1024;
/// How many connections one stranger opens.
const CROWD: usize = 2000;

/// As many as a case has time for on a quiet machine.
const ORDERS: usize = 12_000;

/// What a case has to do with: the service under attack, and the callbacks that go on meanwhile.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    service: &'a Service,
    honest: &'a Honest,
}

impl Scene<'_> {
    /// A connection from this address.
    fn client(&self, from: Ipv4Addr) -> Client {
        Client::over(connect_from(from, self.service.address).unwrap())
    }

    /// Many connections from this address. Some may be closed at once, which is no error here.
    fn crowd(&self, from: Ipv4Addr, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| connect_from(from, self.service.address).unwrap()).collect()
    }
}

/// The size of the service in memory, in KiB: `VmHWM` is the largest so far.
fn memory_kib(service: &Service, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs `attack` while honest callbacks keep coming. None of them may wait for a stranger, what they pay for is
/// credited, the service's memory bounded; and when it is over, the service stops as it always does.
#[track_caller]
fn under_attack(attack: impl FnOnce(&Scene)) {
    // Side by side, two of these would be twice what either of them means.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if !allow_descriptors(3 * CROWD as u64) {
        return;
    }
    let sandbox = Sandbox::new();
    let orders = sandbox.create_database_with_orders(ORDERS);
    let service = sandbox.serve();
    let honest = Honest::start(GATEWAY, service.address, service.pid(), sandbox.directory(), &orders);
    honest.go_on(SENDERS);
    attack(&Scene { sandbox: &sandbox, service: &service, honest: &honest });
    honest.go_on(5 * SENDERS);
    let paid = honest.end();
    let memory = memory_kib(&service, "VmHWM");
    assert!(memory < MEMORY_KIB_MAX, "{memory} KiB");
    let settled = sandbox.count("SELECT count(*) FROM orders WHERE status = 'paid' AND telegram_id = 1001");
    assert_eq!(settled, i64::try_from(paid.len()).unwrap());
    assert_eq!(sandbox.credits(1001), 70 * i64::try_from(paid.len()).unwrap());
    service.stop();
}

/// Sends as much of `bytes` as the other end takes, which may close the connection at any time.
fn offer(stream: &mut TcpStream, bytes: &[u8]) {
    let _ = takes(stream, bytes);
}

/// Whether the other end takes all of `bytes`.
fn takes(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionReset, WouldBlock};
    match stream.write_all(bytes) {
        Ok(()) => true,
        Err(error) => {
            assert!(matches!(error.kind(), BrokenPipe | ConnectionReset | WouldBlock), "{error}");
            false
        }
    }
}
