//! The local API, asked as a bot would ask it. Every answer is held against the description that the service itself gives.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::Signal;
use ring::hmac;
use serde_json::{Value, json};

use crate::simulated_gateway::Gateway;
use crate::support::*;

const TOKEN: &str = "the bot's token, which is long enough";
const API: &str =
    "[api]\nlisten = \"127.0.0.1:0\"\ntoken = \"the bot's token, which is long enough\"\n[log]\nlevel = \"debug\"\n";
const EVENT_KEY: &[u8] = b"thirty-two bytes to sign events.";

/// Where the API is.
#[derive(Clone, Debug)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// As the log tells it, in the words behind the last space.
    fn of_log(log: &str) -> Self {
        let line = log.lines().rfind(|line| line.contains("本地 API 地址")).expect(log);
        let address = line.rsplit('：').next().unwrap();
        match address.strip_prefix("unix:") {
            Some(path) => Self::Unix(path.into()),
            None => Self::Tcp(address.strip_prefix("http://").unwrap().parse().unwrap()),
        }
    }

    /// Sends a request over a connection of its own; what came back, or what went wrong.
    fn send(&self, request: &str) -> std::io::Result<Answer> {
        let mut received = Vec::new();
        match self {
            Self::Tcp(address) => {
                let mut stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(request.as_bytes())?;
                stream.read_to_end(&mut received)?;
            }
            Self::Unix(path) => {
                let mut stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(request.as_bytes())?;
                stream.read_to_end(&mut received)?;
            }
        }
        Answer::parse(&received).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
        let status = head.split(' ').nth(1)?.parse().unwrap();
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers = fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        Some(Self { status, headers, body: bytes[head_end + 4..].to_vec() })
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The status and the code of a problem.
    fn problem(&self) -> (u16, String) {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        (self.status, self.json()["code"].as_str().unwrap().to_owned())
    }
}

/// A bot that knows the token and the description.
struct Bot {
    address: Address,
    description: Value,
    next_key: AtomicUsize,
}

impl Bot {
    fn of(address: Address) -> Self {
        let mut bot = Self { address, description: json!({}), next_key: AtomicUsize::new(0) };
        bot.description = bot.send("GET", "/openapi.json", &[], "").json();
        assert_eq!(bot.description["openapi"], "3.1.0");
        bot
    }

    fn of_service(service: &Service) -> Self {
        Self::of(Address::of_log(&service.wait_for_log("本地 API 地址")))
    }

    /// A request as it is, but for the token.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let answer = self.address.send(&with_token(method, path, headers, body)).unwrap();
        if !self.description["paths"].is_null() {
            self.check(method, path, &answer);
        }
        answer
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "")
    }

    fn post(&self, path: &str, key: &str, body: &Value) -> Answer {
        let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
        self.send("POST", path, &headers, &body.to_string())
    }

    /// A request that has not come before.
    fn post_once(&self, path: &str, body: &Value) -> Answer {
        let number = self.next_key.fetch_add(1, Ordering::Relaxed);
        self.post(path, &format!("once-{number}"), body)
    }

    #[track_caller]
    fn create(&self, wish: &Value) -> Value {
        let answer = self.post_once("/v1/orders", wish);
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()
    }

    /// A user who has so many credits.
    fn user(&self, telegram_id: i64, credits: i64) {
        self.create(&json!({ "telegram_id": telegram_id, "package": "silver", "merchant": PID }));
        let grant = json!({ "credits": credits, "reason": "a test" });
        let granted = self.post_once(&format!("/v1/users/{telegram_id}/grant"), &grant);
        assert_eq!((granted.status, &granted.json()["credits"]), (200, &json!(credits)), "{granted:?}");
    }

    fn credits(&self, telegram_id: i64) -> i64 {
        self.get(&format!("/v1/users/{telegram_id}")).json()["credits"].as_i64().unwrap()
    }

    /// Whether a value is as this schema of the description says.
    fn accepts(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let root = json!({ "components": self.description["components"], "allOf": [schema] });
        let validator = jsonschema::validator_for(&root).unwrap();
        validator.validate(value).map_err(|error| error.to_string())
    }

    /// What a reference stands for.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value["$ref"].as_str() else { return value };
        self.description.pointer(reference.strip_prefix('#').unwrap()).expect(reference)
    }

    /// What the description has for a path, whatever stands in the place of its arguments.
    fn described(&self, path: &str) -> Option<&Value> {
        let fits = |template: &str| {
            let (own, asked): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
            own.len() == asked.len() && own.iter().zip(asked).all(|(own, asked)| own.starts_with('{') || *own == asked)
        };
        let paths = self.description["paths"].as_object().unwrap();
        paths.iter().find(|(template, _)| fits(template)).map(|(_, item)| item)
    }

    /// Holds an answer against the description.
    #[track_caller]
    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let content_type = &answer.headers["content-type"];
        assert_eq!(answer.headers["cache-control"], "no-store");
        let operation = self.described(path).map(|item| &item[method.to_ascii_lowercase()]);
        let Some(operation) = operation.filter(|operation| operation.is_object()) else {
            let schema = json!({ "$ref": "#/components/schemas/Problem" });
            self.accepts(&schema, &answer.json()).unwrap();
            return;
        };
        let response = self.resolve(&operation["responses"][answer.status.to_string()]);
        assert!(response.is_object(), "{method} {path} is not said to answer {answer:?}");
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let value = &answer.headers[&name.to_ascii_lowercase()];
            self.accepts(&self.resolve(header)["schema"], &json!(value)).unwrap();
        }
        let media = &response["content"][content_type];
        assert!(media.is_object(), "{method} {path} is not said to answer {content_type}");
        if !content_type.ends_with("json") {
            return;
        }
        let value = answer.json();
        self.accepts(&media["schema"], &value).unwrap_or_else(|error| panic!("{method} {path}: {error}: {answer:?}"));
        if path != "/openapi.json" {
            let (text, sorted) = (std::str::from_utf8(&answer.body).unwrap(), value.to_string());
            assert_eq!(text, sorted, "keys in alphabetical order");
        }
        if answer.status >= 400 {
            assert_eq!(value["status"], answer.status);
            let told = response["description"].as_str().unwrap();
            assert!(told.contains(value["code"].as_str().unwrap()), "{told}: {value}");
        }
        // What the schema takes for good must not be anything at all.
        for name in value.as_object().unwrap().keys().filter(|_| path != "/openapi.json") {
            let mut mutilated = value.clone();
            mutilated.as_object_mut().unwrap().remove(name);
            assert!(self.accepts(&media["schema"], &mutilated).is_err(), "{method} {path} without {name}");
            mutilated[name] = json!([[]]);
            assert!(self.accepts(&media["schema"], &mutilated).is_err(), "{method} {path} with a wrong {name}");
            mutilated.clone_from(&value);
            mutilated["no_such_field"] = json!(1);
            assert!(self.accepts(&media["schema"], &mutilated).is_err(), "{method} {path} with more");
        }
    }
}

fn with_token(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let bearer = format!("Bearer {TOKEN}");
    request(method, path, &[&[("Authorization", bearer.as_str())], headers].concat(), body)
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers = headers.iter().fold(String::new(), |all, (name, value)| format!("{all}{name}: {value}\r\n"));
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
}

fn sandbox() -> Sandbox {
    Sandbox::with_config(&format!("{CONFIG}{API}"))
}

#[test]
fn an_order_is_created_shown_paid_and_its_credits_spent() {
    let sandbox = sandbox();
    let gateway = Gateway::start(&sandbox, &[]);
    let urls = format!(
        "gateway_url = \"http://{}/\"\nnotify_url = \"http://127.0.0.1:9/n\"\nreturn_url = \"http://127.0.0.1:9/r\"",
        gateway.address
    );
    let sandboxed = format!("{CONFIG}{API}").replacen("sandbox = true", &format!("sandbox = true\n{urls}"), 1);
    sandbox.configure(&sandboxed);
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);

    assert_eq!(
        bot.get("/v1/packages").json(),
        json!({ "packages": [{ "credits": 70, "id": "silver", "name": "VIP白银", "price": "36.00" }] })
    );
    let wish = json!({ "telegram_id": 1001, "package": "silver", "merchant": PID, "language": "de", "param": "x" });
    let made = bot.post("/v1/orders", "update-1", &wish);
    assert_eq!(made.status, 201, "{made:?}");
    let order = made.json();
    let number = order["order_no"].as_str().unwrap();
    assert_eq!(made.headers["location"], format!("/v1/orders/{number}"));
    let link = order["pay_url"].as_str().unwrap();
    assert!(link.starts_with(&format!("http://{}/", gateway.address)), "{order}");
    assert_eq!(
        (&order["qr"]["text"], &order["pay_kind"], &order["remark"]),
        (&json!(link), &json!("url"), &Value::Null)
    );

    let again = bot.post(
        "/v1/orders",
        "update-1",
        &json!({ "type": "alipay", "telegram_id": 1001, "package": "silver", "merchant": PID, "param": "x" }),
    );
    assert_eq!((again.status, again.json()), (200, order.clone()), "the same wish in other words");
    assert_eq!(sandbox.count("SELECT count(*) FROM orders"), 1);

    let picture = bot.get(&format!("/v1/orders/{number}/qr.png"));
    assert_eq!(picture.headers["content-type"], "image/png");
    assert!(picture.body.starts_with(b"\x89PNG\r\n\x1a\n"), "{picture:?}");

    assert_eq!(service.notify(&Notification::of(number).with("param", "x").form()).1, "success");
    let paid = bot.get(&format!("/v1/orders/{number}")).json();
    assert_eq!((&paid["status"], &paid["settled_by"]), (&json!("paid"), &json!("notify")));
    // No buyer is sent to pay the order once more.
    assert_eq!((&paid["pay_url"], &paid["pay_kind"], &paid["qr"]), (&Value::Null, &Value::Null, &Value::Null));
    assert_eq!(bot.get(&format!("/v1/orders/{number}/qr.png")).problem(), (404, "no_qr_code".into()));
    assert_eq!(bot.get("/v1/users/1001").json(), json!({ "credits": 70, "orders_paid": 1, "telegram_id": 1001 }));

    let spent = bot.post("/v1/users/1001/spend", "update-2", &json!({ "credits": 30, "reason": "a picture" })).json();
    let entry = spent["entry"].clone();
    assert_eq!(spent, json!({ "credits": 40, "entry": entry, "repeated": false, "telegram_id": 1001 }));
    let granted = bot.post("/v1/users/1001/grant", "update-3", &json!({ "credits": -5, "reason": "too many" })).json();
    assert_eq!((&granted["credits"], &granted["repeated"]), (&json!(35), &json!(false)));
    let spent = bot.post("/v1/users/1001/spend", "update-2", &json!({ "reason": "a picture", "credits": 30 })).json();
    assert_eq!(
        spent,
        json!({ "credits": 40, "entry": entry, "repeated": true, "telegram_id": 1001 }),
        "as it was then"
    );
    assert_eq!(sandbox.credits(1001), 35);
    service.stop();
}

#[test]
fn what_a_gateway_does_not_give_is_remarked_upon() {
    let sandbox = sandbox();
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    let order = bot.create(&json!({ "telegram_id": 7, "amount": "0.5", "credits": 3, "name": "三", "merchant": PID }));
    assert_eq!((&order["amount"], &order["pay_url"], &order["qr"]), (&json!("0.50"), &Value::Null, &Value::Null));
    let picture = bot.get(&format!("/v1/orders/{}/qr.png", order["order_no"].as_str().unwrap()));
    assert_eq!(picture.problem(), (404, "no_qr_code".into()));
}

#[test]
fn every_mistake_has_a_code_and_says_what_to_do() {
    let sandbox = sandbox();
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    bot.user(1001, 20);
    let json_type = ("Content-Type", "application/json");
    let key = ("Idempotency-Key", "k");
    let both = [json_type, key];
    let spend = "/v1/users/1001/spend";
    let long = "x".repeat(20_000);
    let very_long = "x".repeat(256);
    for (method, path, headers, body, expected, word) in [
        ("GET", "/", &[][..], "", (404, "not_found"), "openapi.json"),
        ("GET", "/v1/orders", &[], "", (405, "method_not_allowed"), "POST"),
        ("DELETE", spend, &[], "", (405, "method_not_allowed"), "POST"),
        ("HEAD", "/v1/nothing", &[], "", (404, ""), ""),
        ("GET", "/v1/orders/NOPE", &[], "", (404, "no_such_order"), "order_no"),
        ("GET", "/v1/orders/no-number", &[], "", (404, "no_such_order"), "order_no"),
        ("GET", "/v1/users/7", &[], "", (404, "no_such_user"), "7"),
        ("GET", "/v1/users/x", &[], "", (404, "no_such_user"), "id"),
        ("POST", "/v1/users/7/spend", &both, r#"{"credits":1}"#, (404, "no_such_user"), "7"),
        ("POST", spend, &[key], r#"{"credits":1}"#, (415, "unsupported_media_type"), "application/json"),
        ("POST", spend, &[json_type], r#"{"credits":1}"#, (400, "idempotency_key_missing"), "Idempotency-Key"),
        ("POST", spend, &[json_type, ("Idempotency-Key", "a b")], "", (400, "idempotency_key_invalid"), "255"),
        ("POST", spend, &[json_type, ("Idempotency-Key", &very_long)], "", (400, "idempotency_key_invalid"), "255"),
        ("POST", spend, &both, &long, (413, "body_too_large"), "16384"),
        ("POST", spend, &both, "", (400, "invalid_body"), "JSON"),
        ("POST", spend, &both, "credits=1", (400, "invalid_body"), "JSON"),
        ("POST", spend, &both, "[1]", (400, "invalid_body"), "JSON"),
        ("POST", spend, &both, r#"{"kredits":1}"#, (400, "unknown_field"), "kredits"),
        ("POST", spend, &both, r#"{"credits":1,"credits":2}"#, (400, "repeated_field"), "credits"),
        ("POST", spend, &both, r#"{"reason":"x"}"#, (400, "missing_field"), "credits"),
        ("POST", spend, &both, r#"{"credits":"1"}"#, (400, "invalid_field"), "credits"),
        ("POST", spend, &both, r#"{"credits":-1}"#, (400, "invalid_field"), "credits"),
        ("POST", spend, &both, r#"{"credits":21}"#, (409, "insufficient_credits"), "20"),
        ("POST", "/v1/users/1001/grant", &both, r#"{"credits":1}"#, (400, "missing_field"), "reason"),
        ("POST", "/v1/users/1001/grant", &both, r#"{"credits":0,"reason":"x"}"#, (400, "invalid_field"), "credits"),
        ("POST", "/v1/users/1001/grant", &both, r#"{"credits":-21,"reason":"x"}"#, (409, "insufficient_credits"), "20"),
        ("POST", "/v1/orders", &both, "{}", (400, "invalid_goods"), "package"),
        ("POST", "/v1/orders", &both, r#"{"package":"silver"}"#, (400, "missing_field"), "telegram_id"),
        ("POST", "/v1/orders", &both, r#"{"package":"silver","telegram_id":1}"#, (422, "impossible_order"), "2003"),
        (
            "POST",
            "/v1/orders",
            &both,
            r#"{"package":"gold","telegram_id":1,"merchant":"1002"}"#,
            (422, "impossible_order"),
            "silver",
        ),
        (
            "POST",
            "/v1/orders",
            &both,
            r#"{"package":"silver","telegram_id":1,"merchant":"7"}"#,
            (422, "impossible_order"),
            "1002",
        ),
    ] {
        if method == "HEAD" {
            // An answer without a body, which is not to be held against anything.
            assert_eq!(bot.address.send(&with_token(method, path, headers, body)).unwrap().status, expected.0);
            continue;
        }
        let answer = bot.send(method, path, headers, body);
        assert_eq!(answer.problem(), (expected.0, expected.1.to_owned()), "{method} {path} {body:.100}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(word), "{method} {path} {body:.100}: {detail}");
        if expected.1 == "insufficient_credits" {
            assert_eq!(answer.json()["credits"], 20);
        }
    }
    assert_eq!(bot.post(spend, "k", &json!({ "credits": 1 })).status, 200, "a refused request uses no key up");
    for (path, body) in
        [(spend, json!({ "credits": 2 })), ("/v1/users/1001/grant", json!({ "credits": 1, "reason": "x" }))]
    {
        assert_eq!(bot.post(path, "k", &body).problem(), (422, "idempotency_key_reused".into()));
    }
    assert_eq!(bot.credits(1001), 19);
}

#[test]
fn without_the_token_there_is_nothing_to_see() {
    let sandbox = sandbox();
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    bot.user(1001, 20);
    let old = format!("Bearer {TOKEN}");
    for path in ["/v1/users/1001", "/v1/packages", "/openapi.json", "/nowhere"] {
        for value in [
            None,
            Some("Bearer wrong"),
            Some("Bearer "),
            Some("Basic x"),
            Some(&old[..old.len() - 1]),
            Some(&old["Bearer ".len()..]),
        ] {
            let headers: Vec<_> = value.map(|value| ("Authorization", value)).into_iter().collect();
            let answer = bot.address.send(&request("GET", path, &headers, "")).unwrap();
            assert_eq!(answer.problem(), (401, "unauthorized".into()), "{value:?}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            if path != "/nowhere" {
                bot.check("GET", path, &answer);
            }
        }
    }
    // The token is the one thing about the API that a reload changes.
    sandbox.configure(&format!("{CONFIG}{API}").replace(TOKEN, "another token"));
    assert_eq!(sandbox.run(&["reload"]).code, 0);
    assert_eq!(bot.get("/v1/packages").problem(), (401, "unauthorized".into()));
    let headers = [("Authorization", "bearer another token")];
    assert_eq!(bot.address.send(&request("GET", "/v1/packages", &headers, "")).unwrap().status, 200);
    assert!(!sandbox.log().contains("token"), "{}", sandbox.log());
}

#[test]
fn a_hundred_copies_of_a_spend_are_one_entry() {
    let sandbox = sandbox();
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    bot.user(1001, 20);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let spend = || bot.post("/v1/users/1001/spend", "the-same", &json!({ "credits": 3 })).json();
        let threads: Vec<_> = (0..100).map(|_| scope.spawn(spend)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| answer["repeated"] == false).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer["credits"] == 17 && answer["entry"] == answers[0]["entry"]));
    assert_eq!(sandbox.count("SELECT count(*) FROM ledger WHERE kind = 'spend'"), 1);
    assert_eq!(bot.credits(1001), 17);
}

#[test]
fn a_balance_never_goes_below_zero() {
    let sandbox = sandbox();
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    bot.user(1001, 20);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let spend = || bot.post_once("/v1/users/1001/spend", &json!({ "credits": 1 })).status;
        let threads: Vec<_> = (0..50).map(|_| scope.spawn(spend)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count = |status| statuses.iter().filter(|each| **each == status).count();
    assert_eq!((count(200), count(409)), (20, 30), "{statuses:?}");
    assert_eq!(bot.credits(1001), 0);
    assert_eq!(sandbox.count("SELECT sum(credits) FROM ledger"), 0);
}

#[test]
fn a_unix_socket_is_for_its_group_and_goes_with_the_service() {
    let sandbox = sandbox();
    let path = sandbox.path("api.sock");
    // What a killed process has left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    sandbox.configure(
        &format!("{CONFIG}{API}").replace("listen = \"127.0.0.1:0\"\ntoken", "listen = \"unix:api.sock\"\ntoken"),
    );
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    assert!(matches!(&bot.address, Address::Unix(told) if *told == path), "{:?}", bot.address);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    bot.user(1001, 20);
    assert_eq!(bot.credits(1001), 20);
    let answer = bot.address.send(&request("GET", "/v1/packages", &[], "")).unwrap();
    assert_eq!(answer.problem(), (401, "unauthorized".into()));
    service.stop();
    assert!(!path.exists());
}

#[test]
fn an_address_that_is_taken_fails_the_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let sandbox = Sandbox::with_config(&format!("{CONFIG}{}", API.replace("127.0.0.1:0", &address)));
    let daemon = Daemon { sandbox: &sandbox };
    let start = sandbox.run(&["start"]);
    assert_eq!(start.code, 1, "{start:?}");
    assert!(start.stderr.contains("api.listen") && start.stderr.contains(&address), "{start:?}");
    fs::write(sandbox.path("api.sock"), "precious").unwrap();
    sandbox.configure(&format!("{CONFIG}{}", API.replace("127.0.0.1:0", "unix:api.sock")));
    let start = sandbox.run(&["start"]);
    assert!(start.code == 1 && start.stderr.contains("api.sock"), "{start:?}");
    assert_eq!(fs::read_to_string(sandbox.path("api.sock")).unwrap(), "precious");
    drop(daemon);
}

#[test]
fn a_connection_is_good_for_many_requests() {
    let sandbox = sandbox();
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    let Address::Tcp(address) = bot.address else { panic!("{:?}", bot.address) };
    let mut client = Client::connect(address);
    let long = "x".repeat(20_000);
    for (method, path, body, status) in [
        ("GET", "/v1/packages", "", 200),
        ("GET", "/v1/packages", "a body that nobody asked for", 200),
        ("GET", "/v1/users/7", "", 404),
        ("POST", "/v1/orders", "{}", 415),
        ("GET", "/v1/packages", long.as_str(), 413),
    ] {
        let request = with_token(method, path, &[], body).replace("Connection: close\r\n", "");
        assert_eq!(client.send(request).status, status, "{method} {path}");
    }
    assert!(client.is_closed(), "after a body that was too long");
    service.stop();
}

#[test]
fn what_is_under_way_at_the_end_is_finished() {
    let sandbox = sandbox();
    let gateway = Gateway::start(&sandbox, &["--fault", "slow", "--slow", "1"]);
    let urls = format!(
        "sandbox = true\ngateway_url = \"http://{}/\"\nnotify_url = \"http://127.0.0.1:9/n\"\nreturn_url = \"http://127.0.0.1:9/r\"",
        gateway.address
    );
    sandbox.configure(&format!("{CONFIG}{API}").replacen("sandbox = true", &urls, 1));
    let mut service = sandbox.serve();
    let bot = Bot::of_service(&service);
    let wish = json!({ "telegram_id": 1001, "package": "silver", "merchant": PID });
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| bot.post("/v1/orders", "k", &wish));
        wait_until("an order", || sandbox.count("SELECT count(*) FROM orders") == 1);
        service.signal(Signal::SIGTERM);
        let answer = creation.join().unwrap();
        assert_eq!((answer.status, answer.json()["pay_url"].is_string()), (201, true), "{answer:?}");
    });
    assert_eq!(service.wait().code(), Some(0));
    assert!(bot.address.send(&with_token("GET", "/v1/packages", &[], "")).is_err());
}

#[test]
fn without_a_table_there_is_no_api() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    assert_eq!(service.get("/payment/health").status, 200);
    assert!(!service.log().iter().any(|line| line.contains("API")), "{:?}", service.log());
    service.stop();
}

#[test]
fn a_restart_keeps_the_socket_reachable() {
    let sandbox = sandbox();
    sandbox.configure(&format!("{CONFIG}{}", API.replace("127.0.0.1:0", "unix:api.sock")));
    let daemon = sandbox.start();
    let bot = Bot::of(Address::Unix(sandbox.path("api.sock")));
    bot.user(1001, 0x1000);
    keeps_answering(&sandbox, &bot);
    assert_eq!(
        fs::read_dir(sandbox.directory())
            .unwrap()
            .filter(|file| { file.as_ref().unwrap().file_name().to_str().unwrap().contains("api.sock") })
            .count(),
        1,
        "no process left its own name behind"
    );
    drop(daemon);
}

#[test]
fn a_restart_keeps_the_port_reachable() {
    let free = TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
    let sandbox = sandbox();
    sandbox.configure(&format!("{CONFIG}{}", API.replace("127.0.0.1:0", &free.to_string())));
    let daemon = sandbox.start();
    let bot = Bot::of(Address::Tcp(free));
    bot.user(1001, 0x1000);
    keeps_answering(&sandbox, &bot);
    drop(daemon);
}

/// Spends credits one by one while the service is restarted. A request that got no answer is sent again, as a bot would.
fn keeps_answering(sandbox: &Sandbox, bot: &Bot) {
    let (over, spent, unanswered) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (over, spent, unanswered) = (&over, &spent, &unanswered);
            scope.spawn(move || {
                for number in (0..1000).take_while(|_| !over.load(Ordering::Relaxed)) {
                    let key = format!("{thread}-{number}");
                    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key.as_str())];
                    let request = with_token("POST", "/v1/users/1001/spend", &headers, r#"{"credits":1}"#);
                    let answer = loop {
                        match bot.address.send(&request) {
                            Ok(answer) => break answer,
                            Err(_) => _ = unanswered.fetch_add(1, Ordering::Relaxed),
                        }
                    };
                    assert_eq!(answer.status, 200, "{answer:?}");
                    spent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..5 {
            let restart = sandbox.run(&["restart"]);
            over.store(restart.code != 0, Ordering::Relaxed);
            assert_eq!(restart.code, 0, "{restart:?}");
        }
        over.store(true, Ordering::Relaxed);
    });
    let (spent, unanswered) = (spent.into_inner(), unanswered.into_inner());
    assert_eq!(sandbox.count("SELECT count(*) FROM ledger WHERE kind = 'spend'"), i64::try_from(spent).unwrap());
    assert!(spent > 5 && unanswered * 10 <= spent, "{unanswered} of {spent}");
}

#[test]
fn the_examples_of_the_description_are_what_it_describes_and_what_the_service_takes() {
    let sandbox = sandbox();
    sandbox.configure(
        &format!("{CONFIG}{API}").replace("[[merchant]]\npid = \"2003\"\nkey = \"another merchant's key\"\n", ""),
    );
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    bot.user(1001, 20);
    let mut tried = 0;
    for (path, item) in bot.description["paths"].as_object().unwrap() {
        let body = &item["post"]["requestBody"]["content"]["application/json"];
        for (name, example) in body["examples"].as_object().into_iter().flatten() {
            bot.accepts(&body["schema"], &example["value"]).unwrap();
            let mut wrong = example["value"].clone();
            wrong["no_such_field"] = json!(1);
            assert!(bot.accepts(&body["schema"], &wrong).is_err(), "{path} {name}");
            let answer = bot.post_once(&path.replace("{telegram_id}", "1001"), &example["value"]);
            assert!(matches!(answer.status, 200 | 201), "{path} {name}: {answer:?}");
            tried += 1;
        }
    }
    assert_eq!(tried, 4);
}

#[test]
fn the_example_bot_does_all_that_a_bot_has_to() {
    let Some(python) = find_program("python3", "python3") else { return };
    let sandbox = sandbox();
    let service = sandbox.serve();
    let bot = Bot::of_service(&service);
    let Address::Tcp(address) = &bot.address else { panic!("{:?}", bot.address) };
    let command = |arguments: &[&str]| example_bot(&sandbox, &python, *address, arguments);
    let run = |arguments: &[&str]| Outcome::of(command(arguments).output().unwrap());
    bot.user(1001, 20);
    for (arguments, told) in [
        (&["credits", "1001"][..], "20\n"),
        (&["spend", "1001", "3", "update-9"], "17\n"),
        (&["spend", "1001", "3", "update-9"], "17\n"),
        (&["grant", "1001", "5", "a gift"], "22\n"),
    ] {
        let outcome = run(arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (0, told), "{outcome:?}");
    }
    let outcome = run(&["spend", "1001", "23"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("22"), "{outcome:?}");
    let outcome = run(&["order", "1001", "silver"]);
    assert!(outcome.code == 1 && outcome.stderr.contains("merchant"), "there are two: {outcome:?}");
    assert_eq!(run(&[]).code, 1);

    let (_listening, address, mut lines) = listen_for_events(command(&["events", "0"]));
    let body = r#"{"type":"order.settled","data":{"name":"白银"}}"#;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let deliver = |at: u64, key: &[u8], body_signed: &str, prefix: &str| {
        let signed = format!("evt_1.{at}.{body_signed}");
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
        let signature = format!("{prefix}{}", BASE64.encode(tag));
        let at = at.to_string();
        let headers = [("webhook-id", "evt_1"), ("webhook-timestamp", &at), ("webhook-signature", &signature)];
        Address::Tcp(address).send(&request("POST", "/", &headers, body)).unwrap().status
    };
    for (at, key, body_signed, prefix, status) in [
        (now, &b"another key, of the same length."[..], body, "v1,", 401),
        (now, EVENT_KEY, "{}", "v1,", 401),
        (now, EVENT_KEY, body, "v2,", 401),
        (now - 400, EVENT_KEY, body, "v1,", 401),
        (now + 400, EVENT_KEY, body, "v1,", 401),
        (now, EVENT_KEY, body, "v1,", 204),
        (now, EVENT_KEY, body, "v1,AAAA v1,", 204),
    ] {
        assert_eq!(deliver(at, key, body_signed, prefix), status, "{at} {prefix}");
    }
    let unsigned = Address::Tcp(address).send(&request("POST", "/", &[], body)).unwrap();
    assert_eq!(unsigned.status, 401);
    let heard = lines.next().unwrap();
    assert!(heard.starts_with("evt_1 ") && heard.contains("order.settled") && heard.contains("白银"), "{heard}");
}

#[test]
fn the_example_bot_hears_of_a_payment() {
    let Some(python) = find_program("python3", "python3") else { return };
    let sandbox = sandbox();
    let nowhere = ([127, 0, 0, 1], 9).into();
    let (_listening, address, mut lines) = listen_for_events(example_bot(&sandbox, &python, nowhere, &["events", "0"]));
    let secret = BASE64.encode(EVENT_KEY);
    let events = format!("[events]\nurl = \"http://{address}/\"\nsecret = \"whsec_{secret}\"\n");
    sandbox.configure(&format!("{CONFIG}{events}"));
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    assert_eq!(service.notify(&Notification::of(&order).form()).1, "success");
    let heard = lines.next().unwrap();
    assert!(heard.contains("order.settled") && heard.contains(&order), "{heard}");
}

/// `scripts/bot.py`, for an API at this address.
fn example_bot(sandbox: &Sandbox, python: &Path, api: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = sandbox.command_of(python.to_str().unwrap());
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/bot.py")).args(arguments);
    command.env("WEBHOOKCTL_API", format!("http://{api}")).env("WEBHOOKCTL_TOKEN", TOKEN);
    command.env("WEBHOOKCTL_EVENT_SECRET", format!("whsec_{}", BASE64.encode(EVENT_KEY)));
    // What is for a proxy elsewhere: it must not get to see the token.
    command.env("http_proxy", "http://127.0.0.1:9").env_remove("no_proxy");
    command
}

/// Starts the bot's listener; where it is, and the lines that it prints.
fn listen_for_events(mut command: Command) -> (Process, SocketAddr, impl Iterator<Item = String>) {
    let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut lines = BufReader::new(process.stdout()).lines().map_while(Result::ok);
    let first = lines.next().unwrap();
    let address = first.split("http://").nth(1).unwrap().trim_end_matches('/').parse().unwrap();
    (process, address, lines)
}
