//! Form parameters, read in the one way in which they cannot be misread.

use std::borrow::Cow;
use std::fmt;

use super::text;

/// How many fields a form may have; gateways send about ten.
const FIELDS_MAX: usize = 100;

/// How much of a key is repeated in an error.
const KEY_CHARS_TOLD: usize = 32;

/// Fields that only requests to a gateway have. In a notification they are the trace of a re-cut pay link.
const REQUEST_ONLY: [&str; 5] = ["clientip", "device", "key", "notify_url", "return_url"];

/// A key and its value, decoded.
pub(crate) type Field<'a> = (Cow<'a, str>, Cow<'a, str>);

/// The parameters of a query string or form body, sorted by key, each key once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form<'a> {
    fields: Vec<Field<'a>>,
}

/// Why a notification cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// A `%` without two hexadecimal digits behind it, or bytes that are not UTF-8.
    #[error("bad_encoding")]
    BadEncoding,
    /// A key that is empty or has a byte outside `[A-Za-z0-9_.-]`.
    #[error("bad_key")]
    BadKey,
    /// A key that stands there twice: gateways and languages differ in which one counts.
    #[error("duplicate_key {0}")]
    DuplicateKey(String),
    /// A value with an `&` that belongs to no HTML entity: the signature would fit another set of fields too.
    #[error("ambiguous_value {0}")]
    AmbiguousValue(String),
    /// A field that only requests have.
    #[error("request_only_field {0}")]
    RequestOnlyField(&'static str),
    /// More than 100 fields.
    #[error("too_many_fields")]
    TooManyFields,
    /// A required field that is absent or blank.
    #[error("missing_field {0}")]
    MissingField(&'static str),
}

impl<'a> Form<'a> {
    /// Reads `application/x-www-form-urlencoded` text, refusing whatever has more than one reading.
    pub(crate) fn parse(encoded: &'a [u8]) -> Result<Self, Malformed> {
        Self::new(decode_pairs(encoded)?)
    }

    /// Takes fields that are decoded already, under the same rules as [`Form::parse`].
    pub(crate) fn new(mut fields: Vec<Field<'a>>) -> Result<Self, Malformed> {
        fields.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (key, value) in &fields {
            if !is_key(key) {
                return Err(Malformed::BadKey);
            }
            if text::has_bare_ampersand(value) {
                return Err(Malformed::AmbiguousValue(shortened(key)));
            }
            if let Some(field) = REQUEST_ONLY.iter().find(|field| *field == key) {
                return Err(Malformed::RequestOnlyField(field));
            }
        }
        if let Some(twice) = fields.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Malformed::DuplicateKey(shortened(&twice[0].0)));
        }
        Ok(Self { fields })
    }

    /// Takes fields as somebody would send them, whatever they are: for signing, not for believing.
    pub(crate) fn as_sent(mut fields: Vec<Field<'a>>) -> Self {
        fields.sort_unstable();
        Self { fields }
    }

    /// The value of `key`, if the field is there.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let at = self.fields.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok()?;
        Some(&self.fields[at].1)
    }

    /// The value of `key`, which must be there and not be blank.
    pub(super) fn require(&self, key: &'static str) -> Result<&str, Malformed> {
        self.get(key).filter(|value| !is_blank(value)).ok_or(Malformed::MissingField(key))
    }

    /// The fields, sorted by key.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }
}

/// The fields of `application/x-www-form-urlencoded` text as they stand there, under no rules but those of the encoding.
pub(crate) fn decode_pairs(encoded: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
    let mut fields = Vec::with_capacity(16);
    for pair in encoded.split(|&b| b == b'&').filter(|pair| !pair.is_empty()) {
        if fields.len() == FIELDS_MAX {
            return Err(Malformed::TooManyFields);
        }
        let cut = pair.iter().position(|&b| b == b'=');
        let (key, value) = match cut {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        fields.push((decode(key)?, decode(value)?));
    }
    Ok(fields)
}

/// Whether this can be a field's key: no reading of a signing string takes anything else for one.
pub(super) fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// As much of a key as an error repeats; keys are ASCII by then.
fn shortened(key: &str) -> String {
    key.chars().take(KEY_CHARS_TOLD).collect()
}

/// What a form that may be refused seems to say of `key`, for a person to find it by: believed by nobody.
pub(crate) fn glimpse(encoded: &[u8], key: &str) -> Option<String> {
    let mut pairs = encoded.split(|&b| b == b'&');
    let value = pairs.find_map(|pair| pair.strip_prefix(key.as_bytes())?.strip_prefix(b"="))?;
    let decoded = decode(value).map_or_else(|_| String::from_utf8_lossy(value).into_owned(), Cow::into_owned);
    Some(decoded).filter(|value| !is_blank(value))
}

/// Whether PHP's `trim` would leave nothing of `value`: this is how gateways tell blank values.
pub(super) fn is_blank(value: &str) -> bool {
    value.bytes().all(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b'\0' | 0x0b))
}

fn decode(encoded: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    if !encoded.iter().any(|b| matches!(b, b'%' | b'+')) {
        let text = std::str::from_utf8(encoded).map_err(|_| Malformed::BadEncoding)?;
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match byte {
            b'+' => (b' ', after),
            b'%' => match after {
                [high, low, after @ ..] => (hex_digit(*high)? << 4 | hex_digit(*low)?, after),
                _ => return Err(Malformed::BadEncoding),
            },
            _ => (byte, after),
        };
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| Malformed::BadEncoding)
}

fn hex_digit(digit: u8) -> Result<u8, Malformed> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Malformed::BadEncoding),
    }
}

/// Writes fields as `application/x-www-form-urlencoded`, in the order given.
pub(crate) fn encode<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut encoded = String::new();
    for (key, value) in fields {
        if !encoded.is_empty() {
            encoded.push('&');
        }
        push_encoded(&mut encoded, key);
        encoded.push('=');
        push_encoded(&mut encoded, value);
    }
    encoded
}

fn push_encoded(encoded: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => encoded.push(byte.into()),
            b' ' => encoded.push('+'),
            _ => {
                fmt::Write::write_fmt(encoded, format_args!("%{byte:02X}")).expect("writing to a String cannot fail");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, String)>, Malformed> {
        let form = Form::parse(text.as_bytes())?;
        Ok(form.fields().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    #[test]
    fn reads_what_gateways_send() {
        let fields = parse("b=%E4%BC%9A+x&a=1%2B1&c&empty=&&").unwrap();
        let expected = [("a", "1+1"), ("b", "会 x"), ("c", ""), ("empty", "")];
        assert_eq!(fields, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn refuses_what_has_two_readings() {
        let many = "a&".repeat(101);
        for (form, reason) in [
            ("a=1&a=1", Malformed::DuplicateKey("a".into())),
            ("a=1&%61=2", Malformed::DuplicateKey("a".into())),
            ("=1", Malformed::BadKey),
            ("a%20=1", Malformed::BadKey),
            ("a[]=1", Malformed::BadKey),
            ("%E4%BC%9A=1", Malformed::BadKey),
            ("amp;a=1", Malformed::BadKey),
            ("a=x%26b%3D1", Malformed::AmbiguousValue("a".into())),
            ("a=%26am%26amp%3Bp%3B", Malformed::AmbiguousValue("a".into())),
            ("notify_url=x", Malformed::RequestOnlyField("notify_url")),
            ("return_url=", Malformed::RequestOnlyField("return_url")),
            ("clientip=1", Malformed::RequestOnlyField("clientip")),
            ("device=pc", Malformed::RequestOnlyField("device")),
            ("key=k", Malformed::RequestOnlyField("key")),
            ("a=%", Malformed::BadEncoding),
            ("a=%4", Malformed::BadEncoding),
            ("a=%zz", Malformed::BadEncoding),
            ("a=%FF", Malformed::BadEncoding),
            ("a=%C4%E3", Malformed::BadEncoding),
            (&many, Malformed::TooManyFields),
        ] {
            assert_eq!(parse(form), Err(reason), "{form:?}");
        }
        assert_eq!(Form::parse(b"a=\xff"), Err(Malformed::BadEncoding));
    }

    #[test]
    fn a_refused_form_can_still_be_found_by_what_it_seems_to_say() {
        let form = b"apid=0&pid=%E4%BC%9A&out_trade_no=%zz&trade_no=&pid=2";
        assert_eq!(glimpse(form, "pid").as_deref(), Some("\u{4f1a}"));
        assert_eq!(glimpse(form, "out_trade_no").as_deref(), Some("%zz"));
        assert_eq!(glimpse(form, "trade_no"), None);
        assert_eq!(glimpse(form, "money"), None);
    }

    proptest! {
        #[test]
        fn what_is_encoded_parses_back(fields in prop::collection::btree_map("x[a-z]{1,5}", "[^&]{0,12}", 0..8)) {
            let encoded = encode(fields.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            prop_assert_eq!(parse(&encoded).unwrap(), fields.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Form::parse(&bytes);
        }
    }
}
