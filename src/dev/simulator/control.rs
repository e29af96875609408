//! What a test does in a buyer's or an operator's place: `/simulate/…`.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::book::{KeptBack, State, Trade};
use super::refusal::Refusal;
use super::request::{self, require};
use super::{Asked, FaultAsked, Faults, Reaction, Simulator};
use crate::channel::epay::decode_pairs;
use crate::domain::language::Localized;
use crate::domain::money::Amount;
use crate::sync::lock;

impl Simulator {
    pub(super) fn control(self: &Arc<Self>, action: &str, asked: &Asked) -> Reaction {
        let is_post = asked.method == Method::POST;
        let done = match action {
            "orders" if !is_post => Ok(Value::Array(self.book().trades().iter().map(shown).collect())),
            "pay" if is_post => self.simulate_pay(asked),
            "callback" if is_post => match self.paid_order(asked) {
                Ok(order) => return Reaction::SendCallback(order),
                Err(refusal) => Err(refusal),
            },
            "keep-back" if is_post => self.simulate_keeping_back(asked),
            "faults" if is_post => self.simulate_faults(asked),
            "orders" | "pay" | "callback" | "keep-back" | "faults" => {
                return Reaction::Json(StatusCode::METHOD_NOT_ALLOWED, Value::Null);
            }
            _ => return Reaction::Json(StatusCode::NOT_FOUND, Value::Null),
        };
        match done {
            Ok(reply) => Reaction::Json(StatusCode::OK, reply),
            Err(refusal) => {
                let status = match refusal {
                    Refusal::UnknownOrder => StatusCode::NOT_FOUND,
                    Refusal::NotPaid | Refusal::Closed => StatusCode::CONFLICT,
                    _ => StatusCode::BAD_REQUEST,
                };
                Reaction::Json(status, json!({ "error": refusal.text(self.settings.language) }))
            }
        }
    }

    fn simulate_pay(self: &Arc<Self>, asked: &Asked) -> Result<Value, Refusal> {
        let form = request::read(asked.body)?;
        let money = form.get("money").map(|_| request::money(&form)).transpose()?;
        self.pay(require(&form, "out_trade_no")?, money)
    }

    /// Pays the order of this number as a buyer would, with another amount than its own if one is given.
    fn pay(self: &Arc<Self>, out_trade_no: &str, money: Option<Amount>) -> Result<Value, Refusal> {
        let order = self.book().of_any(out_trade_no).ok_or(Refusal::UnknownOrder)?.order;
        self.pay_order(order, money)?;
        Ok(shown(self.book().get(order)))
    }

    /// Keeps the money of an order from the merchant: `state` is `frozen`, `pre_authorised`, or absent to give it out again.
    fn simulate_keeping_back(&self, asked: &Asked) -> Result<Value, Refusal> {
        let form = request::read(asked.body)?;
        let kept_back = match form.get("state") {
            None => None,
            Some(state) => Some(KeptBack::from_name(state).ok_or(Refusal::Bad("state"))?),
        };
        let mut book = self.book();
        let order = book.of_any(require(&form, "out_trade_no")?).ok_or(Refusal::UnknownOrder)?.order;
        book.keep_back(order, kept_back);
        Ok(shown(book.get(order)))
    }

    fn paid_order(&self, asked: &Asked) -> Result<u64, Refusal> {
        let form = request::read(asked.body)?;
        let book = self.book();
        let trade = book.of_any(require(&form, "out_trade_no")?).ok_or(Refusal::UnknownOrder)?;
        match trade.state {
            State::Paid { .. } => Ok(trade.order),
            State::Unpaid | State::Closed => Err(Refusal::NotPaid),
        }
    }

    fn simulate_faults(&self, asked: &Asked) -> Result<Value, Refusal> {
        let pairs = decode_pairs(asked.body).map_err(|_| Refusal::Malformed)?;
        let asked_for = pairs.iter().map(|(key, value)| match key.as_ref() {
            "fault" => value.parse::<FaultAsked>().map_err(|_| Refusal::Bad("fault")),
            _ => Err(Refusal::Malformed),
        });
        let faults: Faults = asked_for.collect::<Result<_, _>>()?;
        *lock(&self.faults) = faults;
        Ok(json!({}))
    }
}

/// An order as `/simulate/orders` lists it.
fn shown(trade: &Trade) -> Value {
    json!({
        "callbacks": trade.callbacks,
        "closed": trade.state == State::Closed,
        "delivered": trade.delivered,
        "money": trade.money(),
        "out_trade_no": trade.purchase.out_trade_no,
        "pid": trade.pid,
        "queries": trade.queries,
        "status": trade.status(),
        "trade_no": trade.trade_no,
    })
}
