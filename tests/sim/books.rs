//! What the books say, in plain maps: as the database has it, and as the model thinks that it should.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row};

use super::ops::Payload;

/// Everything that the database tells of money, orders and messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Books {
    /// Credits by user.
    pub(super) balances: BTreeMap<i64, i64>,
    pub(super) orders: BTreeMap<String, OrderLine>,
    pub(super) ledger: Vec<LedgerLine>,
    pub(super) receipts: Vec<ReceiptLine>,
    /// By order, kind and channel.
    pub(super) messages: BTreeMap<(String, String, String), MessageLine>,
    /// When the gateway is asked next, by order: the times of the schedule that have passed, and the time.
    pub(super) questions: BTreeMap<String, (u32, i64)>,
    pub(super) answers: Vec<(String, i64, String)>,
    pub(super) refunds: BTreeMap<String, RefundLine>,
    pub(super) keys: BTreeMap<String, KeyLine>,
    /// How many there are.
    pub(super) rejections: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OrderLine {
    pub(super) merchant: String,
    pub(super) user: i64,
    pub(super) fen: i64,
    pub(super) credits: i64,
    pub(super) param: Option<String>,
    pub(super) expires_at: i64,
    pub(super) status: String,
    pub(super) trade_no: Option<String>,
    pub(super) settled_by: Option<String>,
    pub(super) paid_at: Option<i64>,
    pub(super) paid_outside: bool,
    pub(super) review_reason: Option<String>,
    pub(super) hold: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LedgerLine {
    pub(super) user: i64,
    pub(super) kind: String,
    pub(super) credits: i64,
    pub(super) order_no: Option<String>,
    pub(super) at: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReceiptLine {
    pub(super) at: i64,
    pub(super) source: String,
    pub(super) outcome: String,
    pub(super) merchant: String,
    pub(super) order_no: String,
    pub(super) trade_no: String,
    /// Whether it is filed under its order.
    pub(super) is_filed: bool,
    pub(super) payload: Payload,
    pub(super) fen: Option<i64>,
    pub(super) alert: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MessageLine {
    /// Its number in the outbox: those that are due at the same time go in this order.
    pub(super) id: i64,
    pub(super) created_at: i64,
    pub(super) due_at: i64,
    pub(super) attempts: u32,
    pub(super) state: String,
    pub(super) finished_at: Option<i64>,
    pub(super) retried_at: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RefundLine {
    pub(super) state: String,
    pub(super) answer: Option<String>,
    pub(super) proved: bool,
    pub(super) requested_at: i64,
    pub(super) changed_at: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyLine {
    pub(super) fingerprint: String,
    pub(super) order_no: Option<String>,
    pub(super) credits_after: Option<i64>,
}

impl ReceiptLine {
    /// By what name the operator hears of it, if they do.
    pub(super) fn trouble(&self) -> Option<&str> {
        let names = ["amount_mismatch", "held", "paid_again", "trade_reused", "unknown_order"];
        self.alert.as_deref().or_else(|| names.into_iter().find(|name| *name == self.outcome))
    }
}

impl Books {
    /// Reads them from the database, by statements of their own.
    #[allow(clippy::too_many_lines, reason = "one statement a table")]
    pub(super) fn read(db: &Connection) -> rusqlite::Result<Self> {
        // One snapshot: the writer may tidy up at any time.
        let db = db.unchecked_transaction()?;
        Ok(Self {
            balances: rows(&db, "SELECT telegram_id, credits FROM users", |row| Ok((row.get(0)?, row.get(1)?)))?,
            orders: rows(
                &db,
                "SELECT order_no, merchant, telegram_id, amount_fen, credits, param, expires_at_ms, status, trade_no,
                     settled_by, paid_at_ms, paid_outside, review_reason, hold FROM orders",
                |row| {
                    let line = OrderLine {
                        merchant: row.get(1)?,
                        user: row.get(2)?,
                        fen: row.get(3)?,
                        credits: row.get(4)?,
                        param: row.get(5)?,
                        expires_at: row.get(6)?,
                        status: row.get(7)?,
                        trade_no: row.get(8)?,
                        settled_by: row.get(9)?,
                        paid_at: row.get(10)?,
                        paid_outside: row.get(11)?,
                        review_reason: row.get(12)?,
                        hold: row.get(13)?,
                    };
                    Ok((row.get(0)?, line))
                },
            )?,
            ledger: rows(
                &db,
                "SELECT ledger.telegram_id, kind, ledger.credits, order_no, ledger.created_at_ms
                 FROM ledger LEFT JOIN orders ON orders.id = order_id ORDER BY ledger.id",
                |row| {
                    Ok(LedgerLine {
                        user: row.get(0)?,
                        kind: row.get(1)?,
                        credits: row.get(2)?,
                        order_no: row.get(3)?,
                        at: row.get(4)?,
                    })
                },
            )?,
            receipts: rows(
                &db,
                "SELECT received_at_ms, source, outcome, receipts.merchant, receipts.order_no, receipts.trade_no,
                     orders.order_no IS receipts.order_no, payload, receipts.amount_fen, alert
                 FROM receipts LEFT JOIN orders ON orders.id = order_id ORDER BY receipts.id",
                |row| {
                    Ok(ReceiptLine {
                        at: row.get(0)?,
                        source: row.get(1)?,
                        outcome: row.get(2)?,
                        merchant: row.get(3)?,
                        order_no: row.get(4)?,
                        trade_no: row.get(5)?,
                        is_filed: row.get(6)?,
                        payload: Payload(row.get(7)?),
                        fen: row.get(8)?,
                        alert: row.get(9)?,
                    })
                },
            )?,
            messages: rows(
                &db,
                "SELECT order_no, kind, channel, outbox.id, outbox.created_at_ms, due_at_ms, attempts, state,
                     finished_at_ms, retried_at_ms
                 FROM outbox JOIN orders ON orders.id = order_id",
                |row| {
                    let line = MessageLine {
                        id: row.get(3)?,
                        created_at: row.get(4)?,
                        due_at: row.get(5)?,
                        attempts: row.get(6)?,
                        state: row.get(7)?,
                        finished_at: row.get(8)?,
                        retried_at: row.get(9)?,
                    };
                    Ok(((row.get(0)?, row.get(1)?, row.get(2)?), line))
                },
            )?,
            questions: rows(
                &db,
                "SELECT order_no, step, due_at_ms FROM reconciliation JOIN orders ON orders.id = order_id",
                |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))),
            )?,
            answers: rows(
                &db,
                "SELECT order_no, asked_at_ms, answer FROM answers JOIN orders ON orders.id = order_id ORDER BY answers.id",
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?,
            refunds: rows(
                &db,
                "SELECT order_no, state, answer, proved, requested_at_ms, changed_at_ms
                 FROM refunds JOIN orders ON orders.id = order_id",
                |row| {
                    let line = RefundLine {
                        state: row.get(1)?,
                        answer: row.get(2)?,
                        proved: row.get(3)?,
                        requested_at: row.get(4)?,
                        changed_at: row.get(5)?,
                    };
                    Ok((row.get(0)?, line))
                },
            )?,
            keys: rows(
                &db,
                "SELECT key, fingerprint, order_no, credits_after
                 FROM idempotency LEFT JOIN orders ON orders.id = order_id",
                |row| {
                    let line = KeyLine { fingerprint: row.get(1)?, order_no: row.get(2)?, credits_after: row.get(3)? };
                    Ok((row.get(0)?, line))
                },
            )?,
            rejections: db.query_row("SELECT count(*) FROM rejections", [], |row| row.get(0))?,
        })
    }

    /// Proved money has settled its order or was adopted by it, or its order is in review, or a person has decided about it, or the
    /// operator hears of it by the name of its outcome: the first receipt of which none of that is true.
    pub(super) fn lost_money(&self) -> Option<String> {
        let is_proved = |receipt: &&ReceiptLine| matches!(receipt.source.as_str(), "notify" | "reconcile");
        let ends_well = |receipt: &ReceiptLine| {
            let own = self.orders.get(&receipt.order_no).filter(|_| receipt.is_filed);
            let is_told_of = |outcome: &str| {
                let same =
                    |other: &&ReceiptLine| other.order_no == receipt.order_no && other.trade_no == receipt.trade_no;
                self.receipts.iter().filter(same).any(|other| other.outcome == outcome)
            };
            match (receipt.outcome.as_str(), own) {
                ("settled" | "duplicate", Some(order)) => {
                    order.paid_at.is_some() && order.trade_no.as_ref() == Some(&receipt.trade_no)
                }
                ("amount_mismatch" | "held", Some(order)) => match order.status.as_str() {
                    "review" | "cancelled" => true,
                    "paid" | "refunded" => {
                        order.settled_by.as_deref() == Some("manual")
                            && (receipt.trade_no.is_empty()
                                || receipt.alert.as_deref() == Some("refunded")
                                || order.trade_no.as_ref() == Some(&receipt.trade_no)
                                || is_told_of("paid_again"))
                    }
                    _ => false,
                },
                ("paid_again" | "trade_reused", Some(_))
                | ("unknown_order", None)
                | ("not_paid" | "unconfirmed", _) => true,
                _ => false,
            }
        };
        self.receipts.iter().filter(is_proved).find(|receipt| !ends_well(receipt)).map(|lost| format!("{lost:?}"))
    }

    /// Where `found` is another than these, for a person to read.
    pub(super) fn difference(&self, found: &Self) -> Option<String> {
        let mut told = Vec::new();
        let mut compare = |what: &str, expected: Vec<String>, found: Vec<String>| {
            let missing = expected.iter().filter(|line| !found.contains(line)).map(|line| format!("- {what} {line}"));
            let unexpected =
                found.iter().filter(|line| !expected.contains(line)).map(|line| format!("+ {what} {line}"));
            let before = told.len();
            told.extend(missing.chain(unexpected));
            if told.len() == before && expected != found {
                told.push(format!("  {what}: {expected:?} became {found:?}"));
            }
        };
        compare("balance", lines(&self.balances), lines(&found.balances));
        compare("order", lines(&self.orders), lines(&found.orders));
        compare("ledger", lines(&self.ledger), lines(&found.ledger));
        compare("receipt", lines(&self.receipts), lines(&found.receipts));
        compare("message", lines(&self.messages), lines(&found.messages));
        compare("question", lines(&self.questions), lines(&found.questions));
        compare("answer", lines(&self.answers), lines(&found.answers));
        compare("refund", lines(&self.refunds), lines(&found.refunds));
        compare("key", lines(&self.keys), lines(&found.keys));
        compare("rejections", vec![self.rejections.to_string()], vec![found.rejections.to_string()]);
        (!told.is_empty()).then(|| told.join("\n"))
    }
}

fn lines<T: IntoIterator<Item: std::fmt::Debug>>(of: T) -> Vec<String> {
    of.into_iter().map(|line| format!("{line:?}")).collect()
}

fn rows<T, C: FromIterator<T>>(
    db: &Connection,
    sql: &str,
    of: impl FnMut(&Row) -> rusqlite::Result<T>,
) -> rusqlite::Result<C> {
    db.prepare_cached(sql)?.query_map([], of)?.collect()
}
