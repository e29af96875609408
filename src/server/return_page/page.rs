//! What the return page looks like: one file of HTML with its style and its script, and nothing from anywhere else.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::header::HeaderValue;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::domain::clock::Timestamp;
use crate::domain::language::{Language, text};
use crate::domain::order::{Order, OrderStatus};

pub(super) const STYLE: &str = include_str!("page.css");
pub(super) const SCRIPT: &str = include_str!("page.js");

/// How soon a browser without JavaScript asks again when the store did not answer, in seconds.
pub(super) const BUSY_REFRESH_S: i64 = 5;

/// Only our own style and script, by their hashes, and our own address to ask again; nothing from elsewhere, nothing around it.
pub(super) static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        source(STYLE),
        source(SCRIPT)
    );
    policy.try_into().expect("a policy of ASCII is header text")
});

/// What a policy calls an element with this content.
pub(super) fn source(content: &str) -> String {
    format!("sha256-{}", BASE64.encode(ring::digest::digest(&ring::digest::SHA256, content.as_bytes())))
}

/// The language's tag in documents and headers.
pub(super) fn tag(language: Language) -> &'static str {
    match language {
        // With the country, which is what browsers choose between Chinese and Japanese shapes of a character by.
        Language::Chinese => "zh-CN",
        Language::English => "en",
    }
}

/// The page for one buyer.
pub(super) struct Page<'a> {
    pub(super) language: Language,
    /// The bot's name, empty where there is none to go back to.
    pub(super) bot: &'a str,
}

/// What a page is about, which decides on its colour and its sign.
#[derive(Clone, Copy)]
enum Mood {
    Waiting,
    Good,
    Careful,
    Closed,
    Neutral,
}

/// How a page goes on.
#[derive(Clone, Copy, PartialEq)]
enum Refresh {
    Never,
    /// By script; and without one, after so many seconds.
    EverySeconds(i64),
}

impl Page<'_> {
    /// How an order stands. The page asks again for as long as a payment may still come.
    pub(super) fn order(&self, order: &Order, now: Timestamp) -> String {
        let language = self.language;
        let terms = &order.terms;
        let (mood, title, advice) = match order.status(now) {
            // Late money is credited, so an expired order waits like any other.
            OrderStatus::Pending | OrderStatus::Expired => {
                (Mood::Waiting, text!(language, "page.pending"), text!(language, "page.pending_advice"))
            }
            OrderStatus::Paid => {
                (Mood::Good, text!(language, "page.paid"), text!(language, "page.paid_advice", credits = terms.credits))
            }
            OrderStatus::Review => {
                (Mood::Careful, text!(language, "page.review"), text!(language, "page.review_advice"))
            }
            OrderStatus::Refunded => {
                (Mood::Closed, text!(language, "page.refunded"), text!(language, "page.refunded_advice"))
            }
            OrderStatus::Cancelled => {
                (Mood::Closed, text!(language, "page.cancelled"), text!(language, "page.cancelled_advice"))
            }
        };
        let refresh = match mood {
            Mood::Waiting => Refresh::EverySeconds(refresh_seconds(terms.created_at, now)),
            _ => Refresh::Never,
        };
        let content = html! {
            (heading(mood, &title))
            p.amount { span.currency { "¥" } (terms.amount) }
            (paragraph(&advice))
            dl {
                div { dt { (text!(language, "page.product")) } dd { (terms.name) } }
                div { dt { (text!(language, "page.credits")) } dd { (terms.credits) } }
                div { dt { (text!(language, "page.order")) } dd.number { (terms.order_no) } }
            }
        };
        self.document(mood, refresh, &title, &content)
    }

    /// The same bytes for all parameters that name no order of ours.
    pub(super) fn neutral(&self) -> String {
        let language = self.language;
        let title = text!(language, "page.neutral");
        let advice = text!(language, "page.neutral_advice");
        let content = html! { (heading(Mood::Neutral, &title)) (paragraph(&advice)) };
        self.document(Mood::Neutral, Refresh::Never, &title, &content)
    }

    /// The parameters are good, and the store did not answer.
    pub(super) fn busy(&self) -> String {
        let language = self.language;
        let title = text!(language, "page.busy");
        let advice = text!(language, "page.busy_advice");
        let content = html! { (heading(Mood::Waiting, &title)) (paragraph(&advice)) };
        self.document(Mood::Waiting, Refresh::EverySeconds(BUSY_REFRESH_S), &title, &content)
    }

    fn document(&self, mood: Mood, refresh: Refresh, title: &str, content: &Markup) -> String {
        let language = self.language;
        let document = html! {
            (DOCTYPE)
            html lang=(tag(self.language)) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover";
                    meta name="color-scheme" content="light dark";
                    meta name="theme-color" media="(prefers-color-scheme: light)" content="#f2f4f7";
                    meta name="theme-color" media="(prefers-color-scheme: dark)" content="#0e1116";
                    // Order numbers and amounts are no telephone numbers.
                    meta name="format-detection" content="telephone=no";
                    meta name="robots" content="noindex";
                    title { (title) }
                    @if let Refresh::EverySeconds(seconds) = refresh {
                        noscript { meta http-equiv="refresh" content=(seconds); }
                    }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    // The script changes what is in here, so that it is read out as well.
                    main aria-live="polite" data-mood=(mood.name()) data-waiting[refresh != Refresh::Never] {
                        (content)
                        @if refresh != Refresh::Never {
                            p.updating { (text!(language, "page.updating")) }
                            p.stopped { (text!(language, "page.stopped")) }
                        }
                    }
                    @if !self.bot.is_empty() {
                        nav { a.back href={ "https://t.me/" (self.bot) } { (text!(language, "page.back")) } }
                    }
                    @if refresh != Refresh::Never {
                        script { (PreEscaped(SCRIPT)) }
                    }
                }
            }
        };
        document.into_string()
    }
}

/// How soon a browser without JavaScript asks again: less and less often the older the order is.
fn refresh_seconds(created_at: Timestamp, now: Timestamp) -> i64 {
    let age_s = now.ms().saturating_sub(created_at.ms()) / 1000;
    (age_s / 60).clamp(5, 300)
}

fn heading(mood: Mood, title: &str) -> Markup {
    html! {
        div.sign {
            svg viewBox="0 0 48 48" aria-hidden="true" {
                @match mood {
                    Mood::Waiting => {
                        circle.track cx="24" cy="24" r="20" {}
                        circle.turning cx="24" cy="24" r="20" {}
                        path d="M24 14v10l6.5 4" {}
                    }
                    Mood::Good => { circle.disc cx="24" cy="24" r="22" {} path.mark d="M14.5 24.5l6.5 6.5 12.5-13.5" {} }
                    Mood::Careful => { circle.disc cx="24" cy="24" r="22" {} path.mark d="M24 13v13M24 33.5v.5" {} }
                    Mood::Closed => { circle.disc cx="24" cy="24" r="22" {} path.mark d="M15 24h18" {} }
                    Mood::Neutral => {
                        path d="M41 24a16 15 0 0 1-23.2 13.4L8 40l2.9-8.6A16 15 0 1 1 41 24z" {}
                        path d="M18 24v.2M25 24v.2M32 24v.2" {}
                    }
                }
            }
        }
        h1 { (title) }
    }
}

/// What to do now. Chinese has no spaces to break lines at, so its clauses are kept whole where there is room for them.
fn paragraph(text: &str) -> Markup {
    html! {
        p.advice {
            @for clause in text.split_inclusive(['，', '。']) { span.clause[text.contains('。')] { (clause) } }
        }
    }
}

impl Mood {
    fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Good => "good",
            Self::Careful => "careful",
            Self::Closed => "closed",
            Self::Neutral => "neutral",
        }
    }
}
