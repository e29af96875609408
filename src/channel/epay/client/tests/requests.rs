//! What we send: links and their signatures.

use std::borrow::Cow;

use super::super::super::sign::sign_md5;
use super::*;

fn payable<'a>(order_no: &'a OrderNo, name: &'a str) -> Payable<'a> {
    Payable {
        order_no,
        payment_type: "alipay",
        name,
        amount: yuan("36"),
        param: Some("p1"),
        notify_url: "http://bot.example.com:5002/payment/notify",
        return_url: "http://bot.example.com:5002/payment/return",
        client_ip: "::ffff:203.0.113.7".parse().unwrap(),
        device: "mobile",
    }
}

/// The parameters of a link, decoded: the opposite of what made it.
fn parameters(link: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                _ => byte,
            });
        }
        String::from_utf8(bytes).unwrap()
    };
    let query = link.split_once('?').unwrap().1;
    query.split('&').map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (decoded(k), decoded(v))).collect()
}

#[test]
fn a_pay_link_has_every_field_and_its_signature() {
    let order_no = order_no();
    for (base_url, start) in [
        ("https://pay.example.com/", "https://pay.example.com/submit.php?"),
        ("https://pay.example.com", "https://pay.example.com/submit.php?"),
        ("http://example.com:8080/epay/v1", "http://example.com:8080/epay/v1/submit.php?"),
    ] {
        let link = gateway(base_url, &v1()).pay_link(&payable(&order_no, "VIP白银 (1)")).unwrap();
        assert!(link.starts_with(start), "{link}");
        let is_uri = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&b);
        assert!(link.bytes().all(is_uri), "{link}");
        let mut fields = parameters(&link);
        let form = fields.iter().map(|(k, v)| (Cow::Borrowed(k.as_str()), Cow::Borrowed(v.as_str()))).collect();
        let sign = sign_md5(&Form::as_sent(form), &Secret::new(KEY));
        fields.sort();
        let expected = [
            ("money", "36.00"),
            ("name", "VIP白银 (1)"),
            ("notify_url", "http://bot.example.com:5002/payment/notify"),
            ("out_trade_no", ORDER_NO),
            ("param", "p1"),
            ("pid", PID),
            ("return_url", "http://bot.example.com:5002/payment/return"),
            ("sign", &sign),
            ("sign_type", "MD5"),
            ("type", "alipay"),
        ];
        assert_eq!(fields, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert!(!link.contains(KEY));
    }
}

#[test]
fn blank_fields_are_left_out() {
    let order_no = order_no();
    let payable = Payable { payment_type: "", param: None, return_url: "", ..payable(&order_no, "x") };
    let link = gateway("http://a/", &v1()).pay_link(&payable).unwrap();
    let keys: Vec<String> = parameters(&link).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["money", "name", "notify_url", "out_trade_no", "pid", "sign", "sign_type"]);
}

#[test]
fn a_long_name_is_cut_between_characters() {
    let order_no = order_no();
    for (name, sent) in [
        ("a".repeat(130), "a".repeat(127)),
        ("会".repeat(50), "会".repeat(42)),
        ("a".repeat(126) + " b", "a".repeat(126)),
    ] {
        let fields = payable(&order_no, &name).link_fields(PID).unwrap();
        assert!(fields.contains(&("name", Cow::Owned(sent))), "{fields:?}");
    }
}

#[test]
fn what_makes_signatures_ambiguous_is_not_sent() {
    let order_no = order_no();
    let fine = payable(&order_no, "x");
    for (payable, field) in [
        (Payable { name: "a&b", ..fine.clone() }, "name"),
        (Payable { name: "a\n", ..fine.clone() }, "name"),
        (Payable { name: " ", ..fine.clone() }, "name"),
        (Payable { name: "it's", ..fine.clone() }, "name"),
        (Payable { name: "VIP🎉", ..fine.clone() }, "name"),
        (Payable { param: Some("a=b"), ..fine.clone() }, "param"),
        (Payable { param: Some("a<b"), ..fine.clone() }, "param"),
        (Payable { param: Some(" a"), ..fine.clone() }, "param"),
        (Payable { payment_type: "a+b", ..fine.clone() }, "type"),
        (Payable { device: "a%b", ..fine.clone() }, "device"),
        (Payable { notify_url: "http://a/?b=c", ..fine.clone() }, "notify_url"),
        (Payable { notify_url: "", ..fine.clone() }, "notify_url"),
    ] {
        assert_eq!(payable.link_fields(PID), Err(GatewayError::BadText(field)));
        assert_eq!(gateway("http://a/", &v1()).pay_link(&payable), None);
    }
}

#[test]
fn v2_has_no_links_and_asks_nothing_without_a_private_key() {
    let order_no = order_no();
    assert_eq!(gateway("http://a/", &v2()).pay_link(&payable(&order_no, "x")), None);
    let Credentials::V2 { platform_key, .. } = v2() else { unreachable!("v2() is V2") };
    let without = Credentials::V2 { platform_key, private_key: None };
    assert!(Gateway::new(Client::new(), Clock::system(), "http://a/", PID, &without).is_none());
}

#[test]
fn a_v2_request_is_signed_with_our_private_key() {
    let order_no = order_no();
    let mut request = payable(&order_no, "VIP白银").request_fields(PID).unwrap();
    request.push(("timestamp", "1700000000".into()));
    let sent = protocol(&v2()).sign(request);
    let get = |key| &sent.iter().find(|(k, _)| *k == key).unwrap().1;
    assert_eq!((get("clientip").as_str(), get("device").as_str()), ("203.0.113.7", "mobile"));
    assert_eq!((get("money").as_str(), get("sign_type").as_str()), ("36.00", "RSA"));
    let ours = PlatformKey::parse(include_str!("../../../../../tests/keys/v2_merchant_public.pem")).unwrap();
    let form = Form::as_sent(sent.iter().map(|(k, v)| ((*k).into(), v.as_str().into())).collect());
    assert!(ours.verify(&form, get("sign")));
}
