//! Why the pretend gateway does not do what it was asked for.

use crate::domain::language::{Language, Localized, text};

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
}

impl Localized for Refusal {
    fn text(&self, language: Language) -> String {
        match *self {
            Self::Malformed => text!(language, "simulator.malformed"),
            Self::NotPost => text!(language, "simulator.not_post"),
            Self::BadAct => text!(language, "simulator.bad_act"),
            Self::Missing(field) => text!(language, "simulator.missing", field = field),
            Self::Bad(field) => text!(language, "simulator.bad_field", field = field),
            Self::NotHttp => text!(language, "simulator.not_http"),
            Self::UnknownMerchant => text!(language, "simulator.unknown_merchant"),
            Self::BadSign => text!(language, "simulator.bad_sign"),
            Self::BadKey => text!(language, "simulator.bad_key"),
            Self::Stale => text!(language, "simulator.stale"),
            Self::UnknownOrder => text!(language, "simulator.unknown_order"),
            Self::Changed => text!(language, "simulator.changed"),
            Self::AlreadyPaid => text!(language, "simulator.already_paid"),
            Self::NotPaid => text!(language, "simulator.not_paid"),
            Self::Closed => text!(language, "simulator.closed"),
            Self::TooMuch => text!(language, "simulator.too_much"),
            Self::RefundReused => text!(language, "simulator.refund_reused"),
            Self::UnknownRefund => text!(language, "simulator.unknown_refund"),
            Self::Full => text!(language, "simulator.full", max = ORDERS_MAX),
        }
        .into_owned()
    }
}
