//! A notification on its way from bytes to something that may be believed.

use serde::Serialize;

use super::form::{Form, Malformed, is_blank};
use super::rsa::{PlatformKey, PrivateKey};
use super::sign::verify_md5;
use super::text::echo;
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::order::PaymentState;
use crate::domain::secret::Secret;
use crate::domain::settlement::{Claim, ClaimProof};

/// How far a V2 timestamp may be from our clock, either way.
const DRIFT_MAX_S: u64 = 300;

/// What proves that a notification comes from a merchant's gateway. Each merchant has one kind: there is no downgrade.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Credentials {
    /// MD5 with a key that the gateway and we share.
    V1 {
        /// The merchant key.
        key: Secret,
        /// The key before it, while callbacks that it signed may still be on their way.
        #[serde(skip_serializing_if = "Option::is_none")]
        key_previous: Option<Secret>,
    },
    /// RSA with the gateway's public key, and a fresh timestamp.
    V2 {
        /// The gateway's public key.
        #[serde(skip)]
        platform_key: PlatformKey,
        /// Our private key, with which we sign what we ask of the gateway; without it nothing can be asked.
        #[serde(skip)]
        private_key: Option<PrivateKey>,
    },
}

/// A notification that can be read in one way only, and that nobody has vouched for yet.
#[derive(Clone, Debug)]
pub(crate) struct Unverified<'a> {
    form: Form<'a>,
}

/// Why a notification that can be read is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VerifyError {
    /// The signature is not the merchant's gateway's, or of another kind than the merchant's.
    #[error("bad_signature")]
    BadSignature,
    /// V2: signed more than 300 s from now, or without a time.
    #[error("stale")]
    Stale,
}

/// What a gateway vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    /// The merchant's id at the gateway.
    pub pid: String,
    /// Our number of the order.
    pub out_trade_no: String,
    /// The gateway's number of the payment; `None` where it is absent or blank.
    pub trade_no: Option<String>,
    /// The amount paid; `None` where it is absent, or no decimal number of whole fen.
    pub money: Option<Amount>,
    /// The state by `trade_status`: `TRADE_SUCCESS` and nothing else means that money came.
    pub payment: PaymentState,
    /// What we sent as `param`, as it came back (perhaps HTML-escaped); `None` where it is blank.
    pub param: Option<String>,
    /// Whether it was signed with the merchant's previous key.
    pub by_previous_key: bool,
}

impl Notification {
    /// The claim that the notification makes, proved by its signature.
    pub(crate) fn claim(self) -> Claim {
        Claim {
            merchant: self.pid,
            order_no: self.out_trade_no,
            trade_no: self.trade_no,
            amount: self.money,
            payment: self.payment,
            param: self.param.map(echo),
            proof: ClaimProof::Signature,
        }
    }
}

impl<'a> Unverified<'a> {
    /// Reads a notification from a query string or a form body.
    pub(crate) fn parse(encoded: &'a [u8]) -> Result<Self, Malformed> {
        let form = Form::parse(encoded)?;
        for field in ["pid", "out_trade_no", "sign"] {
            form.require(field)?;
        }
        Ok(Self { form })
    }

    /// The merchant whose notification this claims to be.
    pub(crate) fn pid(&self) -> &str {
        self.field("pid")
    }

    /// The order that this claims to pay.
    pub(crate) fn out_trade_no(&self) -> &str {
        self.field("out_trade_no")
    }

    /// Checks the signature (and, for V2, the age at the time `now`) by the credentials of the merchant that `pid` names.
    pub(crate) fn verify(&self, credentials: &Credentials, now: Timestamp) -> Result<Notification, VerifyError> {
        let by_previous_key = self.signed_by_previous_key(credentials).ok_or(VerifyError::BadSignature)?;
        if matches!(credentials, Credentials::V2 { .. }) && !is_fresh(self.field("timestamp"), now) {
            return Err(VerifyError::Stale);
        }
        Ok(Notification {
            pid: self.pid().to_owned(),
            out_trade_no: self.out_trade_no().to_owned(),
            trade_no: self.said("trade_no").map(str::to_owned),
            money: self.said("money").and_then(|money| Amount::parse_received(money).ok()),
            payment: payment_state(self.said("trade_status")),
            param: self.said("param").map(str::to_owned),
            by_previous_key,
        })
    }

    /// Whether the merchant's gateway signed this at some time: enough to show what is known already, and no [`Notification`].
    pub(crate) fn is_signed(&self, credentials: &Credentials) -> bool {
        self.signed_by_previous_key(credentials).is_some()
    }

    /// Whether the key that signed this is the merchant's previous one; `None` where no key of the merchant's did.
    fn signed_by_previous_key(&self, credentials: &Credentials) -> Option<bool> {
        let sign = self.field("sign");
        let sign_type = self.field("sign_type");
        let is_md5 = sign_type.is_empty() || sign_type.eq_ignore_ascii_case("MD5");
        match credentials {
            Credentials::V1 { key, .. } if is_md5 && verify_md5(&self.form, key, sign) => Some(false),
            Credentials::V1 { key_previous: Some(key), .. } if is_md5 && verify_md5(&self.form, key, sign) => {
                Some(true)
            }
            Credentials::V2 { platform_key, .. } if sign_type == "RSA" && platform_key.verify(&self.form, sign) => {
                Some(false)
            }
            _ => None,
        }
    }

    /// A field's value, where it is not blank. A blank field may have been added by anybody: one dialect does not sign it.
    fn said(&self, key: &str) -> Option<&str> {
        self.form.get(key).filter(|value| !is_blank(value))
    }

    /// A field's value; the required ones are there since [`Unverified::parse`], any other is empty where it is absent.
    fn field(&self, key: &str) -> &str {
        self.form.get(key).unwrap_or_default()
    }
}

/// The state that a `trade_status` stands for. The words for "not paid" are those that gateways are known to send to a `notify_url`.
fn payment_state(trade_status: Option<&str>) -> PaymentState {
    match trade_status {
        Some("TRADE_SUCCESS") => PaymentState::Paid,
        Some("WAIT_BUYER_PAY" | "TRADE_CLOSED" | "TRADE_REFUND" | "REFUND_SUCCESS" | "SETTLEMENT_SUCCESS") => {
            PaymentState::Unpaid
        }
        _ => PaymentState::Unclear,
    }
}

/// Whether `timestamp`, in Unix seconds, is near enough to `now` for what was signed then to be believed.
pub(super) fn is_fresh(timestamp: &str, now: Timestamp) -> bool {
    let signed_at: Option<i64> = timestamp.parse().ok();
    signed_at.is_some_and(|signed_at| signed_at.abs_diff(now.ms().div_euclid(1000)) <= DRIFT_MAX_S)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::super::{encode, sign_md5};
    use super::*;

    const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";

    fn v1() -> Credentials {
        Credentials::V1 { key: Secret::new(KEY), key_previous: None }
    }

    type Fields = Vec<(String, String)>;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    fn paid_order() -> Fields {
        fields(&[
            ("pid", "1001"),
            ("trade_no", "T1"),
            ("out_trade_no", "MINE1"),
            ("type", "alipay"),
            ("money", "5.00"),
            ("trade_status", "TRADE_SUCCESS"),
        ])
    }

    fn encoded(fields: &Fields) -> String {
        encode(fields.iter().map(|(k, v)| (k.as_str(), v.as_str())))
    }

    /// The signing string and its signature, made here from the protocol's words alone.
    fn signing_string_of(fields: &Fields) -> String {
        let mut sorted: Vec<_> = fields.iter().filter(|(k, v)| !v.is_empty() && k != "sign_type").collect();
        sorted.sort();
        let pairs: Vec<_> = sorted.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.join("&")
    }

    fn sign(fields: &Fields) -> String {
        use md5::{Digest, Md5};
        let digest: [u8; 16] = Md5::digest(format!("{}{KEY}", signing_string_of(fields))).into();
        format!("{:032x}", u128::from_be_bytes(digest))
    }

    fn signed(mut fields: Fields) -> Fields {
        let signature = sign(&fields);
        fields.push(("sign".into(), signature));
        fields
    }

    fn check(fields: &Fields, credentials: &Credentials) -> Result<Notification, String> {
        check_bytes(encoded(fields).as_bytes(), credentials)
    }

    fn check_bytes(bytes: &[u8], credentials: &Credentials) -> Result<Notification, String> {
        Unverified::parse(bytes)
            .map_err(|e| e.to_string())?
            .verify(credentials, Timestamp::from_ms(1_700_000_000_500))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_signed_payment_is_believed() {
        let notification = check(&signed(paid_order()), &v1()).unwrap();
        assert_eq!(notification.out_trade_no, "MINE1");
        assert_eq!(notification.trade_no.as_deref(), Some("T1"));
        assert_eq!(notification.money, Amount::from_fen(500));
        assert_eq!(notification.payment, PaymentState::Paid);
        assert_eq!(notification.param, None);
    }

    /// Whoever has a valid callback, as the buyer does, can add a blank `param` to it, and its order must not be held for it.
    #[test]
    fn a_blank_param_is_none_since_it_need_not_be_signed() {
        for blank in ["", " ", "\t\r\n"] {
            let mut order = signed(paid_order());
            order.push(("param".into(), blank.into()));
            assert_eq!(check(&order, &v1()).unwrap().param, None, "{blank:?}");
        }
    }

    /// The paid order with another value of `key`, or without it.
    fn paid_order_with(key: &str, value: Option<&str>) -> Fields {
        let mut order = paid_order();
        order.retain(|(k, _)| k != key);
        order.extend(value.map(|value| (key.to_owned(), value.to_owned())));
        order
    }

    #[test]
    fn only_the_exact_word_means_paid_and_only_known_words_mean_unpaid() {
        use PaymentState::{Unclear, Unpaid};
        for (status, expected) in [
            (Some("TRADE_CLOSED"), Unpaid),
            (Some("WAIT_BUYER_PAY"), Unpaid),
            (Some("REFUND_SUCCESS"), Unpaid),
            (Some("SETTLEMENT_SUCCESS"), Unpaid),
            (Some("trade_success"), Unclear),
            (Some("TRADE_SUCCESS "), Unclear),
            (Some("TRADE_FINISHED"), Unclear),
            (Some("0"), Unclear),
            (Some(""), Unclear),
            (Some(" "), Unclear),
            (None, Unclear),
        ] {
            let order = paid_order_with("trade_status", status);
            assert_eq!(check(&signed(order), &v1()).unwrap().payment, expected, "{status:?}");
        }
    }

    #[test]
    fn sign_type_may_be_absent_or_md5_and_nothing_else() {
        for (sign_type, believed) in [("", true), ("MD5", true), ("md5", true), ("RSA", false), ("SHA256", false)] {
            let mut order = signed(paid_order());
            order.push(("sign_type".into(), sign_type.into()));
            assert_eq!(check(&order, &v1()).is_ok(), believed, "{sign_type:?}");
        }
    }

    #[test]
    fn what_says_whose_word_it_is_and_on_which_order_is_required_and_not_blank() {
        for field in ["pid", "out_trade_no", "sign"] {
            for value in [None, Some(""), Some(" \t")] {
                let mut order = signed(paid_order());
                order.retain(|(key, _)| key != field);
                order.extend(value.map(|value| (field.to_owned(), value.to_owned())));
                assert_eq!(check(&order, &v1()), Err(format!("missing_field {field}")), "{value:?}");
            }
        }
    }

    /// It is a proved payment, and one that a person has to see.
    #[test]
    fn money_that_cannot_be_read_is_none_and_still_proved() {
        for money in [None, Some(""), Some(" "), Some("5.001"), Some("-5.00"), Some("5e2"), Some("0x5"), Some("5.00 ")]
        {
            let notification = check(&signed(paid_order_with("money", money)), &v1()).unwrap();
            assert_eq!((notification.money, notification.payment), (None, PaymentState::Paid), "{money:?}");
        }
    }

    #[test]
    fn a_payment_without_a_number_is_still_proved() {
        for trade_no in [None, Some(""), Some(" \t")] {
            let notification = check(&signed(paid_order_with("trade_no", trade_no)), &v1()).unwrap();
            assert_eq!((notification.trade_no, notification.payment), (None, PaymentState::Paid), "{trade_no:?}");
        }
    }

    /// Taking a signed field away breaks the signature; adding a blank one says nothing.
    #[test]
    fn who_holds_a_valid_callback_cannot_make_one_that_says_less_or_more() {
        let believed = check(&signed(paid_order()), &v1()).unwrap();
        for field in ["trade_no", "money", "trade_status"] {
            let mut less = signed(paid_order());
            less.retain(|(key, _)| key != field);
            assert_eq!(check(&less, &v1()), Err("bad_signature".into()), "{field}");
            let without = signed(paid_order_with(field, None));
            for value in ["", " ", "TRADE_SUCCESS", "1"] {
                let mut more = without.clone();
                more.push((field.into(), value.into()));
                let is_blank = value.trim().is_empty();
                let expected = if is_blank { check(&without, &v1()) } else { Err("bad_signature".into()) };
                assert_eq!(check(&more, &v1()), expected, "{field} {value:?}");
            }
        }
        assert_eq!(check(&signed(paid_order()), &v1()), Ok(believed));
    }

    /// What other gateways send, by their sources and documents; the last is of a refund, and must not pay.
    #[test]
    fn callbacks_of_other_gateways() {
        let ldc_pid = format!("{}1", "0".repeat(63));
        let ldc = format!(
            "money=10.00&name=credits&out_trade_no=A1&pid={ldc_pid}&trade_no=7301234567890123456&\
             trade_status=TRADE_SUCCESS&type=epay"
        );
        for (key, string, sign, trade_no, payment) in [
            (
                "epusdt_password_xasddawqe",
                "money=10&name=积分 100&out_trade_no=A1&pid=1000&trade_no=aB3dE5gH7jK9mN1pQ2&trade_status=TRADE_SUCCESS&type=usdt.trc20",
                "977a85afeda26865313209053c110f82",
                "aB3dE5gH7jK9mN1pQ2",
                PaymentState::Paid,
            ),
            (
                "gm_secret_1",
                "money=10.0000&name=credits&out_trade_no=A1&pid=1001&trade_no=T202608300001&trade_status=TRADE_SUCCESS&type=alipay",
                "90bc500cf8d82eb5377a652c4232cfbc",
                "T202608300001",
                PaymentState::Paid,
            ),
            ("ldc_secret_1", &ldc, "7dc8d1c952b5d9130384f30b724b0b64", "7301234567890123456", PaymentState::Paid),
            (
                "rainbow_key",
                "money=10&name=product&out_trade_no=A1&pid=1001&trade_no=2026083012000012345&trade_status=TRADE_SUCCESS&type=alipay",
                "cbc436a872d201c14697c33df2856a7b",
                "2026083012000012345",
                PaymentState::Paid,
            ),
            (
                "rainbow_key",
                "money=10.00&name=credits&out_refund_no=MR1&out_trade_no=A1&pid=1001&refund_no=R1&refundmoney=10.00&trade_no=M2026083001&trade_status=REFUND_SUCCESS&type=alipay",
                "74be909a9a2e844c73fc7456b14734da",
                "M2026083001",
                PaymentState::Unpaid,
            ),
        ] {
            let key = Credentials::V1 { key: Secret::new(key), key_previous: None };
            let callback = format!("{}&sign={sign}", string.replace(' ', "%20"));
            let notification = check_bytes(callback.as_bytes(), &key).unwrap();
            assert_eq!((notification.payment, notification.trade_no.as_deref()), (payment, Some(trade_no)), "{string}");
            assert_eq!((notification.out_trade_no.as_str(), notification.money), ("A1", Amount::from_fen(1000)));
        }
    }

    /// Gateways write entities of many kinds into what they send back, and sign that.
    #[test]
    fn values_with_entities_are_believed() {
        for name in ["it&#39;s", r"it\&#039;s", "&apos;&#34;&nbsp;", "a&AMP;b"] {
            let mut order = paid_order();
            order.push(("name".into(), name.into()));
            assert!(check(&signed(order), &v1()).is_ok(), "{name}");
        }
        for name in ["a&;", "a&#;", "a&b", "a&b;", "a&#x27;", "a&abcdefghi;"] {
            let mut order = paid_order();
            order.push(("name".into(), name.into()));
            assert_eq!(check(&signed(order), &v1()), Err("ambiguous_value name".into()), "{name}");
        }
    }

    /// What we sign with our own V2 key is no word of the gateway's, whatever it says.
    #[test]
    fn a_v2_request_of_ours_is_no_notification() {
        let platform_key = include_str!("../../../tests/keys/v2_platform_public.pem");
        let own = PrivateKey::parse(include_str!("../../../tests/keys/v2_merchant_private.pem")).unwrap();
        let credentials =
            Credentials::V2 { platform_key: PlatformKey::parse(platform_key).unwrap(), private_key: Some(own.clone()) };
        let mut request = paid_order();
        request.push(("timestamp".into(), "1700000000".into()));
        let form = Form::as_sent(request.iter().map(|(k, v)| (Cow::from(k), Cow::from(v))).collect());
        request.extend([("sign".into(), own.sign(&form)), ("sign_type".into(), "RSA".into())]);
        assert_eq!(check(&request, &credentials), Err("bad_signature".into()));
    }

    /// The buyer of MINE1 chose a product name that lets the same signature pay another order.
    #[test]
    fn a_payment_cannot_be_moved_to_another_order() {
        let mut bought = paid_order();
        bought.push(("name".into(), "x&out_trade_no=VICTIM9&p=".into()));
        let signature = sign(&bought);
        let mut moved = paid_order();
        moved.retain(|(key, _)| key != "out_trade_no");
        moved.extend(fields(&[
            ("out_trade_no", "VICTIM9"),
            ("name", "x"),
            ("p", "&out_trade_no=MINE1"),
            ("sign", &signature),
        ]));
        let unsigned = |fields: &Fields| fields.iter().filter(|(k, _)| k != "sign").cloned().collect();
        assert_eq!(signing_string_of(&bought), signing_string_of(&unsigned(&moved)));
        assert_eq!(check(&moved, &v1()), Err("ambiguous_value p".into()));
        assert_eq!(check(&signed(bought), &v1()), Err("ambiguous_value name".into()));
    }

    /// A signed pay link whose `param` is the buyer's text, cut again into a notification.
    #[test]
    fn a_pay_link_cannot_be_recut_into_a_payment() {
        let link = fields(&[
            ("money", "5.00"),
            ("name", "x"),
            ("notify_url", "http://a"),
            ("out_trade_no", "MINE1"),
            ("param", "x&pid=1001&trade_no=T1&trade_status=TRADE_SUCCESS&type=alipay&u="),
            ("pid", "1001"),
            ("return_url", "http://b"),
            ("type", "alipay"),
        ]);
        let recut = fields(&[
            ("money", "5.00"),
            ("name", "x&notify_url=http://a"),
            ("out_trade_no", "MINE1"),
            ("param", "x"),
            ("pid", "1001"),
            ("trade_no", "T1"),
            ("trade_status", "TRADE_SUCCESS"),
            ("type", "alipay"),
            ("u", "&pid=1001&return_url=http://b&type=alipay"),
        ]);
        assert_eq!(signing_string_of(&link), signing_string_of(&recut));
        let with_sign = |mut fields: Fields| {
            fields.push(("sign".into(), sign(&link)));
            fields
        };
        assert_eq!(check(&with_sign(recut), &v1()), Err("ambiguous_value name".into()));
        assert!(check(&with_sign(link.clone()), &v1()).is_err());
    }

    /// Values as gateways send them, and as an attacker would choose them: full of the string's own punctuation.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-zA-Z0-9.=%+ -]{0,8}",
            "[\u{4e00}-\u{4fff}]{1,4}",
            "x?(&amp;|&quot;|&#039;|&#39;|&apos;|&nbsp;|=|pid=1001|trade_no|;){1,5}",
        ]
    }

    fn notification() -> impl Strategy<Value = Fields> {
        let extra = prop::collection::btree_map("x[a-zA-Z0-9_.-]{0,4}", value(), 0..5);
        let params = (value(), "[A-Za-z0-9]{1,32}", "[0-9]{0,20}", -1..1_000_000_i64);
        (params, extra, any::<bool>()).prop_map(|((name, order_no, trade_no, fen), extra, is_said)| {
            let money = Amount::from_fen(fen).map_or_else(String::new, |amount| amount.to_string());
            let mut all = fields(&[
                ("pid", "1001"),
                ("trade_no", &trade_no),
                ("out_trade_no", &order_no),
                ("type", "alipay"),
                ("name", &name),
                ("money", &money),
                ("trade_status", if is_said { "TRADE_SUCCESS" } else { "" }),
            ]);
            all.extend(extra);
            all
        })
    }

    fn non_empty(fields: &Fields) -> Fields {
        let mut kept: Fields = fields.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
        kept.sort();
        kept
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies(fields in notification()) {
            let order_no = fields[2].1.clone();
            prop_assert_eq!(check(&signed(fields), &v1()).unwrap().out_trade_no, order_no);
        }

        #[test]
        fn our_signature_is_the_protocols(fields in notification()) {
            let borrowed = fields.iter().map(|(k, v)| (Cow::from(k.as_str()), Cow::from(v.as_str()))).collect();
            prop_assert_eq!(sign_md5(&Form::new(borrowed).unwrap(), &Secret::new(KEY)), sign(&fields));
        }

        /// Whatever happens to one byte on the way, the result is refused, or says the same as before.
        #[test]
        fn a_changed_byte_never_changes_what_is_believed(
            fields in notification(), at in any::<Index>(), byte in any::<u8>(),
        ) {
            let sent = encoded(&signed(fields));
            let original = check_bytes(sent.as_bytes(), &v1()).unwrap();
            let mut changed = sent.clone().into_bytes();
            let at = at.index(changed.len());
            changed[at] = byte;
            if let Ok(believed) = check_bytes(&changed, &v1()) {
                prop_assert_eq!(believed, original);
            }
        }

        #[test]
        fn another_key_never_verifies(fields in notification(), other in "[a-z0-9]{1,32}") {
            let key = Credentials::V1 { key: Secret::new(other), key_previous: None };
            prop_assert_eq!(check(&signed(fields), &key), Err("bad_signature".to_owned()));
        }

        /// Cuts the signing string anew at any `&` and any `=`: the one set of fields that is accepted is the one signed.
        #[test]
        fn a_recut_string_never_verifies_as_something_else(
            fields in notification(), joins in prop::collection::vec(any::<bool>(), 40), equals in any::<Index>(),
        ) {
            let string = signing_string_of(&fields);
            let mut recut: Fields = Vec::new();
            let mut join = joins.into_iter();
            for segment in string.split('&') {
                match recut.last_mut() {
                    Some((_, value)) if join.next().unwrap_or(false) => { value.push('&'); value.push_str(segment); }
                    _ => {
                        let cuts: Vec<usize> = segment.match_indices('=').map(|(at, _)| at).collect();
                        let (key, value) = match cuts.get(equals.index(cuts.len().max(1))) {
                            Some(&at) => (&segment[..at], &segment[at + 1..]),
                            None => (segment, ""),
                        };
                        recut.push((key.to_owned(), value.to_owned()));
                    }
                }
            }
            let signature = sign(&fields);
            let mut sent = recut.clone();
            sent.push(("sign".into(), signature));
            if check(&sent, &v1()).is_ok() {
                prop_assert_eq!(non_empty(&recut), non_empty(&fields));
            }
        }
    }
}
