//! A callback as a gateway makes it: the fields in their usual order, signed.

use std::borrow::Cow;

use super::form::{Form, encode};
use super::rsa::PrivateKey;
use super::sign::sign_md5;
use crate::domain::clock::Timestamp;
use crate::domain::secret::{MASK, Secret};

/// What a callback says; text, because a test may want to say anything.
#[derive(Clone, Debug)]
pub(crate) struct CallbackFields {
    /// The merchant's id.
    pub(crate) pid: String,
    /// The gateway's number of the payment.
    pub(crate) trade_no: String,
    /// The merchant's number of the order.
    pub(crate) out_trade_no: String,
    /// The payment method, `type` in the protocol.
    pub(crate) payment_type: String,
    /// The product's name.
    pub(crate) name: String,
    /// The amount.
    pub(crate) money: String,
    /// `TRADE_SUCCESS` where the order is paid.
    pub(crate) trade_status: String,
    /// What the merchant sent to get it back; left out where there is none.
    pub(crate) param: Option<String>,
}

impl CallbackFields {
    fn in_order(self) -> Vec<(&'static str, String)> {
        let fields = [
            ("pid", self.pid),
            ("trade_no", self.trade_no),
            ("out_trade_no", self.out_trade_no),
            ("type", self.payment_type),
            ("name", self.name),
            ("money", self.money),
            ("trade_status", self.trade_status),
        ];
        fields.into_iter().chain(self.param.map(|param| ("param", param))).collect()
    }
}

/// A signed callback.
#[derive(Clone)]
pub(crate) struct SignedCallback {
    fields: Vec<(&'static str, String)>,
}

impl SignedCallback {
    /// Signs the fields with a V1 key.
    pub(crate) fn v1(fields: CallbackFields, key: &Secret) -> Self {
        Self::sign(fields.in_order(), "MD5", |form| sign_md5(form, key))
    }

    /// Signs the fields with a V2 platform's private key at the time `now`.
    pub(crate) fn v2(fields: CallbackFields, platform_key: &PrivateKey, now: Timestamp) -> Self {
        let mut fields = fields.in_order();
        fields.push(("timestamp", now.ms().div_euclid(1000).to_string()));
        Self::sign(fields, "RSA", |form| platform_key.sign(form))
    }

    fn sign(mut fields: Vec<(&'static str, String)>, sign_type: &str, sign: impl Fn(&Form) -> String) -> Self {
        let borrowed = fields.iter().map(|(k, v)| (Cow::from(*k), Cow::from(v.as_str()))).collect();
        let sign = sign(&Form::as_sent(borrowed));
        fields.push(("sign", sign));
        fields.push(("sign_type", sign_type.into()));
        Self { fields }
    }

    /// Spoils the signature.
    pub(crate) fn spoil(&mut self) {
        for (_, sign) in self.fields.iter_mut().filter(|(key, _)| *key == "sign") {
            let other = if sign.starts_with('0') { "1" } else { "0" };
            sign.replace_range(..1, other);
        }
    }

    /// What goes out, in this order.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(key, value)| (*key, value.as_str()))
    }

    /// What goes out, for a person to read: the signature is masked.
    pub(crate) fn masked(&self) -> String {
        let shown = self.fields().map(|(key, value)| (key, if key == "sign" { MASK } else { value }));
        encode(shown).replace("%2A", "*")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Credentials, PlatformKey, Unverified};
    use super::*;
    use crate::domain::order::PaymentState;

    fn paid() -> CallbackFields {
        CallbackFields {
            pid: "1001".into(),
            trade_no: "T1".into(),
            out_trade_no: "MINE1".into(),
            payment_type: "alipay".into(),
            name: "VIP会员 *".into(),
            money: "5.00".into(),
            trade_status: "TRADE_SUCCESS".into(),
            param: Some("7".into()),
        }
    }

    fn is_believed(callback: &SignedCallback, credentials: &Credentials, now: Timestamp) -> bool {
        let encoded = encode(callback.fields());
        Unverified::parse(encoded.as_bytes())
            .unwrap()
            .verify(credentials, now)
            .is_ok_and(|n| n.payment == PaymentState::Paid)
    }

    #[test]
    fn what_is_signed_is_believed_and_what_is_spoilt_is_not() {
        let key = Secret::new("k");
        let private = PrivateKey::parse(include_str!("../../../tests/keys/v2_platform_private.pem")).unwrap();
        let public = PlatformKey::parse(include_str!("../../../tests/keys/v2_platform_public.pem")).unwrap();
        let now = Timestamp::from_ms(1_700_000_000_999);
        for (mut callback, credentials) in [
            (SignedCallback::v1(paid(), &key), Credentials::V1 { key: key.clone(), key_previous: None }),
            (
                SignedCallback::v2(paid(), &private, now),
                Credentials::V2 { platform_key: public.clone(), private_key: None },
            ),
        ] {
            assert!(is_believed(&callback, &credentials, now));
            assert!(callback.masked().contains("&sign=***&"), "{}", callback.masked());
            callback.spoil();
            assert!(!is_believed(&callback, &credentials, now));
        }
    }
}
