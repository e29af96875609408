//! The pages that buyers see: the cashier with its button, and errors.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use maud::{DOCTYPE, Markup, html};

use super::book::{State, Trade};
use super::callback;
use super::refusal::Refusal;
use super::{Asked, Event, Reaction, Simulator, request};
use crate::channel::epay::encode;
use crate::domain::language::{Language, Localized, text};

const STYLE: &str = "body{font-family:system-ui,sans-serif;max-width:26rem;margin:4rem auto;padding:0 1rem;line-height:1.6}\
                     dt{opacity:.6}dd{margin:0 0 .6rem}button{font:inherit;padding:.6rem 2rem}:root{color-scheme:light dark}";

impl Simulator {
    /// `submit.php`: a signed link or form that brings the buyer, and makes the order.
    pub(super) fn submit(self: &Arc<Self>, asked: &Asked) -> Reaction {
        let fields = if asked.method == Method::POST { asked.body } else { asked.query };
        let submitted = request::read(fields).and_then(|form| {
            let merchant = self.merchant(&form)?;
            merchant.check_v1(&form)?;
            self.create(&merchant.pid, request::purchase(&form, true)?, "", asked.now)
        });
        match submitted {
            Ok(trade) => cashier(&trade, self.settings.language),
            Err(refusal) => self.refuse("submit.php", refusal),
        }
    }

    /// `/pay/TRADE_NO`: the page by GET, the button by POST.
    pub(super) fn pay_page(self: &Arc<Self>, trade_no: &str, asked: &Asked) -> Reaction {
        let known = self.book().numbered(trade_no).cloned();
        let Some(trade) = known else {
            return self.refuse("pay", Refusal::UnknownOrder);
        };
        if asked.method != Method::POST {
            return cashier(&trade, self.settings.language);
        }
        match self.pay_order(trade.order, None) {
            Ok(()) => self.back_to_the_merchant(trade.order, asked),
            Err(refusal) => self.refuse("pay", refusal),
        }
    }

    /// The buyer's browser takes the same signed fields along as the callback has.
    fn back_to_the_merchant(&self, order: u64, asked: &Asked) -> Reaction {
        let trade = self.book().get(order).clone();
        let merchant = self.merchants.iter().find(|merchant| merchant.pid == trade.pid);
        match merchant.filter(|_| !trade.purchase.return_url.is_empty()) {
            Some(merchant) => {
                let signed = merchant.sign(callback::fields(&trade), asked.now);
                Reaction::Redirect(request::with_query(&trade.purchase.return_url, &encode(signed.fields())))
            }
            None => cashier(&trade, self.settings.language),
        }
    }

    fn refuse(&self, endpoint: &'static str, refusal: Refusal) -> Reaction {
        let language = self.settings.language;
        let reason = refusal.text(language);
        self.tell(Event::Refused { endpoint, reason: reason.clone() });
        error(StatusCode::OK, &reason, language)
    }
}

/// The page of an order: what is to be paid, and the button; or that it is paid.
fn cashier(trade: &Trade, language: Language) -> Reaction {
    let title = match trade.state {
        State::Unpaid => text!(language, "simulator.cashier"),
        State::Paid { .. } => text!(language, "simulator.paid"),
        State::Closed => text!(language, "simulator.closed"),
    };
    let content = html! {
        p { (text!(language, "simulator.no_money")) }
        dl {
            dt { (text!(language, "page.product")) } dd { (trade.purchase.name) }
            dt { (text!(language, "page.amount")) } dd { "¥" (trade.money()) }
            dt { (text!(language, "page.order")) } dd { (trade.purchase.out_trade_no) }
        }
        @if trade.state == State::Unpaid {
            form method="post" action={ "/pay/" (trade.trade_no) } { button { (text!(language, "simulator.pay")) } }
        }
    };
    Reaction::Page(StatusCode::OK, page(&title, &content, language))
}

/// A page that says what is wrong; for buyers, gateways do that with status 200.
pub(super) fn error(status: StatusCode, text: &str, language: Language) -> Reaction {
    Reaction::Page(status, page(text, &html! {}, language))
}

fn page(title: &str, content: &Markup, language: Language) -> String {
    let page = html! {
        (DOCTYPE)
        html lang=(text!(language, "page.lang")) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (STYLE) }
            }
            body { h1 { (title) } (content) }
        }
    };
    page.into_string()
}
