use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt;
use hyper::header::CACHE_CONTROL;

use super::page::{SCRIPT, STYLE, source};
use super::*;
use crate::channel::epay::{CallbackFields, PrivateKey, SignedCallback, encode};
use crate::config::{Config, DatabaseUrl};
use crate::domain::clock::{Clock, Timestamp};
use crate::domain::money::Amount;
use crate::domain::order::NewOrder;
use crate::domain::secret::Secret;

const CONFIG: &str = r#"
[[merchant]]
pid = "1002"
key = "k"
[[merchant]]
pid = "2003"
protocol = "v2"
platform_public_key_file = "v2_platform_public.pem"
[telegram]
bot_username = "example_bot"
"#;

const HOSTILE: &str = r#"</title><script>alert(1)</script>"' onload=x"#;

fn order_of(merchant: &str, order_no: &str, status: OrderStatus) -> Order {
    let now = Timestamp::now();
    Order {
        stored_status: status,
        ..Order::new(NewOrder {
            order_no: order_no.parse().unwrap(),
            merchant: merchant.into(),
            telegram_id: 1001,
            package: None,
            name: HOSTILE.into(),
            payment_type: "alipay".into(),
            amount: Amount::from_fen(3600).unwrap(),
            credits: 70,
            param: None,
            created_at: now,
            expires_at: now.plus_seconds(1800),
        })
    }
}

fn callback(merchant: &str, order_no: &str) -> CallbackFields {
    CallbackFields {
        pid: merchant.into(),
        trade_no: "T1".into(),
        out_trade_no: order_no.into(),
        payment_type: "alipay".into(),
        name: "VIP".into(),
        money: "36.00".into(),
        trade_status: "TRADE_SUCCESS".into(),
        param: None,
    }
}

fn v1(merchant: &str, order_no: &str, key: &str) -> String {
    encode(SignedCallback::v1(callback(merchant, order_no), &Secret::new(key)).fields())
}

fn page(language: Language) -> Page<'static> {
    Page { language, bot: "example_bot" }
}

/// Every page that there is, in one language.
fn all_pages(language: Language) -> Vec<String> {
    let orders = OrderStatus::ALL.iter().map(|status| order_of("1002", "N1", *status));
    let mut pages: Vec<_> = orders.map(|order| page(language).order(&order, Timestamp::now())).collect();
    pages.extend([page(language).neutral(), page(language).busy()]);
    pages
}

/// What stands in the elements of this name.
fn elements<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    html.split(&start).skip(1).map(|rest| rest.split_once(&end).unwrap().0).collect()
}

/// A return page whose store has one pending order of each merchant, `V1` and `V2`, and counts questions.
struct Fixture {
    // Kept for as long as the store is open.
    _directory: tempfile::TempDir,
    page: ReturnPage,
    asked: Arc<AtomicUsize>,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = crate::store::fixtures::open(&DatabaseUrl::Sqlite(directory.path().join("x.db"))).await.unwrap();
        for (merchant, order_no) in [("1002", "V1"), ("2003", "V2")] {
            store.create_order(order_of(merchant, order_no, OrderStatus::Pending).terms).await.unwrap();
        }
        let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
        let config = Current::new(Config::from_toml(CONFIG, &keys).unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let ask: Ask = Arc::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        Self { _directory: directory, page: ReturnPage::new(config, store, ask, Clock::system()), asked }
    }

    async fn get(&self, query: &str, languages: &'static str) -> (HeaderMap, String) {
        let headers = HeaderMap::from_iter([(ACCEPT_LANGUAGE, HeaderValue::from_static(languages))]);
        let response = self.page.answer(query, &headers).await;
        assert_eq!(response.status(), StatusCode::OK);
        let (head, body) = response.into_parts();
        (head.headers, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    fn questions(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[test]
fn the_policy_allows_what_is_in_the_pages_and_nothing_else() {
    let policy = page::POLICY.to_str().unwrap();
    let directives: Vec<_> = policy.split("; ").collect();
    for directive in ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(directives.contains(&directive), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
    let mut scripts = 0;
    for html in Language::ALL.iter().flat_map(|language| all_pages(*language)) {
        let styles = elements(&html, "style");
        assert_eq!(styles.len(), 1);
        assert!(policy.contains(&format!("style-src '{}'", source(styles[0]))));
        for script in elements(&html, "script") {
            assert!(policy.contains(&format!("script-src '{}'", source(script))));
            scripts += 1;
        }
        // What the policy would block has no place here, and neither has what would come from elsewhere.
        let own = html.replace(STYLE, "").replace(SCRIPT, "");
        for foreign in [" style=", " src=", "<link", "<img", "<form", "@import", "url("] {
            assert!(!own.contains(foreign) && !STYLE.contains(foreign.trim()), "{foreign} in {own}");
        }
    }
    assert!(scripts > 0, "no page has a script");
}

#[test]
fn a_page_refreshes_itself_for_as_long_as_a_payment_may_come() {
    for status in OrderStatus::ALL {
        let waits = matches!(status, OrderStatus::Pending | OrderStatus::Expired);
        let html = page(Language::English).order(&order_of("1002", "N1", *status), Timestamp::now());
        for sign in [r#"<noscript><meta http-equiv="refresh" content="5"></noscript>"#, "<script>", " data-waiting"] {
            assert_eq!(html.replace(STYLE, "").contains(sign), waits, "{status:?}: {sign}");
        }
    }
    let order = order_of("1002", "N1", OrderStatus::Pending);
    for (age_s, refresh_s) in [(0, 5), (300, 5), (1800, 30), (86_400, 300), (31_000_000, 300)] {
        let html = page(Language::English).order(&order, order.terms.created_at.plus_seconds(age_s));
        assert!(html.contains(&format!("content=\"{refresh_s}\"></noscript>")), "{age_s}: {html}");
    }
    let neutral = page(Language::English).neutral();
    assert!(!neutral.contains("refresh") && !neutral.contains("<script"), "{neutral}");
}

#[test]
fn a_hostile_product_name_stays_text() {
    for language in Language::ALL {
        let html = page(*language).order(&order_of("1002", "N1", OrderStatus::Paid), Timestamp::now());
        let name = "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;' onload=x";
        assert!(html.contains(name) && !html.contains("<script"), "{html}");
    }
}

#[test]
fn the_way_back_leads_to_the_bot_where_there_is_one() {
    let with = page(Language::English).neutral();
    assert!(with.contains(r#"<a class="back" href="https://t.me/example_bot">"#), "{with}");
    let without = Page { language: Language::English, bot: "" }.neutral();
    assert!(!without.contains("<a"), "{without}");
}

#[tokio::test]
async fn the_page_speaks_the_languages_that_are_asked_for() {
    let fixture = Fixture::new().await;
    for (asked, tag, title) in [
        ("zh-TW,zh;q=0.9", "zh-CN", "<title>等待到账</title>"),
        ("en-US,en;q=0.9,zh;q=0.1", "en", "<title>Waiting for your payment</title>"),
        // Not spoken here: what is configured.
        ("fr", "zh-CN", "<title>等待到账</title>"),
    ] {
        let (headers, html) = fixture.get(&v1("1002", "V1", "k"), asked).await;
        assert!(html.contains(title) && html.contains(&format!("<html lang=\"{tag}\">")), "{asked}: {html}");
        assert_eq!(headers[CONTENT_LANGUAGE], tag);
        assert_eq!(headers[VARY], "Accept-Language");
        assert_eq!(headers[CACHE_CONTROL], "no-store");
        assert_eq!(headers[X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[REFERRER_POLICY], "no-referrer");
        assert_eq!(headers[CONTENT_SECURITY_POLICY], *page::POLICY);
    }
}

#[tokio::test]
async fn whatever_is_wrong_the_neutral_page_is_the_same() {
    let fixture = Fixture::new().await;
    for language in ["zh", "en"] {
        let (head, neutral) = fixture.get("", language).await;
        for query in [
            "nonsense".to_owned(),
            v1("1002", "V1", "another key"),
            v1("1002", "NOSUCHORDER", "k"),
            v1("1002", "V2", "k"),
            v1("2003", "V2", "k"),
            v1("9999", "V1", "k"),
            v1("1002", "V1", "k").replace("36.00", "36.01"),
        ] {
            assert_eq!(fixture.get(&query, language).await, (head.clone(), neutral.clone()), "{query}");
        }
        assert_ne!(fixture.get(&v1("1002", "V1", "k"), language).await.1, neutral);
    }
    assert_eq!(fixture.questions(), 1, "nobody asks about what is not shown");
}

#[tokio::test]
async fn a_buyer_who_waits_for_long_is_shown_the_order_still() {
    let fixture = Fixture::new().await;
    let key = PrivateKey::parse(include_str!("../../../tests/keys/v2_platform_private.pem")).unwrap();
    let signed_at = Timestamp::from_ms(Timestamp::now().ms() - 86_400_000);
    let query = encode(SignedCallback::v2(callback("2003", "V2"), &key, signed_at).fields());
    assert!(fixture.get(&query, "en").await.1.contains("Waiting for your payment"));
    // For a notification, the same is as stale as ever.
    let unverified = Unverified::parse(query.as_bytes()).unwrap();
    let config = fixture.page.config.load();
    let credentials = &config.merchant("2003").unwrap().credentials;
    assert_eq!(unverified.verify(credentials, Timestamp::now()).unwrap_err().to_string(), "stale");
}

#[tokio::test]
async fn the_gateway_is_asked_about_waiting_orders_once_in_a_while() {
    let fixture = Fixture::new().await;
    for _ in 0..3 {
        fixture.get(&v1("1002", "V1", "k"), "en").await;
    }
    assert_eq!(fixture.questions(), 1);
}
