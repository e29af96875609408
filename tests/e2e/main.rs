//! Drives the real program: real processes, real sockets, a real database, each test in a directory of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "the support module is for all the others")]

mod api;
mod audit;
mod backup;
mod benchmarks;
mod browser;
mod commands;
mod configuration;
mod crash;
mod decisions;
mod deployment;
mod doctor;
mod durability;
mod events;
mod explain;
mod gateway;
mod hidden;
mod hostile;
mod http;
mod lifecycle;
mod logs;
mod manager;
mod messages;
mod payment;
mod pid_file;
mod private_files;
mod proof;
mod reload;
mod restart;
mod return_page;
mod schema;
mod simulated_gateway;
mod simulator;
mod stand_in;
mod support;
mod systemd;
mod trouble;
