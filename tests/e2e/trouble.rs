//! Trouble underneath the service: it says `fail` for as long as it cannot write, goes on by itself when the cause is gone, and
//! loses nothing.

mod clock;
mod disk;
mod files;
mod process;

use std::path::Path;
use std::process::Command;

use crate::support::*;

/// Orders to pay for, and how many of them are.
struct Shop {
    sandbox: Sandbox,
    orders: Vec<String>,
    paid: usize,
}

impl Shop {
    fn new(orders: usize) -> Self {
        Self::in_sandbox(Sandbox::new(), orders)
    }

    fn in_sandbox(sandbox: Sandbox, orders: usize) -> Self {
        let orders = sandbox.create_database_with_orders(orders);
        Self { sandbox, orders, paid: 0 }
    }

    /// The next order is paid, and the gateway hears `success`.
    #[track_caller]
    fn sell(&mut self, service: &Service) {
        assert_eq!(service.notify(&self.next()), (200, "success".into()), "{:#?}", service.log());
        self.paid += 1;
    }

    /// The next order is paid and the service cannot write it: the gateway is to come again, and monitors hear of it.
    #[track_caller]
    fn is_refused(&self, service: &Service) {
        assert_eq!(service.notify(&self.next()), (503, "fail".into()), "{:#?}", service.log());
        is_unwell(service);
    }

    /// The cause is gone: the service notices by itself, and what was refused settles when it is sent again.
    #[track_caller]
    fn recovers(&mut self, service: &Service) {
        wait_until("well again", || service.get("/payment/health").status == 200);
        self.sell(service);
    }

    fn next(&self) -> String {
        Notification::of(&self.orders[self.paid]).form()
    }

    /// What was answered with `success` is there, once, after the process has died as well.
    #[track_caller]
    fn settles_the_books(&self, mut service: Service) {
        self.books_are_right();
        service.signal(nix::sys::signal::Signal::SIGKILL);
        service.wait();
        drop(service);
        let service = self.sandbox.serve();
        self.books_are_right();
        service.stop();
    }

    #[track_caller]
    fn books_are_right(&self) {
        let paid = i64::try_from(self.paid).unwrap();
        assert_eq!(self.sandbox.count("SELECT count(*) FROM orders WHERE status = 'paid'"), paid);
        assert_eq!(self.sandbox.count("SELECT count(*) FROM receipts WHERE outcome = 'settled'"), paid);
        assert_eq!(self.sandbox.credits(1001), paid * 70);
        let audit = self.sandbox.json(&["audit", "--json"]);
        assert_eq!((audit["findings"].as_i64(), audit["settled"].as_i64()), (Some(0), Some(paid)), "{audit}");
    }
}

#[track_caller]
fn is_unwell(service: &Service) {
    let health = service.get("/payment/health");
    assert_eq!((health.status, health.body.contains("unavailable")), (503, true), "{health:?}");
}

/// Whether a test may do what only root can. Where it is not root, the test is to pass without it.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        tell("skipped a test: it takes root");
    }
    is_root
}

/// The system does not let this test do what it has to; that is an error where everything is to be tested, but for a root that is
/// none, as in most containers.
fn forbidden(cause: &str) {
    let all = std::env::var_os("WEBHOOKCTL_TEST_ALL").is_some_and(|all| all == "1");
    assert!(!all || !may_administer(), "{cause}");
    tell(&format!("skipped a test: {cause}"));
}

/// Whether this process may mount file systems and look into other processes.
fn may_administer() -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    effective.is_some_and(|effective| effective & (CAP_SYS_PTRACE | CAP_SYS_ADMIN) == CAP_SYS_PTRACE | CAP_SYS_ADMIN)
}

/// Straight to the terminal: what a passing test prints is not shown.
fn tell(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
}

/// A small file system of its own, until this goes out of scope.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    /// `None` where this system lets nobody mount, which is no more than a gap in what is tested.
    fn new(directory: &'a Path, size: &str) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let options = format!("size={size},mode=0755");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(directory);
        let output = mount.output().unwrap();
        if !output.status.success() {
            forbidden(&String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(directory))
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        // Lazily: whatever still has a file open there must not keep the directory from being removed.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
