//! The signing string and the V1 signature: MD5 over the sorted fields with the merchant's key behind them.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use super::form::{Form, is_blank};
use crate::domain::secret::Secret;

/// What a gateway does with values that are only white space. Empty values are always left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlankValues {
    Signed,
    LeftOut,
}

/// Hands the signing string to `sink` piece by piece: `k=v&k=v` over the decoded values, without `sign` and `sign_type`.
pub(super) fn signing_string(form: &Form, blank: BlankValues, mut sink: impl FnMut(&str)) {
    let mut separator = "";
    for (key, value) in form.fields() {
        let left_out = value.is_empty() || (blank == BlankValues::LeftOut && is_blank(value));
        if left_out || matches!(key, "sign" | "sign_type") {
            continue;
        }
        for piece in [separator, key, "=", value] {
            sink(piece);
        }
        separator = "&";
    }
}

fn digest(form: &Form, key: &Secret, blank: BlankValues) -> [u8; 16] {
    let mut md5 = Md5::new();
    signing_string(form, blank, |piece| md5.update(piece));
    md5.update(key.expose());
    md5.finalize().into()
}

/// Whether `sign` is the MD5 signature of `form` under `key`, in either dialect of blank values.
///
/// The 16 bytes are compared in constant time. An empty key verifies nothing.
pub(crate) fn verify_md5(form: &Form, key: &Secret, sign: &str) -> bool {
    let Some(claimed) = decode_hex(sign) else {
        return false;
    };
    let matches = |blank| bool::from(digest(form, key, blank).ct_eq(&claimed));
    let dialects_differ = || form.fields().any(|(_, value)| !value.is_empty() && is_blank(value));
    !key.expose().is_empty() && (matches(BlankValues::Signed) || (dialects_differ() && matches(BlankValues::LeftOut)))
}

/// The V1 signature of `form` under `key`, as 32 lower-case hexadecimal digits; `sign` and `sign_type` are not signed.
pub(crate) fn sign_md5(form: &Form, key: &Secret) -> String {
    format!("{:032x}", u128::from_be_bytes(digest(form, key, BlankValues::Signed)))
}

pub(super) fn decode_hex(hex: &str) -> Option<[u8; 16]> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let hex: &[u8; 32] = hex.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";
    const BASE: [(&str, &str); 7] = [
        ("pid", "1001"),
        ("trade_no", "20160806151343349021"),
        ("out_trade_no", "20160806151343349"),
        ("type", "alipay"),
        ("name", "VIP会员"),
        ("money", "1.00"),
        ("trade_status", "TRADE_SUCCESS"),
    ];

    fn base_with(changes: &[(&'static str, &'static str)]) -> Form<'static> {
        let unchanged = BASE.iter().filter(|(key, _)| changes.iter().all(|(k, _)| k != key));
        let borrow = |&(k, v): &(&'static str, &'static str)| (Cow::Borrowed(k), Cow::Borrowed(v));
        Form::new(unchanged.chain(changes).map(borrow).collect()).unwrap()
    }

    /// The published vectors of the protocol; a second signature is the one of the dialect that leaves blank values out.
    #[test]
    fn vectors() {
        let base = "3ec3bda0f65fd24c5320e7ab770b2547";
        for (changes, signature, other_dialect) in [
            (&[][..], base, None),
            (&[("param", "")], base, None),
            (&[("param", "0")], "f077ded16090636e9e270a815817d1e3", None),
            (&[("param", " ")], "98e6110505416caf9ff5932200f94bef", Some(base)),
            (
                &[("buyer", "2088x"), ("endtime", "2026-01-01 00:00:00"), ("addnum", "1")],
                "ff6fb71bb6e17ef099195d278ba051c3",
                None,
            ),
            (&[("money", "1")], "d234c00c90982004526450b6a5e31089", None),
            (&[("name", r"a&amp;\&quot;b\&quot;")], "a9038afd8476827135f77e92c59b3cc3", None),
        ] {
            let form = base_with(changes);
            let key = Secret::new(KEY);
            assert_eq!(sign_md5(&form, &key), signature, "{changes:?}");
            assert!(verify_md5(&form, &key, signature), "{changes:?}");
            assert!(verify_md5(&form, &key, &signature.to_uppercase()), "{changes:?}");
            if let Some(signature) = other_dialect {
                assert!(verify_md5(&form, &key, signature), "{changes:?}");
            }
        }
    }

    /// Section 3 of the protocol refuses this form before any signature is looked at, so its arithmetic is checked apart.
    #[test]
    fn the_vector_that_parsing_refuses_has_the_right_arithmetic() {
        let mut fields = BASE.to_vec();
        fields.retain(|(key, _)| *key != "name");
        fields.extend([("name", "A+B 50%&x=1"), ("param", "uid=5&k=%2B")]);
        let form = Form::as_sent(fields.iter().map(|&(k, v)| (Cow::Borrowed(k), Cow::Borrowed(v))).collect());
        assert_eq!(sign_md5(&form, &Secret::new(KEY)), "02a0b34f340a6763f52b76c50fe7758c");
        assert!(Form::parse(super::super::encode(fields).as_bytes()).is_err());
    }

    #[test]
    fn the_usual_wrong_variants_do_not_verify() {
        for wrong in [
            "6623d5cbb48aed1bc0e199ab20e25b52",
            "dd99a078fd028ece2a87616996d7bfdc",
            "26d33792efccbd8e738b62c10d602d86",
            "90533b790b30404cadcf9d293b6d1b26",
            "",
            "3ec3bda0f65fd24c5320e7ab770b254",
            "3ec3bda0f65fd24c5320e7ab770b25477",
            "3ec3bda0f65fd24c5320e7ab770b254g",
            "0",
            "会会会会会会会会会会a1",
        ] {
            assert!(!verify_md5(&base_with(&[]), &Secret::new(KEY), wrong), "{wrong:?}");
        }
    }

    #[test]
    fn an_empty_key_verifies_nothing() {
        let form = base_with(&[]);
        let key = Secret::new("");
        let signature = sign_md5(&form, &key);
        assert!(!verify_md5(&form, &key, &signature));
    }
}
