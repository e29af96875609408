//! The way to the gateway and back, over real sockets.

use super::*;
use crate::domain::language::{Language, Localized};
use crate::net::client::loopback::{Act, Loopback};

const SOON: Duration = Duration::from_mins(1);

/// The credentials, and what a gateway of their protocol answers about a paid order.
fn paid_order(credentials: &Credentials) -> String {
    let fields = [
        ("trade_no", "T1"),
        ("out_trade_no", ORDER_NO),
        ("pid", PID),
        ("money", "36.00"),
        ("status", "1"),
        ("code", if matches!(credentials, Credentials::V1 { .. }) { "1" } else { "0" }),
    ];
    signed_at(Timestamp::now().ms() / 1000, &fields)
}

async fn refund(server: &Loopback, credentials: &Credentials) -> Result<RefundReply, GatewayError> {
    gateway(&server.url("base/"), credentials).refund(&order_no(), "T1", yuan("36")).await
}

fn assert_tells_nothing(error: &GatewayError) {
    let told = format!("{error} {error:?} {}", error.text(Language::Chinese));
    for secret in [KEY, "http:", "127.0.0.1", "api.php", "base"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn a_question_about_an_order_is_answered() {
    for credentials in [v1(), v2()] {
        let server = Loopback::start(vec![Act::reply("200 OK", &paid_order(&credentials))]).await;
        let answer = gateway(&server.url("base"), &credentials).query_within(&order_no(), None, SOON).await.unwrap();
        let verdict = answer.verdict(PID, &order_no());
        assert_eq!(verdict, Verdict::Paid { trade_no: "T1".into(), amount: yuan("36.00") });
        let request = &server.requests()[0];
        match credentials {
            Credentials::V1 { .. } => {
                let line =
                    format!("GET /base/api.php?act=order&pid={PID}&key={KEY}&out_trade_no={ORDER_NO} HTTP/1.1\r\n");
                assert!(request.starts_with(&line), "{request}");
            }
            Credentials::V2 { .. } => {
                assert!(request.starts_with("POST /base/api/pay/query HTTP/1.1\r\n"), "{request}");
                assert!(
                    request.contains(&format!("\r\n\r\nout_trade_no={ORDER_NO}&pid={PID}&timestamp=")),
                    "{request}"
                );
                assert!(request.ends_with("&sign_type=RSA"), "{request}");
            }
        }
    }
}

/// A second payment of an order is asked about by the gateway's number: by ours, the answer would be about the first.
#[tokio::test]
async fn a_question_about_a_payment_names_that_payment_alone() {
    for credentials in [v1(), v2()] {
        let server = Loopback::start(vec![Act::reply("200 OK", &paid_order(&credentials))]).await;
        let asked = gateway(&server.url(""), &credentials);
        asked.query_within(&order_no(), Some("T1"), SOON).await.unwrap();
        let request = &server.requests()[0];
        assert!(request.contains("trade_no=T1") && !request.contains("out_trade_no"), "{request}");
    }
}

#[tokio::test]
async fn a_page_to_pay_on_is_asked_for() {
    let pages = [
        (v1(), "mapi.php", json(&[("code", "1"), ("payurl", "https://a/1")])),
        (v2(), "api/pay/create", {
            let reply = [("code", "0"), ("pay_type", "jump"), ("pay_info", "https://a/1")];
            signed_at(Timestamp::now().ms() / 1000, &reply)
        }),
    ];
    let order_no = order_no();
    for (credentials, page, reply) in pages {
        let server = Loopback::start(vec![Act::reply("200 OK", &reply)]).await;
        let payable = Payable {
            order_no: &order_no,
            payment_type: "wxpay",
            name: "x",
            amount: yuan("0.1"),
            param: None,
            notify_url: "http://b/notify",
            return_url: "http://b/return",
            client_ip: "2001:db8::1".parse().unwrap(),
            device: "pc",
        };
        let created = gateway(&server.url(""), &credentials).create(&payable).await.unwrap();
        assert_eq!(created, PayPage { trade_no: None, target: PayTarget::Url("https://a/1".into()) });
        let request = &server.requests()[0];
        assert!(request.starts_with(&format!("POST /{page} HTTP/1.1\r\n")), "{request}");
        for field in ["clientip=2001%3Adb8%3A%3A1", "device=pc", "money=0.10", "type=wxpay"] {
            assert!(request.contains(field), "{request}");
        }
        assert_eq!(request.contains("method=web"), matches!(credentials, Credentials::V2 { .. }), "{request}");
        assert!(!request.contains(KEY), "{request}");
    }
}

#[tokio::test]
async fn a_refund_names_the_payment_and_is_sent_once() {
    let server = Loopback::start(vec![Act::reply("200 OK", "{\"code\":0}")]).await;
    assert!(matches!(refund(&server, &v1()).await, Ok(RefundReply::Accepted { .. })));
    let request = &server.requests()[0];
    assert!(request.starts_with("POST /base/api.php?act=refund HTTP/1.1\r\n"), "{request}");
    assert!(request.ends_with(&format!("\r\n\r\npid={PID}&key={KEY}&trade_no=T1&money=36.00")), "{request}");

    let own = format!("{{\"code\":0,\"out_refund_no\":\"R2026\",\"refund_no\":\"9\",\"out_trade_no\":\"{ORDER_NO}\"}}");
    let server = Loopback::start(vec![Act::reply("200 OK", &own)]).await;
    assert!(
        matches!(refund(&server, &v1()).await, Ok(RefundReply::Accepted { .. })),
        "the number is the gateway's own"
    );

    let server = Loopback::start(vec![Act::reply("200 OK", "{\"code\":-1,\"msg\":\"x\"}")]).await;
    assert!(matches!(refund(&server, &v2()).await, Ok(RefundReply::Refused { .. })));
    let request = &server.requests()[0];
    assert!(
        request.contains(&format!("\r\n\r\nmoney=36.00&out_refund_no={ORDER_NO}&pid={PID}&timestamp=")),
        "{request}"
    );
    assert!(request.contains("&trade_no=T1&sign="), "{request}");

    for credentials in [v1(), v2()] {
        let server = Loopback::start(vec![Act::Close, Act::reply("200 OK", "{\"code\":0}")]).await;
        let Ok(RefundReply::Unclear(cause)) = refund(&server, &credentials).await else { panic!("not unclear") };
        assert!(matches!(cause, GatewayError::Unreachable(OutgoingError::BrokeOff(_))), "{cause:?}");
        assert_tells_nothing(&cause);
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_refund_that_was_not_sent_is_an_error_and_not_unclear() {
    let server = Loopback::start(vec![Act::reply_with("429 Too Many Requests", "Retry-After: 3\r\n", "")]).await;
    assert_eq!(refund(&server, &v1()).await, Err(GatewayError::RateLimited(Some(Duration::from_secs(3)))));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}/base/", listener.local_addr().unwrap());
    drop(listener);
    let error = gateway(&nobody, &v1()).refund(&order_no(), "", yuan("36")).await.unwrap_err();
    assert!(matches!(error, GatewayError::Unreachable(OutgoingError::NotConnected(_))), "{error:?}");
    assert_tells_nothing(&error);
}

#[tokio::test]
async fn what_goes_wrong_on_the_way_has_a_name_and_tells_nothing() {
    let echo = format!("<html>?key={KEY}\r\n");
    let html = |status| GatewayError::NotJson { status, beginning: "<html>?key=***".into() };
    let redirect = Act::reply_with("302 Found", "Location: http://127.0.0.1:1/\r\n", "");
    for (acts, requests, expected) in [
        (vec![Act::reply("200 OK", &echo)], 1, html(200)),
        (vec![Act::reply("404 Not Found", &echo)], 1, html(404)),
        (vec![redirect], 1, GatewayError::NotJson { status: 302, beginning: String::new() }),
        (vec![Act::reply("500 Oops", "{\"code\":-1}")], 1, GatewayError::UnknownOrder),
        (vec![Act::reply("429 Slow", "")], 1, GatewayError::RateLimited(None)),
        (
            vec![Act::reply_with("503 Slow", "Retry-After: 9\r\n", "")],
            1,
            GatewayError::RateLimited(Some(Duration::from_secs(9))),
        ),
        (vec![Act::reply("200 OK", &"x".repeat(1 << 20))], 1, OutgoingError::TooLarge.into()),
        (vec![Act::Close], 2, OutgoingError::BrokeOff("connection closed before message completed".into()).into()),
    ] {
        let server = Loopback::start(acts).await;
        let error = gateway(&server.url("base"), &v1()).query_within(&order_no(), None, SOON).await.unwrap_err();
        assert_eq!(error, expected);
        assert_eq!(server.requests().len(), requests, "{expected:?}");
        assert_tells_nothing(&error);
    }
}

#[tokio::test]
async fn a_slow_gateway_is_waited_for_as_long_as_the_caller_says() {
    let server = Loopback::start(vec![Act::Wait]).await;
    let gateway = gateway(&server.url("base"), &v1());
    let error = gateway.query_within(&order_no(), None, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error, OutgoingError::TimedOut.into());
    assert_tells_nothing(&error);
}

#[tokio::test]
async fn closing_an_order_and_asking_for_a_refund_are_v2s_alone() {
    let done = signed_at(Timestamp::now().ms() / 1000, &[("code", "0"), ("status", "1")]);
    let server = Loopback::start(vec![Act::reply("200 OK", &done)]).await;
    let asked = gateway(&server.url(""), &v2());
    assert_eq!(asked.close(&order_no()).await, Ok(()));
    assert_eq!(asked.refund_query(&order_no()).await, Ok(RefundState::Done { money: None }));
    let requests = server.requests();
    assert!(requests[0].starts_with("POST /api/pay/close ") && requests[0].contains("\r\n\r\nout_trade_no="));
    assert!(requests[1].starts_with("POST /api/pay/refundquery ") && requests[1].contains("\r\n\r\nout_refund_no="));

    let asked = gateway(&server.url(""), &v1());
    assert_eq!(asked.close(&order_no()).await, Err(GatewayError::Unsupported));
    assert_eq!(asked.refund_query(&order_no()).await, Err(GatewayError::Unsupported));
    assert_eq!(server.requests().len(), 2);
}
