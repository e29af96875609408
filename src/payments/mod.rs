//! Orders and money between us and gateways: asking, selling, settling by hand, refunding, and explaining what happened.

pub(crate) mod checkout;
pub(crate) mod explain;
pub(crate) mod gateways;
pub(crate) mod manual;
pub(crate) mod reconcile;
pub(crate) mod refund;
