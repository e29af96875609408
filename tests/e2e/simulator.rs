//! The pretend gateway as a process: orders made and paid at it, and what its callbacks do to the running service.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::Signal;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::Value;

use crate::simulated_gateway::{Gateway, request};
use crate::support::*;

/// Makes an order of the first merchant, whose callbacks go to `notify_url`.
trait Shop {
    fn create(&self, order: &str, notify_url: &str) -> String;
}

impl Shop for Gateway {
    #[track_caller]
    fn create(&self, order: &str, notify_url: &str) -> String {
        let reply = self.json("/mapi.php", &purchase(order, notify_url).form());
        assert_eq!(reply["code"], 1, "{reply}");
        reply["payurl"].as_str().unwrap().strip_prefix(&format!("http://{}", self.address)).unwrap().to_owned()
    }
}

/// What a shop asks of its gateway.
fn purchase(order: &str, notify_url: &str) -> Notification {
    Notification::of(order)
        .without("trade_no")
        .without("trade_status")
        .with("notify_url", notify_url)
        .with("return_url", "http://127.0.0.1:9/return")
        .with("clientip", "127.0.0.1")
}

fn notify_url(service: &Service) -> String {
    format!("http://{}/payment/notify", service.address)
}

#[test]
fn an_order_paid_at_the_page_is_credited_once_by_get_and_post() {
    for method in ["get", "post"] {
        let sandbox = Sandbox::new();
        let service = sandbox.serve();
        let gateway = Gateway::start(&sandbox, &["--method", method]);
        let order = sandbox.order(1001);
        let page = gateway.create(&order, &notify_url(&service));
        assert!(gateway.get(&page).body.contains("36.00"));
        assert_eq!(gateway.query(&order)["status"], "0");
        assert_eq!(sandbox.credits(1001), 0);

        let paid = gateway.post(&page, "");
        assert_eq!(paid.status, 303);
        let (url, signed) = paid.headers["location"].split_once('?').unwrap();
        assert_eq!(url, "http://127.0.0.1:9/return");
        assert!(service.get(&format!("/payment/return?{signed}")).body.contains(&order), "the page believes it");
        // Pressing the button again pays nothing more.
        assert_eq!(gateway.post(&page, "").status, 303);

        gateway.wait_for_delivery(&order);
        assert_eq!(sandbox.credits(1001), 70);
        assert_eq!(sandbox.status(&order), "paid");
        assert_eq!(gateway.query(&order)["status"], "1");
        let callbacks = gateway.wait_for_events("callback", &order, 1);
        assert_eq!((&callbacks[0]["answer"], &callbacks[0]["sent"]), (&"success".into(), &"honest".into()));
        let kept: String = sandbox.database().query_row("SELECT method FROM receipts", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, method.to_uppercase());
        gateway.stop();
    }
}

#[test]
fn whatever_happens_to_callbacks_an_order_is_credited_once() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let gateway = Gateway::start(&sandbox, &[]);
    for (credited, (fault, callbacks, delivered)) in (1..).zip([
        ("late", 1, true),
        ("duplicate", 2, true),
        ("concurrent", 2, true),
        ("bad-sign", 2, true),
        ("wrong-pid", 2, true),
        // The gateway never reads an answer, and tries until it gives up.
        ("reset", 5, false),
    ]) {
        let order = sandbox.order(1001);
        gateway.create(&order, &notify_url(&service));
        assert_eq!(gateway.post("/simulate/faults", &format!("fault={fault}")).status, 200);
        gateway.pay(&order);
        if delivered {
            gateway.wait_for_delivery(&order);
        }
        gateway.wait_for_callbacks(&order, callbacks);
        wait_until(fault, || sandbox.status(&order) == "paid");
        assert_eq!(gateway.order(&order)["delivered"], delivered, "{fault}");
        // Once more, honestly: a duplicate.
        gateway.post("/simulate/faults", "");
        let again = gateway.json("/simulate/callback", &format!("out_trade_no={order}"));
        assert_eq!(again, serde_json::json!({ "answer": "success", "delivered": true }));
        assert_eq!(sandbox.credits(1001), credited * 70, "{fault}");
    }
    assert_eq!(sandbox.count("SELECT count(*) FROM rejections WHERE outcome = 'bad_signature'"), 2);
}

#[test]
fn a_wrong_amount_puts_the_order_before_a_person() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let gateway = Gateway::start(&sandbox, &["--fault", "wrong-amount", "--attempts", "2"]);
    let order = sandbox.order(1001);
    gateway.create(&order, &notify_url(&service));
    gateway.pay(&order);
    let callbacks = gateway.wait_for_events("callback", &order, 2);
    let sent: Vec<_> = callbacks.iter().map(|callback| (&callback["sent"], &callback["answer"])).collect();
    assert_eq!(sent, [(&"wrong-amount".into(), &"fail".into()), (&"honest".into(), &"fail".into())]);
    assert_eq!(sandbox.status(&order), "review");
    assert_eq!(sandbox.credits(1001), 0);
}

#[test]
fn without_a_callback_only_a_query_tells_that_it_is_paid() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let gateway = Gateway::start(&sandbox, &["--fault", "never"]);
    let order = sandbox.order(1001);
    gateway.create(&order, &notify_url(&service));
    gateway.pay(&order);
    let reply = gateway.query(&order);
    assert_eq!((&reply["status"], &reply["money"]), (&"1".into(), &"36.00".into()));
    let known = gateway.order(&order);
    assert_eq!((&known["callbacks"], &known["queries"]), (&0.into(), &1.into()));
    assert_eq!(sandbox.status(&order), "pending");
    gateway.json("/simulate/callback", &format!("out_trade_no={order}"));
    assert_eq!(gateway.order(&order)["callbacks"], 1);
    assert_eq!(sandbox.status(&order), "paid");
}

/// A merchant's server that gives these answers, a connection each, and then no more.
fn merchant_server(answers: &'static [&'static str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/notify", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn a_callback_is_sent_again_until_the_answer_contains_success() {
    let sandbox = Sandbox::new();
    let gateway = Gateway::start(&sandbox, &[]);
    let url = merchant_server(&[
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfail",
        // Redirects are not followed.
        "HTTP/1.1 302 Found\r\nLocation: /success\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 500 Oh\r\nContent-Length: 12\r\n\r\n a success\r\n",
    ]);
    gateway.create("A1", &url);
    gateway.pay("A1");
    gateway.wait_for_delivery("A1");
    let callbacks = gateway.wait_for_events("callback", "A1", 3);
    let answers: Vec<_> = callbacks.iter().map(|callback| callback["answer"].as_str().unwrap()).collect();
    assert_eq!(answers, ["fail", "", " a success\r\n"]);
    assert_eq!(gateway.order("A1")["callbacks"], 3);
}

#[test]
fn attempts_end() {
    let sandbox = Sandbox::new();
    let gateway = Gateway::start(&sandbox, &["--attempts", "2"]);
    let url = merchant_server(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfail", "", ""]);
    gateway.create("A1", &url);
    gateway.pay("A1");
    let callbacks = gateway.wait_for_events("callback", "A1", 2);
    assert_eq!(callbacks[1]["delivered"], false);
    // A third would come three minutes after the payment; these take one each.
    for order in ["B1", "C1", "D1"] {
        gateway.create(order, &merchant_server(&["", ""]));
        gateway.pay(order);
        gateway.wait_for_events("callback", order, 2);
    }
    assert_eq!(gateway.order("A1")["callbacks"], 2);
}

const V2: &str = "listen = \"127.0.0.1:0\"\n[[merchant]]\npid = \"1002\"\nprotocol = \"v2\"\n\
                  platform_public_key_file = \"platform.pem\"\nprivate_key_file = \"merchant.pem\"\n\
                  [[package]]\nid = \"silver\"\nname = \"VIP\"\nprice = \"36.00\"\ncredits = 70\n";

fn v2_sandbox() -> Sandbox {
    let sandbox = Sandbox::with_config(V2);
    for (name, key) in [
        ("platform.pem", include_str!("../keys/v2_platform_public.pem")),
        ("merchant.pem", include_str!("../keys/v2_merchant_private.pem")),
        ("platform_private.pem", include_str!("../keys/v2_platform_private.pem")),
    ] {
        std::fs::write(sandbox.path(name), key).unwrap();
    }
    sandbox
}

/// A V2 request, signed as the merchant.
fn signed_v2(request: Notification) -> String {
    let pem = include_str!("../keys/v2_merchant_private.pem");
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = RsaKeyPair::from_pkcs8(&BASE64.decode(base64).unwrap()).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let request = request.with("timestamp", &now.to_string());
    let mut signature = vec![0; key.public().modulus_len()];
    let text = request.signing_string();
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).unwrap();
    request.form_with_sign(&BASE64.encode(signature)).replace("sign_type=MD5", "sign_type=RSA")
}

#[test]
fn a_v2_order_is_paid_credited_once_and_refunded() {
    let sandbox = v2_sandbox();
    let service = sandbox.serve();
    let options =
        ["--platform-private-key-file", "platform_private.pem", "--fault", "duplicate", "--fault", "bad-sign"];
    let gateway = Gateway::start(&sandbox, &options);
    let order = sandbox.order(1001);
    let create = purchase(&order, &notify_url(&service)).with("method", "web");
    let created = gateway.json("/api/pay/create", &signed_v2(create));
    assert_eq!(
        (&created["code"], &created["pay_type"], &created["sign_type"]),
        (&0.into(), &"jump".into(), &"RSA".into())
    );
    gateway.pay(&order);
    gateway.wait_for_delivery(&order);
    gateway.wait_for_callbacks(&order, 3);
    assert_eq!(sandbox.credits(1001), 70);
    assert_eq!(sandbox.status(&order), "paid");

    let about = || Notification::of(&order).without("trade_no").without("trade_status");
    let refund = about().with("money", "36.00").with("out_refund_no", "R1");
    assert_eq!(gateway.json("/api/pay/refund", &signed_v2(refund.clone()))["code"], 0);
    assert_eq!(gateway.json("/api/pay/refund", &signed_v2(refund.clone()))["code"], 0);
    assert_eq!(gateway.json("/api/pay/refundquery", &signed_v2(refund))["status"], 1);
    let queried = gateway.json("/api/pay/query", &signed_v2(about()));
    assert_eq!((&queried["status"], &queried["refundmoney"]), (&2.into(), &"36.00".into()));
    gateway.wait_for_events("refund", &order, 1);
}

#[test]
fn orders_pay_themselves_when_asked_to_and_money_goes_back() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let gateway = Gateway::start(&sandbox, &["--auto-pay", "0"]);
    let order = sandbox.order(1001);
    gateway.create(&order, &notify_url(&service));
    gateway.wait_for_delivery(&order);
    assert_eq!(sandbox.credits(1001), 70);
    let refund = format!("pid={PID}&key={KEY}&out_trade_no={order}&money=36.00");
    assert_eq!(gateway.json("/api.php?act=refund", &refund)["code"], 0);
    assert_eq!(gateway.query(&order)["status"], "2");
    gateway.wait_for_events("refund", &order, 1);
}

#[test]
fn the_api_fails_and_lies_on_request() {
    let sandbox = Sandbox::new();
    let gateway = Gateway::start(&sandbox, &["--slow", "0", "--fault", "slow"]);
    gateway.create("A1", "http://127.0.0.1:9/notify");
    let faults = |faults: &str| assert_eq!(gateway.post("/simulate/faults", faults).status, 200);
    let query = format!("/api.php?act=order&pid={PID}&key={KEY}&out_trade_no=A1");
    faults("fault=lie-status&fault=lie-money&fault=lie-pid");
    let lie = gateway.query("A1");
    assert_eq!((&lie["status"], &lie["money"], &lie["pid"]), (&"1".into(), &"35.99".into(), &2003.into()));
    assert_eq!((&lie["endtime"], &lie["trade_status"]), (&Value::Null, &"WAIT_BUYER_PAY".into()));
    for (fault, status) in [("error-500", 500), ("rate-limit", 429)] {
        faults(&format!("fault={fault}"));
        let response = gateway.get(&query);
        assert_eq!(response.status, status);
        assert!(response.headers["content-type"].starts_with("text/html"));
    }
    faults("fault=reset");
    let mut client = Client::connect(gateway.address);
    client.write(format!("GET {query} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(client.response().is_none());
    faults("");
    assert_eq!(gateway.query("A1")["status"], "0");
}

#[test]
fn a_request_that_no_gateway_would_take() {
    let sandbox = Sandbox::new();
    let gateway = Gateway::start(&sandbox, &[]);
    let secure = purchase("A1", "https://127.0.0.1:9/notify").form();
    assert!(gateway.json("/mapi.php", &secure)["msg"].as_str().unwrap().contains("http://"));
    let forged = purchase("A1", "http://127.0.0.1:9/notify").signed_with("guess").form();
    assert_eq!(gateway.json("/mapi.php", &forged)["code"], -2);
    let page = gateway.get(&format!("/submit.php?{forged}"));
    assert_eq!(page.status, 200);
    assert!(!page.body.contains("<button>"));
    assert_eq!(gateway.post("/mapi.php", &"x".repeat(65 * 1024)).status, 413);
    assert_eq!(gateway.get("/nowhere").status, 404);
}

#[test]
fn a_gateway_needs_a_merchant_and_stays_on_this_machine() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("empty.key"), "\n").unwrap();
    for (options, code, told) in [
        (&["--listen", "0.0.0.0:0"][..], 2, "--public"),
        (&["--fault", "later"], 2, "wrong-amount"),
        (&["--fault", "late=2"], 2, "wrong-amount"),
        (&["--attempts", "0"], 2, "--attempts"),
        (&["--pid", "7"], 2, "--key-file"),
        (&["--pay-ratio", "0.5"], 2, "--auto-pay"),
        (&["--pid", "7", "--key-file", "empty.key"], 2, "empty.key"),
        (&["--pid", "7", "--key-file", "none.key"], 1, "none.key"),
        (&["--platform-private-key-file", "empty.key"], 1, "empty.key"),
    ] {
        let outcome = sandbox.run(&[&["gateway", "simulate"], options].concat());
        assert_eq!(outcome.code, code, "{options:?}: {outcome:?}");
        assert!(outcome.stderr.contains(told), "{options:?}: {outcome:?}");
        assert_eq!(outcome.stdout, "");
    }
    let without_merchants = Sandbox::with_config("");
    assert_eq!(without_merchants.run(&["gateway", "simulate"]).code, 2);
    let without_key = v2_sandbox().run(&["gateway", "simulate"]);
    assert_eq!(without_key.code, 2);
    assert!(without_key.stderr.contains("--platform-private-key-file"), "{without_key:?}");
    assert_eq!(Sandbox::with_config("x").run(&["gateway", "simulate"]).code, 6);
}

#[test]
fn a_gateway_without_a_configuration_tells_a_person_what_happens() {
    let sandbox = Sandbox::empty();
    std::fs::write(sandbox.path("7.key"), format!("{KEY}\n")).unwrap();
    let arguments = ["gateway", "simulate", "--listen", "127.0.0.1:0", "--pid", PID, "--key-file", "7.key"];
    let mut command = sandbox.command(&arguments);
    let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut lines = BufReader::new(process.stdout()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    let address = first.split_once("http://").unwrap().1.strip_suffix('/').unwrap().parse().unwrap();
    let purchase = purchase("A1", "http://127.0.0.1:9/notify").with("param", "\u{1b}[2J").form();
    let reply = Client::connect(address).send(request("/mapi.php", &purchase)).body;
    assert!(reply.contains("\"code\":1"), "{reply}");
    let created = lines.next().unwrap();
    assert!(created.contains("A1") && created.contains("36.00"), "{created}");
    process.signal(Signal::SIGINT);
    assert_eq!(process.wait().code(), Some(0));
    let mut seed = String::new();
    process.stderr().read_to_string(&mut seed).unwrap();
    assert!(seed.contains("--seed "), "{seed}");
}
