//! What systemd is told and what it gives, with this test in its place.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::*;

/// The socket that systemd listens on.
struct Systemd {
    socket: UnixDatagram,
    /// As `NOTIFY_SOCKET` has it.
    name: String,
}

impl Systemd {
    fn new(sandbox: &Sandbox) -> Self {
        let path = sandbox.path("notify").to_str().unwrap().to_owned();
        Self::listening(UnixDatagram::bind(&path).unwrap(), path)
    }

    fn listening(socket: UnixDatagram, name: String) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, name }
    }

    fn serve(&self, sandbox: &Sandbox) -> Service {
        self.serve_with(sandbox, &[])
    }

    fn serve_with(&self, sandbox: &Sandbox, variables: &[(&str, &str)]) -> Service {
        let mut command = sandbox.command(&["serve"]);
        command.env("NOTIFY_SOCKET", &self.name).envs(variables.iter().copied());
        Service::start(command)
    }

    /// The next message.
    fn hears(&self) -> String {
        let mut bytes = [0; 4096];
        let count = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    /// What has been sent up to now.
    fn heard(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        let mut bytes = [0; 4096];
        while let Ok(count) = self.socket.recv(&mut bytes) {
            heard.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
        }
        self.socket.set_nonblocking(false).unwrap();
        heard
    }
}

#[test]
fn it_is_told_of_readiness_reloads_and_the_end() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let mut service = systemd.serve(&sandbox);
    let ready = systemd.hears();
    assert!(ready.contains("READY=1\n") && ready.contains(&service.address.to_string()), "{ready}");
    assert_eq!(service.get("/payment/health").status, 200);
    for config in [CONFIG.to_owned(), CONFIG.replace("36.00", "x")] {
        sandbox.configure(&config);
        service.signal(Signal::SIGHUP);
        let reloading = systemd.hears();
        assert!(reloading.contains("RELOADING=1\n") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
        assert!(systemd.hears().contains("READY=1\n"), "a failed reload has an end, too");
    }
    service.signal(Signal::SIGTERM);
    assert_eq!(systemd.hears().trim(), "STOPPING=1");
    assert!(service.wait().success());
}

#[test]
fn it_may_listen_without_a_file() {
    let sandbox = Sandbox::new();
    let name = format!("webhookctl-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let systemd = Systemd::listening(socket, format!("@{name}"));
    let service = systemd.serve(&sandbox);
    assert!(systemd.hears().contains("READY=1\n"));
    service.stop();
}

#[test]
fn the_watchdog_is_fed_only_while_the_writer_answers() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let service = systemd.serve_with(&sandbox, &[("WATCHDOG_USEC", "100000")]);
    assert!(systemd.hears().contains("READY=1"));
    assert_eq!(systemd.hears().trim(), "WATCHDOG=1");
    let locked = sandbox.database();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    // A job that has to write keeps the writer busy with the lock, and the probes waiting behind it.
    let order_no = "NOSUCHORDER";
    let stuck = std::thread::spawn({
        let mut client = service.client();
        move || client.notify(&Notification::of(order_no).form())
    });
    wait_until("a stuck writer", || service.get("/payment/health").status == 503);
    systemd.heard();
    assert_eq!(service.get("/payment/health").status, 503);
    assert_eq!(systemd.heard(), Vec::<String>::new(), "not well, and said to be alive");
    locked.execute_batch("ROLLBACK").unwrap();
    assert_eq!(systemd.hears().trim(), "WATCHDOG=1", "well again");
    stuck.join().unwrap();
}

#[test]
fn what_it_owns_it_restarts() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let service = systemd.serve(&sandbox);
    systemd.hears();
    let restart = sandbox.run(&["restart"]);
    assert_eq!(restart.code, 1, "{restart:?}");
    assert!(restart.stderr.contains("systemctl restart ") && restart.stderr.contains(".service"), "{restart:?}");
    assert_eq!(service.get("/payment/health").status, 200);
    let status = sandbox.run(&["status"]);
    assert!(status.code == 0 && status.stdout.contains(".service"), "{status:?}");
    let stop = sandbox.run(&["stop"]);
    assert!(stop.code == 0 && stop.stderr.contains("systemctl stop "), "{stop:?}");
}

#[test]
fn what_it_owns_it_starts_after_a_crash() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let mut service = systemd.serve(&sandbox);
    systemd.hears();
    service.signal(Signal::SIGKILL);
    service.wait();
    let status = sandbox.run(&["status"]);
    assert!(status.code == 1 && status.stdout.contains("systemctl start "), "{status:?}");
    let doctor = sandbox.run(&["doctor"]);
    assert!(doctor.code == 10 && doctor.stdout.contains("systemctl start "), "{doctor:?}");
}

/// Runs `serve` with these sockets as descriptors 3 and up, as systemd does.
fn activated(sandbox: &Sandbox, sockets: Vec<OwnedFd>) -> Command {
    let count = sockets.len();
    let mut sockets = sockets.into_iter();
    let mut command = sandbox.command_of("sh");
    command.stdin(Stdio::from(sockets.next().unwrap()));
    let mut moves = "exec 3<&0 0</dev/null".to_owned();
    if let Some(second) = sockets.next() {
        command.stdout(Stdio::from(second));
        moves += " 4<&1 1>/dev/null";
    }
    let script = format!("{moves}; LISTEN_FDS={count} LISTEN_PID=$$ exec \"$0\" serve");
    command.args(["-c", &script]).arg(env!("CARGO_BIN_EXE_webhookctl"));
    command
}

#[test]
fn the_socket_that_it_passes_on_is_served() {
    for address in ["127.0.0.1:0", "[::]:0"] {
        let sandbox = Sandbox::new();
        let order = sandbox.order(1001);
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        // Who connects before there is a service is served by it.
        let mut early = Client::connect(([127, 0, 0, 1], port).into());
        early.write(format!("GET /payment/notify?{} HTTP/1.1\r\nHost: x\r\n\r\n", Notification::of(&order).form()));
        let service = Service::start(activated(&sandbox, vec![listener.try_clone().unwrap().into()]));
        assert_eq!(service.address.port(), port);
        assert_eq!(early.response().unwrap().body, "success");
        service.stop();
        // It is systemd's: who connects now waits for the next start.
        let mut late = Client::connect(([127, 0, 0, 1], port).into());
        late.write("GET /payment/health HTTP/1.1\r\nHost: x\r\n\r\n");
        let service = Service::start(activated(&sandbox, vec![listener.into()]));
        assert_eq!(late.response().unwrap().status, 200);
        service.stop();
    }
}

#[test]
fn a_socket_that_does_not_fit_is_refused() {
    let sandbox = Sandbox::new();
    let listener = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let file = OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let datagram = OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = OwnedFd::from(std::net::TcpStream::connect(busy.local_addr().unwrap()).unwrap());
    for sockets in [vec![listener(), listener()], vec![file], vec![datagram], vec![connected]] {
        let outcome = Outcome::of(activated(&sandbox, sockets).stdout(Stdio::null()).output().unwrap());
        assert!(outcome.code == 1 && outcome.stderr.contains("ListenStream="), "{outcome:?}");
    }
}

#[test]
fn the_journal_is_not_told_the_time() {
    let sandbox = Sandbox::new();
    let serve = |stream: &str| {
        let script = format!("JOURNAL_STREAM={stream} exec \"$0\" serve");
        let mut command = sandbox.command_of("sh");
        command.args(["-c", &script]).arg(env!("CARGO_BIN_EXE_webhookctl"));
        let service = Service::start(command);
        let line = service.wait_for_log("数据库初始化完成");
        service.stop();
        line
    };
    assert_eq!(serve("$(stat -Lc %d:%i /proc/self/fd/2)"), "webhookctl::store - INFO - 数据库初始化完成");
    // The journal has another stream: somebody has put a pipe between.
    let line = serve("1:2");
    assert!(line.ends_with(" - webhookctl::store - INFO - 数据库初始化完成") && line.starts_with("20"), "{line}");
    assert_eq!(sandbox.log().lines().filter(|line| line.starts_with("20")).count(), sandbox.log().lines().count());
}
