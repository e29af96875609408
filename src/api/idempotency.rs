//! Requests that may be repeated: the bot's key for each, and our fingerprint of what it asks for.

use hyper::HeaderMap;
use ring::digest::{Context, SHA256};
use serde::Serialize;

use super::problem::Problem;
use crate::domain::language::localized;

const HEADER: &str = "idempotency-key";
/// How long a key may be.
const KEY_BYTES_MAX: usize = 255;

/// The one key of a request.
pub(super) fn key(headers: &HeaderMap) -> Result<String, Problem> {
    let mut keys = headers.get_all(HEADER).iter();
    let Some(key) = keys.next() else {
        return Err(Problem::bad_request("idempotency_key_missing", localized!("api.key_missing")));
    };
    let bytes = key.as_bytes();
    let fits = (1..=KEY_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(bytes) {
        Ok(key) if fits && keys.next().is_none() => Ok(key.to_owned()),
        _ => Err(Problem::bad_request("idempotency_key_invalid", localized!("api.key_invalid", max = KEY_BYTES_MAX))),
    }
}

/// SHA-256 over method, path and body. None of the first two has a line feed in it.
pub(super) fn fingerprint(method: &str, path: &str, body: &impl Serialize) -> String {
    let body = serde_json::to_vec(body).expect("a request that was read can be written");
    let mut context = Context::new(&SHA256);
    for part in [method.as_bytes(), b"\n", path.as_bytes(), b"\n", &body] {
        context.update(part);
    }
    context.finish().as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn a_key_is_visible_ascii_and_there_is_one() {
        let (longest, too_long) = ("k".repeat(255), "k".repeat(256));
        for (keys, code) in [
            (&["update-17"][..], None),
            (&[longest.as_str()], None),
            (&[], Some("idempotency_key_missing")),
            (&[""], Some("idempotency_key_invalid")),
            (&[too_long.as_str()], Some("idempotency_key_invalid")),
            (&["a b"], Some("idempotency_key_invalid")),
            (&["ключ"], Some("idempotency_key_invalid")),
            (&["a", "a"], Some("idempotency_key_invalid")),
        ] {
            let mut headers = HeaderMap::new();
            for key in keys {
                headers.append(HEADER, HeaderValue::from_bytes(key.as_bytes()).unwrap());
            }
            assert_eq!(key(&headers).err().map(|problem| problem.code()), code, "{keys:?}");
        }
    }

    #[test]
    fn a_fingerprint_tells_methods_paths_and_bodies_apart() {
        let fingerprints: std::collections::BTreeSet<_> = [
            fingerprint("POST", "/v1/users/1/spend", &1),
            fingerprint("POST", "/v1/users/1/spend", &2),
            fingerprint("POST", "/v1/users/1/grant", &1),
            fingerprint("PUT", "/v1/users/1/spend", &1),
        ]
        .into();
        assert_eq!(fingerprints.len(), 4);
        assert!(fingerprints.iter().all(|fingerprint| fingerprint.len() == 64));
    }
}
