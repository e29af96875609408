//! Giving money back: the gateway first, then the books, in steps that survive a crash between the two.
//!
//! The intent is stored before the gateway is asked. Whatever ends the process after that, the next attempt finds the intent and asks
//! the gateway what became of it, instead of asking for the money a second time.

use std::time::Duration;

use crate::channel::epay::client::{self, Gateway, GatewayError, RefundReply, Verdict};
use crate::domain::decisions::RefundState;
use crate::domain::language::{Language, Localized, text};
use crate::domain::order::Order;
use crate::payments::gateways::{AskError, Gateways};
use crate::store::{ByHand, Cause, DecisionError, Store, StoreError};

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
    Store(#[from] DecisionError),
    /// The merchant has no gateway that can be asked.
    #[error("no_gateway: merchant {0} has no gateway that can be asked")]
    NoGateway(String),
    /// The money of this order did not come through the gateway, which can only give back what is another payment.
    #[error("paid_outside: order {0} was not paid through the gateway")]
    PaidOutside(String),
    /// The gateway says no; nothing has changed.
    #[error("refused: the gateway refuses the refund")]
    Refused(#[source] GatewayError),
    /// Nobody knows what the gateway did; credits are untouched, and the next attempt asks first.
    #[error("unclear: the gateway may have refunded the payment")]
    Unclear(#[source] GatewayError),
    /// An earlier attempt is unclear, and the gateway says that the payment is paid.
    #[error("still_paid: the gateway says that the payment is paid")]
    StillPaid,
    /// An earlier attempt is unclear, and so is what the gateway says of it.
    #[error("still_unclear: the gateway does not say whether the payment is refunded")]
    StillUnclear(#[source] AskError),
}

impl Localized for RefundError {
    fn text(&self, language: Language) -> String {
        let text = match self {
            Self::Store(error) => return error.text(language),
            Self::NoGateway(pid) => text!(language, "refund.no_gateway", pid = pid),
            Self::PaidOutside(order_no) => text!(language, "refund.paid_outside", order = order_no),
            Self::Refused(error) => text!(language, "refund.refused", cause = error),
            Self::Unclear(error) => text!(language, "refund.unclear", cause = error),
            Self::StillPaid => {
                let cause = text!(language, "refund.says_paid");
                text!(language, "refund.still_unclear", cause = cause)
            }
            Self::StillUnclear(error) => text!(language, "refund.still_unclear", cause = error),
        };
        text.into_owned()
    }
}

impl From<StoreError> for RefundError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.into())
    }
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
    let order = store.order(&order_no).await?.ok_or_else(|| DecisionError::NoSuchOrder(order_no.clone()))?;
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
            Ok(false) => return Err(RefundError::StillPaid),
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
            let cause = error.text(gateways.language());
            store.refund_answered(order_no, RefundState::Unclear, cause, gateways.clock().now()).await?;
            Err(RefundError::Unclear(error))
        }
        Ok(RefundReply::Refused { code, message }) => {
            refused(gateways, store, order_no, GatewayError::Refused { code, message }).await
        }
        // The request did not get as far as the gateway.
        Err(error) => refused(gateways, store, order_no, error).await,
    }
}

async fn refused(
    gateways: &Gateways,
    store: &Store,
    order_no: String,
    error: GatewayError,
) -> Result<Refunded, RefundError> {
    let cause = error.text(gateways.language());
    store.refund_answered(order_no, RefundState::Refused, cause, gateways.clock().now()).await?;
    Err(RefundError::Refused(error))
}

/// Whether the gateway itself says that the payment is refunded; an error is why it says nothing.
async fn is_refunded(gateways: &Gateways, gateway: &Gateway, order: &Order) -> Result<bool, AskError> {
    // V2 gateways know the refund itself; all others have to be asked about the payment.
    if let Ok(client::RefundState::Done { money }) = gateway.refund_query(&order.terms.order_no).await
        && money.is_none_or(|money| money == order.terms.amount)
    {
        return Ok(true);
    }
    match gateways.ask(order, Cause::Refund, QUESTION_TIMEOUT).await {
        Ok((Verdict::Refunded { amount, .. }, _)) if amount == order.terms.amount => Ok(true),
        Ok((Verdict::Refunded { .. }, _)) => Err(GatewayError::Contradicts("money").into()),
        Ok((Verdict::Contradicts(field), _)) => Err(GatewayError::Contradicts(field).into()),
        Ok(_) => Ok(false),
        Err(error) => Err(error),
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
