//! The epay (易支付) protocol: the language in which gateways tell merchants of payments.
//!
//! Everything but [`client`], which asks gateways, is pure: bytes in, a verdict out. A notification goes through two doors, and the
//! types keep the order: [`Unverified::parse`] refuses what has no single reading, [`Unverified::verify`] refuses what the gateway
//! did not sign.

mod callback;
pub(crate) mod client;
mod diagnosis;
mod form;
mod notification;
mod rsa;
mod sign;
mod text;

pub(crate) use callback::{CallbackFields, SignedCallback};
#[cfg(any(test, fuzzing))]
pub(crate) use diagnosis::WrongWay;
pub(crate) use diagnosis::{Diagnosis, diagnose, readable};
#[cfg(test)]
pub(crate) use form::Field;
pub(crate) use form::{Form, Malformed, decode_pairs, encode, glimpse};
pub(crate) use notification::{Credentials, Notification, Unverified, VerifyError};
pub(crate) use rsa::{PlatformKey, PrivateKey};
#[cfg(test)]
pub(crate) use sign::sign_md5;
pub(crate) use sign::verify_md5;
pub(crate) use text::{forbidden_char, is_ambiguous};
