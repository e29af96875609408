//! One run: each write is done by the store and by the model, with or without something going wrong in it, and the two compared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::Connection;

use super::model::{FAILED, Model};
use super::ops::{Meaning, Op, REJECTIONS};
use super::outside::Outside;
use super::random::Random;
use super::world::{FileCopy, Rest, Settings, World};
use crate::store::Store;
use crate::store::audit::Finding as AuditFinding;
use crate::store::sqlite::faults::{Faults, Happened, Mishap};

/// What goes wrong while something is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    None,
    /// The engine is interrupted at a step, or at all from that one on.
    Interrupt {
        at: u64,
        lasts: bool,
    },
    /// The engine prepares no more statements.
    Deny {
        at: u64,
        lasts: bool,
    },
    /// The engine does not commit.
    Veto,
    /// Another process has the lock.
    Locked,
    /// The disk has room for so many pages more.
    Full {
        pages: i64,
    },
    /// The process is killed at a step.
    Crash {
        at: u64,
    },
    /// The power goes while the commit is being written: so much of it, in hundredths, is on the disk.
    Torn {
        percent: u64,
        rest: Rest,
    },
}

/// What is in the writer's way.
pub(super) enum Hindrance {
    Locked(Connection),
    Full,
    Armed,
}

/// What was wrong with a run.
#[derive(Debug)]
pub(super) struct Broken(pub(super) String);

pub(super) type Step<T = ()> = Result<T, Broken>;

/// How much was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) steps: u64,
    pub(super) failures: u64,
    pub(super) crashes: u64,
    /// How often each of the other sides was asked or told something.
    pub(super) contacts: BTreeMap<&'static str, u64>,
    /// How often a claim had each outcome.
    pub(super) outcomes: BTreeMap<String, u64>,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.failures += other.failures;
        self.crashes += other.crashes;
        for (whom, times) in other.contacts {
            *self.contacts.entry(whom).or_default() += times;
        }
        for (outcome, times) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += times;
        }
    }
}

/// The store beside its model.
pub(super) struct Run {
    world: Option<World>,
    pub(super) model: Model,
    /// What happened, for a person to read.
    pub(super) log: Vec<String>,
    pub(super) tally: Tally,
    /// Messages that their addressees have, by order, kind and channel.
    pub(super) delivered: BTreeSet<(String, String, String)>,
    /// How many of the receipts the operator knows, as far as they are trouble.
    pub(super) told: usize,
    /// Orders of which somebody was told that they are settled.
    acknowledged: BTreeSet<String>,
}

impl Run {
    pub(super) async fn new(settings: Settings, outside: Outside) -> Self {
        Self {
            world: Some(World::new(settings, outside).await),
            model: Model::new(settings.late),
            log: vec![format!("{settings:?}")],
            tally: Tally::default(),
            delivered: BTreeSet::new(),
            told: 0,
            acknowledged: BTreeSet::new(),
        }
    }

    /// With a database of the first version, in which an order waits.
    pub(super) async fn of_version_1(settings: Settings, outside: Outside, create: &Op) -> Self {
        let mut run = Self {
            world: Some(World::of_version_1(settings, outside).await),
            model: Model::new(settings.late),
            log: vec![format!("{settings:?}")],
            tally: Tally::default(),
            delivered: BTreeSet::new(),
            told: 0,
            acknowledged: BTreeSet::new(),
        };
        run.model = run.model.apply(create).swap_remove(0).1;
        run
    }

    /// The power goes while the database is being made, or brought up to date.
    pub(super) async fn cut_off_the_opening(&mut self, percent: u64, rest: Rest) -> Step {
        self.expect_unchanged("after the opening")?;
        let copy = FileCopy::of(&self.world().path());
        let before = copy.without_log();
        let copy = copy.cut_off(&before, percent, rest).expect("opening wrote something");
        self.recover(copy, None).await
    }

    pub(super) fn world_mut(&mut self) -> &mut World {
        self.world.as_mut().expect("there is one between two steps")
    }

    pub(super) fn world(&self) -> &World {
        self.world.as_ref().expect("there is one between two steps")
    }

    pub(super) fn tell_bot(&mut self, yes: bool) {
        self.log.push(format!("tell the bot: {yes}"));
        self.world.as_mut().unwrap().tell_bot(yes);
        self.model.tells_bot = yes;
    }

    /// Does a write until it is done, whatever goes wrong the first time; what it answers then.
    pub(super) async fn step(&mut self, op: Op, trouble: Trouble) -> Step<String> {
        self.tally.steps += 1;
        self.log.push(format!("{op:?}"));
        if !matches!(trouble, Trouble::None) {
            self.log.push(format!("  with {trouble:?}"));
        }
        let reply = match self.attempt(&op, trouble).await? {
            Some(reply) => reply,
            None => self.plain(&op).await?,
        };
        self.log.push(format!("  {reply}"));
        if let Op::Notify { .. } | Op::Settle { .. } = op {
            *self.tally.outcomes.entry(reply.clone()).or_default() += 1;
        }
        Ok(reply)
    }

    /// Does a write once, in trouble: its answer, or `None` where it was not done, or nobody has heard of it.
    pub(super) async fn attempt(&mut self, op: &Op, trouble: Trouble) -> Step<Option<String>> {
        match trouble {
            Trouble::None => self.plain(op).await.map(Some),
            Trouble::Crash { at } => self.crash_at(op, at).await,
            Trouble::Torn { percent, rest } => self.tear(op, percent, rest).await,
            Trouble::Interrupt { .. }
            | Trouble::Deny { .. }
            | Trouble::Veto
            | Trouble::Locked
            | Trouble::Full { .. } => {
                let (reply, happened) = self.in_trouble(op, trouble).await;
                if reply == FAILED {
                    self.tally.failures += 1;
                    self.expect_before_or_after(op, happened == Happened::AfterCommit, "after a failure")?;
                    return Ok(None);
                }
                self.accept(op, reply).await.map(Some)
            }
        }
    }

    /// Whether it can be made to fail: rejections are written when there is time, and nobody hears of it.
    pub(super) fn can_fail(&self, op: &Op) -> bool {
        !self.model.apply(op).iter().any(|(reply, _)| REJECTIONS.contains(&reply.as_str()))
    }

    /// Does several writes in one transaction, and again those that failed.
    pub(super) async fn together(&mut self, ops: &[Op], trouble: Trouble) -> Step {
        self.tally.steps += 1;
        self.log.push(format!("together with {trouble:?}: {ops:#?}"));
        let mishap = mishap(trouble);
        let replies = self.world().run_together(ops, move |faults| arm(faults, mishap)).await;
        let happened = self.world().faults().disarm();
        self.write_rejections().await?;
        self.log.push(format!("  {replies:?}"));
        if happened == Happened::AfterCommit && replies.iter().all(|reply| reply == FAILED) {
            let first = |model: Model, op| model.apply(op).swap_remove(0).1;
            let after = ops.iter().fold(self.model.clone(), first);
            if after.books == self.world().books() {
                self.model = after;
            }
        }
        let mut failed = Vec::new();
        for (op, reply) in ops.iter().zip(replies) {
            if reply == FAILED {
                self.tally.failures += 1;
                failed.push(op);
                continue;
            }
            // What comes last has to fit the books, and each before it no more than its reply.
            let outcomes = self.model.apply(op);
            let Some((_, after)) = outcomes.into_iter().find(|(expected, _)| *expected == reply) else {
                return Err(Broken(format!("{reply} is no answer to {op:?}")));
            };
            self.model = after;
        }
        self.expect_unchanged("after several at once")?;
        for op in failed {
            self.plain(op).await?;
        }
        Ok(())
    }

    pub(super) async fn write_rejections(&self) -> Step {
        let written = self.world().write_rejections().await;
        written.map_err(|error| Broken(format!("the writer does not work any more: {error}")))
    }

    async fn plain(&mut self, op: &Op) -> Step<String> {
        let reply = self.world().run(op).await;
        self.accept(op, reply).await
    }

    /// Compares a reply, and the books after it, with the model's.
    async fn accept(&mut self, op: &Op, reply: String) -> Step<String> {
        self.write_rejections().await?;
        let found = self.world().books();
        let outcomes = self.model.apply(op);
        let expected: Vec<_> = outcomes.iter().map(|(reply, _)| reply.as_str()).collect();
        let candidates = || outcomes.iter().filter(|(expected, _)| *expected == reply);
        if let Some((_, after)) = candidates().find(|(_, after)| after.books == found) {
            self.model = after.clone();
            self.remember(op, &reply);
            return match found.lost_money() {
                Some(lost) => Err(Broken(format!("proved money that nobody hears of: {lost}"))),
                None => Ok(reply),
            };
        }
        match candidates().next() {
            None => Err(Broken(format!("answered {reply:?}, and not {expected:?}"))),
            Some((_, after)) => {
                let difference = after.books.difference(&found).unwrap_or_default();
                Err(Broken(format!("answered {reply:?}, with these books (- expected, + found):\n{difference}")))
            }
        }
    }

    /// What was answered may never be untrue again.
    fn remember(&mut self, op: &Op, reply: &str) {
        if matches!(reply, "settled" | "duplicate" | "paid_again")
            && let Some(order_no) = order_of(op)
        {
            self.acknowledged.insert(order_no);
        }
    }

    pub(super) fn expect_unchanged(&self, when: &str) -> Step {
        match self.model.books.difference(&self.world().books()) {
            None => Ok(()),
            Some(difference) => Err(Broken(format!("other books {when} (- expected, + found):\n{difference}"))),
        }
    }

    /// Does a write once, in trouble.
    async fn in_trouble(&self, op: &Op, trouble: Trouble) -> (String, Happened) {
        let hindrance = self.hinder(trouble).await;
        let reply = self.world().run(op).await;
        (reply, self.relieve(hindrance).await)
    }

    /// Gets the writer into trouble.
    pub(super) async fn hinder(&self, trouble: Trouble) -> Hindrance {
        let world = self.world();
        match trouble {
            Trouble::Locked => {
                self.set_busy_timeout(Duration::ZERO).await;
                let other = Connection::open(world.path()).unwrap();
                other.execute_batch("BEGIN IMMEDIATE").unwrap();
                Hindrance::Locked(other)
            }
            Trouble::Full { pages } => {
                let beside = Connection::open(world.path()).unwrap();
                let size: i64 = beside.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
                self.set_pages_max(size + pages).await;
                Hindrance::Full
            }
            trouble => {
                if let Trouble::Deny { .. } = trouble {
                    let forget = |db: &Connection| {
                        db.flush_prepared_statement_cache();
                        Ok(())
                    };
                    world.store().on_writer(forget).await.unwrap();
                }
                arm(world.faults(), mishap(trouble));
                Hindrance::Armed
            }
        }
    }

    /// Takes the writer out of trouble.
    pub(super) async fn relieve(&self, hindrance: Hindrance) -> Happened {
        match hindrance {
            Hindrance::Locked(other) => {
                other.execute_batch("ROLLBACK").unwrap();
                self.set_busy_timeout(Duration::from_secs(2)).await;
                Happened::Yes
            }
            Hindrance::Full => {
                self.set_pages_max(1_000_000_000).await;
                Happened::Yes
            }
            Hindrance::Armed => self.world().faults().disarm(),
        }
    }

    async fn set_busy_timeout(&self, time: Duration) {
        let set = move |db: &Connection| {
            db.busy_timeout(time)?;
            Ok(())
        };
        self.world().store().on_writer(set).await.unwrap();
    }

    async fn set_pages_max(&self, pages: i64) {
        let set = move |db: &Connection| {
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
            Ok(())
        };
        self.world().store().on_writer(set).await.unwrap();
    }

    /// Kills the process in the middle of a write.
    async fn crash_at(&mut self, op: &Op, at: u64) -> Step<Option<String>> {
        let copy = self.copy_at(at);
        let reply = self.world().run(op).await;
        self.world().faults().disarm();
        let Some(copy) = copy.lock().unwrap().take() else {
            // It had fewer steps.
            return self.accept(op, reply).await.map(Some);
        };
        self.recover(copy, Some(op)).await?;
        Ok(None)
    }

    /// Has the files copied at a step of the writer.
    pub(super) fn copy_at(&self, at: u64) -> Arc<Mutex<Option<FileCopy>>> {
        let copy: Arc<Mutex<Option<FileCopy>>> = Arc::default();
        let (path, kept) = (self.world().path(), Arc::clone(&copy));
        let look = Mishap::Look(Box::new(move || *kept.lock().unwrap() = Some(FileCopy::of(&path))));
        self.world().faults().arm(look, at, false);
        copy
    }

    /// The power goes in the middle of a commit.
    async fn tear(&mut self, op: &Op, percent: u64, rest: Rest) -> Step<Option<String>> {
        let before = FileCopy::of(&self.world().path());
        let reply = self.world().run(op).await;
        let Some(copy) = FileCopy::of(&self.world().path()).cut_off(&before, percent, rest) else {
            return self.accept(op, reply).await.map(Some);
        };
        self.recover(copy, None).await?;
        Ok(None)
    }

    /// Goes on with what was on the disk: the books before, or (where that may be) those after `op`.
    async fn recover(&mut self, copy: FileCopy, op: Option<&Op>) -> Step {
        self.go_on_with(copy).await;
        match op {
            Some(op) => self.expect_before_or_after(op, true, "after a crash"),
            None => self.expect_unchanged("after a crash"),
        }
    }

    pub(super) async fn go_on_with(&mut self, copy: FileCopy) {
        self.tally.crashes += 1;
        let world = self.world.take().unwrap().recover(copy).await;
        self.world = Some(world);
    }

    /// The books must be as before, or (where that `may_be`) as after `op`, and nothing between.
    fn expect_before_or_after(&mut self, op: &Op, may_be: bool, when: &str) -> Step {
        let found = self.world().books();
        if may_be && let Some((_, after)) = self.model.apply(op).into_iter().find(|(_, after)| after.books == found) {
            self.model = after;
        }
        self.expect_unchanged(when)
    }

    /// Kills the process while nothing is being written.
    pub(super) async fn crash(&mut self) -> Step {
        self.log.push("crash".into());
        let copy = FileCopy::of(&self.world().path());
        self.recover(copy, None).await
    }

    /// From now on, for a while, two processes write, as when one takes over from another.
    pub(super) async fn begin_handover(&mut self) {
        self.log.push("handover".into());
        self.world.as_mut().unwrap().begin_handover().await;
    }

    pub(super) async fn end_handover(&mut self) -> Step {
        self.log.push("end of the handover".into());
        self.world.as_mut().unwrap().end_handover().await;
        self.expect_unchanged("after the handover")
    }

    /// Which of the processes does the next write.
    pub(super) fn turn_to(&mut self, process: usize) {
        self.world.as_mut().unwrap().turn_to(process);
    }

    /// The log is copied into the database, and the power goes in the middle of that: some pages are there and others are not.
    pub(super) async fn crash_in_checkpoint(&mut self, random: &mut Random) -> Step {
        self.log.push("crash in a checkpoint".into());
        let before = FileCopy::of(&self.world().path());
        self.world().checkpoint();
        let copy = FileCopy::of(&self.world().path()).half_copied(&before, random);
        self.recover(copy, None).await
    }

    pub(super) fn checkpoint(&mut self) -> Step {
        self.log.push("checkpoint".into());
        self.world().checkpoint();
        self.expect_unchanged("after a checkpoint")
    }

    pub(super) async fn reopen(&mut self) -> Step {
        self.log.push("reopen".into());
        let world = self.world.take().unwrap().reopen().await;
        self.world = Some(world);
        self.expect_unchanged("after opening it again")
    }

    /// What must hold at the end, whatever the model thinks: said of the books alone.
    pub(super) async fn conclude(mut self, has_bug: bool) -> Step<(Vec<String>, Tally)> {
        let books = self.world().books();
        for order_no in &self.acknowledged {
            let status = books.orders.get(order_no).map(|order| order.status.as_str());
            if !matches!(status, Some("paid" | "refunded")) {
                return Err(Broken(format!("{order_no} was told to be settled, and is {status:?}")));
            }
        }
        for (user, balance) in &books.balances {
            let sold: i64 =
                books.orders.values().filter(|o| o.user == *user && o.status == "paid").map(|o| o.credits).sum();
            let own = books.ledger.iter().filter(|entry| entry.user == *user && entry.order_no.is_none());
            let others: i64 = own.map(|entry| entry.credits).sum();
            if sold + others != *balance {
                return Err(Broken(format!("{user} has {balance}, and not {sold} + {others}")));
            }
        }
        let audit = Store::audit(&self.world().url(), |_, _| {}).await.map_err(|error| Broken(error.to_string()))?;
        let findings: Vec<&AuditFinding> = audit
            .checks
            .iter()
            // A planted bug takes its obstacles out of the schema.
            .filter(|check| check.name.name() != "paid_again" && !(has_bug && check.name.name() == "schema"))
            .flat_map(|check| &check.rows)
            .collect();
        if !findings.is_empty() {
            return Err(Broken(format!("the audit finds {findings:?}")));
        }
        self.world.take().unwrap().close().await;
        Ok((self.log, self.tally))
    }
}

fn order_of(op: &Op) -> Option<String> {
    match op {
        Op::Notify { meaning: Meaning::Genuine(told) | Meaning::Damaged(told), .. } => Some(told.order_no.clone()),
        Op::Settle { settle } => Some(settle.claim.order_no.clone()),
        _ => None,
    }
}

fn mishap(trouble: Trouble) -> Option<(Mishap, u64, bool)> {
    match trouble {
        Trouble::Interrupt { at, lasts } => Some((Mishap::Interrupt, at, lasts)),
        Trouble::Deny { at, lasts } => Some((Mishap::Deny, at, lasts)),
        Trouble::Veto => Some((Mishap::Veto, 0, false)),
        _ => None,
    }
}

fn arm(faults: &Faults, mishap: Option<(Mishap, u64, bool)>) {
    if let Some((mishap, at, lasts)) = mishap {
        faults.arm(mishap, at, lasts);
    }
}

/// Something that may go wrong with a write.
pub(super) fn any_trouble(random: &mut Random) -> Trouble {
    let lasts = random.chance(30);
    // Small writes have some fifty steps, a settlement has several hundred.
    let any_step = |random: &mut Random| {
        let limit = 2 << random.below(9);
        random.below(limit)
    };
    match random.below(10) {
        0..=2 => Trouble::Interrupt { at: any_step(random), lasts },
        3 => Trouble::Deny { at: random.below(90), lasts },
        4 => Trouble::Veto,
        5 => Trouble::Locked,
        6 => Trouble::Full { pages: random.between(0, 3) },
        7 | 8 => Trouble::Crash { at: any_step(random) },
        _ => {
            Trouble::Torn { percent: random.below(100), rest: *random.pick(&[Rest::Old, Rest::Nothing, Rest::Rubbish]) }
        }
    }
}
