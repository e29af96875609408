//! The pretend gateway's orders, in memory: what may happen to each, and that it happens once.

use std::collections::HashMap;

use super::refusal::{ORDERS_MAX, Refusal};
use super::request::Purchase;
use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::named::named_enum;

/// How often money of one order may go back.
const REFUNDS_MAX: u32 = 100;

/// An order at the gateway.
#[derive(Clone, Debug)]
pub(super) struct Trade {
    /// Which order it is of those made here, from 0.
    pub(super) order: u64,
    #[allow(clippy::struct_field_names, reason = "the protocol's word")]
    pub(super) trade_no: String,
    pub(super) pid: String,
    pub(super) purchase: Purchase,
    pub(super) clientip: String,
    pub(super) created_at: Timestamp,
    pub(super) state: State,
    /// Money that the gateway keeps from the merchant, which it calls by this state.
    pub(super) kept_back: Option<KeptBack>,
    /// How many callbacks were sent.
    pub(super) callbacks: u32,
    /// Whether an honest one was answered `success`.
    pub(super) delivered: bool,
    /// How often the merchant asked for it.
    pub(super) queries: u32,
    /// How many requests were about it: what the dice are thrown by.
    requests: u64,
}

/// How far an order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Unpaid,
    /// Called off by the merchant before it was paid.
    Closed,
    Paid {
        at: Timestamp,
        money: Amount,
        refunded: Amount,
        refunds: u32,
    },
}

named_enum! {
    /// Why the merchant does not have the money.
    KeptBack {
        /// The gateway has frozen the payment.
        Frozen = "frozen",
        /// The buyer's money is reserved, and not taken.
        PreAuthorised = "pre_authorised",
    }
}

impl Trade {
    /// The number that gateways have for the state: 0 unpaid, 1 paid, 2 refunded, also in part, 3 frozen, 4 pre-authorised.
    pub(super) fn status(&self) -> u8 {
        match (self.kept_back, self.state) {
            (Some(KeptBack::Frozen), _) => 3,
            (Some(KeptBack::PreAuthorised), _) => 4,
            (None, State::Unpaid | State::Closed) => 0,
            (None, State::Paid { refunds: 0, .. }) => 1,
            (None, State::Paid { .. }) => 2,
        }
    }

    /// What was paid, or is to be.
    pub(super) fn money(&self) -> Amount {
        match self.state {
            State::Paid { money, .. } => money,
            State::Unpaid | State::Closed => self.purchase.money,
        }
    }

    /// What went back.
    pub(super) fn refunded(&self) -> Amount {
        match self.state {
            State::Paid { refunded, .. } => refunded,
            State::Unpaid | State::Closed => Amount::ZERO,
        }
    }

    /// How the buyer pays, or paid: where nobody has chosen, the gateway's first method.
    pub(super) fn payment_type(&self) -> &str {
        if self.purchase.payment_type.is_empty() { "alipay" } else { &self.purchase.payment_type }
    }
}

/// Money that went back, under the merchant's own number for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refund {
    /// The gateway's number of it.
    pub(super) number: String,
    pub(super) order: u64,
    pub(super) money: Amount,
}

/// All orders.
#[derive(Default)]
pub(super) struct Book {
    trades: Vec<Trade>,
    by_trade_no: HashMap<String, usize>,
    /// By merchant, then by the merchant's order number.
    by_order_no: HashMap<String, HashMap<String, usize>>,
    /// By merchant, then by the merchant's refund number.
    refunds: HashMap<String, HashMap<String, Refund>>,
}

impl Book {
    /// The order that a merchant names by either number; where both are there, the gateway's own counts.
    pub(super) fn find(&self, pid: &str, trade_no: Option<&str>, out_trade_no: Option<&str>) -> Option<&Trade> {
        let given = |number: Option<&str>| number.is_some_and(|number| !number.is_empty());
        let at = if given(trade_no) {
            self.by_trade_no.get(trade_no?)
        } else {
            self.by_order_no.get(pid)?.get(out_trade_no?)
        };
        at.map(|&at| &self.trades[at]).filter(|trade| trade.pid == pid)
    }

    /// The order of this number of any merchant's.
    pub(super) fn of_any(&self, out_trade_no: &str) -> Option<&Trade> {
        let at = self.by_order_no.values().find_map(|orders| orders.get(out_trade_no))?;
        Some(&self.trades[*at])
    }

    /// The order with the gateway's own number.
    pub(super) fn numbered(&self, trade_no: &str) -> Option<&Trade> {
        Some(&self.trades[*self.by_trade_no.get(trade_no)?])
    }

    /// The order that was made as this one.
    pub(super) fn get(&self, order: u64) -> &Trade {
        &self.trades[index(order)]
    }

    fn get_mut(&mut self, order: u64) -> &mut Trade {
        &mut self.trades[index(order)]
    }

    /// Every order, in the order of their making.
    pub(super) fn trades(&self) -> &[Trade] {
        &self.trades
    }

    /// Makes an order, unless the merchant has one of this number: then it must be the same, and unpaid. Whether it is new.
    pub(super) fn create(
        &mut self,
        pid: &str,
        purchase: Purchase,
        clientip: &str,
        now: Timestamp,
    ) -> Result<(&Trade, bool), Refusal> {
        let at = self.by_order_no.get(pid).and_then(|orders| orders.get(&purchase.out_trade_no));
        if let Some(&at) = at {
            let known = &self.trades[at];
            return match known.state {
                State::Paid { .. } => Err(Refusal::AlreadyPaid),
                State::Closed => Err(Refusal::Closed),
                State::Unpaid if known.purchase != purchase => Err(Refusal::Changed),
                State::Unpaid => Ok((known, false)),
            };
        }
        let at = self.trades.len();
        if at == ORDERS_MAX {
            return Err(Refusal::Full);
        }
        let trade_no = trade_no(at, now);
        self.by_trade_no.insert(trade_no.clone(), at);
        self.by_order_no.entry(pid.to_owned()).or_default().insert(purchase.out_trade_no.clone(), at);
        self.trades.push(Trade {
            order: at as u64,
            trade_no,
            pid: pid.to_owned(),
            purchase,
            clientip: clientip.to_owned(),
            created_at: now,
            state: State::Unpaid,
            kept_back: None,
            callbacks: 0,
            delivered: false,
            queries: 0,
            requests: 0,
        });
        Ok((&self.trades[at], true))
    }

    /// Counts a request about an order; the number of those before it.
    pub(super) fn count_request(&mut self, order: u64) -> u64 {
        let requests = &mut self.get_mut(order).requests;
        *requests += 1;
        *requests - 1
    }

    /// Counts a query for an order.
    pub(super) fn count_query(&mut self, order: u64) {
        let queries = &mut self.get_mut(order).queries;
        *queries = queries.saturating_add(1);
    }

    /// Counts a callback that was sent; how many that makes.
    pub(super) fn count_callback(&mut self, order: u64) -> u32 {
        let callbacks = &mut self.get_mut(order).callbacks;
        *callbacks = callbacks.saturating_add(1);
        *callbacks
    }

    /// Notes that the merchant has heard of the payment.
    pub(super) fn note_delivery(&mut self, order: u64) {
        self.get_mut(order).delivered = true;
    }

    /// Pays an order, by another amount than its own if one is given. Whether it was not paid before.
    pub(super) fn pay(&mut self, order: u64, money: Option<Amount>, now: Timestamp) -> Result<bool, Refusal> {
        let trade = self.get_mut(order);
        match trade.state {
            State::Paid { .. } => Ok(false),
            State::Closed => Err(Refusal::Closed),
            State::Unpaid => {
                let money = money.unwrap_or(trade.purchase.money);
                trade.state = State::Paid { at: now, money, refunded: Amount::ZERO, refunds: 0 };
                Ok(true)
            }
        }
    }

    /// Has the gateway keep the money of an order from the merchant, or give it out again.
    pub(super) fn keep_back(&mut self, order: u64, kept_back: Option<KeptBack>) {
        self.get_mut(order).kept_back = kept_back;
    }

    /// Calls an unpaid order off.
    pub(super) fn close(&mut self, order: u64) -> Result<(), Refusal> {
        let trade = self.get_mut(order);
        match trade.state {
            State::Paid { .. } => Err(Refusal::AlreadyPaid),
            State::Unpaid | State::Closed => {
                trade.state = State::Closed;
                Ok(())
            }
        }
    }

    /// Pays back. With a number of the merchant's own, the same again changes nothing. Whether it is new.
    pub(super) fn refund(
        &mut self,
        order: u64,
        back: Amount,
        out_refund_no: Option<&str>,
    ) -> Result<(Refund, bool), Refusal> {
        if let Some(known) = out_refund_no.and_then(|number| self.refund_numbered(&self.get(order).pid, number)) {
            let is_same = known.order == order && known.money == back;
            return if is_same { Ok((known.clone(), false)) } else { Err(Refusal::RefundReused) };
        }
        let trade = self.get_mut(order);
        let State::Paid { money, refunded, refunds, .. } = &mut trade.state else {
            return Err(Refusal::NotPaid);
        };
        if *refunds == REFUNDS_MAX {
            return Err(Refusal::Full);
        }
        let total = Amount::from_fen(refunded.fen() + back.fen()).filter(|total| total <= money);
        *refunded = total.ok_or(Refusal::TooMuch)?;
        *refunds += 1;
        let refund = Refund { number: format!("{}{refunds:03}", trade.trade_no), order, money: back };
        if let Some(number) = out_refund_no {
            let pid = trade.pid.clone();
            self.refunds.entry(pid).or_default().insert(number.to_owned(), refund.clone());
        }
        Ok((refund, true))
    }

    /// The refund of this number of the merchant's.
    pub(super) fn refund_numbered(&self, pid: &str, out_refund_no: &str) -> Option<&Refund> {
        self.refunds.get(pid)?.get(out_refund_no)
    }
}

fn index(order: u64) -> usize {
    usize::try_from(order).expect("order numbers come from the list of orders")
}

/// A number like those of gateways: China's time, and which order it is. With milliseconds, so that another run in the same
/// second does not use a number again.
fn trade_no(at: usize, now: Timestamp) -> String {
    let time: String = now.to_gateway_time().chars().filter(char::is_ascii_digit).collect();
    format!("{time}{:03}{at:05}", now.ms().rem_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yuan(text: &str) -> Amount {
        Amount::parse_price(text).unwrap()
    }

    fn purchase(out_trade_no: &str) -> Purchase {
        Purchase {
            out_trade_no: out_trade_no.into(),
            payment_type: String::new(),
            notify_url: "http://a/n".into(),
            return_url: String::new(),
            name: "VIP".into(),
            money: yuan("36.00"),
            param: String::new(),
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_ms(1_767_323_045_678)
    }

    fn create(book: &mut Book, purchase: Purchase) -> Result<(u64, bool), Refusal> {
        book.create("1002", purchase, "::1", now()).map(|(trade, new)| (trade.order, new))
    }

    #[test]
    fn an_order_is_made_once_and_stays_as_it_was_made() {
        let mut book = Book::default();
        assert_eq!(create(&mut book, purchase("A")), Ok((0, true)));
        assert_eq!(create(&mut book, purchase("A")), Ok((0, false)));
        assert_eq!(create(&mut book, purchase("B")), Ok((1, true)));
        let changed = Purchase { money: yuan("1.00"), ..purchase("A") };
        assert_eq!(create(&mut book, changed.clone()), Err(Refusal::Changed));
        let other = book.create("2003", changed, "", now()).unwrap();
        assert!(other.1, "another merchant's order of the same number is another order");
        assert_eq!(book.get(0).trade_no, "2026010211040567800000");
        assert_eq!(book.find("1002", None, Some("A")).unwrap().order, 0);
        assert_eq!(book.find("1002", Some("2026010211040567800001"), Some("A")).unwrap().order, 1);
        assert_eq!(book.find("1002", Some(""), Some("A")).unwrap().order, 0);
        assert!(book.find("2003", Some("2026010211040567800001"), None).is_none(), "another merchant's");
        book.pay(0, None, now()).unwrap();
        assert_eq!(create(&mut book, purchase("A")), Err(Refusal::AlreadyPaid));
    }

    #[test]
    fn an_order_is_paid_once_and_never_when_closed() {
        let mut book = Book::default();
        for number in ["A", "B"] {
            create(&mut book, purchase(number)).unwrap();
        }
        assert_eq!(book.pay(0, Some(yuan("35.00")), now()), Ok(true));
        assert_eq!(book.pay(0, None, now()), Ok(false));
        assert_eq!((book.get(0).status(), book.get(0).money()), (1, yuan("35.00")));
        assert_eq!(book.close(0), Err(Refusal::AlreadyPaid));
        assert_eq!(book.close(1), Ok(()));
        assert_eq!(book.close(1), Ok(()));
        assert_eq!(book.pay(1, None, now()), Err(Refusal::Closed));
        assert_eq!(create(&mut book, purchase("B")), Err(Refusal::Closed));
        assert_eq!(book.get(1).status(), 0);
    }

    #[test]
    fn money_that_is_kept_back_has_a_state_of_its_own() {
        let mut book = Book::default();
        create(&mut book, purchase("A")).unwrap();
        for (kept_back, status) in [(Some(KeptBack::PreAuthorised), 4), (Some(KeptBack::Frozen), 3), (None, 0)] {
            book.keep_back(0, kept_back);
            assert_eq!(book.get(0).status(), status);
        }
        book.pay(0, None, now()).unwrap();
        book.keep_back(0, Some(KeptBack::Frozen));
        assert_eq!((book.get(0).status(), book.get(0).money()), (3, yuan("36.00")));
    }

    #[test]
    fn no_more_goes_back_than_was_paid_and_a_numbered_refund_goes_once() {
        let mut book = Book::default();
        for number in ["A", "B"] {
            create(&mut book, purchase(number)).unwrap();
        }
        let refund = |book: &mut Book, order, money, number| {
            book.refund(order, yuan(money), number).map(|(refund, new)| (refund.number, new))
        };
        assert_eq!(refund(&mut book, 0, "1.00", None), Err(Refusal::NotPaid));
        book.pay(0, None, now()).unwrap();
        book.pay(1, None, now()).unwrap();
        let first = "2026010211040567800000001".to_owned();
        assert_eq!(refund(&mut book, 0, "30.00", Some("R1")), Ok((first.clone(), true)));
        assert_eq!(refund(&mut book, 0, "30.00", Some("R1")), Ok((first, false)));
        assert_eq!(refund(&mut book, 0, "6.00", Some("R1")), Err(Refusal::RefundReused));
        assert_eq!(refund(&mut book, 1, "30.00", Some("R1")), Err(Refusal::RefundReused));
        assert_eq!((book.get(0).status(), book.get(0).refunded()), (2, yuan("30.00")));
        assert_eq!(refund(&mut book, 0, "6.01", None), Err(Refusal::TooMuch));
        assert!(refund(&mut book, 0, "6.00", None).unwrap().1);
        assert_eq!(refund(&mut book, 0, "0.01", None), Err(Refusal::TooMuch));
    }
}
