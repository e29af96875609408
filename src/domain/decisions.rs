//! Decisions of a person about an order: refund, settlement by hand, cancellation, acknowledgement. Pure:
//! an engine loads what a rule asks for, and writes what it says.

use std::collections::{BTreeMap, BTreeSet};

use super::named::named_enum;
use super::order::OrderStatus;

named_enum! {
    /// How far a refund has come.
    RefundState {
        /// Intended; the gateway may have been asked.
        Requested = "requested",
        /// The gateway said no.
        Refused = "refused",
        /// The gateway was asked, and nobody knows what it did.
        Unclear = "unclear",
        /// The gateway said yes, and the credits are taken back.
        Done = "done",
    }
}

named_enum! {
    /// A decision that leaves a receipt, and no payment with it.
    OperatorDecision {
        /// Payments beyond the one that settled the order are taken care of.
        Acknowledged = "acknowledged",
        /// The order is called off.
        Cancelled = "cancelled",
    }
}

/// The payment for which a person settles an order, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct PaymentOfDecision {
    /// The payment that the gateway has just called paid.
    pub proved: Option<String>,
    /// The number that the person typed: it chooses among proved payments, and is a note where there is none.
    pub typed: Option<String>,
    /// The money came by another way than the gateway.
    pub paid_outside: bool,
}

/// Why a decision about an order is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The order's status does not allow it.
    WrongStatus(OrderStatus),
    /// The buyer has spent credits of the order.
    Spent {
        /// Their balance.
        balance: i64,
    },
    /// The payment has settled another order.
    TradeReused {
        /// The payment.
        trade_no: String,
        /// The order that it settled.
        order_no: String,
    },
    /// Proved payments wait, and the person has to name the one that the order is settled for.
    ChoosePayment {
        /// The payments.
        trade_nos: Vec<String>,
    },
    /// The order was not paid more than once, or that is acknowledged already.
    NotPaidAgain,
}

/// An unfinished refund of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefundBeginning {
    /// The refund is written down now.
    New,
    /// The earlier one goes on.
    UnderWay,
}

/// Decides whether a refund of an order begins. `before` is the state of its refund so far, `status` the one that is shown.
pub(crate) fn begin_refund(
    status: OrderStatus,
    before: Option<RefundState>,
    credits: i64,
    balance: i64,
    even_if_spent: bool,
) -> Result<RefundBeginning, Refused> {
    match (status, before) {
        (OrderStatus::Paid, None | Some(RefundState::Refused)) if credits <= balance || even_if_spent => {
            Ok(RefundBeginning::New)
        }
        (OrderStatus::Paid, None | Some(RefundState::Refused)) => Err(Refused::Spent { balance }),
        (OrderStatus::Paid, Some(_)) => Ok(RefundBeginning::UnderWay),
        // An order whose refund is done is refunded, and its status says so.
        (status, _) => Err(Refused::WrongStatus(status)),
    }
}

/// The effect of a gateway's yes to a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefundEnd {
    /// Credits are taken back, and the order is refunded.
    TakeBack,
    /// Another process, or this one before a crash, has done it.
    DoneBefore,
}

/// Decides what a gateway's yes to a refund does. `is_begun` says whether a refund was written down.
pub(crate) fn finish_refund(status: OrderStatus, is_begun: bool) -> Result<RefundEnd, Refused> {
    match status {
        OrderStatus::Refunded => Ok(RefundEnd::DoneBefore),
        OrderStatus::Paid if is_begun => Ok(RefundEnd::TakeBack),
        status => Err(Refused::WrongStatus(status)),
    }
}

/// How an order is settled by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManualSettlement {
    /// The proved payment that becomes the order's.
    pub trade_no: Option<String>,
    /// The number that the person typed, where no proved payment has it.
    pub note: Option<String>,
    /// The other proved payments, which then are paid again.
    pub paid_again: Vec<String>,
}

/// Decides for which payment a person's decision settles an order.
///
/// `waiting` are the proved payments that wait for a decision about this order; `settled` has those of them, and of the payments in
/// `payment`, that have settled an order, with its number.
pub(crate) fn settle_by_hand(
    status: OrderStatus,
    mut waiting: BTreeSet<String>,
    payment: &PaymentOfDecision,
    settled: &BTreeMap<String, String>,
) -> Result<ManualSettlement, Refused> {
    may_be_decided(status)?;
    let PaymentOfDecision { proved, typed, paid_outside } = payment;
    waiting.extend(proved.clone());
    let trade_no = match (typed, waiting.len()) {
        _ if *paid_outside => None,
        (_, 0) => None,
        (Some(typed), _) if waiting.contains(typed) => Some(typed.clone()),
        (None, 1) => waiting.first().cloned(),
        _ => return Err(Refused::ChoosePayment { trade_nos: waiting.into_iter().collect() }),
    };
    for trade_no in trade_no.iter().chain(typed) {
        if let Some(order_no) = settled.get(trade_no) {
            return Err(Refused::TradeReused { trade_no: trade_no.clone(), order_no: order_no.clone() });
        }
    }
    Ok(ManualSettlement {
        note: typed.clone().filter(|typed| trade_no.as_ref() != Some(typed)),
        paid_again: waiting.into_iter().filter(|other| trade_no.as_ref() != Some(other)).collect(),
        trade_no,
    })
}

/// Decides whether a person may call an order off.
pub(crate) fn cancel(status: OrderStatus) -> Result<(), Refused> {
    may_be_decided(status)
}

/// Decides which payments an acknowledgement is about: `open` ones of a paid order, or the one of these that the person names.
pub(crate) fn acknowledge(mut open: Vec<String>, named: Option<&str>) -> Result<Vec<String>, Refused> {
    open.retain(|trade_no| named.is_none_or(|named| named == trade_no));
    if open.is_empty() { Err(Refused::NotPaidAgain) } else { Ok(open) }
}

fn may_be_decided(status: OrderStatus) -> Result<(), Refused> {
    match status {
        OrderStatus::Pending | OrderStatus::Expired | OrderStatus::Review => Ok(()),
        OrderStatus::Paid | OrderStatus::Refunded | OrderStatus::Cancelled => Err(Refused::WrongStatus(status)),
    }
}

#[cfg(test)]
mod tests {
    use OrderStatus::{Cancelled, Expired, Paid, Pending, Refunded, Review};

    use super::*;

    #[test]
    fn a_refund_begins_once_for_a_paid_order_whose_credits_are_there() {
        use RefundBeginning::{New, UnderWay};
        use RefundState::{Done, Refused as RefusedBefore, Requested, Unclear};
        let spent = |balance| Err(Refused::Spent { balance });
        for (status, before, balance, even_if_spent, expected) in [
            (Paid, None, 70, false, Ok(New)),
            (Paid, None, 69, false, spent(69)),
            (Paid, None, -5, false, spent(-5)),
            (Paid, None, -5, true, Ok(New)),
            (Paid, Some(RefusedBefore), 70, false, Ok(New)),
            (Paid, Some(RefusedBefore), 0, false, spent(0)),
            (Paid, Some(Requested), 0, false, Ok(UnderWay)),
            (Paid, Some(Unclear), 0, false, Ok(UnderWay)),
            (Refunded, Some(Done), 0, true, Err(Refused::WrongStatus(Refunded))),
            (Pending, None, 70, true, Err(Refused::WrongStatus(Pending))),
            (Review, None, 70, true, Err(Refused::WrongStatus(Review))),
            (Cancelled, None, 70, true, Err(Refused::WrongStatus(Cancelled))),
            (Expired, None, 70, true, Err(Refused::WrongStatus(Expired))),
        ] {
            let begun = begin_refund(status, before, 70, balance, even_if_spent);
            assert_eq!(begun, expected, "{status} {before:?} {balance} {even_if_spent}");
        }
    }

    #[test]
    fn a_refund_is_finished_once_and_only_if_it_was_written_down() {
        for (status, is_begun, expected) in [
            (Paid, true, Ok(RefundEnd::TakeBack)),
            (Paid, false, Err(Refused::WrongStatus(Paid))),
            (Refunded, true, Ok(RefundEnd::DoneBefore)),
            (Review, true, Err(Refused::WrongStatus(Review))),
            (Pending, false, Err(Refused::WrongStatus(Pending))),
        ] {
            assert_eq!(finish_refund(status, is_begun), expected, "{status} {is_begun}");
        }
    }

    type Text = Option<&'static str>;
    type Texts = &'static [&'static str];
    /// The result of a settlement by hand: the payment, the note, those paid again; or the refusal.
    type Outcome = Result<(Text, Text, Texts), Refused>;
    type Case = (&'static str, Texts, Text, Text, bool, Outcome);

    #[test]
    fn a_settlement_by_hand_takes_the_one_payment_that_is_meant() {
        let choose = |trade_nos: &[&str]| {
            Err(Refused::ChoosePayment { trade_nos: trade_nos.iter().map(|&trade_no| trade_no.to_owned()).collect() })
        };
        let reused =
            |trade_no: &str| Err(Refused::TradeReused { trade_no: trade_no.to_owned(), order_no: "OTHER".to_owned() });
        let cases: [Case; 14] = [
            ("nothing is known", &[], None, None, false, Ok((None, None, &[]))),
            ("a number is a note", &[], None, Some("T9"), false, Ok((None, Some("T9"), &[]))),
            ("a note names a payment of another order", &[], None, Some("X1"), false, reused("X1")),
            ("one waits", &["T1"], None, None, false, Ok((Some("T1"), None, &[]))),
            ("one waits, and is named", &["T1"], None, Some("T1"), false, Ok((Some("T1"), None, &[]))),
            ("one waits, another is named", &["T1"], None, Some("T9"), false, choose(&["T1"])),
            ("the gateway has just said it", &[], Some("T2"), None, false, Ok((Some("T2"), None, &[]))),
            ("the gateway says the same", &["T1"], Some("T1"), None, false, Ok((Some("T1"), None, &[]))),
            ("the gateway says another", &["T1"], Some("T2"), None, false, choose(&["T1", "T2"])),
            ("two wait", &["T1", "T2"], None, None, false, choose(&["T1", "T2"])),
            ("two wait, one is named", &["T1", "T2"], None, Some("T2"), false, Ok((Some("T2"), None, &["T1"]))),
            ("paid outside", &["T1"], None, None, true, Ok((None, None, &["T1"]))),
            ("paid outside, with a note", &[], None, Some("T9"), true, Ok((None, Some("T9"), &[]))),
            ("the payment has settled another order", &["X1"], None, None, false, reused("X1")),
        ];
        let settled = BTreeMap::from([("X1".to_owned(), "OTHER".to_owned())]);
        for (when, waiting, proved, typed, paid_outside, expected) in cases {
            let waiting: BTreeSet<_> = waiting.iter().map(|&trade_no| trade_no.to_owned()).collect();
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let payment = PaymentOfDecision { proved: owned(proved), typed: owned(typed), paid_outside };
            let expected = expected.map(|(trade_no, note, paid_again)| ManualSettlement {
                trade_no: owned(trade_no),
                note: owned(note),
                paid_again: paid_again.iter().map(|&trade_no| trade_no.to_owned()).collect(),
            });
            for status in [Pending, Expired, Review] {
                let decided = settle_by_hand(status, waiting.clone(), &payment, &settled);
                assert_eq!(decided, expected, "{when}, {status}");
            }
            for status in [Paid, Refunded, Cancelled] {
                let decided = settle_by_hand(status, waiting.clone(), &payment, &settled);
                assert_eq!(decided, Err(Refused::WrongStatus(status)), "{when}, {status}");
            }
        }
    }

    #[test]
    fn only_what_is_unpaid_is_called_off() {
        for status in [Pending, Expired, Review] {
            assert_eq!(cancel(status), Ok(()), "{status}");
        }
        for status in [Paid, Refunded, Cancelled] {
            assert_eq!(cancel(status), Err(Refused::WrongStatus(status)));
        }
    }

    #[test]
    fn an_acknowledgement_is_about_open_payments() {
        let open = || vec!["T1".to_owned(), "T2".to_owned()];
        assert_eq!(acknowledge(open(), None), Ok(open()));
        assert_eq!(acknowledge(open(), Some("T2")), Ok(vec!["T2".to_owned()]));
        assert_eq!(acknowledge(open(), Some("T3")), Err(Refused::NotPaidAgain));
        assert_eq!(acknowledge(Vec::new(), None), Err(Refused::NotPaidAgain));
    }
}
