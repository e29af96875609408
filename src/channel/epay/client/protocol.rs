//! What differs between V1 and V2: how we sign, what proves an answer, and what must not be repeated.

use std::borrow::Cow;

use bytes::Bytes;
use memchr::memmem;

use super::super::form::{Form, encode};
use super::super::notification::Credentials;
use super::super::rsa::{PlatformKey, PrivateKey};
use super::super::sign::sign_md5;
use super::error::GatewayError;
use super::fields::Fields;
use crate::domain::clock::Timestamp;
use crate::domain::secret::{MASK, Secret};
use crate::net::client::excerpt;

/// How much of a reply is kept; gateways' are about 500 bytes.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// How much of a gateway's message or page is told.
const CHARS_TOLD: usize = 200;

/// How much of a gateway's message or page is looked at to tell that much.
const BYTES_LOOKED_AT: usize = 4096;

/// What is sent: keys and values, before they are encoded.
pub(super) type Request<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// A merchant's protocol with what it takes to speak it.
#[derive(Clone, Debug)]
pub(super) enum Protocol {
    /// MD5. Answers are not signed: they count because they come from where we asked.
    V1 {
        key: Secret,
        /// Every way in which a gateway may repeat a key of ours.
        echoes: Vec<Secret>,
    },
    /// RSA both ways.
    V2 { platform_key: PlatformKey, private_key: PrivateKey },
}

impl Protocol {
    /// How to speak with these credentials; `None` for V2 without a private key.
    pub(super) fn new(credentials: &Credentials) -> Option<Self> {
        Some(match credentials {
            Credentials::V1 { key, key_previous } => {
                let keys = key_previous.iter().chain([key]);
                let mut echoes: Vec<Secret> = keys.flat_map(|key| echoes_of(key.expose())).collect();
                // A longer one first: it may have a shorter one in it.
                echoes.sort_by_key(|echo| std::cmp::Reverse(echo.expose().len()));
                Self::V1 { key: key.clone(), echoes }
            }
            Credentials::V2 { platform_key, private_key } => {
                Self::V2 { platform_key: platform_key.clone(), private_key: private_key.clone()? }
            }
        })
    }

    /// Signs a request; blank fields, which count as absent anyway, are left out.
    pub(super) fn sign(&self, mut request: Request<'_>) -> Vec<(&'static str, String)> {
        request.retain(|(_, value)| !value.is_empty());
        let form = Form::as_sent(request.iter().map(|(k, v)| (Cow::Borrowed(*k), Cow::Borrowed(v.as_ref()))).collect());
        let (sign, sign_type) = match self {
            Self::V1 { key, .. } => (sign_md5(&form, key), "MD5"),
            Self::V2 { private_key, .. } => (private_key.sign(&form), "RSA"),
        };
        let mut signed: Vec<_> = request.into_iter().map(|(key, value)| (key, value.into_owned())).collect();
        signed.sort_unstable();
        signed.extend([("sign", sign), ("sign_type", sign_type.to_owned())]);
        signed
    }

    /// Whether the gateway says yes: with one of these codes in V1, with 0 and its signature in V2.
    pub(super) fn check(&self, fields: &Fields, v1_codes: &[i64], now: Timestamp) -> Result<(), GatewayError> {
        let code = fields.integer("code").ok_or(GatewayError::Incomplete("code"))?;
        match self {
            Self::V1 { .. } if v1_codes.contains(&code) => Ok(()),
            Self::V2 { platform_key, .. } if code == 0 => {
                if fields.is_signed_by(platform_key, now) {
                    Ok(())
                } else {
                    Err(GatewayError::Unverified)
                }
            }
            _ => Err(self.refusal(fields, code)),
        }
    }

    /// What the gateway says when it says no.
    fn refusal(&self, fields: &Fields, code: i64) -> GatewayError {
        let message = fields.text("msg").unwrap_or_default();
        GatewayError::Refused { code, message: self.told(message.as_bytes()) }
    }

    /// The beginning of what a gateway wrote, for a person.
    pub(super) fn told(&self, bytes: &[u8]) -> String {
        let masked = self.without_keys(bytes);
        let beginning = &masked[..masked.len().min(BYTES_LOOKED_AT)];
        excerpt(String::from_utf8_lossy(beginning).trim(), CHARS_TOLD)
    }

    /// A reply fit for keeping: without our key, and not longer than any honest one.
    pub(super) fn kept(&self, body: &[u8]) -> Bytes {
        let mut kept = self.without_keys(body);
        kept.truncate(KEPT_BYTES_MAX);
        kept.into()
    }

    /// What a gateway wrote, without our key, which some repeat.
    fn without_keys(&self, bytes: &[u8]) -> Vec<u8> {
        let Self::V1 { echoes, .. } = self else {
            return bytes.to_vec();
        };
        echoes.iter().fold(bytes.to_vec(), |bytes, echo| masked(&bytes, echo.expose().as_bytes()))
    }
}

/// A key as it is, as PHP writes it in JSON, and as it stands in a URL.
fn echoes_of(key: &str) -> impl Iterator<Item = Secret> {
    let in_url = encode([("", key)]).split_off(1);
    let mut echoes = vec![key.to_owned(), key.replace('/', "\\/"), in_url];
    echoes.dedup();
    echoes.into_iter().filter(|echo| !echo.is_empty()).map(Secret::new)
}

/// `bytes` with [`MASK`] wherever `secret` stands.
fn masked(bytes: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut masked = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memmem::find(rest, secret) {
        masked.extend_from_slice(&rest[..at]);
        masked.extend_from_slice(MASK.as_bytes());
        rest = &rest[at + secret.len()..];
    }
    masked.extend_from_slice(rest);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(key: &str, previous: Option<&str>) -> Protocol {
        Protocol::new(&Credentials::V1 { key: Secret::new(key), key_previous: previous.map(Secret::new) }).unwrap()
    }

    #[test]
    fn no_echo_of_a_key_is_kept() {
        let protocol = v1("ab/c+d", Some("ab/c"));
        let echo = br#"{"key":"ab/c+d","k":"ab\/c+d","url":"?key=ab%2Fc%2Bd&x=1","old":"ab/cab\/c","rest":"ab"}"#;
        let kept = String::from_utf8(protocol.without_keys(echo)).unwrap();
        assert_eq!(kept, r#"{"key":"***","k":"***","url":"?key=***&x=1","old":"******","rest":"ab"}"#);
        assert!(!format!("{protocol:?}").contains("ab/c"));
    }

    #[test]
    fn a_key_at_the_edge_of_what_is_told_is_not_cut_into_view() {
        let page = format!("{}SECRETKEY", "x".repeat(CHARS_TOLD - 4));
        let told = v1("SECRETKEY", None).told(page.as_bytes());
        assert!(!told.contains("SEC") && told.ends_with("***"), "{told}");
    }
}
