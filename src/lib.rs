//! webhookctl: takes payment callbacks for Telegram bots that sell credits, and settles each order exactly once.
//!
//! # The way of one payment
//!
//! ```text
//! bytes -> server (limits, routing) -> channel::epay (parse, verify: pure) -> store (one transaction: load, decide: pure, write)
//!       -> commit -> `success`
//! ```
//!
//! [`server`] takes a gateway's request within its limits and hands the bytes to [`channel::epay`], which refuses whatever has more
//! than one reading or was not signed by the merchant's gateway. What is left goes to [`store`], the only place that knows SQL:
//! one transaction loads the order, asks [`domain::settlement`] what to do, and writes order, ledger entry, message and receipt together.
//! Nothing is answered before that transaction is on disk.
//!
//! [`service`] puts the parts together; [`Service`] is what a program embeds. The command line is in [`cli`].

// The map above is for those who read the code, too.
#![allow(rustdoc::private_intra_doc_links)]

mod api;
mod channel;
mod config;
mod dev;
mod doctor;
mod domain;
mod files;
mod logging;
mod net;
mod outbox;
mod payments;
mod process;
mod server;
mod service;
#[cfg(test)]
#[path = "../tests/sim/mod.rs"]
mod sim;
mod store;
mod sync;

#[doc(hidden)]
pub mod cli;

pub use config::{Config, ConfigError, Finding};
#[cfg(feature = "benching")]
#[doc(hidden)]
pub use dev::benching;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use dev::fuzzing;
pub use domain::clock::Timestamp;
pub use domain::money::{Amount, AmountError};
pub use domain::order::{NewOrder, Order, OrderNo, OrderStatus, OrderView, SettledBy, User};
pub use service::Service;
pub use store::{AccountError, Failure, FilesChanged, Grant, OrderFilter, Store, StoreError};

rust_i18n::i18n!("src/locales");
