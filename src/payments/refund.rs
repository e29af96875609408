//! Giving money back: the gateway first, then the books, in steps that survive a crash between the two.
//!
//! The intent is stored before the gateway is asked. Whatever ends the process after that, the next attempt finds the intent and asks
//! the gateway what became of it, instead of asking for the money a second time.

use std::time::Duration;

use rust_i18n::t;

use crate::channel::epay::client::{self, Gateway, GatewayError, RefundReply, Verdict};
use crate::domain::order::Order;
use crate::payments::gateways::Gateways;
use crate::store::{ByHand, Cause, RefundState, Store, StoreError};

/// How long the question may take whether a payment is refunded.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How a refund is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// The money has gone back in another way: only the books are changed.
    pub by_hand: bool,
    /// Although the buyer has spent credits: their balance may go below zero.
    pub even_if_spent: bool,
    /// Ask the gateway for the money again, although it is unclear what it did the last time.
    pub again: bool,
}

/// A refund that is done.
#[derive(Debug)]
pub(crate) struct Refunded {
    /// The order after it.
    pub order: Order,
    /// What the gateway said.
    pub answer: String,
    /// Whether the gateway itself says, asked afterwards, that the payment is refunded. Its yes alone proves nothing.
    pub proved: bool,
}

/// Why there is no refund, or none yet.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RefundError {
    /// The store refuses or fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The merchant has no gateway that can be asked.
    #[error("{}", t!("refund.no_gateway", pid = .0))]
    NoGateway(String),
    /// The money of this order did not come through the gateway, which can only give back what is another payment.
    #[error("{}", t!("refund.paid_outside", order = .0))]
    PaidOutside(String),
    /// The gateway says no; nothing has changed.
    #[error("{}", t!("refund.refused", cause = .0))]
    Refused(String),
    /// Nobody knows what the gateway did; credits are untouched, and the next attempt asks first.
    #[error("{}", t!("refund.unclear", cause = .0))]
    Unclear(String),
    /// An earlier attempt is unclear, and the gateway does not say that the money went back.
    #[error("{}", t!("refund.still_unclear", cause = .0))]
    StillUnclear(String),
}

/// Refunds a paid order in full.
pub(crate) async fn refund(
    gateways: &Gateways,
    store: &Store,
    wish: ByHand,
    manner: Manner,
) -> Result<Refunded, RefundError> {
    let order_no = wish.order_no.clone();
    let (before, is_new) = store.begin_refund(wish, manner.even_if_spent).await?;
    let order = store.order(&order_no).await?.ok_or_else(|| StoreError::NoSuchOrder(order_no.clone()))?;
    if manner.by_hand {
        return finish(gateways, store, order_no, "by hand".into(), false).await;
    }
    let pid = &order.terms.merchant;
    let (gateway, error) = if order.paid_outside {
        (None, RefundError::PaidOutside(order_no.clone()))
    } else {
        (gateways.of(pid), RefundError::NoGateway(pid.clone()))
    };
    let Some(gateway) = gateway else {
        // Nothing was asked, so nothing is unclear.
        let state = if is_new { RefundState::Refused } else { before.state };
        store.refund_answered(order_no, state, "not asked".into(), gateways.clock().now()).await?;
        return Err(error);
    };
    if !is_new {
        match is_refunded(gateways, &gateway, &order).await {
            Ok(true) => {
                let answer = before.answer.unwrap_or_else(|| "refunded".into());
                return finish(gateways, store, order_no, answer, true).await;
            }
            Ok(false) if manner.again => {}
            Ok(false) => return Err(RefundError::StillUnclear(t!("refund.says_paid").into_owned())),
            Err(error) => return Err(RefundError::StillUnclear(error)),
        }
    }
    ask_for_it(gateways, &gateway, store, &order).await
}

async fn ask_for_it(
    gateways: &Gateways,
    gateway: &Gateway,
    store: &Store,
    order: &Order,
) -> Result<Refunded, RefundError> {
    let order_no = order.terms.order_no.to_string();
    let trade_no = order.trade_no.as_deref().unwrap_or_default();
    match gateway.refund(&order.terms.order_no, trade_no, order.terms.amount).await {
        Ok(RefundReply::Accepted { body }) => {
            let proved = is_refunded(gateways, gateway, order).await.unwrap_or(false);
            finish(gateways, store, order_no, String::from_utf8_lossy(&body).into_owned(), proved).await
        }
        Ok(RefundReply::Unclear(error)) => {
            let cause = error.to_string();
            store.refund_answered(order_no, RefundState::Unclear, cause.clone(), gateways.clock().now()).await?;
            Err(RefundError::Unclear(cause))
        }
        Ok(RefundReply::Refused { code, message }) => {
            refused(gateways, store, order_no, &GatewayError::Refused { code, message }).await
        }
        // The request did not get as far as the gateway.
        Err(error) => refused(gateways, store, order_no, &error).await,
    }
}

async fn refused(
    gateways: &Gateways,
    store: &Store,
    order_no: String,
    error: &GatewayError,
) -> Result<Refunded, RefundError> {
    let cause = error.to_string();
    store.refund_answered(order_no, RefundState::Refused, cause.clone(), gateways.clock().now()).await?;
    Err(RefundError::Refused(cause))
}

/// Whether the gateway itself says that the payment is refunded; an error is why it says nothing.
async fn is_refunded(gateways: &Gateways, gateway: &Gateway, order: &Order) -> Result<bool, String> {
    // V2 gateways know the refund itself; all others have to be asked about the payment.
    if let Ok(client::RefundState::Done { money }) = gateway.refund_query(&order.terms.order_no).await
        && money.is_none_or(|money| money == order.terms.amount)
    {
        return Ok(true);
    }
    match gateways.ask(order, Cause::Refund, QUESTION_TIMEOUT).await {
        Ok((Verdict::Refunded { amount, .. }, _)) if amount == order.terms.amount => Ok(true),
        Ok((Verdict::Refunded { .. }, _)) => Err(GatewayError::Contradicts("money").to_string()),
        Ok((Verdict::Contradicts(field), _)) => Err(GatewayError::Contradicts(field).to_string()),
        Ok(_) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

async fn finish(
    gateways: &Gateways,
    store: &Store,
    order_no: String,
    answer: String,
    proved: bool,
) -> Result<Refunded, RefundError> {
    let order = store.finish_refund(order_no, answer.clone(), proved, gateways.clock().now()).await?;
    Ok(Refunded { order, answer, proved })
}
