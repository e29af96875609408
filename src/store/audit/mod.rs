//! The proof that the books are right: every settled order against its credits, its receipt and its message, every balance against
//! its entries.
//!
//! The checks and their findings. An engine reads the rows, and [`books`] says what does not fit.

pub(super) mod books;

use super::schema_difference::{Deviation, SchemaDifference};
use crate::domain::named::named_enum;

/// How many findings of a check are named; all are counted.
pub(super) const FINDINGS_NAMED_MAX: usize = 1000;

named_enum! {
    /// What is proved.
    CheckName {
        /// The file is whole, by the database engine's own check, which looks at constraints as well.
        Integrity = "integrity",
        /// Tables, indexes and triggers are those of this program.
        Schema = "schema",
        /// What is referred to is there.
        References = "references",
        /// Each settled order has one credit entry, of its credits and for its user.
        CreditOnce = "credit_once",
        /// Each credit entry has its order, and that is settled.
        CreditHasOrder = "credit_has_order",
        /// Each settled order has one kept receipt that settled it, and no other order has any.
        ReceiptKept = "receipt_kept",
        /// Each refunded order has one entry that takes its credits back, and no other order has any.
        RefundOnce = "refund_once",
        /// Each user's balance is the sum of their entries.
        Balance = "balance",
        /// No payment settles two orders.
        TradeOnce = "trade_once",
        /// Each settled order has its message.
        MessageQueued = "message_queued",
        /// Nobody paid an order twice, as far as nobody has said that it is taken care of.
        PaidAgain = "paid_again",
    }
}

named_enum! {
    /// What is wrong with a row.
    Fault {
        /// The engine says so.
        Damaged = "damaged",
        /// Part of the schema that this program does not make.
        SchemaForeign = "schema_foreign",
        /// Part of the schema that is not there.
        SchemaMissing = "schema_missing",
        /// Part of the schema that is another than it was.
        SchemaChanged = "schema_changed",
        /// Refers to a row that is not there.
        Dangling = "dangling",
        /// Settled, without credits.
        NoCredit = "no_credit",
        /// Credited more than once.
        CreditedTwice = "credited_twice",
        /// Credited with other credits than it was sold for.
        WrongCredits = "wrong_credits",
        /// Credited to another user than its buyer.
        WrongUser = "wrong_user",
        /// Credits for an order that is not settled.
        CreditForUnsettled = "credit_for_unsettled",
        /// Settled, and no receipt says by what.
        NoReceipt = "no_receipt",
        /// More than one receipt says that it settled the order.
        ReceiptTwice = "receipt_twice",
        /// The receipt is of another source, payment or merchant than the order says.
        ReceiptDiffers = "receipt_differs",
        /// A receipt says that it settled an order that is not settled.
        ReceiptForUnsettled = "receipt_for_unsettled",
        /// Refunded, and the credits are still there.
        NotTakenBack = "not_taken_back",
        /// The credits were taken back more than once, or not as many as were given.
        TakenBackWrongly = "taken_back_wrongly",
        /// Credits taken back for an order that is not refunded.
        TakenBackUnrefunded = "taken_back_unrefunded",
        /// The balance is not the sum of the entries.
        BalanceDiffers = "balance_differs",
        /// The payment has settled another order, too.
        TradeReused = "trade_reused",
        /// There is no message to the buyer.
        NoMessage = "no_message",
        /// The buyer paid twice.
        PaidTwice = "paid_twice",
    }
}

/// A row that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// What is wrong with it.
    pub fault: Fault,
    /// The table that it is in; for the schema, `sqlite_schema`.
    pub table: &'static str,
    /// Its key in that table, or the name of the part of the schema.
    pub row: String,
    /// What else is worth knowing: numbers that differ, the order's number.
    pub detail: String,
}

/// One check, and what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// What is proved.
    pub name: CheckName,
    /// How many rows are wrong.
    pub findings: u64,
    /// Which rows; the first of them, where there are very many.
    pub rows: Vec<Finding>,
}

/// What an audit says of a database.
#[derive(Clone, Debug)]
pub(crate) struct Audit {
    /// Every check, with or without findings.
    pub checks: Vec<Check>,
    /// How many orders there are.
    pub orders: u64,
    /// How many of them are settled, or were and are refunded.
    pub settled: u64,
}

impl Audit {
    /// The one thing that can be said of a file which cannot be read.
    pub(crate) fn of_damaged(cause: String) -> Self {
        let check = Check { name: CheckName::Integrity, findings: 1, rows: vec![damaged(cause)] };
        Self { checks: vec![check], orders: 0, settled: 0 }
    }

    /// The one thing that can be said of a file of an older version whose schema is not that of its version.
    pub(super) fn of_other_schema(differences: &[SchemaDifference]) -> Self {
        let rows = differences.iter().take(FINDINGS_NAMED_MAX).map(differing).collect();
        let check = Check { name: CheckName::Schema, findings: differences.len() as u64, rows };
        Self { checks: vec![check], orders: 0, settled: 0 }
    }

    /// Whether this program opens the database: books may be wrong, the schema may not be another one.
    pub(crate) fn can_be_opened(&self) -> bool {
        self.checks.iter().all(|check| check.findings == 0 || check.name != CheckName::Schema)
    }

    /// How many rows are wrong.
    pub(crate) fn findings(&self) -> u64 {
        self.checks.iter().map(|check| check.findings).sum()
    }

    /// Whether the books are right, whatever buyers did: who pays twice is no fault of theirs.
    pub(crate) fn is_sound(&self) -> bool {
        self.checks.iter().all(|check| check.findings == 0 || check.name == CheckName::PaidAgain)
    }
}

pub(super) fn damaged(detail: String) -> Finding {
    Finding { fault: Fault::Damaged, table: "database", row: String::new(), detail }
}

pub(super) fn differing(difference: &SchemaDifference) -> Finding {
    let SchemaDifference { deviation, kind, name, removal } = difference;
    let fault = match deviation {
        Deviation::Foreign => Fault::SchemaForeign,
        Deviation::Missing => Fault::SchemaMissing,
        Deviation::Changed => Fault::SchemaChanged,
    };
    let detail = removal.as_ref().map_or_else(|| kind.clone(), |removal| format!("{kind}: {removal}"));
    Finding { fault, table: "sqlite_schema", row: name.clone(), detail }
}
