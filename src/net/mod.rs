//! Needs that every connection has, whoever is at its other end.

pub(crate) mod acceptor;
pub(crate) mod backoff;
pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod rate_limit;
pub(crate) mod response;
