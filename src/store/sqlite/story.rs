//! Everything that is kept about one order: what a person asks for when a buyer says "I paid and got nothing".

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::{Sqlite, StoreError, decisions, outbox, read};
use crate::domain::clock::Timestamp;
use crate::domain::order::{Order, SettledBy};
use crate::domain::outcome::ReceiptOutcome;
use crate::domain::settlement::Alert;
use crate::store::{Channel, DeliveryFilter, KeptAnswer, KeptReceipt, Story};

/// How many rows of a kind are told, the newest: an order that is called back for ever must not fill the memory.
const ROWS_MAX: u32 = 1000;

impl Sqlite {
    pub(in crate::store) async fn stories(&self, number: String) -> Result<Vec<Story>, StoreError> {
        self.read(move |db| {
            // All from one snapshot: the story must not contradict itself.
            let snapshot = db.unchecked_transaction()?;
            let stories = stories(&snapshot, &number)?;
            snapshot.commit()?;
            Ok(stories)
        })
        .await
    }
}

fn stories(db: &Connection, number: &str) -> rusqlite::Result<Vec<Story>> {
    if let Some(found) = read::order_with_id(db, number)? {
        return Ok(vec![of_order(db, found)?]);
    }
    let settled: Vec<_> = db
        .prepare(&format!("SELECT {} FROM orders WHERE trade_no = ? LIMIT {ROWS_MAX}", read::ORDER_COLUMNS))?
        .query_map([number], read::order_of)?
        .collect::<Result<_, _>>()?;
    if !settled.is_empty() {
        return settled.into_iter().map(|found| of_order(db, found)).collect();
    }
    // Neither number has an index here. It takes seconds where there are millions of receipts, and nobody waits for it but whoever
    // asks about a payment that settled nothing.
    let about: Vec<(KeptReceipt, Option<i64>)> = db
        .prepare(&format!(
            "{RECEIPTS}, order_id FROM receipts WHERE trade_no = :number OR order_no = :number ORDER BY id DESC LIMIT {ROWS_MAX}"
        ))?
        .query_map(named_params! { ":number": number }, |row| Ok((receipt_of(row)?, row.get(12)?)))?
        .collect::<Result<_, _>>()?;
    let mut order_ids: Vec<i64> = about.iter().filter_map(|(_, order_id)| *order_id).collect();
    order_ids.sort_unstable();
    order_ids.dedup();
    let mut stories = Vec::new();
    for order_id in order_ids {
        stories.push(of_order(db, (order_id, read::order_by_id(db, order_id)?))?);
    }
    let strangers = about.into_iter().filter(|(_, order_id)| order_id.is_none()).map(|(receipt, _)| receipt);
    let story = Story { receipts: strangers.collect(), ..Story::default() };
    let rejections = if stories.is_empty() { rejections(db, number, None)? } else { Vec::new() };
    if !story.receipts.is_empty() || !rejections.is_empty() {
        stories.push(Story { rejections, ..story });
    }
    Ok(stories)
}

fn of_order(db: &Connection, (order_id, order): (i64, Order)) -> rusqlite::Result<Story> {
    let order_no = order.terms.order_no.as_str();
    let receipts = db
        .prepare(&format!("{RECEIPTS} FROM receipts WHERE order_id = ? ORDER BY id DESC LIMIT {ROWS_MAX}"))?
        .query_map([order_id], receipt_of)?
        .collect::<Result<_, _>>()?;
    let answers = db
        .prepare(&format!(
            "SELECT asked_at_ms, cause, answer, detail FROM answers WHERE order_id = ? ORDER BY id DESC LIMIT {ROWS_MAX}"
        ))?
        .query_map([order_id], |row| {
            let at = Timestamp::from_ms(row.get(0)?);
            Ok(KeptAnswer { at, cause: row.get(1)?, answer: row.get(2)?, detail: row.get(3)? })
        })?
        .collect::<Result<_, _>>()?;
    let filter = DeliveryFilter { order_no: Some(order_no.to_owned()), ..DeliveryFilter::default() };
    let mut deliveries = Vec::new();
    for &channel in Channel::ALL {
        let told = outbox::deliveries(db, channel, &filter, ROWS_MAX)?;
        deliveries.extend(told.into_iter().map(|delivery| (channel, delivery)));
    }
    let next_question: Option<i64> = db
        .prepare("SELECT due_at_ms FROM reconciliation WHERE order_id = ?")?
        .query_row([order_id], |row| row.get(0))
        .optional()?;
    Ok(Story {
        rejections: rejections(db, order_no, order.trade_no.as_deref())?,
        receipts,
        answers,
        entries: read::ledger_of_order(db, order_id)?,
        refund: decisions::refund(db, order_no)?,
        deliveries,
        next_question: next_question.map(Timestamp::from_ms),
        order: Some(order),
    })
}

const RECEIPTS: &str =
    "SELECT received_at_ms, source, outcome, '', merchant, order_no, trade_no, client, method, payload, TRUE, alert";

/// There are ten thousand of them at most, so no index is needed.
fn rejections(db: &Connection, number: &str, trade_no: Option<&str>) -> rusqlite::Result<Vec<KeptReceipt>> {
    db.prepare(&format!(
        "SELECT received_at_ms, 'notify', outcome, reason, coalesce(merchant, ''), coalesce(order_no, ''), coalesce(trade_no, ''),
             client, method, payload, length(payload) = payload_bytes, NULL
         FROM rejections WHERE order_no = :number OR trade_no = :number OR trade_no = :trade_no ORDER BY id DESC LIMIT {ROWS_MAX}"
    ))?
    .query_map(named_params! { ":number": number, ":trade_no": trade_no }, receipt_of)?
    .collect()
}

fn receipt_of(row: &Row) -> rusqlite::Result<KeptReceipt> {
    Ok(KeptReceipt {
        at: Timestamp::from_ms(row.get(0)?),
        source: read::expect(1, SettledBy::from_name(row.get_ref(1)?.as_str()?))?,
        outcome: read::expect(2, ReceiptOutcome::from_name(row.get_ref(2)?.as_str()?))?,
        reason: row.get(3)?,
        merchant: row.get(4)?,
        order_no: row.get(5)?,
        trade_no: row.get(6)?,
        client: row.get(7)?,
        method: row.get(8)?,
        payload: row.get(9)?,
        is_whole: row.get(10)?,
        alert: read::named(row, 11, Alert::from_name)?,
    })
}
