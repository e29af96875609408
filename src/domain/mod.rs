//! Facts and rules without any I/O: money, time, orders, and the decision that a payment meets. No protocol, no SQL, no HTTP.

pub(crate) mod clock;
pub(crate) mod decisions;
pub(crate) mod failure;
pub(crate) mod jitter;
pub(crate) mod language;
pub(crate) mod ledger;
pub(crate) mod log_text;
pub(crate) mod money;
pub(crate) mod named;
pub(crate) mod notices;
pub(crate) mod order;
pub(crate) mod outcome;
pub(crate) mod secret;
pub(crate) mod settlement;
