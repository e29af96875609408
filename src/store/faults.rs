//! Where tests make the writer fail: hooks of the engine that do nothing until something is armed, and settlements that are wrong on
//! purpose, so that the tests themselves can be tested. Not part of the program.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};
use rusqlite::{Connection, OptionalExtension};

use super::ledger::{self, Entry};
use super::outbox::{self, Tidings};
use super::settle::{self, Claimed};
use super::{QUEUE_MAX, Settle, Settlement, Store, StoreError, blocking, lock, schema};
use crate::config::DatabaseUrl;
use crate::domain::settlement::{ClaimProof, Outcome};

/// What is done to the writer at one of its steps.
pub(crate) enum Mishap {
    /// The engine is interrupted while it runs a statement.
    Interrupt,
    /// The engine refuses to prepare a statement.
    Deny,
    /// The engine refuses to commit.
    Veto,
    /// Nothing fails; this is done in the middle of the step, in the writer's thread.
    Look(Box<dyn FnMut() + Send>),
}

/// A mishap and its time.
struct Armed {
    mishap: Mishap,
    /// At which step of those that it can happen at, counted from zero.
    at: u64,
    /// Whether it happens at every later step, too.
    lasts: bool,
    steps: u64,
    /// The last thing that the writer did was to commit.
    has_committed: bool,
    happened: Happened,
}

/// Whether a mishap has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// There were fewer steps.
    No,
    /// Before the commit: it must have had no effect.
    Yes,
    /// It was the commit's answer that got lost, as may happen where a disk fails: nobody knows whether it was done.
    AfterCommit,
}

/// What the hooks of one writer obey.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<Option<Armed>>>);

impl Faults {
    /// Puts the hooks into a writer's connection, where they are wanted: they are called at every step, and cost time.
    pub(super) fn install(mut connection: Connection) -> Result<(Connection, Self), StoreError> {
        let faults = Self::default();
        if !HOOKS_WANTED.get() {
            return Ok((connection, faults));
        }
        let (progress, commit, prepare) = (faults.clone(), faults.clone(), faults.clone());
        connection.progress_handler(
            1,
            Some(move || progress.is_hit(|mishap| matches!(mishap, Mishap::Interrupt | Mishap::Look(_)))),
        )?;
        connection.commit_hook(Some(move || {
            let is_vetoed = commit.is_hit(|mishap| matches!(mishap, Mishap::Veto | Mishap::Look(_)));
            commit.note_commit(!is_vetoed);
            is_vetoed
        }))?;
        let change = faults.clone();
        connection.update_hook(Some(move |_, _: &str, _: &str, _| change.note_commit(false)))?;
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            // Whoever gives up a transaction must be able to say so.
            let is_way_out = matches!(
                context.action,
                AuthAction::Transaction { operation: TransactionOperation::Rollback }
                    | AuthAction::Savepoint { operation: TransactionOperation::Rollback, .. }
            );
            if !is_way_out && prepare.is_hit(|mishap| matches!(mishap, Mishap::Deny)) {
                Authorization::Deny
            } else {
                Authorization::Allow
            }
        }))?;
        Ok((connection, faults))
    }

    /// Has `mishap` happen at step number `at` from now on, and, if it `lasts`, at all later ones.
    pub(crate) fn arm(&self, mishap: Mishap, at: u64, lasts: bool) {
        *lock(&self.0) = Some(Armed { mishap, at, lasts, steps: 0, has_committed: false, happened: Happened::No });
    }

    /// Nothing happens any more; whether anything has.
    pub(crate) fn disarm(&self) -> Happened {
        lock(&self.0).take().map_or(Happened::No, |armed| armed.happened)
    }

    fn note_commit(&self, yes: bool) {
        if let Some(armed) = lock(&self.0).as_mut() {
            armed.has_committed = yes;
        }
    }

    /// Whether the step at hand has to fail.
    fn is_hit(&self, concerns: impl Fn(&Mishap) -> bool) -> bool {
        let mut armed = lock(&self.0);
        let Some(armed) = armed.as_mut().filter(|armed| concerns(&armed.mishap)) else { return false };
        let step = armed.steps;
        armed.steps += 1;
        let is_its_time = step == armed.at || (armed.lasts && step > armed.at);
        if is_its_time && armed.happened == Happened::No {
            armed.happened = if armed.has_committed { Happened::AfterCommit } else { Happened::Yes };
        }
        match &mut armed.mishap {
            Mishap::Look(look) => {
                if is_its_time {
                    look();
                }
                false
            }
            Mishap::Interrupt | Mishap::Deny | Mishap::Veto => is_its_time,
        }
    }
}

/// A bug that could be in the settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The answer does not wait for the commit.
    AnswersBeforeCommit,
    /// Another amount than the order's is as good.
    IgnoresAmount,
    /// Another merchant's word is as good.
    IgnoresMerchant,
    /// A payment may settle a second order.
    IgnoresTrade,
    /// Whatever comes late is credited.
    IgnoresExpiry,
    /// A callback settles although the gateway called the payment frozen.
    IgnoresHold,
    /// Money that is held puts no order into review.
    ForgetsReview,
    /// A second payment of a paid order is credited, too.
    CreditsEveryPayment,
    /// So is the same payment, told again.
    CreditsDuplicates,
    /// The buyer does not hear of it.
    ForgetsMessage,
    /// The message is written before the settlement, in a transaction of its own.
    CommitsInParts,
    /// The receipt is not kept.
    ForgetsReceipt,
    /// What fails half-way stays half-done.
    KeepsHalfOfAFailure,
}

thread_local! {
    /// Whether what is opened by this thread gets hooks.
    static HOOKS_WANTED: Cell<bool> = const { Cell::new(false) };
    /// Whether what is opened by this thread may have any schema: a planted bug takes objects out of it.
    static ANY_SCHEMA: Cell<bool> = const { Cell::new(false) };
    /// The bug of the writer whose thread this is.
    static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
}

fn has(bug: Bug) -> bool {
    BUG.get() == Some(bug)
}

/// Whether the schema of a database is not compared with the known one.
pub(super) fn believes_any_schema() -> bool {
    ANY_SCHEMA.get() || BUG.get().is_some()
}

impl Store {
    /// Opens a database whose writer can be made to fail, with a planted bug if one is wanted.
    pub(crate) async fn open_with_faults(url: &DatabaseUrl, bug: Option<Bug>) -> Result<Self, StoreError> {
        let DatabaseUrl::Sqlite(path) = url.clone();
        let store = blocking(move || {
            HOOKS_WANTED.set(true);
            ANY_SCHEMA.set(bug.is_some());
            let opened = schema::open(&path).and_then(|opened| Self::start(opened, QUEUE_MAX));
            HOOKS_WANTED.set(false);
            ANY_SCHEMA.set(false);
            opened
        })
        .await?;
        if let Some(bug) = bug {
            store.plant(bug).await?;
        }
        Ok(store)
    }

    /// What makes this store's writer fail.
    pub(crate) fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Does something with the writer's own connection, in a transaction.
    pub(crate) async fn on_writer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.write(work).await
    }

    /// Gives this store's settlement a bug. What the schema would not let pass is taken out of it.
    async fn plant(&self, bug: Bug) -> Result<(), StoreError> {
        self.on_writer(move |db| {
            BUG.set(Some(bug));
            db.execute_batch(
                "DROP INDEX IF EXISTS ledger_by_order; DROP INDEX IF EXISTS orders_by_trade;
                 DROP TRIGGER IF EXISTS ledger_is_append_only_replace;
                 DROP TRIGGER IF EXISTS orders_are_not_replaced_by_update;
                 DROP TRIGGER IF EXISTS receipts_are_kept_delete",
            )?;
            Ok(())
        })
        .await
    }
}

/// Settling, or what the planted bug makes of it.
pub(super) fn settle(db: &Connection, claims: &[&Claimed]) -> Result<Vec<Settlement>, StoreError> {
    match claims {
        _ if BUG.get().is_none() => settle::settle(db, claims),
        [claimed] => Ok(vec![settle_wrongly(db, claimed)?]),
        // Whatever fails together is settled one by one.
        _ => Err(StoreError::Closed),
    }
}

fn settle_rightly(db: &Connection, settle: Arc<Settle>, tells_bot: bool) -> Result<Settlement, StoreError> {
    settle::settle(db, &[&Claimed { settle, tells_bot }])?.pop().ok_or(StoreError::Closed)
}

fn settle_wrongly(db: &Connection, claimed: &Claimed) -> Result<Settlement, StoreError> {
    let Claimed { settle, tells_bot } = claimed;
    let tells_bot = *tells_bot;
    let order = db
        .prepare_cached("SELECT amount_fen, merchant, id, telegram_id, credits FROM orders WHERE order_no = ?")?
        .query_row([&settle.claim.order_no], |row| {
            Ok((
                row.get(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, i64>(4)?,
            ))
        })
        .optional();
    let Ok(Some((fen, merchant, order_id, telegram_id, credits))) = order else {
        return settle_rightly(db, Arc::clone(settle), tells_bot);
    };
    let mut wrong = Settle::clone(settle);
    if has(Bug::IgnoresAmount) {
        wrong.claim.amount = crate::domain::money::Amount::from_fen(fen).or(wrong.claim.amount);
    }
    if has(Bug::IgnoresMerchant) {
        wrong.claim.merchant = merchant;
    }
    if has(Bug::IgnoresTrade) {
        wrong.claim.trade_no = wrong.claim.trade_no.map(|trade_no| trade_no + &wrong.claim.order_no);
    }
    if has(Bug::IgnoresExpiry) {
        wrong.policy.late = crate::domain::settlement::LatePolicy::Credit;
    }
    if has(Bug::IgnoresHold) && wrong.claim.proof == ClaimProof::Signature {
        wrong.claim.proof = ClaimProof::Gateway;
    }
    if has(Bug::CommitsInParts) {
        commit_message_first(db, &Arc::new(wrong.clone()), order_id, tells_bot)?;
    }
    let settlement = settle_rightly(db, wrong.into(), tells_bot)?;
    let credits_again = matches!(settlement.outcome, Outcome::PaidAgain) && has(Bug::CreditsEveryPayment)
        || matches!(settlement.outcome, Outcome::Duplicate) && has(Bug::CreditsDuplicates);
    if credits_again {
        let at = settle.receipt.received_at;
        let order_id = Some(order_id);
        ledger::enter(db, &[Entry { telegram_id, kind: "order", credits, order_id, reason: None, at }])?;
    }
    if has(Bug::ForgetsReview) && settlement.outcome == Outcome::Held {
        db.execute("UPDATE orders SET status = 'pending' WHERE id = ? AND status = 'review'", [order_id])?;
    }
    if has(Bug::ForgetsMessage) {
        db.execute("DELETE FROM outbox WHERE order_id = ? AND kind = 'settled'", [order_id])?;
    }
    if has(Bug::ForgetsReceipt) && settlement.outcome != Outcome::Settled {
        db.execute("DELETE FROM receipts WHERE id = (SELECT max(id) FROM receipts)", [])?;
    }
    Ok(settlement)
}

fn commit_message_first(
    db: &Connection,
    settle: &Arc<Settle>,
    order_id: i64,
    tells_bot: bool,
) -> Result<(), StoreError> {
    db.execute_batch("SAVEPOINT look")?;
    let outcome = settle_rightly(db, Arc::clone(settle), tells_bot)?.outcome;
    db.execute_batch("ROLLBACK TO look; RELEASE look")?;
    if outcome == Outcome::Settled {
        let at = settle.receipt.received_at;
        outbox::tell(db, &[Tidings { order_id, news: super::News::Settled, tells_bot, at }])?;
        db.execute_batch("COMMIT; BEGIN IMMEDIATE; SAVEPOINT job")?;
    }
    Ok(())
}

/// What the writer takes the commit's answer for.
pub(super) fn committed(answer: rusqlite::Result<usize>) -> rusqlite::Result<usize> {
    if has(Bug::AnswersBeforeCommit) { Ok(answer.unwrap_or(0)) } else { answer }
}

/// Whether a job that failed is left as it is.
pub(super) fn keeps_half() -> bool {
    has(Bug::KeepsHalfOfAFailure)
}
