//! An order: what a buyer wants, for how much, and how far it has come.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::domain::clock::Timestamp;
use crate::domain::money::Amount;
use crate::domain::named::named_enum;

/// Our number for an order, which gateways know as `out_trade_no`: 1 to 32 characters of `[A-Za-z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct OrderNo(String);

/// A text that cannot be one of our order numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an order number is 1 to 32 letters and digits")]
pub struct BadOrderNo;

impl OrderNo {
    /// A new number: its first ten characters grow with `now`, the other sixteen are 80 random bits.
    ///
    /// # Panics
    ///
    /// If the operating system has no random numbers to give: an order number that can be guessed is worse.
    pub fn generate(now: Timestamp) -> Self {
        let mut random = [0; 16];
        getrandom::fill(&mut random).expect("the operating system's random numbers are available");
        let ms = u64::try_from(now.ms()).unwrap_or(0);
        Self(ulid::Ulid::from_parts(ms, u128::from_le_bytes(random)).to_string())
    }

    /// The number as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OrderNo {
    type Err = BadOrderNo;

    fn from_str(text: &str) -> Result<Self, BadOrderNo> {
        let fits = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        fits.then(|| Self(text.to_owned())).ok_or(BadOrderNo)
    }
}

impl fmt::Display for OrderNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

named_enum! {
    /// How far an order has come.
    OrderStatus {
        /// Waits for its payment.
        Pending = "pending",
        /// Paid, and its credits are given.
        Paid = "paid",
        /// Was not paid in time. Derived from `pending` and the clock, never stored.
        Expired = "expired",
        /// Money arrived that a person has to look at.
        Review = "review",
        /// The money went back.
        Refunded = "refunded",
        /// Called off by a person.
        Cancelled = "cancelled",
    }
}

impl OrderStatus {
    /// What a stored status is at the time `now`.
    pub(crate) fn at(self, now: Timestamp, expires_at: Timestamp) -> Self {
        if self == Self::Pending && now >= expires_at { Self::Expired } else { self }
    }
}

named_enum! {
    /// What settled an order.
    SettledBy {
        /// The gateway's notification.
        Notify = "notify",
        /// The gateway's answer to our question.
        Reconcile = "reconcile",
        /// A person's decision.
        Manual = "manual",
    }
}

named_enum! {
    /// Why an order is in review. The names are part of the public contract.
    ReviewReason {
        /// Another amount was paid, or one that cannot be read.
        Amount = "amount",
        /// The money came after the order had expired, and late money is reviewed.
        Late = "late",
        /// The money came after the order had been called off.
        Cancelled = "cancelled",
        /// `param` came back different from the one that was sent.
        Param = "param",
        /// The notification has no payment number.
        NoTradeNo = "no_trade_no",
        /// The gateway says that the payment was refunded.
        Refunded = "refunded",
        /// The order is older than the books, and no gateway can be asked about it.
        TooOld = "too_old",
    }
}

named_enum! {
    /// Why a callback alone does not settle an unpaid order.
    Hold {
        /// The gateway holds the money back.
        Frozen = "frozen",
        /// The buyer's money is reserved at the gateway, and not paid yet.
        PreAuthorised = "pre_authorised",
        /// The gateway has given the money back.
        Refunded = "refunded",
        /// The books come from a backup: the order may have been settled after the backup was made.
        Restored = "restored",
    }
}

/// The state of a payment, as a gateway tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentState {
    /// Paid.
    Paid,
    /// Not paid.
    Unpaid,
    /// The gateway has given the money back.
    Refunded,
    /// Not said, or in a word that is not known.
    Unclear,
}

named_enum! {
    /// What a payment page is.
    PayKind {
        /// A page to open in a browser.
        Url = "url",
        /// The content of a QR code for the payment app.
        QrCode = "qrcode",
        /// A link that opens the payment app.
        UrlScheme = "urlscheme",
    }
}

/// Where the buyer of an order pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayPage {
    /// What it is.
    pub kind: PayKind,
    /// The link, or the content of the QR code.
    pub url: String,
}

/// What is needed to create an order.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// Its number, from [`OrderNo::generate`].
    pub order_no: OrderNo,
    /// The `pid` of the merchant whose notifications may settle it.
    pub merchant: String,
    /// The buyer's Telegram id.
    pub telegram_id: i64,
    /// The id of the package bought, if it was one.
    pub package: Option<String>,
    /// The product name as the gateway gets it.
    pub name: String,
    /// The payment method: `alipay`, `wxpay`, …; an open set.
    pub payment_type: String,
    /// What it costs.
    pub amount: Amount,
    /// The credits that the buyer gets, one or more.
    pub credits: i64,
    /// What we send as `param`; it must come back equal if it comes back at all.
    pub param: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it counts as expired.
    pub expires_at: Timestamp,
}

/// An order as the store has it.
#[derive(Clone, Debug)]
pub struct Order {
    /// What it was created with.
    pub terms: NewOrder,
    /// Where it can be paid, once that is known.
    pub pay_page: Option<PayPage>,
    /// Its status as stored: never [`OrderStatus::Expired`], see [`Order::status`].
    pub stored_status: OrderStatus,
    /// The gateway's number of the payment that settled it.
    pub trade_no: Option<String>,
    /// What settled it.
    pub settled_by: Option<SettledBy>,
    /// When it was settled.
    pub paid_at: Option<Timestamp>,
    /// A person settled it because the money came by another way than the gateway: no payment of the gateway is this order's.
    pub paid_outside: bool,
    /// Why it is in review, or was last.
    pub review_reason: Option<ReviewReason>,
    /// Why a callback alone does not settle it.
    pub hold: Option<Hold>,
}

impl Order {
    /// An order that has just been created.
    pub fn new(terms: NewOrder) -> Self {
        Self {
            terms,
            pay_page: None,
            stored_status: OrderStatus::Pending,
            trade_no: None,
            settled_by: None,
            paid_at: None,
            paid_outside: false,
            review_reason: None,
            hold: None,
        }
    }

    /// Its status at the time `now`: a pending order expires by the clock alone, so that nothing has to run for it.
    pub fn status(&self, now: Timestamp) -> OrderStatus {
        self.stored_status.at(now, self.terms.expires_at)
    }

    /// The payment page, as long as the order can be paid. Money for any other order would need a person.
    pub fn open_pay_page(&self, now: Timestamp) -> Option<&PayPage> {
        let is_open = matches!(self.status(now), OrderStatus::Pending | OrderStatus::Expired);
        self.pay_page.as_ref().filter(|_| is_open)
    }

    /// The order as `--json` shows it, with its status at the time `now`.
    pub fn view(&self, now: Timestamp) -> OrderView<'_> {
        OrderView {
            amount: self.terms.amount,
            created_at: self.terms.created_at,
            credits: self.terms.credits,
            merchant: &self.terms.merchant,
            order_no: &self.terms.order_no,
            package: self.terms.package.as_deref(),
            paid_at: self.paid_at,
            pay_url: self.open_pay_page(now).map(|page| page.url.as_str()),
            review_reason: self.review_reason.filter(|_| self.stored_status == OrderStatus::Review),
            settled_by: self.settled_by,
            status: self.status(now),
            telegram_id: self.terms.telegram_id,
            trade_no: self.trade_no.as_deref(),
            payment_type: &self.terms.payment_type,
        }
    }
}

/// The public shape of an order; its keys stand in alphabetical order.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "each field is the order's field of the same name")]
pub struct OrderView<'a> {
    pub amount: Amount,
    pub created_at: Timestamp,
    pub credits: i64,
    pub merchant: &'a str,
    pub order_no: &'a OrderNo,
    pub package: Option<&'a str>,
    pub paid_at: Option<Timestamp>,
    /// Where the buyer pays; none where no gateway gave a payment page, or the order cannot be paid any more.
    pub pay_url: Option<&'a str>,
    /// Why the order is in review; none where it is not.
    pub review_reason: Option<ReviewReason>,
    pub settled_by: Option<SettledBy>,
    pub status: OrderStatus,
    pub telegram_id: i64,
    pub trade_no: Option<&'a str>,
    #[serde(rename = "type")]
    pub payment_type: &'a str,
}

/// A user as `--json` shows them; its keys stand in alphabetical order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct User {
    /// The balance.
    pub credits: i64,
    /// How many orders of theirs are paid (and not refunded).
    pub orders_paid: i64,
    /// Their Telegram id.
    pub telegram_id: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_numbers_grow_with_time_and_fit_the_gateways_alphabet() {
        let earlier = OrderNo::generate(Timestamp::from_ms(1_700_000_000_000));
        let later = OrderNo::generate(Timestamp::from_ms(1_700_000_000_001));
        assert!(earlier < later, "{earlier} {later}");
        assert_eq!(earlier.as_str().parse(), Ok(earlier.clone()));
        assert_ne!(OrderNo::generate(Timestamp::from_ms(5)), OrderNo::generate(Timestamp::from_ms(5)),);
    }

    #[test]
    fn foreign_order_numbers_are_refused() {
        for text in ["", "A-1", "A 1", "Ä", "123456789012345678901234567890123"] {
            assert_eq!(text.parse::<OrderNo>(), Err(BadOrderNo), "{text:?}");
        }
    }
}
