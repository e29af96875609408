//! What systemd is told, and what it gives: nothing of it where it did not start the process.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use sd_notify::NotifyState;

use super::process::systemd_unit_of_own;

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
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// A reload begins; [`ready`] ends it.
pub(crate) fn reloading() {
    let now = NotifyState::monotonic_usec_now().ok();
    let state: Vec<_> = [NotifyState::Reloading].into_iter().chain(now).collect();
    notify(&state);
}

/// The service is alive.
pub(crate) fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// How often systemd wants to hear that the service is alive.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn notify(state: &[NotifyState]) {
    // Without systemd there is no socket, and that is no error.
    if let Err(error) = sd_notify::notify(state) {
        log::warn!("sd_notify: {error}");
    }
}
