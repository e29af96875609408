//! The V2 signature: SHA256withRSA (PKCS#1 v1.5), base64, over the same signing string without a key behind it.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey};
use spki::SubjectPublicKeyInfoRef;
use spki::der::asn1::UintRef;
use spki::der::{Decode, Header, Reader, SliceReader};

use super::form::Form;
use super::sign::{BlankValues, signing_string};
use crate::domain::secret::MASK;

/// What ring verifies with; a key outside would refuse every payment without a word.
const MODULUS_BITS: RangeInclusive<usize> = 2048..=8192;

/// The object identifier of `rsaEncryption`.
const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";

/// A gateway's public key, with which it signs V2 notifications: RSA with 2048 to 8192 bits.
#[derive(Clone, Debug)]
pub struct PlatformKey(UnparsedPublicKey<Vec<u8>>);

/// A text that is not an RSA public key in SPKI form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RSA public key (SPKI, as PEM or as base64 on one line)")]
pub struct BadKey;

impl PlatformKey {
    /// Reads a key as gateways show it: PEM, or its base64 alone on one line.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let der = decode(text).ok_or(BadKey)?;
        let spki = SubjectPublicKeyInfoRef::try_from(der.as_slice()).map_err(|_| BadKey)?;
        if spki.algorithm.oid.to_string() != RSA_ENCRYPTION {
            return Err(BadKey);
        }
        let key = spki.subject_public_key.as_bytes().ok_or(BadKey)?;
        if !MODULUS_BITS.contains(&modulus_bits(key).ok_or(BadKey)?) {
            return Err(BadKey);
        }
        Ok(Self(UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.to_vec())))
    }

    /// Whether `sign` is this key's signature of `form`.
    pub(crate) fn verify(&self, form: &Form, sign: &str) -> bool {
        let mut signed = String::new();
        signing_string(form, BlankValues::LeftOut, |piece| signed.push_str(piece));
        BASE64.decode(sign).is_ok_and(|signature| self.0.verify(signed.as_bytes(), &signature).is_ok())
    }
}

/// Our private key at a V2 gateway, which signs what we ask of it: RSA with 2048 to 4096 bits.
#[derive(Clone)]
pub struct PrivateKey(Arc<RsaKeyPair>);

/// A text that is not an RSA private key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an RSA private key (PKCS#8 or PKCS#1, as PEM or as base64 on one line)")]
pub struct BadPrivateKey;

impl PrivateKey {
    /// Reads a key as gateways hand it out: PEM, or its base64 alone on one line.
    pub fn parse(text: &str) -> Result<Self, BadPrivateKey> {
        let der = decode(text).ok_or(BadPrivateKey)?;
        let key = RsaKeyPair::from_pkcs8(&der).or_else(|_| RsaKeyPair::from_der(&der));
        key.map(|key| Self(Arc::new(key))).map_err(|_| BadPrivateKey)
    }

    /// The public half, which verifies what this signs.
    pub(crate) fn public_key(&self) -> PlatformKey {
        PlatformKey(UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.0.public().as_ref().to_vec()))
    }

    /// The V2 signature of `form`, as base64; `sign` and `sign_type` are not signed.
    ///
    /// # Panics
    ///
    /// If the operating system has no random numbers to give, which blind the computation.
    pub(crate) fn sign(&self, form: &Form) -> String {
        let mut signed = String::new();
        signing_string(form, BlankValues::LeftOut, |piece| signed.push_str(piece));
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .expect("the signature has the key's length, and the system has random numbers");
        BASE64.encode(signature)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// The bytes of a key: PEM, or base64 alone, in any lines.
fn decode(text: &str) -> Option<Vec<u8>> {
    let base64: String =
        text.lines().filter(|line| !line.starts_with("-----")).flat_map(str::split_whitespace).collect();
    BASE64.decode(base64).ok()
}

/// The size of an RSA key: the first number in the sequence that PKCS#1 writes it as.
fn modulus_bits(pkcs1: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(pkcs1).ok()?;
    Header::decode(&mut reader).ok()?;
    let modulus: UintRef = reader.decode().ok()?;
    let first = modulus.as_bytes().first()?;
    Some(modulus.as_bytes().len() * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = include_str!("../../../tests/keys/v2_platform_public.pem");

    #[test]
    fn keys_are_read_as_pem_and_as_one_line() {
        assert!(PlatformKey::parse(PEM).is_ok());
        let one_line: String = PEM.lines().filter(|line| !line.starts_with('-')).collect();
        assert!(PlatformKey::parse(&one_line).is_ok());
    }

    #[test]
    fn what_cannot_verify_is_no_key() {
        let short = include_str!("../../../tests/keys/short_public.pem");
        let elliptic = include_str!("../../../tests/keys/elliptic_public.pem");
        let private = include_str!("../../../tests/keys/v2_platform_private.pem");
        for text in ["", "x", "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i", short, elliptic, private] {
            assert!(matches!(PlatformKey::parse(text), Err(BadKey)), "{text}");
        }
    }

    #[test]
    fn what_is_signed_verifies_with_the_public_key_and_no_other() {
        let private = include_str!("../../../tests/keys/v2_platform_private.pem");
        let key = PrivateKey::parse(private).unwrap();
        let one_line: String = private.lines().filter(|line| !line.starts_with('-')).collect();
        assert!(PrivateKey::parse(&one_line).is_ok());
        let form =
            |money: &'static str| Form::as_sent(vec![("pid".into(), "1".into()), ("money".into(), money.into())]);
        let sign = key.sign(&form("1.00"));
        let other = include_str!("../../../tests/keys/v2_merchant_public.pem");
        assert!(PlatformKey::parse(PEM).unwrap().verify(&form("1.00"), &sign));
        assert!(!PlatformKey::parse(PEM).unwrap().verify(&form("1.01"), &sign));
        assert!(!PlatformKey::parse(other).unwrap().verify(&form("1.00"), &sign));
        assert!(key.public_key().verify(&form("1.00"), &sign));
        assert!(!key.public_key().verify(&form("1.01"), &sign));
        assert_eq!(format!("{key:?}"), "***");
    }

    #[test]
    fn what_cannot_sign_is_no_private_key() {
        for text in ["", "x", PEM, include_str!("../../../tests/keys/elliptic_public.pem")] {
            assert!(matches!(PrivateKey::parse(text), Err(BadPrivateKey)), "{text}");
        }
    }
}
