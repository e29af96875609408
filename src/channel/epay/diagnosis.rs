//! Why a signature does not fit: the ways in which gateways, and those who set them up, are known to get it wrong.
//!
//! For a person to read, and nothing else: from here comes no [`Notification`](super::Notification), so nothing is ever credited
//! because a wrong way of signing would fit.

use std::borrow::Cow;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use super::form::decode_pairs;
use super::notification::Credentials;
use super::sign::decode_hex;
use crate::domain::language::{Language, Localized, text};
use crate::domain::named::named_enum;
use crate::domain::secret::{MASK, Secret};

/// How many keys of other merchants are tried.
const OTHER_KEYS_MAX: usize = 64;

named_enum! {
    /// A known wrong way of signing.
    WrongWay {
        /// `&key=` stands before the key.
        AmpersandKey = "ampersand_key",
        /// `sign_type` is signed as well.
        SignTypeSigned = "sign_type_signed",
        /// Empty values are signed, as `k=`.
        EmptySigned = "empty_signed",
        /// White space around values is left out of what is signed.
        Trimmed = "trimmed",
        /// Values are signed as they stand in the query, not decoded.
        UrlEncoded = "url_encoded",
        /// Values are signed in GBK.
        Gbk = "gbk",
        /// The fields are signed in the order in which they were sent.
        Unsorted = "unsorted",
        /// The key is in upper case.
        KeyUpperCase = "key_upper_case",
        /// The key is in lower case.
        KeyLowerCase = "key_lower_case",
        /// The key has white space around it, here or at the gateway.
        KeyWhiteSpace = "key_white_space",
        /// It is another configured merchant's key.
        OtherMerchant = "other_merchant",
        /// Signed with MD5, for a merchant that is configured for V2.
        Md5ForV2 = "md5_for_v2",
        /// Signed with RSA, for a merchant that is configured for V1.
        RsaForV1 = "rsa_for_v1",
        /// `sign` is no signature at all.
        NoSignature = "no_signature",
    }
}

/// What would fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    /// The wrong way.
    pub way: WrongWay,
    /// Whose key it is, where it is another merchant's.
    pub pid: Option<String>,
}

impl Localized for Diagnosis {
    /// The diagnosis in a sentence, with what to do.
    fn text(&self, language: Language) -> String {
        match (self.way, &self.pid) {
            (WrongWay::OtherMerchant, Some(pid)) => text!(language, "diagnosis.other_merchant", pid = pid).into_owned(),
            (way, _) => text!(language, format!("diagnosis.{way}")).into_owned(),
        }
    }
}

impl From<WrongWay> for Diagnosis {
    fn from(way: WrongWay) -> Self {
        Self { way, pid: None }
    }
}

/// How the string that is signed is made.
#[derive(Clone, Copy)]
struct Recipe {
    way: WrongWay,
    sorted: bool,
    value: for<'p> fn(&'p Pair<'_>) -> Cow<'p, [u8]>,
    keeps: fn(key: &str, value: &[u8]) -> bool,
}

/// A field as it was sent, and what it means.
struct Pair<'a> {
    key: Cow<'a, str>,
    value: Cow<'a, str>,
    raw: &'a [u8],
}

/// The right one: what each wrong one differs from in one thing.
const RIGHT: Recipe = Recipe {
    way: WrongWay::NoSignature,
    sorted: true,
    value: |pair| Cow::Borrowed(pair.value.as_bytes()),
    keeps: |key, value| is_signed(key) && !value.is_empty(),
};

const WRONG: [Recipe; 8] = [
    Recipe { way: WrongWay::SignTypeSigned, keeps: |key, value| key != "sign" && !value.is_empty(), ..RIGHT },
    Recipe { way: WrongWay::EmptySigned, keeps: |key, _| is_signed(key), ..RIGHT },
    Recipe { way: WrongWay::Trimmed, value: |pair| Cow::Borrowed(pair.value.trim().as_bytes()), ..RIGHT },
    Recipe { way: WrongWay::UrlEncoded, value: |pair| Cow::Borrowed(pair.raw), ..RIGHT },
    // As PHP's `urlencode` and `rawurlencode` write them, whatever was sent.
    Recipe { way: WrongWay::UrlEncoded, value: |pair| percent_encoded(&pair.value, b"-_.", true), ..RIGHT },
    Recipe { way: WrongWay::UrlEncoded, value: |pair| percent_encoded(&pair.value, b"-_.~", false), ..RIGHT },
    Recipe { way: WrongWay::Gbk, value: |pair| encoding_rs::GBK.encode(&pair.value).0, ..RIGHT },
    Recipe { way: WrongWay::Unsorted, sorted: false, ..RIGHT },
];

/// Looks for the wrong way in which this notification, which does not verify, would fit; `others` are further merchants' keys.
///
/// It costs some twenty digests, and two more for each other merchant.
pub(crate) fn diagnose<'k>(
    payload: &[u8],
    credentials: &Credentials,
    others: impl IntoIterator<Item = (&'k str, &'k Secret)>,
) -> Option<Diagnosis> {
    let pairs = pairs(payload)?;
    let value_of = |key: &str| pairs.iter().find(|pair| pair.key == key).map_or("", |pair| pair.value.as_ref());
    let is_rsa = value_of("sign_type") == "RSA";
    let claimed = decode_hex(value_of("sign").trim());
    let keys = match credentials {
        Credentials::V2 { .. } if claimed.is_some() && !is_rsa => return Some(WrongWay::Md5ForV2.into()),
        Credentials::V2 { .. } => return None,
        Credentials::V1 { .. } if is_rsa => return Some(WrongWay::RsaForV1.into()),
        Credentials::V1 { key, key_previous } => std::iter::once(key).chain(key_previous),
    };
    let Some(claimed) = claimed else { return Some(WrongWay::NoSignature.into()) };
    let right = signing_string(&pairs, &RIGHT);
    let fits = |string: &[u8], tail: &[u8]| {
        let digest: [u8; 16] = Md5::new().chain_update(string).chain_update(tail).finalize().into();
        !tail.is_empty() && bool::from(digest.ct_eq(&claimed))
    };
    for key in keys {
        let key = key.expose();
        if let Some(recipe) = WRONG.iter().find(|recipe| fits(&signing_string(&pairs, recipe), key.as_bytes())) {
            return Some(recipe.way.into());
        }
        let tails = key_variants(key);
        if let Some((way, _)) = tails.iter().find(|(_, tail)| fits(&right, tail.as_bytes())) {
            return Some((*way).into());
        }
    }
    let with_key = |key: &Secret| {
        let key = key.expose();
        fits(&right, key.as_bytes()) || fits(&right, format!("&key={key}").as_bytes())
    };
    let (pid, _) =
        others.into_iter().take(OTHER_KEYS_MAX).find(|(_, key)| !key.expose().is_empty() && with_key(key))?;
    Some(Diagnosis { way: WrongWay::OtherMerchant, pid: Some(pid.to_owned()) })
}

/// A notification in the words of the protocol, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readable {
    /// Its fields as they came, with the signature masked.
    pub fields: String,
    /// The string that its signature is made over, without the key.
    pub signed: String,
}

/// What a notification says; none where it cannot be read at all.
pub(crate) fn readable(payload: &[u8]) -> Option<Readable> {
    let mut pairs = pairs(payload)?;
    // A cut-up request may have our key in it.
    for pair in pairs.iter_mut().filter(|pair| matches!(pair.key.as_ref(), "key" | "sign")) {
        pair.value = MASK.into();
    }
    let fields: Vec<_> = pairs.iter().map(|pair| format!("{}={}", pair.key, pair.value)).collect();
    let signed = String::from_utf8_lossy(&signing_string(&pairs, &RIGHT)).into_owned();
    Some(Readable { fields: fields.join(" "), signed })
}

fn is_signed(key: &str) -> bool {
    !matches!(key, "sign" | "sign_type")
}

fn pairs(payload: &[u8]) -> Option<Vec<Pair<'_>>> {
    let decoded = decode_pairs(payload).ok()?;
    let raw = payload.split(|&b| b == b'&').filter(|pair| !pair.is_empty());
    let raw = raw.map(|pair| pair.iter().position(|&b| b == b'=').map_or(&[][..], |at| &pair[at + 1..]));
    Some(decoded.into_iter().zip(raw).map(|((key, value), raw)| Pair { key, value, raw }).collect())
}

fn signing_string(pairs: &[Pair], recipe: &Recipe) -> Vec<u8> {
    let mut pairs: Vec<_> = pairs.iter().collect();
    if recipe.sorted {
        pairs.sort_by(|a, b| a.key.cmp(&b.key));
    }
    let mut string = Vec::new();
    for pair in pairs {
        let value = (recipe.value)(pair);
        if (recipe.keeps)(&pair.key, &value) {
            if !string.is_empty() {
                string.push(b'&');
            }
            string.extend_from_slice(pair.key.as_bytes());
            string.push(b'=');
            string.extend_from_slice(&value);
        }
    }
    string
}

fn percent_encoded(value: &str, unreserved: &[u8], plus: bool) -> Cow<'static, [u8]> {
    let mut encoded = Vec::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || unreserved.contains(&byte) {
            encoded.push(byte);
        } else if plus && byte == b' ' {
            encoded.push(b'+');
        } else {
            encoded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    Cow::Owned(encoded)
}

/// What may stand behind the string in the key's place.
fn key_variants(key: &str) -> [(WrongWay, String); 9] {
    use WrongWay::{AmpersandKey, KeyLowerCase, KeyUpperCase, KeyWhiteSpace};
    [
        (AmpersandKey, format!("&key={key}")),
        (KeyUpperCase, key.to_uppercase()),
        (KeyLowerCase, key.to_lowercase()),
        (KeyWhiteSpace, key.trim().to_owned()),
        (KeyWhiteSpace, format!("{key}\n")),
        (KeyWhiteSpace, format!("{key}\r\n")),
        (KeyWhiteSpace, format!("{key} ")),
        (KeyWhiteSpace, format!(" {key}")),
        (KeyWhiteSpace, format!(" {key} ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::encode;
    use super::*;

    const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";

    fn v1(key: &str) -> Credentials {
        Credentials::V1 { key: Secret::new(key), key_previous: None }
    }

    fn payload(changes: &[(&str, &str)], sign: &str) -> String {
        let base = [
            ("trade_no", "20160806151343349021"),
            ("pid", "1001"),
            ("out_trade_no", "20160806151343349"),
            ("type", "alipay"),
            ("name", "VIP会员"),
            ("money", "1.00"),
            ("trade_status", "TRADE_SUCCESS"),
        ];
        let end = [("sign", sign), ("sign_type", "MD5")];
        encode(base.into_iter().chain(changes.iter().copied()).chain(end))
    }

    fn md5(text: &str) -> String {
        let digest: [u8; 16] = Md5::digest(text).into();
        format!("{:032x}", u128::from_be_bytes(digest))
    }

    const STRING: &str = "money=1.00&name=VIP会员&out_trade_no=20160806151343349&pid=1001&\
                          trade_no=20160806151343349021&trade_status=TRADE_SUCCESS&type=alipay";

    fn diagnosed(payload: &str) -> Option<Diagnosis> {
        let others = [("2003", Secret::new("another key")), ("2004", Secret::new(""))];
        diagnose(payload.as_bytes(), &v1(KEY), others.iter().map(|(pid, key)| (*pid, key)))
    }

    /// The published wrong variants of the protocol's base vector.
    #[test]
    fn the_published_wrong_variants_are_named() {
        for (sign, way) in [
            ("6623d5cbb48aed1bc0e199ab20e25b52", WrongWay::AmpersandKey),
            ("dd99a078fd028ece2a87616996d7bfdc", WrongWay::SignTypeSigned),
            ("26d33792efccbd8e738b62c10d602d86", WrongWay::UrlEncoded),
            ("90533b790b30404cadcf9d293b6d1b26", WrongWay::Gbk),
        ] {
            assert_eq!(diagnosed(&payload(&[], sign)), Some(way.into()), "{sign}");
        }
    }

    #[test]
    fn each_wrong_way_is_named() {
        let upper = KEY.to_uppercase();
        let lower = KEY.to_lowercase();
        for (changes, signed, way) in [
            (&[("param", "")][..], STRING.replace("&pid", "&param=&pid") + KEY, WrongWay::EmptySigned),
            (&[("param", " a ")], STRING.replace("&pid", "&param=a&pid") + KEY, WrongWay::Trimmed),
            (&[], STRING.to_owned() + &upper, WrongWay::KeyUpperCase),
            (&[], STRING.to_owned() + &lower, WrongWay::KeyLowerCase),
            (&[], format!("{STRING}{KEY}\n"), WrongWay::KeyWhiteSpace),
            (&[], format!("{STRING} {KEY}"), WrongWay::KeyWhiteSpace),
            (
                &[],
                format!(
                    "trade_no=20160806151343349021&pid=1001&out_trade_no=20160806151343349&type=alipay&name=VIP会员&\
                     money=1.00&trade_status=TRADE_SUCCESS{KEY}"
                ),
                WrongWay::Unsorted,
            ),
        ] {
            assert_eq!(diagnosed(&payload(changes, &md5(&signed))), Some(way.into()), "{signed}");
        }
    }

    #[test]
    fn another_merchants_key_is_named_with_its_merchant() {
        let sign = md5(&format!("{STRING}another key"));
        let expected = Diagnosis { way: WrongWay::OtherMerchant, pid: Some("2003".into()) };
        assert_eq!(diagnosed(&payload(&[], &sign)), Some(expected));
    }

    #[test]
    fn a_key_with_white_space_on_our_side_is_named() {
        let sign = md5(&format!("{STRING}{KEY}"));
        let found = diagnose(payload(&[], &sign).as_bytes(), &v1(&format!("{KEY} ")), []);
        assert_eq!(found, Some(WrongWay::KeyWhiteSpace.into()));
    }

    #[test]
    fn what_fits_no_known_way_gets_no_name() {
        assert_eq!(diagnosed(&payload(&[], &md5("anything"))), None);
        // The empty key of a merchant would fit whoever signs without one.
        assert_eq!(diagnosed(&payload(&[], &md5(STRING))), None);
        assert_eq!(diagnosed("%zz"), None);
        assert_eq!(diagnosed(&payload(&[], "x")), Some(WrongWay::NoSignature.into()));
        let rsa = payload(&[], "x").replace("sign_type=MD5", "sign_type=RSA");
        assert_eq!(diagnosed(&rsa), Some(WrongWay::RsaForV1.into()));
    }

    #[test]
    fn a_notification_is_read_out_without_its_secrets() {
        let shown = readable(b"b=2&a=%E4%BC%9A+1&sign=5ec2e7&key=5ec2e7&sign_type=MD5&c=").unwrap();
        assert_eq!(shown.fields, "b=2 a=会 1 sign=*** key=*** sign_type=MD5 c=");
        assert_eq!(shown.signed, "a=会 1&b=2&key=***");
        assert_eq!(readable(payload(&[("param", "")], "x").as_bytes()).unwrap().signed, STRING);
        assert_eq!(readable(b"a=%"), None);
    }
}
