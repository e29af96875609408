//! The return page in a real browser: it is a phone's, and it is the buyer's.

use serde_json::json;

use crate::browser::{Browser, Driver, Setting};
use crate::support::*;

const CONFIG_WITH_BOT: &str = "\n[telegram]\nbot_username = \"example_bot\"\n";

const ZH: &str = "zh-CN,zh";
const EN: &str = "en-US,en";

fn sandbox() -> Sandbox {
    Sandbox::with_config(&format!("{CONFIG}{CONFIG_WITH_BOT}"))
}

fn url(service: &Service, order: &str) -> String {
    format!("http://{}/payment/return?{}", service.address, Notification::of(order).form())
}

#[track_caller]
fn wait_for_heading(browser: &Browser, heading: &str) {
    wait_until(heading, || browser.heading() == heading);
}

/// Everything fits on the screen's width, the button can be hit, and the browser has nothing to complain about.
#[track_caller]
fn assert_is_in_order(browser: &Browser, what: &str) {
    assert_eq!(browser.complaints(), Vec::<String>::new(), "{what}");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth > innerWidth"), false, "{what}");
    let button = "document.querySelector('a.back').getBoundingClientRect()";
    assert_eq!(
        browser.evaluate(&format!("{button}.height >= 48 && {button}.width >= 200 && {button}.bottom <= innerHeight")),
        true,
        "{what}"
    );
    // The style is in force: without it, the background would have none.
    assert_ne!(browser.evaluate("getComputedStyle(document.documentElement).backgroundColor"), "rgba(0, 0, 0, 0)");
}

#[test]
fn a_waiting_page_says_by_itself_when_the_money_has_come() {
    let sandbox = sandbox();
    let Some(driver) = Driver::start(&sandbox) else { return };
    let service = sandbox.serve();
    for (languages, dark, waiting, paid, name) in
        [(ZH, false, "等待到账", "支付成功", "zh-light"), (EN, true, "Waiting for your payment", "Paid", "en-dark")]
    {
        let order = sandbox.order(1001);
        let browser = driver.open(Setting { languages, dark, javascript: true });
        browser.go(&url(&service, &order));
        assert_eq!(browser.heading(), waiting);
        assert_is_in_order(&browser, name);
        browser.picture(&format!("{name}-waiting"));
        // It is lost when the page is loaded anew.
        browser.evaluate("window.kept = 'kept'");

        assert_eq!(service.notify(&Notification::of(&order).form()).1, "success");
        wait_for_heading(&browser, paid);
        assert_eq!(browser.evaluate("window.kept"), "kept");
        assert_eq!(browser.evaluate("document.title"), paid);
        assert_is_in_order(&browser, name);
        browser.picture(&format!("{name}-paid"));

        // That nothing was complained about means something: what the policy does not allow is.
        browser.evaluate("document.body.setAttribute('style', 'color: red')");
        wait_until("a complaint", || browser.complaints().iter().any(|text| text.contains("Content Security Policy")));
    }
}

#[test]
fn a_waiting_page_refreshes_itself_without_javascript() {
    let sandbox = sandbox();
    let Some(driver) = Driver::start(&sandbox) else { return };
    let service = sandbox.serve();
    for (languages, dark, waiting, paid, name) in [
        (ZH, true, "等待到账", "支付成功", "plain-zh-dark"),
        (EN, false, "Waiting for your payment", "Paid", "plain-en-light"),
    ] {
        let order = sandbox.order(1001);
        let browser = driver.open(Setting { languages, dark, javascript: false });
        browser.go(&url(&service, &order));
        assert_eq!(browser.heading(), waiting);
        browser.picture(&format!("{name}-waiting"));
        assert_eq!(service.notify(&Notification::of(&order).form()).1, "success");
        wait_for_heading(&browser, paid);
        browser.picture(&format!("{name}-paid"));
        assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn every_state_has_a_page_that_fits_a_small_phone() {
    let sandbox = sandbox();
    let Some(driver) = Driver::start(&sandbox) else { return };
    let service = sandbox.serve();
    for (languages, dark, name) in [(ZH, true, "zh-dark"), (EN, false, "en-light")] {
        let order = sandbox.order(1001);
        let browser = driver.open(Setting { languages, dark, javascript: true });
        browser.resize(320, 568);
        for state in ["review", "cancelled", "pending", "paid", "refunded"] {
            if state == "paid" {
                assert_eq!(service.notify(&Notification::of(&order).form()).1, "success");
            } else {
                let change = "UPDATE orders SET status = ? WHERE order_no = ?";
                sandbox.database().execute(change, [state, &order]).unwrap();
            }
            browser.go(&url(&service, &order));
            assert_eq!(browser.evaluate("document.querySelector('.number').innerText"), order, "{state}");
            assert_is_in_order(&browser, state);
            browser.picture(&format!("small-{name}-{state}"));
        }
        browser.go(&format!("http://{}/payment/return", service.address));
        assert_is_in_order(&browser, "neutral");
        browser.picture(&format!("small-{name}-neutral"));
    }
}

#[test]
fn a_page_that_came_while_the_store_was_away_shows_the_order_when_it_is_back() {
    let sandbox = sandbox();
    let Some(driver) = Driver::start(&sandbox) else { return };
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let browser = driver.open(Setting { languages: EN, dark: false, javascript: true });
    sandbox.database().execute("ALTER TABLE orders RENAME TO away", []).unwrap();
    assert_eq!(service.get(&format!("/payment/return?{}", Notification::of(&order).form())).status, 503);
    browser.go(&url(&service, &order));
    assert_eq!(browser.heading(), "One moment, please");
    browser.picture("busy");
    sandbox.database().execute("ALTER TABLE away RENAME TO orders", []).unwrap();
    wait_for_heading(&browser, "Waiting for your payment");
}

/// Stands in for the clock and the network of a page, so that a quarter of an hour takes no time.
const FAKES: &str = "
    window.pauses = [];
    window.next = null;
    window.asked = 0;
    window.isHidden = false;
    Object.defineProperty(document, 'hidden', { get: () => isHidden });
    window.hide = hidden => { isHidden = hidden; document.dispatchEvent(new Event('visibilitychange')); };
    window.setTimeout = (act, pause) => {
        if (pause === 10000) return 0; // how long an answer may take
        next = act;
        return pauses.push(pause);
    };
    window.clearTimeout = id => { if (id === pauses.length) next = null; };
    window.fetch = async () => { asked += 1; return { ok: false }; };
    window.elapse = async () => { for (let n = 0; next && n < 1000; n += 1) { const act = next; next = null; await act(); } };
";

#[test]
fn a_page_asks_less_and_less_often_pauses_when_hidden_and_gives_up() {
    let sandbox = sandbox();
    let Some(driver) = Driver::start(&sandbox) else { return };
    let service = sandbox.serve();
    let order = sandbox.order(1001);
    let browser = driver.open(Setting { languages: EN, dark: false, javascript: true });
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", &json!({ "source": FAKES }));
    browser.go(&url(&service, &order));

    assert_eq!(browser.evaluate("pauses"), json!([2000]));
    browser.evaluate("hide(true)");
    assert_eq!(browser.evaluate("[next, asked]"), json!([null, 0]), "nothing is planned for a hidden page");
    browser.evaluate("hide(false)");
    wait_until("a page that is seen again asks at once", || {
        browser.evaluate("[pauses.length, asked]") == json!([2, 1])
    });

    browser.evaluate("pauses = []; asked = 0; elapse()");
    let pauses: Vec<f64> = serde_json::from_value(browser.evaluate("pauses")).unwrap();
    assert!(pauses.is_sorted() && pauses.iter().all(|pause| (2000.0..=15_000.0).contains(pause)), "{pauses:?}");
    let minutes = pauses.iter().sum::<f64>() / 60_000.0;
    assert!((14.5..15.5).contains(&minutes), "{minutes}");
    assert_eq!(browser.evaluate("'stopped' in document.querySelector('main').dataset"), true);
    browser.picture("stopped");

    browser.evaluate("pauses = []; hide(true); hide(false)");
    wait_until("who comes back is waited with anew", || browser.evaluate("pauses") == json!([2000]));
    assert_eq!(browser.evaluate("'stopped' in document.querySelector('main').dataset"), false);
}
