//! webhookctl: takes payment callbacks for Telegram bots that sell credits, and settles each order exactly once.
//!
//! # The way of one payment
//!
//! ```text
//! bytes -> server (limits, routing) -> epay (parse, verify: pure) -> store (one transaction: load, decide: pure, write)
//!       -> commit -> `success`
//! ```
//!
//! [`server`] takes a gateway's request within its limits and hands the bytes to [`epay`], which refuses whatever has more
//! than one reading or was not signed by the merchant's gateway. What is left goes to [`store`], the only place that knows SQL:
//! one transaction loads the order, asks [`domain::settlement`] what to do, and writes order, ledger entry, message and receipt together.
//! Nothing is answered before that transaction is on disk.
//!
//! [`service`] puts the parts together; [`Service`] is what a program embeds. The command line is in [`cli`].

// The map above is for those who read the code, too.
#![allow(rustdoc::private_intra_doc_links)]

mod api;
mod checkout;
mod config;
mod doctor;
mod domain;
mod epay;
mod explain;
mod files;
mod gateways;
mod logging;
mod manager;
mod manual;
mod outbox;
mod outgoing;
mod reconcile;
mod refund;
mod server;
mod service;
#[cfg(test)]
#[path = "../tests/sim/mod.rs"]
mod sim;
mod simulator;
mod store;

#[doc(hidden)]
pub mod benching;
#[doc(hidden)]
pub mod cli;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;

pub use config::{Config, ConfigError, Finding};
pub use domain::clock::Timestamp;
pub use domain::money::{Amount, AmountError};
pub use domain::order::{NewOrder, Order, OrderNo, OrderStatus, OrderView, SettledBy, User};
pub use service::Service;
pub use store::{Deviation, Grant, OrderFilter, SchemaDifference, Store, StoreError};

rust_i18n::i18n!("src/locales");
