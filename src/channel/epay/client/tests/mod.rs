//! What holds for all of it: the merchants, orders and signed replies that the tests speak of.

mod network;
mod replies;
mod requests;

use super::super::form::Form;
use super::super::rsa::{PlatformKey, PrivateKey};
use super::*;
use crate::domain::clock::Timestamp;
use crate::domain::secret::Secret;

const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";
const PID: &str = "1001";
const ORDER_NO: &str = "01KEXAMPLE0000000000000000";

/// When the V2 replies of the tests are read.
const NOW_S: i64 = 1_700_000_000;

fn v1() -> Credentials {
    Credentials::V1 { key: Secret::new(KEY), key_previous: None }
}

fn v2() -> Credentials {
    let platform_key = include_str!("../../../../../tests/keys/v2_platform_public.pem");
    let private_key = include_str!("../../../../../tests/keys/v2_merchant_private.pem");
    Credentials::V2 {
        platform_key: PlatformKey::parse(platform_key).unwrap(),
        private_key: Some(PrivateKey::parse(private_key).unwrap()),
    }
}

fn protocol(credentials: &Credentials) -> Protocol {
    Protocol::new(credentials).unwrap()
}

fn gateway(base_url: &str, credentials: &Credentials) -> Gateway {
    Gateway::new(Client::new(), Clock::system(), base_url, PID, credentials).unwrap()
}

fn order_no() -> OrderNo {
    ORDER_NO.parse().unwrap()
}

fn yuan(text: &str) -> Amount {
    Amount::parse_price(text).unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_ms(NOW_S * 1000)
}

/// The fields as a JSON object: what looks like JSON stands there as it is, all else becomes text.
fn json(fields: &[(&str, &str)]) -> String {
    let members = fields.iter().map(|(key, value)| {
        let is_json = value.starts_with(['{', '[', '"']) || matches!(*value, "null" | "true" | "false" | "0" | "1");
        let value = if is_json { (*value).to_owned() } else { serde_json::to_string(value).unwrap() };
        format!("\"{key}\":{value}")
    });
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// The fields as a V2 gateway answers them at the time `at_s`, signed.
fn signed_at(at_s: i64, fields: &[(&str, &str)]) -> String {
    let timestamp = at_s.to_string();
    let mut all = fields.to_vec();
    all.push(("timestamp", &timestamp));
    let signed = all.iter().filter(|(_, v)| !v.starts_with(['{', '[']) && !matches!(*v, "null" | "true" | "false"));
    let form = Form::as_sent(signed.map(|(k, v)| ((*k).into(), (*v).into())).collect());
    let key = PrivateKey::parse(include_str!("../../../../../tests/keys/v2_platform_private.pem")).unwrap();
    let sign = key.sign(&form);
    all.extend([("sign", sign.as_str()), ("sign_type", "RSA")]);
    json(&all)
}
