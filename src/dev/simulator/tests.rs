//! Requests to the pretend gateway, and what it makes of them; without sockets.

use std::borrow::Cow;

use serde_json::Value;

use super::*;
use crate::channel::epay::{Field, PlatformKey, PrivateKey, encode, sign_md5};
use crate::config::Config;
use crate::domain::secret::Secret;

const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";
const NOW: i64 = 1_767_323_045_000;
const ORDER: [(&str, &str); 8] = [
    ("pid", "1002"),
    ("type", "alipay"),
    ("out_trade_no", "A1"),
    ("notify_url", "http://127.0.0.1:9/n"),
    ("return_url", "http://127.0.0.1:9/r"),
    ("name", "VIP<b>"),
    ("money", "36.00"),
    ("clientip", "127.0.0.1"),
];

fn platform_key() -> PrivateKey {
    PrivateKey::parse(include_str!("../../../tests/keys/v2_platform_private.pem")).unwrap()
}

fn merchant_key() -> PrivateKey {
    PrivateKey::parse(include_str!("../../../tests/keys/v2_merchant_private.pem")).unwrap()
}

/// A gateway with a V1 merchant, 1002, and a V2 merchant, 3004; with these faults.
fn gateway(faults: &[&str]) -> Arc<Simulator> {
    let text = "[[merchant]]\npid = \"3004\"\nprotocol = \"v2\"\nplatform_public_key_file = \"v2_platform_public.pem\"\n\
                private_key_file = \"v2_merchant_private.pem\"\n";
    let keys = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
    let config = Config::from_toml(text, &keys).unwrap();
    let v2 = Merchant::of(&config.merchants[0], Some(&platform_key())).unwrap();
    assert_eq!(Merchant::of(&config.merchants[0], None).unwrap_err(), LeftOut::NoPlatformKey);
    let faults = faults.iter().map(|text| text.parse::<FaultAsked>().unwrap()).collect();
    Simulator::new(vec![Merchant::v1("1002", Secret::new(KEY)), v2], Settings { faults, ..Settings::default() })
}

fn form(fields: &[(&'static str, &'static str)]) -> Form<'static> {
    Form::as_sent(fields.iter().map(|&(key, value)| -> Field { (Cow::from(key), Cow::from(value)) }).collect())
}

/// Fields with some of them changed, removed by an empty value, or added.
fn changed(
    fields: &[(&'static str, &'static str)],
    changes: &[(&'static str, &'static str)],
) -> Vec<(&'static str, &'static str)> {
    let unchanged = fields.iter().filter(|(key, _)| changes.iter().all(|(k, _)| k != key));
    unchanged.chain(changes).filter(|(_, value)| !value.is_empty()).copied().collect()
}

fn signed_v1(fields: &[(&'static str, &'static str)]) -> String {
    let sign = sign_md5(&form(fields), &Secret::new(KEY));
    encode(fields.iter().copied().chain([("sign", sign.as_str()), ("sign_type", "MD5")]))
}

fn signed_v2(fields: &[(&'static str, &'static str)]) -> String {
    let fields = changed(&[("pid", "3004"), ("timestamp", "1767323045")], fields);
    let sign = merchant_key().sign(&form(&fields));
    encode(fields.into_iter().chain([("sign", sign.as_str()), ("sign_type", "RSA")]))
}

impl Simulator {
    fn asked(self: &Arc<Self>, method: &Method, target: &str, body: &str) -> Reaction {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (query, body) = (query.as_bytes(), body.as_bytes());
        let now = Timestamp::from_ms(NOW);
        self.react(&Asked { method, path, query, body, base: "http://gateway/", now }).0
    }

    #[track_caller]
    fn json(self: &Arc<Self>, method: &Method, target: &str, body: &str) -> Value {
        match self.asked(method, target, body) {
            Reaction::Json(StatusCode::OK, reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn post(self: &Arc<Self>, target: &str, body: &str) -> Value {
        self.json(&Method::POST, target, body)
    }

    #[track_caller]
    fn order_reply(self: &Arc<Self>, number: &str) -> Value {
        let target = format!("/api.php?act=order&pid=1002&key={KEY}&out_trade_no={number}");
        self.json(&Method::GET, &target, "")
    }

    /// A V2 reply that went well; its signature is the platform's.
    #[track_caller]
    fn post_v2(self: &Arc<Self>, path: &str, fields: &[(&'static str, &'static str)]) -> Value {
        let reply = self.post(path, &signed_v2(fields));
        assert_eq!(reply["code"], 0, "{reply}");
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            number => number.to_string(),
        };
        let fields: Vec<Field> =
            reply.as_object().unwrap().iter().map(|(k, v)| (k.clone().into(), text(v).into())).collect();
        let public = PlatformKey::parse(include_str!("../../../tests/keys/v2_platform_public.pem")).unwrap();
        assert!(public.verify(&Form::as_sent(fields), reply["sign"].as_str().unwrap()), "{reply}");
        assert_eq!((reply["timestamp"].as_str(), reply["sign_type"].as_str()), (Some("1767323045"), Some("RSA")));
        reply
    }
}

#[test]
fn mapi_makes_an_order_once() {
    let gateway = gateway(&[]);
    let first = gateway.post("/mapi.php", &signed_v1(&ORDER));
    assert_eq!(first["code"], 1);
    let trade_no = first["trade_no"].as_str().unwrap();
    assert_eq!(first["payurl"], format!("http://gateway/pay/{trade_no}"));
    assert_eq!(gateway.post("/mapi.php", &signed_v1(&ORDER)), first);
    let other_money = changed(&ORDER, &[("money", "36.01")]);
    assert_eq!(gateway.post("/mapi.php", &signed_v1(&other_money))["code"], -1);
    assert_eq!(gateway.book().trades().len(), 1);
}

#[test]
fn what_mapi_refuses() {
    let gateway = gateway(&[]);
    for (changes, code) in [
        (&[("clientip", "")][..], -4),
        (&[("clientip", "x")], -1),
        (&[("type", "")], -4),
        (&[("money", "0")], -1),
        (&[("notify_url", "https://a/n")], -1),
        (&[("pid", "")], -4),
        (&[("pid", "9")], -3),
        // No downgrade.
        (&[("pid", "3004")], -2),
    ] {
        let reply = gateway.post("/mapi.php", &signed_v1(&changed(&ORDER, changes)));
        assert_eq!(reply["code"], code, "{changes:?}: {reply}");
    }
    let forged = signed_v1(&ORDER).replace("36.00", "0.01");
    assert_eq!(gateway.post("/mapi.php", &forged)["code"], -2);
    assert_eq!(gateway.json(&Method::GET, &format!("/mapi.php?{}", signed_v1(&ORDER)), "")["code"], -4);
    assert_eq!(gateway.post("/mapi.php", "%zz")["code"], -4);
    assert!(gateway.book().trades().is_empty());
}

#[tokio::test]
async fn an_order_from_unpaid_to_refunded_over_v1() {
    let gateway = gateway(&["never"]);
    gateway.post("/mapi.php", &signed_v1(&ORDER));
    let unpaid = gateway.order_reply("A1");
    assert_eq!(
        (&unpaid["code"], &unpaid["status"], &unpaid["pid"], &unpaid["money"], &unpaid["endtime"]),
        (&1.into(), &"0".into(), &1002.into(), &"36.00".into(), &Value::Null)
    );
    assert_eq!(unpaid["addtime"], "2026-01-02 11:04:05");
    gateway.post("/simulate/pay", "out_trade_no=A1");
    let paid = gateway.order_reply("A1");
    assert_eq!(paid["status"], "1");
    assert!(paid["endtime"].is_string());
    assert_eq!(gateway.post("/mapi.php", &signed_v1(&ORDER))["code"], -1, "paid already");

    let refund = |fields: &str| {
        let reply = gateway.post("/api.php?act=refund", &format!("pid=1002&key={KEY}&{fields}"));
        reply["code"].as_i64().unwrap()
    };
    assert_eq!(refund("out_trade_no=A1&money=36.01"), -1);
    assert_eq!(refund("out_trade_no=A1&money=30"), 0);
    assert_eq!(gateway.order_reply("A1")["status"], "2");
    assert_eq!(refund("out_trade_no=A1&money=30"), -1);
    assert_eq!(refund("trade_no=1&out_trade_no=A1&money=1"), -1);
    assert_eq!(refund("money=1"), -4);
}

#[test]
fn api_php_knows_its_merchants_by_their_keys() {
    let gateway = gateway(&[]);
    for (query, code) in [
        (format!("act=order&pid=1002&key={KEY}&out_trade_no=NONE"), -1),
        (format!("act=order&pid=1002&key={KEY}"), -4),
        ("act=order&pid=1002&key=guess&out_trade_no=A1".into(), -2),
        ("act=order&pid=1002&out_trade_no=A1".into(), -4),
        (format!("act=order&pid=3004&key={KEY}&out_trade_no=A1"), -2),
        (format!("act=order&pid=9&key={KEY}&out_trade_no=A1"), -3),
        (format!("act=settle&pid=1002&key={KEY}"), -4),
        (format!("pid=1002&key={KEY}"), -4),
        (format!("act=query&pid=1002&key={KEY}"), 1),
    ] {
        let reply = gateway.json(&Method::GET, &format!("/api.php?{query}"), "");
        assert_eq!(reply["code"], code, "{query}");
        assert_eq!(reply["key"].as_str(), (code == 1).then_some(KEY), "the account's reply has the key in it");
    }
}

#[tokio::test]
async fn an_order_from_unpaid_to_refunded_over_v2() {
    let gateway = gateway(&["never"]);
    let order = changed(&ORDER, &[("pid", "3004"), ("method", "web")]);
    let created = gateway.post_v2("/api/pay/create", &order);
    assert_eq!(created["pay_type"], "jump");
    assert_eq!(created["pay_info"], format!("http://gateway/pay/{}", created["trade_no"].as_str().unwrap()));
    let unpaid = gateway.post_v2("/api/pay/query", &[("out_trade_no", "A1")]);
    assert_eq!((&unpaid["status"], &unpaid["clientip"]), (&0.into(), &"127.0.0.1".into()));
    gateway.post("/simulate/pay", "out_trade_no=A1");
    assert_eq!(gateway.post_v2("/api/pay/query", &[("out_trade_no", "A1")])["status"], 1);

    let refund = [("out_trade_no", "A1"), ("money", "30.00"), ("out_refund_no", "R1")];
    let first = gateway.post_v2("/api/pay/refund", &refund);
    assert_eq!(gateway.post_v2("/api/pay/refund", &refund), first, "the same again pays nothing");
    let other = gateway.post("/api/pay/refund", &signed_v2(&changed(&refund, &[("money", "1.00")])));
    assert_eq!(other["code"], -1);
    let known = gateway.post_v2("/api/pay/refundquery", &[("out_refund_no", "R1")]);
    assert_eq!((&known["status"], &known["refund_no"]), (&1.into(), &first["refund_no"]));
    assert_eq!(gateway.post("/api/pay/refundquery", &signed_v2(&[("out_refund_no", "R2")]))["code"], -1);
    let refunded = gateway.post_v2("/api/pay/query", &[("out_trade_no", "A1")]);
    assert_eq!((&refunded["status"], &refunded["refundmoney"]), (&2.into(), &"30.00".into()));
    assert_eq!(gateway.post("/api/pay/close", &signed_v2(&[("out_trade_no", "A1")]))["code"], -1, "paid");
}

#[test]
fn a_closed_order_cannot_be_paid() {
    let gateway = gateway(&[]);
    gateway.post_v2("/api/pay/create", &changed(&ORDER, &[("pid", "3004"), ("method", "scan")]));
    gateway.post_v2("/api/pay/close", &[("out_trade_no", "A1")]);
    let paid = gateway.asked(&Method::POST, "/simulate/pay", "out_trade_no=A1");
    assert!(matches!(paid, Reaction::Json(StatusCode::CONFLICT, _)), "{paid:?}");
}

#[test]
fn v2_requests_need_the_merchants_signature_and_a_fresh_timestamp() {
    let gateway = gateway(&[]);
    for (request, code) in [
        (signed_v2(&[("out_trade_no", "A1")]), -1),
        (signed_v2(&[("out_trade_no", "A1"), ("timestamp", "1767322744")]), -2),
        (signed_v2(&[("out_trade_no", "A1"), ("timestamp", "1767323346")]), -2),
        (signed_v2(&[("out_trade_no", "A1"), ("timestamp", "")]), -2),
        (signed_v2(&[("out_trade_no", "A1")]).replace("A1", "A2"), -2),
        (signed_v2(&[("out_trade_no", "A1")]).replace("RSA", "MD5"), -2),
        (signed_v1(&[("out_trade_no", "A1"), ("pid", "3004"), ("timestamp", "1767323045")]), -2),
        (signed_v1(&[("out_trade_no", "A1"), ("pid", "1002"), ("timestamp", "1767323045")]), -2),
    ] {
        let reply = gateway.post("/api/pay/query", &request);
        assert_eq!(reply["code"], code, "{request}");
        assert_eq!(reply.get("sign"), None, "errors are not signed");
    }
}

#[tokio::test]
async fn the_buyer_pays_on_a_page_and_goes_back_with_what_the_callback_says() {
    let gateway = gateway(&["never"]);
    let link = format!("/submit.php?{}", signed_v1(&changed(&ORDER, &[("clientip", ""), ("type", "")])));
    let Reaction::Page(StatusCode::OK, page) = gateway.asked(&Method::GET, &link, "") else { panic!("no page") };
    assert!(page.contains("VIP&lt;b&gt;") && page.contains("36.00") && page.contains("<button>"), "{page}");
    let trade_no = gateway.book().get(0).trade_no.clone();
    assert!(page.contains(&format!("action=\"/pay/{trade_no}\"")), "{page}");

    let button = gateway.asked(&Method::POST, &format!("/pay/{trade_no}"), "");
    let Reaction::Redirect(to) = button else { panic!("{button:?}") };
    let (url, query) = to.split_once('?').unwrap();
    assert_eq!(url, "http://127.0.0.1:9/r");
    let form = request::read(query.as_bytes()).unwrap();
    assert_eq!(form.get("sign").unwrap(), sign_md5(&form, &Secret::new(KEY)));
    assert_eq!((form.get("trade_status"), form.get("money")), (Some("TRADE_SUCCESS"), Some("36.00")));

    for (method, target) in [(Method::GET, link.replace("36.00", "0.01")), (Method::POST, "/pay/1".into())] {
        let Reaction::Page(StatusCode::OK, page) = gateway.asked(&method, &target, "") else { panic!("no page") };
        assert!(!page.contains("<button>"), "{target}: {page}");
    }
}

#[tokio::test]
async fn replies_to_queries_lie_on_request() {
    let gateway = gateway(&["never"]);
    gateway.post("/mapi.php", &signed_v1(&ORDER));
    let lying = |fault: &str| {
        gateway.post("/simulate/faults", &format!("fault={fault}"));
        gateway.order_reply("A1")
    };
    assert_eq!(lying("lie-pid")["pid"], 3004);
    assert_eq!(lying("lie-money")["money"], "35.99");
    let unpaid = lying("lie-status");
    assert_eq!(
        (&unpaid["status"], &unpaid["trade_status"], &unpaid["endtime"]),
        (&"1".into(), &"WAIT_BUYER_PAY".into(), &Value::Null)
    );
    gateway.post("/simulate/faults", "");
    let honest = gateway.order_reply("A1");
    assert_eq!((&honest["pid"], &honest["money"], &honest["status"]), (&1002.into(), &"36.00".into(), &"0".into()));
    assert_eq!(honest.get("trade_status"), None);
}

#[test]
fn what_is_lost_on_the_way_was_done_and_what_is_limited_was_not() {
    for (fault, made) in [("error-500", 1), ("reset", 1), ("rate-limit", 0)] {
        let gateway = gateway(&[fault]);
        let reaction = gateway.asked(&Method::POST, "/mapi.php", &signed_v1(&ORDER));
        match fault {
            "error-500" => assert!(matches!(reaction, Reaction::Page(StatusCode::INTERNAL_SERVER_ERROR, _))),
            "reset" => assert!(matches!(reaction, Reaction::Reset)),
            _ => assert!(matches!(reaction, Reaction::Page(StatusCode::TOO_MANY_REQUESTS, _))),
        }
        assert_eq!(gateway.book().trades().len(), made, "{fault}");
    }
}

#[tokio::test]
async fn a_tests_hand_on_the_gateway() {
    let gateway = gateway(&["never"]);
    gateway.post("/mapi.php", &signed_v1(&ORDER));
    for (method, action, body, status) in [
        (Method::POST, "callback", "out_trade_no=A1", 409),
        (Method::POST, "pay", "out_trade_no=NONE", 404),
        (Method::POST, "pay", "", 400),
        (Method::POST, "pay", "out_trade_no=A1&money=0", 400),
        (Method::GET, "pay", "out_trade_no=A1", 405),
        (Method::POST, "orders", "", 405),
        (Method::POST, "faults", "fault=x", 400),
        (Method::POST, "faults", "late=1", 400),
        (Method::GET, "x", "", 404),
    ] {
        let reaction = gateway.asked(&method, &format!("/simulate/{action}"), body);
        let Reaction::Json(found, _) = reaction else { panic!("{reaction:?}") };
        assert_eq!(found, status, "{action} {body}");
    }
    gateway.post("/simulate/pay", "out_trade_no=A1&money=35.00");
    let listed = gateway.json(&Method::GET, "/simulate/orders", "");
    let trade_no = gateway.book().get(0).trade_no.clone();
    let expected = serde_json::json!([{
        "callbacks": 0, "closed": false, "delivered": false, "money": "35.00", "out_trade_no": "A1", "pid": "1002",
        "queries": 0, "status": 1, "trade_no": trade_no,
    }]);
    assert_eq!(listed, expected);
    let again = gateway.asked(&Method::POST, "/simulate/callback", "out_trade_no=A1");
    assert!(matches!(again, Reaction::SendCallback(0)), "{again:?}");
}
