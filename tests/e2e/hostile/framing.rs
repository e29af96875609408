//! Bytes that are too many, or that two readers could take for different requests.

use std::io::Read;
use std::net::Shutdown;

use super::*;

const BODY: usize = 16 * 1024 * 1024;

/// Sends from many connections at the same time, for each what `write` gives it; the statuses of their answers, 0 for none.
fn at_once(scene: &Scene, count: usize, write: impl Fn(&mut TcpStream) + Sync) -> Vec<u16> {
    std::thread::scope(|threads| {
        let one = || {
            let mut client = scene.client(STRANGER);
            write(&mut client.stream);
            client.response().map_or(0, |answer| answer.status)
        };
        let all: Vec<_> = (0..count).map(|_| threads.spawn(one)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// Sends so many bytes, in pieces, for as long as they are taken.
fn stream_of(stream: &mut TcpStream, piece: &[u8], bytes: usize) {
    for _ in 0..bytes / piece.len() {
        if !takes(stream, piece) {
            return;
        }
    }
}

#[test]
fn bodies_of_sixteen_megabytes() {
    under_attack(|scene| {
        let piece = vec![b'x'; 64 * 1024];
        let announced = format!("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY}\r\n\r\n");
        let statuses = at_once(scene, 16, |stream| {
            offer(stream, announced.as_bytes());
            stream_of(stream, &piece, BODY);
        });
        // Who sends on for longer than is reasonable may lose the answer.
        assert!(statuses.iter().all(|status| matches!(status, 413 | 0)), "{statuses:?}");
        let chunk = [b"10000\r\n", &piece[..], b"\r\n"].concat();
        let statuses = at_once(scene, 16, |stream| {
            offer(stream, b"POST /payment/notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
            stream_of(stream, &chunk, BODY);
        });
        assert!(statuses.iter().all(|status| matches!(status, 413 | 0)), "{statuses:?}");
        // To whatever path and method.
        for line in
            ["POST /", "GET /payment/health", "PUT /payment/notify", "GET /payment/return", "HEAD /payment/status"]
        {
            let head = format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY}\r\n\r\n");
            let statuses = at_once(scene, 8, |stream| {
                offer(stream, head.as_bytes());
                stream_of(stream, &piece, BODY);
            });
            assert!(statuses.iter().all(|status| matches!(status, 404 | 405 | 413 | 0)), "{line}: {statuses:?}");
        }
    });
}

#[test]
fn heads_of_many_fields_and_of_long_ones() {
    under_attack(|scene| {
        let start = "GET /payment/health HTTP/1.1\r\nHost: x\r\n";
        for (fields, expected) in [
            ("X: y\r\n".repeat(50), 200),
            // hyper's own limit is 100 fields.
            ("X: y\r\n".repeat(2000), 431),
            (format!("X: {}\r\n", "y".repeat(17_000)), 431),
            (format!("{}: y\r\n", "x".repeat(17_000)), 431),
            (format!("Cookie: {}\r\n", "a=b; ".repeat(1_000_000)), 431),
            ("X: y\r\n".repeat(1_000_000), 431),
        ] {
            let request = format!("{start}{fields}\r\n");
            let statuses = at_once(scene, 16, |stream| offer(stream, request.as_bytes()));
            let is_right = |status: &u16| *status == expected || (*status == 0 && request.len() > 256 * 1024);
            assert!(statuses.iter().all(is_right), "{:?}: {statuses:?}", fields.get(..20));
        }
    });
}

#[test]
fn a_thousand_requests_in_one_breath_are_answered_in_their_turn() {
    under_attack(|scene| {
        let orders: Vec<_> = (0..20).map(|_| scene.sandbox.order(1003)).collect();
        let mut clients: Vec<_> = (0..10).map(|_| scene.client(STRANGER)).collect();
        let mut requests = String::new();
        for number in 0..1000 {
            requests += &match number % 50 {
                0 => post(&Notification::of(&orders[number / 50]).form()),
                _ => "GET /payment/status HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            };
        }
        std::thread::scope(|threads| {
            for client in &mut clients {
                let requests = &requests;
                let mut writing = client.stream.try_clone().unwrap();
                threads.spawn(move || offer(&mut writing, requests.as_bytes()));
                threads.spawn(move || {
                    for number in 0..1000 {
                        let answer = client.response().unwrap();
                        assert_eq!(answer.body == "success", number % 50 == 0, "{number}: {answer:?}");
                    }
                });
            }
        });
        assert_eq!(scene.sandbox.credits(1003), 20 * 70);
    });
}

/// Everything that the service answers to these bytes, until it closes the connection. The client has nothing more to say.
fn conversation(scene: &Scene, bytes: &[u8]) -> String {
    let mut client = scene.client(STRANGER);
    offer(&mut client.stream, bytes);
    let _ = client.stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    let _ = client.stream.read_to_end(&mut answers);
    String::from_utf8(answers).unwrap()
}

#[test]
fn no_request_hides_in_another() {
    under_attack(|scene| {
        let order = scene.sandbox.order(1003);
        let hidden = format!("GET /payment/notify?{} HTTP/1.1\r\nHost: x\r\n\r\n", Notification::of(&order).form());
        let post =
            |fields: &str, body: &str| format!("POST /payment/notify HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}");
        let chunked = "Transfer-Encoding: chunked";
        let all = hidden.len();
        for (request, expected) in [
            // A proxy that believes the other field sees one request here.
            (post(&format!("Content-Length: 0\r\n{chunked}"), &format!("{all:x}\r\n{hidden}\r\n0\r\n\r\n")), 400),
            (post(&format!("{chunked}\r\nContent-Length: {all}"), &format!("0\r\n\r\n{hidden}")), 400),
            (post(&format!("Content-Length: {all}\r\nContent-Length: 0"), &hidden), 400),
            (post(&format!("Content-Length: {all}, 0"), &hidden), 400),
            (post("Transfer-Encoding: xchunked", &format!("0\r\n\r\n{hidden}")), 400),
            (post("Transfer-Encoding : chunked", &format!("0\r\n\r\n{hidden}")), 400),
            (post("Transfer-Encoding:\tchunked\r\nTransfer-Encoding: identity", &format!("0\r\n\r\n{hidden}")), 400),
            (post("Transfer-Encoding: \u{b}chunked", &format!("0\r\n\r\n{hidden}")), 400),
            (post("X: y\nContent-Length: 0", &hidden), 400),
            (post("X: y\rContent-Length: 0", &hidden), 400),
            (post("X: y\r\n Content-Length: 0", &hidden), 400),
            (post("X: y\0\r\nContent-Length: 0", &hidden), 400),
            (post("Content-Length: 0x0", &hidden), 400),
            (post("Content-Length: -0", &hidden), 400),
            (post("Content-Length: \u{a0}0", &hidden), 400),
            (post("Content_Length : 0\r\nContent-Length: 1 0", &hidden), 400),
            // Chunks that are none, or whose length has two readings.
            (post(chunked, &format!("0x0\r\n\r\n{hidden}")), 400),
            (post(chunked, &format!("-0\r\n\r\n{hidden}")), 400),
            (post(chunked, &format!("10000000000000000\r\n{hidden}")), 400),
            (post(chunked, &format!("0\n\n{hidden}")), 400),
            (post(chunked, &format!("1\r\nxx\r\n0\r\n\r\n{hidden}")), 400),
            (post(chunked, &format!("1;\nx\r\n0\r\n\r\n{hidden}")), 400),
        ] {
            let answers = conversation(scene, request.as_bytes());
            assert!(answers.starts_with(&format!("HTTP/1.1 {expected} ")), "{request:?}: {answers:?}");
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{request:?}: {answers:?}");
        }
        // What follows a chunked body is not looked at: who knows where that ends.
        let answers = conversation(scene, post(chunked, &format!("0\r\n\r\n{hidden}")).as_bytes());
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers:?}");
        assert_eq!(scene.sandbox.credits(1003), 0);
        // Without any such trick it would have been believed.
        assert!(conversation(scene, hidden.as_bytes()).ends_with("success"));
    });
}

#[test]
fn lines_and_bytes_that_http_does_not_know() {
    under_attack(|scene| {
        for request in [
            &b"GET /payment/health HTTP/1.1\nHost: x\n\n"[..],
            b"GET /payment/health HTTP/1.1\r\nHost: x\r\n\n",
            b"GET /payment/health HTTP/1.1\r\nHost: x\n\r\n",
            b"GET /payment/health\r\nHost: x\r\n\r\n",
            b"GET  /payment/health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /payment/health HTTP/1.1 \r\nHost: x\r\n\r\n",
            b"GET /payment/health HTTP/2.0\r\nHost: x\r\n\r\n",
            b"GET /payment/health HTTP/1.1\r\nHost: x\r\nX\0: y\r\n\r\n",
            b"GET /payment/health HTTP/1.1\r\nHost: x\r\nX: y\0\r\n\r\n",
            b"GET /payment/\0health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /payment/health HTTP/1.1\r\nHost: x\r\nX\xff: y\r\n\r\n",
            b"G\xffT /payment/health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\0\0\0\0\r\n\r\n",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
        ] {
            let answers = conversation(scene, request);
            let text = String::from_utf8_lossy(request);
            // By us with `fail`, by hyper with nothing.
            let body = answers.split_once("\r\n\r\n").map(|(_, body)| body);
            assert!(answers.starts_with("HTTP/1.1 400 "), "{text:?}: {answers:?}");
            assert!(matches!(body, Some("fail" | "")), "{text:?}: {answers:?}");
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{text:?}: {answers:?}");
        }
        // Bytes without an end, and an end without bytes.
        for noise in [vec![0; 100_000], vec![0xff; 100_000], b"\r\n".repeat(100_000), vec![b'\r'; 100_000], vec![]] {
            let answers = conversation(scene, &noise);
            assert!(!answers.contains("HTTP/1.1 2"), "{answers}");
        }
    });
}

#[test]
fn a_form_has_one_reading_however_it_is_encoded() {
    under_attack(|scene| {
        let order = scene.sandbox.order(1003);
        let honest = Notification::of(&order);
        let (form, sign) = (honest.form(), honest.sign());
        let forms: Vec<Vec<u8>> = [
            // Another key, or the same one twice, under its encoded name.
            form.replace("out_trade_no=", "out%5Ftrade_no=X&out_trade_no="),
            form.replace("money=", "money=0%2E01&mone%79="),
            form.replace("money=", "money%00="),
            form.replace("money=36%2E00", "money=36%2E00%00"),
            form.replace("money=36%2E00", "money=3%256%2E00"),
            form.replace("money=36%2E00", "money=%33%"),
            form.replace("money=36%2E00", "money=%3"),
            form.replace("money=36%2E00", "money=%zz"),
            form.replace("money=36%2E00", "money=%uFF13%uFF16"),
            form.replace("money=36%2E00", "money=%EF%BC%93%EF%BC%96"),
            form.replace("money=36%2E00", "money=36%2E00%26money%3D0%2E01"),
            form.replace("name=", "name=%C0%80"),
            form.replace("name=", "name=%FF%FE"),
            form.replace("name=", "name=%ED%A0%80"),
            form.replace("name=", "name=%26out_trade_no%3DX"),
            form.replace('&', ";"),
            form.replace('&', "&&&") + "&=&",
            form.replace("sign=", "sign[]="),
            form.replace(&sign, &format!("{sign}%00")),
            form.replace(&sign, &format!("{sign}%20x")),
        ]
        .into_iter()
        .map(String::into_bytes)
        .chain([[form.as_bytes(), b"&x=\xff"].concat(), [form.as_bytes(), b"\0"].concat()])
        .collect();
        for form in &forms {
            let head = format!("POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", form.len());
            let answers = conversation(scene, &[head.as_bytes(), form].concat());
            assert!(answers.ends_with("\r\n\r\nfail"), "{}: {answers}", String::from_utf8_lossy(form));
        }
        assert_eq!(scene.sandbox.credits(1003), 0);
        // Every byte may be encoded, and is the same byte then.
        let encoded = form.split('&').map(|pair| {
            let (key, value) = pair.split_once('=').unwrap();
            let all = |text: &str| text.bytes().fold(String::new(), |all, byte| format!("{all}%{byte:02x}"));
            let value = if value.contains('%') { value.to_owned() } else { all(value) };
            format!("{}={value}", all(key))
        });
        let encoded = encoded.collect::<Vec<_>>().join("&");
        assert!(conversation(scene, post(&encoded).as_bytes()).ends_with("success"));
        assert_eq!(scene.sandbox.credits(1003), 70);
    });
}
