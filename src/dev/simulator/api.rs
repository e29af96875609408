//! The API that merchants ask: `mapi.php` and `api.php` (V1), `api/pay/…` (V2).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Map, Value};

use super::book::{Book, Refund, Trade};
use super::fault::other_amount;
use super::refusal::Refusal;
use super::reply::{self, Lies};
use super::request::{self, require};
use super::{Asked, Event, Fault, Merchant, Occasion, Reaction, Simulator, page};
use crate::channel::epay::Form;
use crate::domain::language::Localized;

/// Something that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Mapi,
    Order,
    Account,
    RefundV1,
    /// `api.php` without an `act` that is known.
    NoAct,
    V2(Action),
}

/// Something that can be asked for over V2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Create,
    Query,
    Refund,
    RefundQuery,
    Close,
}

impl Endpoint {
    /// Those that have a path of their own.
    const PATHS: [Self; 6] = [
        Self::Mapi,
        Self::V2(Action::Create),
        Self::V2(Action::Query),
        Self::V2(Action::Refund),
        Self::V2(Action::RefundQuery),
        Self::V2(Action::Close),
    ];

    /// What a path asks for; `act` counts in the query string alone.
    pub(super) fn of(path: &str, query: &[u8]) -> Option<Self> {
        let path = path.trim_matches('/');
        if path != "api.php" {
            return Self::PATHS.into_iter().find(|endpoint| endpoint.name() == path);
        }
        let form = request::read(query).ok();
        Some(match form.as_ref().and_then(|form| form.get("act")) {
            Some("order") => Self::Order,
            Some("query") => Self::Account,
            Some("refund") => Self::RefundV1,
            _ => Self::NoAct,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mapi => "mapi.php",
            Self::Order => "api.php?act=order",
            Self::Account => "api.php?act=query",
            Self::RefundV1 => "api.php?act=refund",
            Self::NoAct => "api.php",
            Self::V2(Action::Create) => "api/pay/create",
            Self::V2(Action::Query) => "api/pay/query",
            Self::V2(Action::Refund) => "api/pay/refund",
            Self::V2(Action::RefundQuery) => "api/pay/refundquery",
            Self::V2(Action::Close) => "api/pay/close",
        }
    }
}

impl Simulator {
    /// Answers a request to the API, or does wrong.
    pub(super) fn api(self: &Arc<Self>, endpoint: Endpoint, asked: &Asked) -> (Reaction, Duration) {
        let in_query = matches!(endpoint, Endpoint::Order | Endpoint::Account | Endpoint::NoAct);
        let form = request::read(if in_query { asked.query } else { asked.body });
        let occasion = self.occasion(form.as_ref().ok());
        let delay = self.delay(occasion);
        let comes = |fault| {
            let comes = self.happens(fault, occasion);
            if comes {
                self.tell(Event::Fault { endpoint: endpoint.name(), fault: fault.name() });
            }
            comes
        };
        if comes(Fault::RateLimit) {
            return (
                page::error(StatusCode::TOO_MANY_REQUESTS, "429 Too Many Requests", self.settings.language),
                delay,
            );
        }
        let done = match form {
            Err(refusal) => Err(refusal),
            Ok(_) if !in_query && asked.method != Method::POST => Err(Refusal::NotPost),
            Ok(form) => self.carry_out(endpoint, &form, asked, occasion),
        };
        let reply = done.unwrap_or_else(|refusal| {
            let reason = refusal.text(self.settings.language);
            let reply = reply::refused(refusal, &reason);
            self.tell(Event::Refused { endpoint: endpoint.name(), reason });
            reply
        });
        let reaction = if comes(Fault::Error500) {
            page::error(StatusCode::INTERNAL_SERVER_ERROR, "500 Internal Server Error", self.settings.language)
        } else if comes(Fault::Reset) {
            Reaction::Reset
        } else {
            Reaction::Json(StatusCode::OK, reply)
        };
        (reaction, delay)
    }

    /// Which request about which order this is.
    fn occasion(&self, form: Option<&Form>) -> Occasion {
        let mut book = self.book();
        let order = form.and_then(|form| {
            let trade = book.find(form.get("pid")?, form.get("trade_no"), form.get("out_trade_no"));
            trade.map(|trade| trade.order)
        });
        match order {
            Some(order) => Occasion { order, number: book.count_request(order) },
            None => Occasion::strange(self.strange_requests.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn carry_out(
        self: &Arc<Self>,
        endpoint: Endpoint,
        form: &Form,
        asked: &Asked,
        occasion: Occasion,
    ) -> Result<Value, Refusal> {
        let merchant = self.merchant(form)?;
        match endpoint {
            Endpoint::NoAct => Err(Refusal::BadAct),
            Endpoint::Mapi => {
                merchant.check_v1(form)?;
                let trade = self.order(merchant, form, asked)?;
                Ok(reply::created_v1(&trade, asked.base, self.settings.answer))
            }
            Endpoint::Order => {
                merchant.check_key(require(form, "key")?)?;
                let (trade, lies) = self.query(&merchant.pid, form, occasion)?;
                Ok(reply::order_v1(&trade, &lies))
            }
            Endpoint::Account => {
                let key = merchant.check_key(require(form, "key")?)?;
                let orders = self.book().trades().iter().filter(|trade| trade.pid == merchant.pid).count();
                Ok(reply::merchant_v1(&merchant.pid, key, orders))
            }
            Endpoint::RefundV1 => {
                merchant.check_key(require(form, "key")?)?;
                let (trade, refund) = self.refund(&merchant.pid, form, None)?;
                Ok(reply::refunded_v1(&trade, &refund))
            }
            Endpoint::V2(action) => {
                let platform_key = merchant.check_v2(form, asked.now)?;
                let unsigned = self.carry_out_v2(action, merchant, form, asked, occasion)?;
                Ok(reply::signed(unsigned, platform_key, asked.now))
            }
        }
    }

    /// What is asked for over V2; the request is verified, and the reply not signed yet.
    fn carry_out_v2(
        self: &Arc<Self>,
        action: Action,
        merchant: &Merchant,
        form: &Form,
        asked: &Asked,
        occasion: Occasion,
    ) -> Result<Map<String, Value>, Refusal> {
        let pid = &merchant.pid;
        match action {
            Action::Create => {
                require(form, "method")?;
                let trade = self.order(merchant, form, asked)?;
                Ok(reply::created_v2(&trade, asked.base, self.settings.answer))
            }
            Action::Query => {
                let (trade, lies) = self.query(pid, form, occasion)?;
                Ok(reply::order_v2(&trade, &lies))
            }
            Action::Refund => {
                let number = request::refund_number(form)?;
                let (trade, refund) = self.refund(pid, form, number)?;
                Ok(reply::refund_v2(&trade, number, &refund))
            }
            Action::RefundQuery => {
                let number = require(form, "out_refund_no")?;
                let book = self.book();
                let refund = book.refund_numbered(pid, number).ok_or(Refusal::UnknownRefund)?;
                Ok(reply::refund_v2(book.get(refund.order), Some(number), refund))
            }
            Action::Close => {
                self.close(pid, form)?;
                Ok(reply::done())
            }
        }
    }

    /// Makes the order that a merchant's server asks for.
    fn order(self: &Arc<Self>, merchant: &Merchant, form: &Form, asked: &Asked) -> Result<Trade, Refusal> {
        let purchase = request::purchase(form, false)?;
        self.create(&merchant.pid, purchase, request::clientip(form)?, asked.now)
    }

    fn query(&self, pid: &str, form: &Form, occasion: Occasion) -> Result<(Trade, Lies), Refusal> {
        let trade = {
            let mut book = self.book();
            let order = find(&book, pid, form)?.order;
            book.count_query(order);
            book.get(order).clone()
        };
        let lies = Lies {
            pid: self.happens(Fault::LiePid, occasion).then(|| self.other_pid(pid)),
            money: self.happens(Fault::LieMoney, occasion).then(|| other_amount(trade.money())),
            status: self.happens(Fault::LieStatus, occasion),
        };
        self.tell(Event::Query { out_trade_no: trade.purchase.out_trade_no.clone(), status: lies.status_of(&trade) });
        Ok((trade, lies))
    }

    fn refund(&self, pid: &str, form: &Form, number: Option<&str>) -> Result<(Trade, Refund), Refusal> {
        let money = request::money(form)?;
        let (trade, refund, is_new) = {
            let mut book = self.book();
            let order = find(&book, pid, form)?.order;
            let (refund, is_new) = book.refund(order, money, number)?;
            (book.get(order).clone(), refund, is_new)
        };
        if is_new {
            self.tell(Event::Refund { out_trade_no: trade.purchase.out_trade_no.clone(), money });
        }
        Ok((trade, refund))
    }

    fn close(&self, pid: &str, form: &Form) -> Result<(), Refusal> {
        let out_trade_no = {
            let mut book = self.book();
            let trade = find(&book, pid, form)?;
            let (order, out_trade_no) = (trade.order, trade.purchase.out_trade_no.clone());
            book.close(order)?;
            out_trade_no
        };
        self.tell(Event::Closed { out_trade_no });
        Ok(())
    }
}

/// The order that a merchant's request names.
fn find<'a>(book: &'a Book, pid: &str, form: &Form) -> Result<&'a Trade, Refusal> {
    if form.get("trade_no").unwrap_or_default().is_empty() {
        require(form, "out_trade_no")?;
    }
    book.find(pid, form.get("trade_no"), form.get("out_trade_no")).ok_or(Refusal::UnknownOrder)
}
