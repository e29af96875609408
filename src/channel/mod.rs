//! How buyers pay: one folder for each way of paying.
//!
//! A channel turns bytes into a [`Claim`](crate::domain::settlement::Claim) and knows nothing of orders; it says why bytes are no
//! claim, words the answer that its gateways look for, and asks gateways.

pub(crate) mod epay;
