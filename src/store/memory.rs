//! Values that the service remembers over a restart, and the receipts that the operator has to hear of.

use super::{Store, StoreError};
use crate::domain::money::Amount;
use crate::domain::outcome::Outcome;
use crate::domain::settlement::Alert;

/// Kind of receipts that a person should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TroubleKind {
    /// Those of this outcome.
    Outcome(Outcome),
    /// Those with this alert, whatever their outcome.
    Alert(Alert),
}

impl TroubleKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Outcome(outcome) => outcome.name(),
            Self::Alert(alert) => alert.name(),
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Alert::from_name(name).map(Self::Alert).or_else(|| Outcome::from_name(name).map(Self::Outcome))
    }
}

impl std::fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Receipts that a person should hear of, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Its kind.
    pub kind: TroubleKind,
    /// How many there were.
    pub count: u32,
    /// The order of the newest of them, as the gateway named it.
    pub order_no: String,
    /// The price of that order, where it is known here.
    pub due: Option<Amount>,
    /// The amount of its payment, where it can be read.
    pub paid: Option<Amount>,
}

impl Store {
    /// The value that is remembered under this name.
    pub(crate) async fn recall(&self, name: &'static str) -> Result<Option<String>, StoreError> {
        on_engine!(self, engine => engine.recall(name).await)
    }

    /// Remembers a value under a name; none to forget it.
    pub(crate) async fn remember(&self, name: &'static str, value: Option<String>) -> Result<(), StoreError> {
        on_engine!(self, engine => engine.remember(name, value).await)
    }

    /// The number of the newest receipt.
    pub(crate) async fn newest_receipt(&self) -> Result<i64, StoreError> {
        on_engine!(self, engine => engine.newest_receipt().await)
    }

    /// The trouble among the receipts after number `after` up to number `until`.
    pub(crate) async fn trouble(&self, after: i64, until: i64) -> Result<Vec<Trouble>, StoreError> {
        on_engine!(self, engine => engine.trouble(after, until).await)
    }
}
