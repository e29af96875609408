//! The public paths, and the limits that keep hostile or broken clients from costing anything.

use std::io::Write;
use std::net::Shutdown;

use crate::support::*;

fn status_of(service: &Service, request: impl AsRef<[u8]>) -> u16 {
    service.client().send(request).status
}

#[test]
fn the_four_paths_answer_to_the_letter() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let health = service.get("/payment/health");
    assert_eq!((health.status, health.body.as_str()), (200, r#"{"service":"payment-webhook-v1","status":"ok"}"#));
    assert_eq!(health.headers["content-type"], "application/json");
    let status = service.get("/payment/status");
    assert_eq!(
        status.body,
        r#"{"endpoints":["/payment/notify","/payment/return","/payment/health","/payment/status"],"service":"payment-webhook-v1","status":"running","version":"2.0"}"#
    );
    let notify = service.get("/payment/notify");
    assert_eq!((notify.status, notify.body.as_str()), (200, "fail"));
    assert!(notify.headers["content-type"].starts_with("text/plain"));
    let page = service.get("/payment/return");
    assert_eq!(page.status, 200);
    assert!(page.headers["content-type"].starts_with("text/html"));
    for path in ["/", "/payment", "/payment/notify/", "/payment/Notify", "/favicon.ico"] {
        let missing = service.get(path);
        assert_eq!(missing.status, 404, "{path}");
        // Gateways look for these words, whatever the status.
        assert!(!missing.body.contains("success") && !missing.body.to_lowercase().contains("ok"), "{}", missing.body);
    }
}

#[test]
fn wrong_methods_are_told_the_right_ones() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    for (path, method, allow) in [
        ("/payment/notify", "PUT", "GET, POST"),
        ("/payment/notify", "HEAD", "GET, POST"),
        ("/payment/return", "POST", "GET"),
        ("/payment/health", "POST", "GET, HEAD"),
        ("/payment/status", "DELETE", "GET, HEAD"),
        // The name that stands for a refused request inside the service means nothing when a client says it.
        ("/payment/notify", "REFUSED", "GET, POST"),
    ] {
        let mut client = service.client();
        client.write(format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        client.stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut client.stream, &mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
        assert!(answer.contains(&format!("\r\nallow: {allow}\r\n")), "{method} {path}: {answer}");
    }
    let mut client = service.client();
    client.write("HEAD /payment/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut client.stream, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn requests_with_two_readings_are_refused() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).form();
    let length = form.len();
    for head in [
        format!("Content-Length: {length}\r\nContent-Length: 1"),
        format!("Content-Length: {length}\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        "Transfer-Encoding: identity".into(),
        format!("Content-Length: +{length}"),
        format!("Content-Length: {length}\r\n folded: x"),
        format!("Content-Length: {length}\nX: y"),
        format!("Content-Length: {length}\r\nHost: y"),
        format!("Content-Length : {length}"),
        "X: \0".into(),
    ] {
        let request = format!("POST /payment/notify HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{form}");
        let mut client = service.client();
        let response = client.send(request);
        assert_eq!(response.status, 400, "{head:?}");
        assert!(client.is_closed(), "{head:?}");
    }
    assert_eq!(status_of(&service, format!("GET /payment/notify?{form} HTTP/1.1\r\n\r\n")), 400);
    assert_eq!(status_of(&service, "nonsense\r\n\r\n"), 400);
    assert_eq!(sandbox.credits(1001), 0);
}

#[test]
fn what_is_too_large_is_refused() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let field = format!("X: {}\r\n", "x".repeat(1000));
    let fields = field.repeat(20);
    assert_eq!(status_of(&service, format!("GET /payment/health HTTP/1.1\r\nHost: x\r\n{fields}\r\n")), 431);
    let target = "x".repeat(20_000);
    assert_eq!(status_of(&service, format!("GET /payment/notify?{target} HTTP/1.1\r\nHost: x\r\n\r\n")), 431);
    let just_fits = format!("GET /payment/health HTTP/1.1\r\nHost: x\r\n{}\r\n", field.repeat(16));
    assert_eq!(status_of(&service, just_fits), 200);

    let body = "x".repeat(16 * 1024 + 1);
    let large = service.client().send(post(&body));
    assert_eq!((large.status, large.body.as_str()), (413, "fail"));
    assert_eq!(status_of(&service, post(&body[1..])), 200);
    // Announced, never sent.
    let announced = "POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 16777216\r\n\r\n";
    assert_eq!(status_of(&service, announced), 413);
    // In chunks, so that nothing announces it; the answer comes before the end.
    let mut client = service.client();
    client.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    for _ in 0..6 {
        let _ = client.stream.write_all(chunk.as_bytes());
    }
    assert_eq!(client.response().unwrap().status, 413);
}

#[test]
fn a_large_body_sent_to_the_end_still_gets_its_answer() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let mut client = service.client();
    client.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n");
    client.write("x".repeat(200_000));
    assert_eq!(client.response().unwrap().status, 413);
}

#[test]
fn slow_heads_and_bodies_are_cut_off() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let mut slow_head = service.client();
    slow_head.write("GET /payment/health HTTP/1.1\r\nHost:");
    let mut slow_body = service.client();
    slow_body.write("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\npid=");
    let mut silent = service.client();
    assert_eq!(slow_head.response().unwrap().status, 408);
    assert!(slow_head.is_closed());
    let answer = slow_body.response().unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (408, "fail"));
    assert!(slow_body.is_closed());
    assert!(silent.is_closed());
}

#[test]
fn a_client_that_takes_no_answers_is_cut_off() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let mut greedy = service.client();
    // Asks until the answers, which it does not read, have filled every buffer on the way back; then writing stops, too.
    let request = "GET /payment/return HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    greedy.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let error = loop {
        if let Err(error) = greedy.stream.write_all(request.as_bytes()) {
            break error;
        }
    };
    // Not by this client's own patience: the service has ended the connection.
    assert!(matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe), "{error}");
    service.stop();
}

#[test]
fn connections_are_kept_and_requests_may_be_pipelined() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).form();
    let mut client = service.client();
    assert_eq!(client.notify(&form).1, "success");
    assert_eq!(client.send(post(&form)).body, "success");
    let health = "GET /payment/health HTTP/1.1\r\nHost: x\r\n\r\n";
    client.write(format!("{}{health}\r\n{health}GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n\r\n", post(&form)));
    let answers: Vec<_> = std::iter::from_fn(|| client.response()).map(|response| response.status).collect();
    assert_eq!(answers, [200, 200, 200, 404, 400], "each in its turn, and nothing after the refused one");
}

#[test]
fn a_head_may_come_byte_by_byte_and_a_body_in_chunks() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let form = Notification::of(&order).form();
    let mut client = service.client();
    for byte in post(&form).bytes() {
        client.write([byte]);
    }
    assert_eq!(client.response().unwrap().body, "success");
    let (first, second) = form.split_at(40);
    let chunked = format!(
        "POST /payment/notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    let mut client = service.client();
    let answer = client.send(chunked);
    assert_eq!(answer.body, "success");
    assert_eq!(answer.headers["connection"], "close");
    assert!(client.is_closed());
}

#[test]
fn older_and_hasty_clients_are_served() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let form = Notification::of(&sandbox.order(1001)).form();
    let answer = service.client().send(format!("GET /payment/notify?{form} HTTP/1.0\r\n\r\n"));
    assert_eq!(answer.body, "success");
    let mut half_closed = service.client();
    half_closed.write(post(&form));
    half_closed.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half_closed.response().unwrap().body, "success");
    let mut careful = service.client();
    careful.write(format!(
        "POST /payment/notify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        form.len()
    ));
    assert_eq!(careful.response().unwrap().status, 100);
    assert_eq!(careful.send(&form).body, "success");
}

#[test]
fn the_return_page_shows_what_the_store_says() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let claims_paid = Notification::of(&order).with("name", "<script>alert(1)</script>").form();
    let page = service.get(&format!("/payment/return?{claims_paid}"));
    assert_eq!(page.status, 200);
    assert!(page.body.contains("等待到账") && page.body.contains(&order), "{}", page.body);
    assert!(!page.body.contains("支付成功") && !page.body.contains("<script>alert"), "{}", page.body);
    assert!(page.headers["content-security-policy"].contains("default-src 'none'"));
    assert_eq!(page.headers["cache-control"], "no-store");
    assert_eq!(sandbox.status(&order), "pending", "the page settles nothing");

    assert_eq!(service.notify(&Notification::of(&order).form()).1, "success");
    let page = service.get(&format!("/payment/return?{claims_paid}"));
    assert!(page.body.contains("支付成功") && page.body.contains("70"), "{}", page.body);

    let neutral = service.get("/payment/return").body;
    for query in [
        Notification::of(&order).signed_with("wrong").form(),
        Notification::of("NOSUCHORDER").form(),
        Notification::of(&order).with("pid", OTHER_PID).signed_with(OTHER_KEY).form(),
        "out_trade_no=%3Cscript%3E".into(),
    ] {
        assert_eq!(service.get(&format!("/payment/return?{query}")).body, neutral, "{query}");
    }
}

#[test]
fn the_return_page_escapes_product_names() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    sandbox.order(1);
    // An order that was made before such names were refused.
    sandbox
        .database()
        .execute(
            "INSERT INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, created_at_ms, expires_at_ms)
             VALUES ('OLD1', '1002', 1, ?, 'alipay', 3600, 1, 0, 9999999999999)",
            ["<b>x</b>\"'"],
        )
        .unwrap();
    let form = Notification::of("OLD1").form();
    let page = service.get(&format!("/payment/return?{form}")).body;
    assert!(page.contains("&lt;b&gt;x&lt;/b&gt;&quot;"), "{page}");
}
