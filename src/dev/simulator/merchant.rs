//! The accounts at the pretend gateway, and both sides' keys.

use subtle::ConstantTimeEq;

use super::refusal::Refusal;
use crate::channel::epay::{CallbackFields, Credentials, Form, PlatformKey, PrivateKey, SignedCallback, verify_md5};
use crate::config;
use crate::domain::clock::Timestamp;
use crate::domain::secret::Secret;

/// How old a V2 request may be, or how far ahead, in seconds.
const DRIFT_MAX_S: u64 = 300;

/// An account at the pretend gateway.
#[derive(Clone, Debug)]
pub(crate) struct Merchant {
    pub(super) pid: String,
    keys: Keys,
}

/// What signs requests, replies and callbacks.
#[derive(Clone, Debug)]
enum Keys {
    V1 { key: Secret },
    V2 { merchant: PlatformKey, platform: PrivateKey },
}

/// Why a configured merchant has no account here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LeftOut {
    /// V2: the gateway has no private key to sign with.
    #[error("no_platform_key")]
    NoPlatformKey,
    /// V2: without the merchant's private key its public key, which the gateway verifies with, is not known either.
    #[error("no_private_key")]
    NoPrivateKey,
}

impl Merchant {
    /// A V1 merchant.
    pub(crate) fn v1(pid: impl Into<String>, key: Secret) -> Self {
        Self { pid: pid.into(), keys: Keys::V1 { key } }
    }

    /// The merchant that the configuration has, as its gateway knows it.
    pub(crate) fn of(merchant: &config::Merchant, platform_key: Option<&PrivateKey>) -> Result<Self, LeftOut> {
        let keys = match &merchant.credentials {
            Credentials::V1 { key, .. } => Keys::V1 { key: key.clone() },
            Credentials::V2 { private_key, .. } => Keys::V2 {
                merchant: private_key.as_ref().ok_or(LeftOut::NoPrivateKey)?.public_key(),
                platform: platform_key.ok_or(LeftOut::NoPlatformKey)?.clone(),
            },
        };
        Ok(Self { pid: merchant.pid.clone(), keys })
    }

    /// Whether a request is signed as a V1 gateway expects it.
    pub(super) fn check_v1(&self, form: &Form) -> Result<(), Refusal> {
        let sign_type = form.get("sign_type").unwrap_or_default();
        let is_md5 = sign_type.is_empty() || sign_type.eq_ignore_ascii_case("MD5");
        match &self.keys {
            Keys::V1 { key } if is_md5 && verify_md5(form, key, form.get("sign").unwrap_or_default()) => Ok(()),
            _ => Err(Refusal::BadSign),
        }
    }

    /// Whether a request carries the key itself, as those of `api.php` do.
    pub(super) fn check_key(&self, given: &str) -> Result<&Secret, Refusal> {
        match &self.keys {
            Keys::V1 { key } if key.expose().as_bytes().ct_eq(given.as_bytes()).into() => Ok(key),
            _ => Err(Refusal::BadKey),
        }
    }

    /// Whether a request is signed, and as fresh, as a V2 gateway expects it; the key that signs the reply.
    pub(super) fn check_v2(&self, form: &Form, now: Timestamp) -> Result<&PrivateKey, Refusal> {
        let Keys::V2 { merchant, platform } = &self.keys else {
            return Err(Refusal::BadSign);
        };
        let is_rsa = form.get("sign_type") == Some("RSA");
        if !is_rsa || !merchant.verify(form, form.get("sign").unwrap_or_default()) {
            return Err(Refusal::BadSign);
        }
        let signed_at: Option<i64> = form.get("timestamp").and_then(|timestamp| timestamp.parse().ok());
        let is_fresh = signed_at.is_some_and(|at| at.abs_diff(now.ms().div_euclid(1000)) <= DRIFT_MAX_S);
        if is_fresh { Ok(platform) } else { Err(Refusal::Stale) }
    }

    /// Signs a callback as this merchant's gateway.
    pub(super) fn sign(&self, fields: CallbackFields, now: Timestamp) -> SignedCallback {
        match &self.keys {
            Keys::V1 { key } => SignedCallback::v1(fields, key),
            Keys::V2 { platform, .. } => SignedCallback::v2(fields, platform, now),
        }
    }
}
