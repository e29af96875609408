//! What systemd is told, and what it gives: nothing of it where it did not start the process.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use rustix::time::{ClockId, clock_gettime};

use super::pidfd::systemd_unit_of_own;
use crate::logging::log_text;

/// Whether systemd runs this machine, as `sd_booted(3)` tells.
pub(crate) fn runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether systemd is about to start this unit, as after a crash, or runs it already. False where it cannot be asked.
pub(crate) fn is_starting(unit: &str) -> bool {
    let asked = runs().then(|| Command::new("systemctl").args(["is-active", "--", unit]).stdin(Stdio::null()).output());
    asked.and_then(Result::ok).is_some_and(|answer| {
        let state = String::from_utf8_lossy(&answer.stdout);
        ["activating", "active", "reloading"].contains(&state.trim())
    })
}

/// The unit that this process is the main process of.
pub(crate) fn unit() -> Option<String> {
    let is_variable = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    // What a process inherits from one that systemd started names another pid.
    let is_started_by_it = std::env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let is_owned = is_started_by_it || is_variable("NOTIFY_SOCKET");
    is_owned.then(|| systemd_unit_of_own().unwrap_or_else(|| "webhookctl.service".into()))
}

/// The listener of a `.socket` unit.
pub(crate) fn listener() -> io::Result<Option<TcpListener>> {
    let mut given = ListenFd::from_env();
    if given.len() > 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} sockets, not one", given.len())));
    }
    let Some(listener) = given.take_tcp_listener(0)? else { return Ok(None) };
    if !socket_acceptconn(&listener)? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket that does not listen (Accept=yes?)"));
    }
    Ok(Some(listener))
}

pub(crate) fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={status}\n"));
}

pub(crate) fn stopping() {
    notify("STOPPING=1\n");
}

/// A reload begins; [`ready`] ends it.
pub(crate) fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={usec}\n"));
}

/// The service is alive.
pub(crate) fn alive() {
    notify("WATCHDOG=1\n");
}

/// How often systemd wants to hear that the service is alive.
pub(crate) fn watchdog() -> Option<Duration> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // Another process's, which we have inherited.
    let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let usec = variable("WATCHDOG_USEC")?.parse().ok().filter(|&usec| usec > 0)?;
    is_ours.then_some(Duration::from_micros(usec))
}

/// Sends a message as `sd_notify(3)` describes; to nobody where there is no systemd.
fn notify(message: &str) {
    // Told once: where it fails, it fails each time.
    static HAS_FAILED: AtomicBool = AtomicBool::new(false);
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return };
    let send = || {
        let address = match name.as_bytes() {
            [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
            path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
        };
        UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address)
    };
    if let Err(error) = send()
        && !HAS_FAILED.swap(true, Ordering::Relaxed)
    {
        log::warn!("{}", log_text!("log.notify_failed", socket = name.display(), error = error));
    }
}
