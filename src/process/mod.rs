//! Being a service: the process that serves, and the manager's commands for it (`start`, `stop`, `restart`, `reload`, `status`,
//! `logs`).
//!
//! The two have in common: the pid file, signals, the service's control socket, `/payment/health` and the log file. Only [`serve`]
//! opens the database.

pub(crate) mod control;
mod daemon;
pub(crate) mod exit;
pub(crate) mod failure;
pub(crate) mod health;
mod log_end;
pub(crate) mod logs;
pub(crate) mod pid_file;
pub(crate) mod pidfd;
pub(crate) mod port;
pub(crate) mod readiness;
pub(crate) mod reload;
pub(crate) mod serve;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod systemd;
