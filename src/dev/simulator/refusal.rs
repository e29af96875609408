//! Why the pretend gateway does not do what it was asked for.

use rust_i18n::t;

/// How many orders are kept. A request for one more is refused.
pub(super) const ORDERS_MAX: usize = 100_000;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not a form.
    Malformed,
    /// Needs POST.
    NotPost,
    /// `act` is absent or says nothing known.
    BadAct,
    Missing(&'static str),
    /// A field's value cannot be used.
    Bad(&'static str),
    /// `notify_url` is not plain http, and nothing else is spoken here.
    NotHttp,
    UnknownMerchant,
    BadSign,
    BadKey,
    /// V2: signed too long ago, or in the future.
    Stale,
    UnknownOrder,
    /// The order is there, with other fields.
    Changed,
    AlreadyPaid,
    NotPaid,
    Closed,
    /// More than is left of the payment.
    TooMuch,
    /// The refund's number is another refund's.
    RefundReused,
    UnknownRefund,
    /// There is no room for more orders, or for more refunds of one order.
    Full,
}

impl Refusal {
    /// The number in `code`.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::UnknownMerchant => -3,
            Self::BadKey | Self::BadSign | Self::Stale => -2,
            Self::Malformed | Self::NotPost | Self::BadAct | Self::Missing(_) => -4,
            _ => -1,
        }
    }

    /// What a person is told.
    pub(super) fn message(self) -> String {
        match self {
            Self::Malformed => t!("simulator.malformed"),
            Self::NotPost => t!("simulator.not_post"),
            Self::BadAct => t!("simulator.bad_act"),
            Self::Missing(field) => t!("simulator.missing", field = field),
            Self::Bad(field) => t!("simulator.bad_field", field = field),
            Self::NotHttp => t!("simulator.not_http"),
            Self::UnknownMerchant => t!("simulator.unknown_merchant"),
            Self::BadSign => t!("simulator.bad_sign"),
            Self::BadKey => t!("simulator.bad_key"),
            Self::Stale => t!("simulator.stale"),
            Self::UnknownOrder => t!("simulator.unknown_order"),
            Self::Changed => t!("simulator.changed"),
            Self::AlreadyPaid => t!("simulator.already_paid"),
            Self::NotPaid => t!("simulator.not_paid"),
            Self::Closed => t!("simulator.closed"),
            Self::TooMuch => t!("simulator.too_much"),
            Self::RefundReused => t!("simulator.refund_reused"),
            Self::UnknownRefund => t!("simulator.unknown_refund"),
            Self::Full => t!("simulator.full", max = ORDERS_MAX),
        }
        .into_owned()
    }
}
