//! Where tests make the writer fail: hooks of the engine that do nothing until something is armed, and settlements that are wrong on
//! purpose, so that the tests themselves can be tested. Not part of the program.

use std::sync::{Arc, Mutex};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};
use rusqlite::{Connection, OptionalExtension};

use super::ledger::{self, Entry};
use super::outbox::{self, Tidings};
use super::schema::{self, SchemaRule};
use super::settle::{self, Claimed};
use super::steps::Steps;
use super::{OpenError, QUEUE_MAX, Settle, Settlement, Sqlite, StoreError, blocking};
use crate::config::DatabaseUrl;
use crate::domain::ledger::EntryKind;
use crate::domain::outcome::Outcome;
use crate::domain::settlement::ClaimProof;
use crate::store::{Engine, News, Store};
use crate::sync::lock;

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
    /// Puts hooks into a writer's connection. The engine calls them at every step.
    fn install(connection: &mut Connection) -> rusqlite::Result<Self> {
        let faults = Self::default();
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
        Ok(faults)
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

impl Store {
    /// Opens a database whose writer can be made to fail, with a planted bug if one is wanted.
    pub(crate) async fn open_with_faults(
        url: &DatabaseUrl,
        bug: Option<Bug>,
        tells_bot: bool,
    ) -> Result<(Self, Faults), OpenError> {
        let DatabaseUrl::Sqlite(path) = url.clone();
        let (sqlite, faults) = blocking(move || {
            let rule = if bug.is_some() { SchemaRule::Any } else { SchemaRule::Exact };
            let (mut connection, place) = schema::open(&path, rule)?;
            if bug.is_some() {
                allow_bugs(&connection)?;
            }
            let faults = Faults::install(&mut connection)?;
            let sqlite = Sqlite::start((connection, place), QUEUE_MAX, bug.map_or_else(Steps::default, Bug::steps))?;
            Ok::<_, OpenError>((sqlite, faults))
        })
        .await?;
        Ok((Self { engine: Engine::Sqlite(sqlite.into()), tells_bot: Arc::new(tells_bot.into()) }, faults))
    }

    /// Does something with the writer's own connection, in a transaction.
    pub(crate) async fn on_writer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let Engine::Sqlite(sqlite) = &self.engine;
        sqlite.write(work).await
    }
}

/// Takes the objects out of the schema that would not let a bug pass.
fn allow_bugs(db: &Connection) -> rusqlite::Result<()> {
    db.execute_batch(
        "DROP INDEX IF EXISTS ledger_by_order; DROP INDEX IF EXISTS orders_by_trade;
         DROP TRIGGER IF EXISTS ledger_is_append_only_replace;
         DROP TRIGGER IF EXISTS orders_are_not_replaced_by_update;
         DROP TRIGGER IF EXISTS receipts_are_kept_delete",
    )
}

impl Bug {
    /// The writer's steps with this bug in them.
    fn steps(self) -> Steps {
        let right = Steps::default();
        Steps {
            settle: Arc::new(move |db, claims| match claims {
                [claimed] => Ok(vec![self.settle_wrongly(db, claimed)?]),
                // A batch that fails together is settled claim by claim.
                _ => Err(StoreError::Closed),
            }),
            undo: if self == Self::KeepsHalfOfAFailure { |_| () } else { right.undo },
            commit: if self == Self::AnswersBeforeCommit { commit_and_say_yes } else { right.commit },
        }
    }

    fn settle_wrongly(self, db: &Connection, claimed: &Claimed) -> Result<Settlement, StoreError> {
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
        if self == Self::IgnoresAmount {
            wrong.claim.amount = crate::domain::money::Amount::from_fen(fen).or(wrong.claim.amount);
        }
        if self == Self::IgnoresMerchant {
            wrong.claim.merchant = merchant;
        }
        if self == Self::IgnoresTrade {
            wrong.claim.trade_no = wrong.claim.trade_no.map(|trade_no| trade_no + &wrong.claim.order_no);
        }
        if self == Self::IgnoresExpiry {
            wrong.policy.late = crate::domain::settlement::LatePolicy::Credit;
        }
        if self == Self::IgnoresHold && wrong.claim.proof == ClaimProof::Signature {
            wrong.claim.proof = ClaimProof::Gateway;
        }
        if self == Self::CommitsInParts {
            commit_message_first(db, &Arc::new(wrong.clone()), order_id, tells_bot)?;
        }
        let settlement = settle_rightly(db, wrong.into(), tells_bot)?;
        let credits_again = matches!(settlement.outcome, Outcome::PaidAgain) && self == Self::CreditsEveryPayment
            || matches!(settlement.outcome, Outcome::Duplicate) && self == Self::CreditsDuplicates;
        if credits_again {
            let at = settle.receipt.received_at;
            let order_id = Some(order_id);
            ledger::enter(db, &[Entry { telegram_id, kind: EntryKind::Order, credits, order_id, reason: None, at }])?;
        }
        if self == Self::ForgetsReview && settlement.outcome == Outcome::Held {
            db.execute("UPDATE orders SET status = 'pending' WHERE id = ? AND status = 'review'", [order_id])?;
        }
        if self == Self::ForgetsMessage {
            db.execute("DELETE FROM outbox WHERE order_id = ? AND kind = 'settled'", [order_id])?;
        }
        if self == Self::ForgetsReceipt && settlement.outcome != Outcome::Settled {
            db.execute("DELETE FROM receipts WHERE id = (SELECT max(id) FROM receipts)", [])?;
        }
        Ok(settlement)
    }
}

fn settle_rightly(db: &Connection, settle: Arc<Settle>, tells_bot: bool) -> Result<Settlement, StoreError> {
    settle::settle(db, &[&Claimed { settle, tells_bot }])?.pop().ok_or(StoreError::Closed)
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
        outbox::tell(db, &[Tidings { order_id, news: News::Settled, tells_bot, at }])?;
        db.execute_batch("COMMIT; BEGIN IMMEDIATE; SAVEPOINT job")?;
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "it stands for a step that can fail")]
fn commit_and_say_yes(db: &Connection) -> rusqlite::Result<()> {
    let _ = db.execute_batch("COMMIT");
    Ok(())
}
