//! What must hold for any bytes that somebody may send or write: one function a fuzz target, which panics where it
//! does not hold.
//!
//! `tests/fuzz` runs them with bytes that a fuzzer makes up; a test here runs them with those that are kept in
//! `tests/fuzz/corpus`. The protocol's rules stand here a second time, in [`plain`]: written from its words alone,
//! with no care for speed, and sharing nothing with the code that they are held against.

mod config;
#[cfg(test)]
mod corpus;
mod differential;
mod head;
mod money;
mod notification;
mod plain;
mod reply;
mod script;
mod signed;

pub use config::config;
pub use differential::{OtherReading, PID, differential};
pub use head::head;
pub use money::money;
pub use notification::notification;
pub use reply::reply;
pub use signed::signed;

use std::sync::LazyLock;

use crate::channel::epay::{Credentials, PlatformKey, PrivateKey};
use crate::domain::clock::Timestamp;
use crate::domain::secret::Secret;

/// The key of the merchant that the targets speak of.
pub const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";

/// When all that the targets look at arrives, in Unix seconds.
const NOW_S: i64 = 1_700_000_000;

fn now() -> Timestamp {
    Timestamp::from_ms(NOW_S * 1000)
}

fn v1(key: &str) -> Credentials {
    Credentials::V1 { key: Secret::new(key), key_previous: None }
}

/// A V2 merchant, and its gateway.
static V2: LazyLock<V2Keys> = LazyLock::new(V2Keys::new);

/// A V2 merchant's credentials, and the key that its gateway signs with.
struct V2Keys {
    credentials: Credentials,
    platform: PrivateKey,
}

impl V2Keys {
    fn new() -> Self {
        let key = |text| PrivateKey::parse(text).expect("the keys of the tests are keys");
        let public = include_str!("../../../tests/keys/v2_platform_public.pem");
        Self {
            credentials: Credentials::V2 {
                platform_key: PlatformKey::parse(public).expect("the keys of the tests are keys"),
                private_key: Some(key(include_str!("../../../tests/keys/v2_merchant_private.pem"))),
            },
            platform: key(include_str!("../../../tests/keys/v2_platform_private.pem")),
        }
    }
}
