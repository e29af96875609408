//! Needs that every connection has, whoever is at its other end.

pub(crate) mod client;
