//! Orders: created, listed, and told where they can be paid.

use super::{AccountError, Idempotency, Store, StoreError};
use crate::domain::clock::Timestamp;
use crate::domain::language::Language;
use crate::domain::order::{NewOrder, Order, OrderStatus, PayPage};

/// An order to create, with more than its terms.
#[derive(Debug)]
pub struct Creation {
    /// Its terms.
    pub order: NewOrder,
    /// The buyer's language, where it is known.
    pub language: Option<Language>,
    /// When the gateway is first asked about it; never, where there is none to ask.
    pub ask_at: Option<Timestamp>,
    /// Key of the request, so that the order is created once.
    pub(crate) idempotency: Option<Idempotency>,
}

impl From<NewOrder> for Creation {
    fn from(order: NewOrder) -> Self {
        Self { order, language: None, ask_at: None, idempotency: None }
    }
}

/// An order that was created, now or by an earlier request with the same key.
#[derive(Debug)]
pub struct Created {
    /// The order as it is now.
    pub order: Order,
    /// Whether it had been created before.
    pub repeated: bool,
}

/// Orders to list; the newest come first.
#[derive(Clone, Debug)]
pub struct OrderFilter {
    /// Only those of this status at the time `now`.
    pub status: Option<OrderStatus>,
    /// Only this user's.
    pub telegram_id: Option<i64>,
    /// At most so many.
    pub limit: u32,
    /// The time by which orders are pending or expired.
    pub now: Timestamp,
}

impl Store {
    /// Creates an order, and its user where it is their first.
    pub async fn create_order(&self, creation: impl Into<Creation>) -> Result<Created, AccountError> {
        on_engine!(self, engine => engine.create_order(creation.into()).await)
    }

    /// Notes where an order can be paid.
    pub(crate) async fn set_pay_page(&self, order_no: String, page: PayPage) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.set_pay_page(order_no, page).await)
    }

    /// The order of this number.
    pub async fn order(&self, order_no: &str) -> Result<Option<Order>, StoreError> {
        on_engine!(self, engine => engine.order(order_no.to_owned()).await)
    }

    /// The newest orders that fit the filter.
    pub async fn orders(&self, filter: OrderFilter) -> Result<Vec<Order>, StoreError> {
        on_engine!(self, engine => engine.orders(filter).await)
    }
}
