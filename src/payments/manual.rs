//! A person settles an order: its gateway is asked first, because the money may never have come, or may have gone back.

use std::time::Duration;

use crate::channel::epay::client::{GatewayError, Verdict};
use crate::domain::decisions::PaymentOfDecision;
use crate::domain::language::{Language, Localized, LocalizedText, text};
use crate::domain::order::{Order, OrderStatus};
use crate::domain::settlement::{LatePolicy, Policy};
use crate::payments::gateways::{AskError, Gateways, name_of};
use crate::store::{ByHand, Cause, DecisionError, Settle, Store, StoreError};

/// How long the question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How an order is to be settled.
#[derive(Clone, Debug, Default)]
pub(crate) struct SettleOptions {
    /// The gateway's number of the payment, as the person typed it.
    pub trade_no: Option<String>,
    /// The money came by another way than the gateway, which is not asked.
    pub paid_outside: bool,
    /// Settle although the gateway says that the order is not paid.
    pub force: bool,
}

/// An order that a person has settled.
#[derive(Debug)]
pub(crate) struct SettledByHand {
    /// The order after it.
    pub order: Order,
    /// Why the gateway could not be asked, where it could not.
    pub remark: Option<LocalizedText>,
}

/// Why the order is not settled.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SettleError {
    /// The store refuses or fails.
    #[error(transparent)]
    Store(#[from] DecisionError),
    /// The gateway says that there is no money, in this word.
    #[error("gateway_says_no: the gateway says {answer} of order {order_no}")]
    GatewaySaysNo {
        /// The order.
        order_no: String,
        /// The gateway's answer in a word.
        answer: String,
    },
}

impl From<StoreError> for SettleError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.into())
    }
}

impl Localized for SettleError {
    fn text(&self, language: Language) -> String {
        match self {
            Self::Store(error) => error.text(language),
            Self::GatewaySaysNo { order_no, answer } => {
                text!(language, "manual.gateway_says_no", order = order_no, answer = answer).into_owned()
            }
        }
    }
}

/// Settles an order by a person's decision, unless its gateway says that there is no money.
pub(crate) async fn settle(
    gateways: &Gateways,
    store: &Store,
    decision: ByHand,
    options: SettleOptions,
) -> Result<SettledByHand, SettleError> {
    let order_no = decision.order_no.clone();
    let order = store.order(&order_no).await?.ok_or_else(|| DecisionError::NoSuchOrder(order_no.clone()))?;
    let SettleOptions { trade_no: typed, paid_outside, force } = options;
    let (mut proved, mut remark) = (None, None);
    let is_open = matches!(order.stored_status, OrderStatus::Pending | OrderStatus::Review);
    if is_open && !paid_outside {
        let refuse = |answer: String| Err(SettleError::GatewaySaysNo { order_no: order_no.clone(), answer });
        match gateways.ask(&order, Cause::Manual, QUESTION_TIMEOUT).await {
            Ok((Verdict::Paid { trade_no, .. }, _)) => proved = Some(trade_no),
            Ok((Verdict::Contradicts(field), _)) => remark = Some(not_asked(&GatewayError::Contradicts(field))),
            Ok((Verdict::Unknown(status), _)) => {
                remark = Some(LocalizedText::verbatim("unknown_status", &format!("status {status}")));
            }
            Ok((verdict @ Verdict::Refunded { .. }, answer)) if !force => {
                // The order waits for a person from now on, and its receipt says why.
                let word = name_of(&verdict);
                let policy = Policy { late: LatePolicy::Credit, can_ask: true };
                if let Some(settle) = Settle::by_answer(&order, &verdict, answer, policy, decision.at) {
                    store.settle(settle).await?;
                }
                return refuse(word);
            }
            // A replay of this payment's callback is a duplicate then, and no second payment.
            Ok((Verdict::Refunded { trade_no, .. }, _)) if typed.is_none() => proved = Some(trade_no),
            Ok((verdict, _)) if !force => return refuse(name_of(&verdict)),
            Err(AskError::Gateway(GatewayError::UnknownOrder)) if !force => return refuse("unknown_order".into()),
            Ok(_) | Err(AskError::NoGateway | AskError::Gateway(GatewayError::UnknownOrder)) => {}
            Err(error) => remark = Some(not_asked(&error)),
        }
    }
    let order = store.settle_by_hand(decision, PaymentOfDecision { proved, typed, paid_outside }).await?;
    Ok(SettledByHand { order, remark })
}

/// The remark that the gateway gave no answer to go by.
fn not_asked(error: &impl Localized) -> LocalizedText {
    LocalizedText::of("not_asked", error)
}
