//! The manager: `start`, `stop`, `restart`, `reload`, `status`, `logs`, and what they and a running service have in common.
//!
//! It knows the pid file, signals, the service's control socket, `/payment/health` and the log file, and never opens the
//! database.

pub(crate) mod control;
mod daemon;
pub(crate) mod health;
mod log_end;
pub(crate) mod logs;
pub(crate) mod pid_file;
pub(crate) mod port;
pub(crate) mod process;
pub(crate) mod readiness;
pub(crate) mod reload;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod systemd;
