//! What comes back, without a network: every oddity, and what is made of it.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::super::sign::sign_md5;
use super::*;

fn fields(body: &str) -> Fields {
    Fields::parse(body.as_bytes()).unwrap()
}

fn read_answer(credentials: &Credentials, body: &str) -> Result<Answer, GatewayError> {
    Answer::read(&protocol(credentials), body.as_bytes(), &fields(body), now())
}

fn verdict(credentials: &Credentials, body: &str) -> Result<Verdict, GatewayError> {
    read_answer(credentials, body).map(|answer| answer.verdict(PID, &order_no()))
}

/// A paid order as V1 gateways answer it, with some fields changed; `-` takes one away.
fn paid_with<'a>(changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let paid = [
        ("code", "1"),
        ("msg", "查询订单号成功！"),
        ("trade_no", "20160806151343349021"),
        ("out_trade_no", ORDER_NO),
        ("type", "alipay"),
        ("pid", PID),
        ("endtime", "null"),
        ("money", "36.00"),
        ("param", "p1"),
        ("status", "1"),
    ];
    let kept = paid.into_iter().filter(|(key, _)| changes.iter().all(|(k, _)| k != key));
    kept.chain(changes.iter().copied()).filter(|(_, value)| *value != "-").collect()
}

fn paid() -> Verdict {
    paid_amount("36.00")
}

fn paid_amount(amount: &str) -> Verdict {
    Verdict::Paid { trade_no: "20160806151343349021".into(), amount: yuan(amount) }
}

#[test]
fn only_what_every_field_agrees_on_is_paid() {
    let refunded = |amount| Verdict::Refunded { trade_no: "20160806151343349021".into(), amount: yuan(amount) };
    for (changes, expected) in [
        (&[][..], paid()),
        (&[("status", "\"1\"")], paid()),
        (&[("code", "\"1\""), ("money", "36")], paid()),
        (&[("money", "36.0000")], paid()),
        (&[("param", "null"), ("type", "-")], paid()),
        (&[("trade_status", "TRADE_SUCCESS")], paid()),
        (&[("trade_status", "null")], paid()),
        (&[("trade_status", "WAIT_BUYER_PAY")], Verdict::Contradicts("trade_status")),
        (&[("trade_status", "trade_success")], Verdict::Contradicts("trade_status")),
        (&[("pid", "1002")], Verdict::Contradicts("pid")),
        (&[("pid", "01001")], Verdict::Contradicts("pid")),
        (&[("pid", "-")], Verdict::Contradicts("pid")),
        (&[("out_trade_no", "01KOTHER")], Verdict::Contradicts("out_trade_no")),
        (&[("out_trade_no", "01kexample0000000000000000")], Verdict::Contradicts("out_trade_no")),
        (&[("out_trade_no", "null")], Verdict::Contradicts("out_trade_no")),
        // Another amount than the order's is a payment all the same, and one for a person to see.
        (&[("money", "36.01")], paid_amount("36.01")),
        (&[("money", "0.36")], paid_amount("0.36")),
        (&[("money", "36.001")], Verdict::Contradicts("money")),
        (&[("money", "-")], Verdict::Contradicts("money")),
        (&[("money", "null")], Verdict::Contradicts("money")),
        (&[("trade_no", "-")], Verdict::Contradicts("trade_no")),
        (&[("trade_no", "\"\"")], Verdict::Contradicts("trade_no")),
        (&[("trade_no", "\" \"")], Verdict::Contradicts("trade_no")),
        (&[("status", "0")], Verdict::Unpaid),
        (&[("status", "0"), ("trade_status", "TRADE_SUCCESS")], Verdict::Unpaid),
        (&[("status", "0"), ("money", "-"), ("trade_no", "-"), ("pid", "-")], Verdict::Unpaid),
        (&[("status", "0"), ("out_trade_no", "01KOTHER")], Verdict::Contradicts("out_trade_no")),
        (&[("status", "2")], refunded("36.00")),
        (&[("status", "2"), ("money", "1.00")], refunded("1.00")),
        (&[("status", "2"), ("money", "-")], Verdict::Contradicts("money")),
        (&[("status", "2"), ("trade_no", "-")], Verdict::Contradicts("trade_no")),
        (&[("status", "3")], Verdict::Frozen),
        (&[("status", "4")], Verdict::PreAuthorised),
        (&[("status", "7")], Verdict::Unknown(7)),
        (&[("status", "\"-1\"")], Verdict::Unknown(-1)),
    ] {
        assert_eq!(verdict(&v1(), &json(&paid_with(changes))), Ok(expected), "{changes:?}");
    }
}

#[test]
fn an_answer_without_its_code_or_status_is_none() {
    for (changes, field) in [
        (&[("status", "-")][..], "status"),
        (&[("status", "true")], "status"),
        (&[("status", "\"paid\"")], "status"),
        (&[("status", "1.5")], "status"),
        (&[("status", "[1]")], "status"),
        (&[("code", "-")], "code"),
        (&[("code", "true")], "code"),
        (&[("code", "null")], "code"),
        (&[("code", "\"ok\"")], "code"),
    ] {
        assert_eq!(verdict(&v1(), &json(&paid_with(changes))), Err(GatewayError::Incomplete(field)), "{changes:?}");
    }
}

#[test]
fn an_unknown_order_is_told_from_a_wrong_key() {
    let refused =
        |code, message: &str| GatewayError::Refused { code, message: message.replace(KEY, "***").replace('\n', "\\n") };
    for (credentials, code, message, is_unknown) in [
        (v1(), -1, "订单号不存在", true),
        (v1(), -1, "", true),
        (v1(), -1, "no data", true),
        (v1(), -3, "该商户订单不存在", true),
        (v1(), 0, "Order not found", true),
        (v1(), -1, "商户密钥错误", false),
        (v1(), -1, &format!("bad key {KEY}\nx"), false),
        (v1(), -3, "商户ID不存在", false),
        (v1(), 0, "", false),
        (v2(), -1, "订单不存在", true),
        (v2(), -1, "签名校验失败", false),
        (v2(), -1, "", false),
        (v2(), -1, "没有权限查询该订单", false),
    ] {
        let body = format!("{{\"code\":{code},\"msg\":{}}}", serde_json::to_string(message).unwrap());
        let expected = if is_unknown { GatewayError::UnknownOrder } else { refused(code, message) };
        assert_eq!(verdict(&credentials, &body), Err(expected), "{body}");
    }
}

#[test]
fn what_is_kept_of_an_answer_is_short_and_has_no_key() {
    let body = json(&paid_with(&[("key", KEY)]));
    let answer = read_answer(&v1(), &body).unwrap();
    assert_eq!(answer.param.as_deref(), Some("p1"));
    assert_eq!(answer.body, body.replace(KEY, "***"));
    let long = "x".repeat(30_000);
    let body = json(&paid_with(&[("name", &long)]));
    assert_eq!(read_answer(&v1(), &body).unwrap().body, body[..16 * 1024]);
}

#[test]
fn a_v2_answer_is_believed_with_its_signature_and_in_its_time_only() {
    let plain = paid_with(&[("code", "0"), ("clientip", "203.0.113.7"), ("extra", "{\"a\":1}"), ("more", "null")]);
    let good = signed_at(NOW_S, &plain);
    for body in [&good, &signed_at(NOW_S - 300, &plain), &signed_at(NOW_S + 300, &plain)] {
        assert_eq!(verdict(&v2(), body), Ok(paid()), "{body}");
    }
    let sign = fields(&good).owned("sign").unwrap();
    let unsigned = good.replace(&format!(",\"sign\":\"{sign}\""), "");
    assert!(!unsigned.contains(&sign));
    let unpaid = signed_at(NOW_S, &paid_with(&[("code", "0"), ("status", "0")]));
    assert_eq!(verdict(&v2(), &unpaid), Ok(Verdict::Unpaid));
    for (body, what) in [
        (unpaid.replace("\"status\":0", "\"status\":1"), "another state"),
        (good.replace("\"36.00\"", "\"36.01\""), "other money"),
        (good.replace(ORDER_NO, "01KOTHER"), "another order"),
        (good.replace("203.0.113.7", ""), "a field emptied"),
        (good.replace("\"extra\"", "\"added\":1,\"extra\""), "a field added"),
        (unsigned, "no signature"),
        (good.replace(&sign, ""), "an empty signature"),
        (good.replace(&sign, "AAAA"), "a short signature"),
        (good.replace("\"RSA\"", "\"MD5\""), "MD5"),
        (good.replace("\"RSA\"", "\"rsa\""), "not the word"),
        (good.replace(",\"sign_type\":\"RSA\"", ""), "no kind of signature"),
        (signed_at(NOW_S - 301, &plain), "too old"),
        (signed_at(NOW_S + 301, &plain), "too new"),
        (json(&plain), "V1's way"),
        (signed_at(NOW_S, &paid_with(&[("code", "0"), ("buyer", "x&status=1")])), "two readings"),
        (signed_at(NOW_S, &paid_with(&[("code", "0"), ("buyer=x", "1")])), "two readings by key"),
    ] {
        assert_eq!(verdict(&v2(), &body), Err(GatewayError::Unverified), "{what}: {body}");
    }
    let twice = good.replace("\"status\":1", "\"status\":0,\"status\":1");
    assert_eq!(Fields::parse(twice.as_bytes()), None);
}

#[test]
fn an_md5_signature_proves_nothing_to_a_v2_merchant() {
    let timestamp = NOW_S.to_string();
    let plain = paid_with(&[("code", "0"), ("timestamp", &timestamp)]);
    let form = Form::as_sent(plain.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect());
    let sign = sign_md5(&form, &Secret::new(KEY));
    for sign_type in ["MD5", "RSA"] {
        let body = json(&[&plain[..], &[("sign", &sign), ("sign_type", sign_type)]].concat());
        assert_eq!(verdict(&v2(), &body), Err(GatewayError::Unverified));
    }
}

#[test]
fn v1_says_where_the_buyer_pays() {
    let long = format!("https://pay.example.com/{}", "x".repeat(2048));
    for (field, link, expected) in [
        ("payurl", "https://pay.example.com/pay?a=1&b=2", Ok(PayTarget::Url as fn(String) -> PayTarget)),
        ("payurl", "HTTP://pay.example.com", Ok(PayTarget::Url)),
        ("qrcode", "weixin://wxpay/bizpayurl?pr=x", Ok(PayTarget::QrCode)),
        ("qrcode", "https://qr.example.com/x", Ok(PayTarget::QrCode)),
        ("qrcode", "TXyz0123456789", Ok(PayTarget::QrCode)),
        ("urlscheme", "weixin://dl/business/?t=x", Ok(PayTarget::UrlScheme)),
        ("urlscheme", "https://app.example.com/x", Ok(PayTarget::UrlScheme)),
        ("payurl", "javascript:alert(1)", Err("payurl")),
        ("payurl", "/pay/1", Err("payurl")),
        ("payurl", "//pay.example.com/1", Err("payurl")),
        ("payurl", "https:///1", Err("payurl")),
        ("payurl", "https://", Err("payurl")),
        ("payurl", "ftp://pay.example.com/", Err("payurl")),
        ("payurl", "https://a/\"><script>", Err("payurl")),
        ("payurl", "https://a/ b", Err("payurl")),
        ("payurl", &long, Err("payurl")),
        ("qrcode", "JavaScript:alert(1)", Err("qrcode")),
        ("qrcode", "data:text/html,x", Err("qrcode")),
        ("urlscheme", "data:text/html,x", Err("urlscheme")),
        ("urlscheme", "java\tscript:x", Err("urlscheme")),
        ("urlscheme", "weixin", Err("urlscheme")),
        ("urlscheme", "1x://y", Err("urlscheme")),
        ("img", "x", Err("payurl")),
    ] {
        let link = serde_json::to_string(link).unwrap();
        let body = json(&[("code", "1"), ("trade_no", "T1"), ("payurl", "null"), (field, &link)]);
        let body = if field == "payurl" { body.replace("\"payurl\":null,", "") } else { body };
        let page = PayPage::read(&protocol(&v1()), &fields(&body), now());
        let text: String = serde_json::from_str(&link).unwrap();
        match expected {
            Ok(target) => {
                let page = page.unwrap();
                assert_eq!(page, PayPage { trade_no: Some("T1".into()), target: target(text) });
            }
            Err(field) => assert_eq!(page, Err(GatewayError::Incomplete(field)), "{body}"),
        }
    }
}

#[test]
fn v2_says_where_the_buyer_pays() {
    let incomplete = || Err(GatewayError::Incomplete("pay_info"));
    for (pay_type, pay_info, expected) in [
        ("jump", "https://a/?x=1&y=2", Ok(PayTarget::Url("https://a/?x=1&y=2".into()))),
        ("qrcode", "weixin://wxpay/x", Ok(PayTarget::QrCode("weixin://wxpay/x".into()))),
        ("urlscheme", "alipays://x", Ok(PayTarget::UrlScheme("alipays://x".into()))),
        ("jump", "javascript:x", incomplete()),
        ("jump", "{\"url\":\"https://a\"}", incomplete()),
        ("jump", "null", incomplete()),
        ("html", "<form></form>", Err(GatewayError::NotPayable("html".into()))),
        ("jsapi", "{\"appId\":\"x\"}", Err(GatewayError::NotPayable("jsapi".into()))),
        ("null", "https://a/", Err(GatewayError::Incomplete("pay_type"))),
    ] {
        let reply = [("code", "0"), ("trade_no", "T1"), ("pay_type", pay_type), ("pay_info", pay_info)];
        let page = PayPage::read(&protocol(&v2()), &fields(&signed_at(NOW_S, &reply)), now());
        assert_eq!(page.map(|page| page.target), expected, "{pay_type} {pay_info}");
        let unsigned = PayPage::read(&protocol(&v2()), &fields(&json(&reply)), now());
        assert_eq!(unsigned, Err(GatewayError::Unverified));
    }
}

fn refund(credentials: &Credentials, status: u16, body: &str) -> RefundReply {
    let order_no = order_no();
    let asked = RefundAsked { pid: PID, order_no: &order_no, trade_no: "T1", amount: yuan("36.00") };
    let reply = Reply { status, body: Bytes::from(body.to_owned()), retry_after: None, date: None, location: None };
    RefundReply::read(&protocol(credentials), &reply, &asked, now())
}

#[test]
fn a_refund_is_accepted_refused_or_nobody_knows() {
    use GatewayError::{Contradicts, Failed, Incomplete, NotJson};
    let accepted = |body: &str| RefundReply::Accepted { body: body.to_owned().into() };
    for body in [
        "{\"code\":0,\"msg\":\"退款成功\"}",
        "{\"code\":1}",
        "{\"code\":\"0\",\"trade_no\":\"T1\",\"money\":\"36\",\"pid\":1001}",
        // The gateway's own numbers of the refund: V1 never sent one.
        "{\"code\":0,\"refund_no\":\"9\",\"out_refund_no\":\"R20260830\",\"trade_no\":\"T1\",\"money\":\"36.00\"}",
    ] {
        assert_eq!(refund(&v1(), 200, body), accepted(body), "{body}");
    }
    let no = || RefundReply::Refused { code: -1, message: "余额不足".into() };
    for status in [200, 400] {
        assert_eq!(refund(&v1(), status, "{\"code\":-1,\"msg\":\"余额不足\"}"), no());
    }
    let page = || NotJson { status: 200, beginning: "<html>".into() };
    for (status, body, cause) in [
        (200, "<html>", page()),
        (200, "", NotJson { status: 200, beginning: String::new() }),
        (500, "{\"code\":0}", Failed { status: 500 }),
        (502, "<html>", Failed { status: 502 }),
        (500, "{\"code\":-1,\"msg\":\"x\"}", Failed { status: 500 }),
        (200, "{\"code\":0,\"money\":\"1.00\"}", Contradicts("money")),
        (200, "{\"code\":0,\"money\":\"x\"}", Contradicts("money")),
        (200, "{\"code\":0,\"trade_no\":\"T2\"}", Contradicts("trade_no")),
        (200, "{\"code\":0,\"out_trade_no\":\"T2\"}", Contradicts("out_trade_no")),
        (200, "{\"code\":1,\"pid\":\"1002\"}", Contradicts("pid")),
        (200, "{\"code\":1,\"msg\":\"退款失败\"}", Contradicts("msg")),
        (200, "{\"code\":2,\"msg\":\"?\"}", GatewayError::Refused { code: 2, message: "?".into() }),
        (200, "{\"msg\":\"ok\"}", Incomplete("code")),
        (200, "{}", Incomplete("code")),
    ] {
        assert_eq!(refund(&v1(), status, body), RefundReply::Unclear(cause), "{status} {body}");
    }
}

#[test]
fn a_v2_refund_is_accepted_with_a_signature_only() {
    let reply = [("code", "0"), ("trade_no", "T1"), ("out_refund_no", ORDER_NO), ("money", "36.00")];
    let signed = signed_at(NOW_S, &reply);
    assert_eq!(refund(&v2(), 200, &signed), RefundReply::Accepted { body: signed.clone().into() });
    assert_eq!(refund(&v2(), 200, &json(&reply)), RefundReply::Unclear(GatewayError::Unverified));
    let other = signed_at(NOW_S, &[("code", "0"), ("out_refund_no", "01KOTHER")]);
    assert_eq!(refund(&v2(), 200, &other), RefundReply::Unclear(GatewayError::Contradicts("out_refund_no")));
    assert_eq!(
        refund(&v2(), 200, "{\"code\":-1,\"msg\":\"x\"}"),
        RefundReply::Refused { code: -1, message: "x".into() }
    );
}

#[test]
fn the_state_of_a_v2_refund() {
    let read = |reply: &[(&str, &str)]| {
        RefundState::read(&protocol(&v2()), &fields(&signed_at(NOW_S, reply)), &order_no(), now())
    };
    let done = RefundState::Done { money: Some(yuan("36.00")) };
    for (reply, expected) in [
        (&[("code", "0"), ("status", "1"), ("money", "36.00"), ("out_refund_no", ORDER_NO)][..], Ok(done)),
        (&[("code", "0"), ("status", "0")], Ok(RefundState::Failed)),
        (&[("code", "0"), ("status", "5")], Ok(RefundState::Unknown(5))),
        (&[("code", "0")], Err(GatewayError::Incomplete("status"))),
        (&[("code", "0"), ("status", "1"), ("out_refund_no", "X")], Err(GatewayError::Contradicts("out_refund_no"))),
    ] {
        assert_eq!(read(reply), expected, "{reply:?}");
    }
}

proptest! {
    /// Objects with the right keys and anything for their values get further than noise does.
    #[test]
    fn nothing_that_a_gateway_says_panics(
        values in prop::collection::vec("(-?[0-9]{1,20}(\\.[0-9]{0,4})?|\"[^\"\\\\]{0,12}\"|null|true|\\[\\]|x)", 12),
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        status in any::<u16>(),
    ) {
        let keys = [
            "code", "status", "pid", "money", "trade_no", "out_trade_no", "msg", "payurl", "pay_type", "pay_info", "sign",
            "timestamp",
        ];
        let members: Vec<String> = keys.iter().zip(values).map(|(key, value)| format!("\"{key}\":{value}")).collect();
        let object = format!("{{{}}}", members.join(",")).into_bytes();
        for credentials in [v1(), v2()] {
            let protocol = protocol(&credentials);
            for body in [&object, &bytes] {
                protocol.told(body);
                if let Some(fields) = Fields::parse(body) {
                    let answer = Answer::read(&protocol, body, &fields, now());
                    let _ = answer.map(|answer| answer.verdict(PID, &order_no()));
                    let _ = PayPage::read(&protocol, &fields, now());
                    let _ = RefundState::read(&protocol, &fields, &order_no(), now());
                }
                refund(&credentials, status, &String::from_utf8_lossy(body));
            }
        }
    }
}
