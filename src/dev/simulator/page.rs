//! The pages that buyers see: the cashier with its button, and errors.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use maud::{DOCTYPE, Markup, html};
use rust_i18n::t;

use super::book::{State, Trade};
use super::callback;
use super::refusal::Refusal;
use super::{Asked, Event, Reaction, Simulator, request};
use crate::channel::epay::encode;

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
            Ok(trade) => cashier(&trade),
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
            return cashier(&trade);
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
            None => cashier(&trade),
        }
    }

    fn refuse(&self, endpoint: &'static str, refusal: Refusal) -> Reaction {
        self.tell(Event::Refused { endpoint, reason: refusal.message() });
        error(StatusCode::OK, &refusal.message())
    }
}

/// The page of an order: what is to be paid, and the button; or that it is paid.
fn cashier(trade: &Trade) -> Reaction {
    let title = match trade.state {
        State::Unpaid => t!("simulator.cashier"),
        State::Paid { .. } => t!("simulator.paid"),
        State::Closed => t!("simulator.closed"),
    };
    let content = html! {
        p { (t!("simulator.no_money")) }
        dl {
            dt { (t!("page.product")) } dd { (trade.purchase.name) }
            dt { (t!("page.amount")) } dd { "¥" (trade.money()) }
            dt { (t!("page.order")) } dd { (trade.purchase.out_trade_no) }
        }
        @if trade.state == State::Unpaid {
            form method="post" action={ "/pay/" (trade.trade_no) } { button { (t!("simulator.pay")) } }
        }
    };
    Reaction::Page(StatusCode::OK, page(&title, &content))
}

/// A page that says what is wrong; for buyers, gateways do that with status 200.
pub(super) fn error(status: StatusCode, text: &str) -> Reaction {
    Reaction::Page(status, page(text, &html! {}))
}

fn page(title: &str, content: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang=(t!("page.lang")) {
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
