use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, Stream};

use super::loopback::{Act, Loopback};
use super::*;

const SOON: Duration = Duration::from_mins(1);

/// What no error may tell.
const KEY: &str = "89unJUB8HZ54Hj7x4nUj56HN4nUzUJ8i";

fn authority() -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(include_bytes!("../../../tests/keys/tls_ca.pem")).unwrap()
}

/// A client that has root certificates, and not the one that the server's is from.
pub(crate) fn client_of_another_authority() -> Client {
    Client::trusting(vec![
        CertificateDer::from_pem_slice(include_bytes!("../../../tests/keys/tls_server.pem")).unwrap(),
    ])
}

/// A server that answers as many connections with `ok` over TLS, or is refused by the other side.
pub(crate) fn start_tls_server(connections: usize) -> u16 {
    let chain = CertificateDer::from_pem_slice(include_bytes!("../../../tests/keys/tls_server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../../../tests/keys/tls_server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key);
    let config = Arc::new(config.unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = Stream::new(&mut connection, &mut stream);
            if tls.read(&mut [0; 4096]).is_ok() {
                tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            }
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    port
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn assert_tells_nothing(error: &OutgoingError, url: &str) {
    let told = format!("{error} {error:?} {}", error.text(Language::Chinese));
    assert!(error.source().is_none());
    assert!(!told.contains(KEY) && !told.contains(url) && !told.contains("api.php"), "{told}");
}

#[tokio::test]
async fn a_reply_comes_back_whatever_its_status() {
    let server = Loopback::start(vec![
        Act::reply("200 OK", "yes"),
        Act::reply_with("429 Too Many Requests", "Retry-After: 7\r\n", ""),
        Act::reply_with("503 Service Unavailable", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n", "no"),
    ])
    .await;
    let client = Client::new();
    let mut replies = Vec::new();
    for page in ["a?b=c", "", ""] {
        let reply = client.get(&server.url(page), SOON).await.unwrap();
        replies.push((reply.status, String::from_utf8(reply.body.to_vec()).unwrap(), reply.retry_after));
    }
    let expected = [
        (200, "yes".to_owned(), None),
        (429, String::new(), Some(Duration::from_secs(7))),
        (503, "no".to_owned(), None),
    ];
    assert_eq!(replies, expected);
    let request = server.requests()[0].to_ascii_lowercase();
    assert!(request.starts_with("get /a?b=c http/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nuser-agent: {USER_AGENT}\r\n")), "{request}");
    assert!(request.contains("\r\naccept: */*\r\n") && !request.contains("referer"), "{request}");
}

#[tokio::test]
async fn bodies_are_sent_as_forms_json_and_bytes() {
    let server = Loopback::start(vec![Act::reply("200 OK", "")]).await;
    let (client, url) = (Client::new(), server.url("x"));
    client.post_form(&url, &[("a", "1 +&"), ("b", "会")], SOON).await.unwrap();
    client.post_json(&url, &serde_json::json!({"a": 1}), SOON).await.unwrap();
    let headers = [("Content-Type", "text/x".to_owned()), ("X-Sign", "s".to_owned())];
    client.post_bytes(&url, &headers, Bytes::from_static(b"raw"), SOON).await.unwrap();
    for (request, header, body) in [
        (0, "\r\ncontent-type: application/x-www-form-urlencoded\r\n", "a=1+%2B%26&b=%E4%BC%9A"),
        (1, "\r\ncontent-type: application/json\r\n", "{\"a\":1}"),
        (2, "\r\ncontent-type: text/x\r\nx-sign: s\r\n", "raw"),
    ] {
        let request = &server.requests()[request];
        assert!(request.contains(header) && request.ends_with(&format!("\r\n\r\n{body}")), "{request}");
    }
}

#[tokio::test]
async fn a_redirect_is_a_reply_and_not_followed() {
    let elsewhere = Loopback::start(vec![Act::reply("200 OK", "")]).await;
    let location = format!("Location: {}\r\n", elsewhere.url(""));
    let server = Loopback::start(vec![Act::reply_with("302 Found", &location, "")]).await;
    assert_eq!(Client::new().get(&server.url(""), SOON).await.unwrap().status, 302);
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_reply_may_be_256_kib_and_no_more() {
    let whole = "x".repeat(REPLY_BYTES_MAX);
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 1 << 20]].concat();
    let server = Loopback::start(vec![
        Act::reply("200 OK", &whole),
        Act::reply("200 OK", &(whole.clone() + "x")),
        Act::Send(endless),
    ])
    .await;
    let client = Client::new();
    assert_eq!(client.get(&server.url(""), SOON).await.unwrap().body.len(), whole.len());
    for _ in 0..2 {
        assert_eq!(client.get(&server.url(""), SOON).await.unwrap_err(), OutgoingError::TooLarge);
    }
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn silence_ends_when_the_time_is_up_and_is_not_asked_again() {
    let part = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx".to_vec();
    for act in [Act::Wait, Act::SendAndWait(part)] {
        // A busy machine may take longer than that to connect, and then there is nothing to see.
        for time in [Duration::from_millis(300), Duration::from_secs(5), SOON] {
            let server = Loopback::start(vec![act.clone()]).await;
            let url = server.url(&format!("api.php?key={KEY}"));
            let error = Client::new().get(&url, time).await.unwrap_err();
            assert_tells_nothing(&error, &url);
            let arrived = server.requests().len();
            if arrived > 0 || time == SOON {
                assert_eq!((arrived, &error), (1, &OutgoingError::TimedOut));
                assert!(error.may_have_arrived());
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_may_be_asked_twice_is_and_the_rest_is_not() {
    let client = Client::new();
    let broken = || Loopback::start(vec![Act::Close]);
    let pairs = [("key", KEY)];

    let server = broken().await;
    let (error, url) = (client.get(&server.url(KEY), SOON).await.unwrap_err(), server.url(KEY));
    assert!(matches!(error, OutgoingError::BrokeOff(_)) && error.may_have_arrived(), "{error:?}");
    assert_tells_nothing(&error, &url);
    assert_eq!(server.requests().len(), 2);

    let server = broken().await;
    assert!(client.post_repeatable_form(&server.url(""), &pairs, SOON).await.is_err());
    assert_eq!(server.requests().len(), 2);
    assert_eq!(server.requests()[0], server.requests()[1]);

    let server = broken().await;
    assert!(client.post_form(&server.url(""), &pairs, SOON).await.is_err());
    assert!(client.post_json(&server.url(""), &pairs, SOON).await.is_err());
    assert!(client.post_bytes(&server.url(""), &[], Bytes::new(), SOON).await.is_err());
    assert_eq!(server.requests().len(), 3);

    let server = Loopback::start(vec![Act::Close, Act::reply("200 OK", "now")]).await;
    assert_eq!(client.get(&server.url(""), SOON).await.unwrap().body, "now");
}

#[tokio::test]
async fn what_was_not_sent_is_told_from_what_may_have_arrived() {
    let client = Client::new();
    for (url, expected) in [
        (format!("http://127.0.0.1:{}/api.php?key={KEY}", closed_port()), "refused"),
        (format!("/api.php?key={KEY}"), "relative URL"),
        (format!("ftp://127.0.0.1/api.php?key={KEY}"), "scheme"),
        (String::new(), "relative URL"),
    ] {
        let error = client.post_form(&url, &[("key", KEY)], SOON).await.unwrap_err();
        assert!(!error.may_have_arrived() && error.to_string().contains(expected), "{error}");
        assert_tells_nothing(&error, "127.0.0.1/");
    }
    let headers = [("X-Key", format!("{KEY}\n"))];
    let error = client.post_bytes("http://127.0.0.1/", &headers, Bytes::new(), SOON).await.unwrap_err();
    assert!(matches!(error, OutgoingError::Unsendable(_)), "{error:?}");
    assert_tells_nothing(&error, "127.0.0.1/");
}

#[tokio::test]
async fn https_trusts_whom_the_roots_vouch_for_and_nobody_else() {
    let port = start_tls_server(3);
    let url = format!("https://localhost:{port}/{KEY}");
    let trusting = Client::trusting(vec![authority()]);
    let by_address = format!("https://127.0.0.1:{port}/");
    for url in [&url, &by_address] {
        assert_eq!(trusting.get(url, SOON).await.unwrap().body, "ok");
    }
    // Some root, and not the one that signed: the server's own certificate will do.
    let other = CertificateDer::from_pem_slice(include_bytes!("../../../tests/keys/tls_server.pem")).unwrap();
    let error = Client::trusting(vec![other]).post_form(&url, &[], SOON).await.unwrap_err();
    assert!(matches!(error, OutgoingError::NotConnected(_)), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_tells_nothing(&error, &url);
}

#[tokio::test]
async fn without_roots_http_works_and_https_says_what_is_missing() {
    let client = Client::trusting(Vec::new());
    let server = Loopback::start(vec![Act::reply("200 OK", "")]).await;
    assert_eq!(client.get(&server.url(""), SOON).await.unwrap().status, 200);
    let error = client.get(&server.url("").replace("http:", "https:"), SOON).await.unwrap_err();
    assert_eq!(error, OutgoingError::NoRootCertificates);
    assert!(!error.may_have_arrived());
}

#[test]
fn only_this_machine_is_asked_without_a_proxy() {
    for (url, expected) in [
        ("http://localhost:1/", true),
        ("http://LOCALHOST/", true),
        ("http://127.0.0.1/", true),
        ("http://127.9.9.9/", true),
        ("http://[::1]:80/", true),
        ("http://[::ffff:127.0.0.1]/", true),
        ("http://10.0.0.1/", false),
        ("http://localhost.example.com/", false),
        ("http://127.0.0.1.example.com/", false),
        ("http://[2001:db8::1]/", false),
    ] {
        assert_eq!(is_on_this_machine(&Url::parse(url).unwrap()), expected, "{url}");
    }
}

#[test]
fn an_excerpt_stays_on_its_line() {
    assert_eq!(excerpt("a\r\n\u{1b}[31m会\u{2028}b", 100), "a\\r\\n\\u{1b}[31m会\\u{2028}b");
    assert_eq!(excerpt("会会会", 2), "会会");
}
