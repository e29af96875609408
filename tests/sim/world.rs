//! The real store on real files, with the real way of a notification before it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::books::Books;
use super::model::{FAILED, listed};
use super::ops::{Key, Op};
use super::outside::Outside;
use super::process::{Act, Process, ServiceBug};
use super::random::Random;
use crate::config::DatabaseUrl;
use crate::domain::decisions::{RefundState, Refused};
use crate::domain::outcome::NotificationOutcome;
use crate::domain::settlement::LatePolicy;
use crate::server::Notify;
use crate::store::sqlite::faults::{Bug, Faults};
use crate::store::{
    AccountError, Answered, Booked, ByHand, Cause, Creation, DecisionError, DeliveryFilter, Grant, Idempotency,
    Receipt, Refund, Spend, Store, StoreError,
};

/// Why a person does what a person does.
pub(super) const REASON: &str = "because";
/// How long a message that is claimed stays away.
const LEASE: Duration = Duration::from_millis(super::model::LEASE_MS as u64);

/// What outlives a crash: the settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) late: LatePolicy,
    pub(super) tells_bot: bool,
    pub(super) bug: Option<Bug>,
    pub(super) service_bug: Option<ServiceBug>,
    pub(super) seed: u64,
}

/// The merchants: V1 with a key and the one before it, and a gateway that can be asked, V1 from some addresses only, V2, and V1 once more.
pub(super) const MERCHANTS: [&str; 4] = ["1002", "1003", "1004", "1005"];
pub(super) const KEY_PREVIOUS: &str = "the key of 1002 before";

/// Whether the merchant's gateway can be asked about an order.
pub(super) fn can_be_asked(merchant: &str) -> bool {
    merchant == "1002"
}

pub(super) fn key_of(merchant: &str) -> String {
    format!("the key of {merchant}")
}

/// Memory where there is any: a disk's flushes are not what is looked for.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let within = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("webhookctl-sim-").tempdir_in(within).unwrap()
}

/// The processes that write to a file (two of them while one takes over from the other), and a look past them at it.
pub(super) struct World {
    processes: Vec<Process>,
    /// The one whose turn it is.
    turn: usize,
    settings: Settings,
    pub(super) outside: Outside,
    beside: Connection,
    directory: TempDir,
}

impl World {
    pub(super) async fn new(settings: Settings, outside: Outside) -> Self {
        Self::open(directory(), settings, outside).await
    }

    async fn open(directory: TempDir, settings: Settings, outside: Outside) -> Self {
        let path = directory.path().join(FILE);
        let processes = vec![Process::start(&path, settings, &outside).await];
        let beside = Connection::open(&path).unwrap();
        beside.pragma_update(None, "query_only", true).unwrap();
        Self { processes, turn: 0, settings, outside, beside, directory }
    }

    /// A database that an earlier version of the program has left, brought up to date.
    pub(super) async fn of_version_1(settings: Settings, outside: Outside) -> Self {
        let directory = directory();
        let db = Connection::open(directory.path().join(FILE)).unwrap();
        db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).unwrap();
        db.execute_batch(include_str!("../../src/store/sqlite/schema.sql")).unwrap();
        db.execute_batch(VERSION_1).unwrap();
        db.close().unwrap();
        Self::open(directory, settings, outside).await
    }

    pub(super) fn store(&self) -> &Store {
        &self.processes[self.turn].store
    }

    pub(super) async fn begin_handover(&mut self) {
        if self.processes.len() == 1 {
            self.processes.push(Process::start(&self.path(), self.settings, &self.outside).await);
        }
    }

    pub(super) async fn end_handover(&mut self) {
        while self.processes.len() > 1 {
            self.processes.remove(0).end().await;
        }
        self.turn = 0;
    }

    /// Copies the log into the database, as far as nobody is in the way.
    pub(super) fn checkpoint(&self) {
        let db = Connection::open(self.path()).unwrap();
        db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    }

    pub(super) fn turn_to(&mut self, process: usize) {
        self.turn = process % self.processes.len();
    }

    pub(super) fn url(&self) -> DatabaseUrl {
        DatabaseUrl::Sqlite(self.path())
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join(FILE)
    }

    /// The faults of the process whose turn it is.
    pub(super) fn faults(&self) -> &Faults {
        &self.processes[self.turn].faults
    }

    pub(super) fn books(&self) -> Books {
        Books::read(&self.beside).unwrap()
    }

    pub(super) fn tell_bot(&mut self, yes: bool) {
        self.settings.tells_bot = yes;
        for process in &self.processes {
            process.store.tell_bot(yes);
        }
    }

    /// Ends as a service does that is told to.
    pub(super) async fn close(self) -> (TempDir, Settings, Outside) {
        drop(self.beside);
        for process in self.processes {
            process.end().await;
        }
        (self.directory, self.settings, self.outside)
    }

    pub(super) async fn reopen(self) -> Self {
        let (directory, settings, outside) = self.close().await;
        Self::open(directory, settings, outside).await
    }

    /// Goes on with a copy of the files, as a process does after the one before it was killed.
    pub(super) async fn recover(self, copy: FileCopy) -> Self {
        let (_, settings, outside) = self.close().await;
        let directory = directory();
        copy.write_to(directory.path());
        Self::open(directory, settings, outside).await
    }

    /// Does one write, and says in a word or more how it went.
    pub(super) async fn run(&self, op: &Op) -> String {
        let Process { store, notify, .. } = &self.processes[self.turn];
        run(store, notify, op).await
    }

    /// The process whose turn it is.
    pub(super) fn process(&mut self) -> &mut Process {
        &mut self.processes[self.turn]
    }

    pub(super) fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.processes.iter_mut()
    }

    /// Has the process do something by itself, and says what it took in hand.
    pub(super) async fn act(&mut self, act: &Act) -> String {
        if let Act::Deliver { part, .. } | Act::Ask { part, .. } | Act::TellOperator { part } = act {
            self.outside.expect(part.clone());
        }
        self.processes[self.turn].act(act).await
    }

    /// Rejections wait for company; this is some.
    pub(super) async fn write_rejections(&self) -> Result<(), StoreError> {
        self.store().probe().await
    }

    /// Does several writes in one transaction, in this order; `arm` comes before it.
    pub(super) async fn run_together(&self, ops: &[Op], arm: impl FnOnce(&Faults)) -> Vec<String> {
        let (entered, inside) = tokio::sync::oneshot::channel();
        let (open, gate) = std::sync::mpsc::channel();
        let store = self.store().clone();
        let doorkeeper = tokio::spawn(async move {
            let guard = store.on_writer(move |_| {
                let _ = entered.send(());
                let _ = gate.recv();
                Ok(())
            });
            // It writes nothing: if the mishap is its own, so be it.
            let _ = guard.await;
        });
        // From now on the writer is busy, and what comes queues up.
        inside.await.unwrap();
        let mut running = tokio::task::JoinSet::new();
        for (number, op) in ops.iter().cloned().enumerate() {
            let (store, notify) = (self.store().clone(), Arc::clone(&self.processes[self.turn].notify));
            running.spawn(async move { (number, run(&store, &notify, &op).await) });
        }
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        arm(self.faults());
        open.send(()).unwrap();
        let mut replies = running.join_all().await;
        doorkeeper.await.unwrap();
        replies.sort();
        replies.into_iter().map(|(_, reply)| reply).collect()
    }
}

/// What the first version of the program has written.
const VERSION_1: &str = "
    PRAGMA application_id = 0x77686b63;
    PRAGMA user_version = 1;
    INSERT INTO users (telegram_id, created_at_ms) VALUES (1001, 1767323045000);
    INSERT INTO orders (order_no, merchant, telegram_id, name, type, amount_fen, credits, created_at_ms, expires_at_ms)
        VALUES ('A1', '1002', 1001, 'VIP', 'alipay', 3600, 70, 1767323045000, 1767324845000);
";

const FILE: &str = "sim.db";
const PAGE_BYTES: usize = 4096;

/// What is on the disk where a write did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Old,
    Nothing,
    Rubbish,
}

/// The files as they were at some moment.
#[derive(Clone, Debug)]
pub(super) struct FileCopy {
    database: Vec<u8>,
    log: Vec<u8>,
}

impl FileCopy {
    /// Reading them here takes away the locks that this process holds on them. Nobody else is there to notice, and SQLite
    /// remembers its own.
    pub(super) fn of(path: &Path) -> Self {
        let log = path.with_file_name(format!("{FILE}-wal"));
        Self { database: fs::read(path).unwrap(), log: fs::read(log).unwrap_or_default() }
    }

    /// These files while what is different from `before` was being written: so many hundredths of it are there, and behind them what
    /// was there before, or nothing, or rubbish. `None` where nothing was written to the log.
    pub(super) fn cut_off(mut self, before: &Self, percent: u64, rest: Rest) -> Option<Self> {
        let old = |at: usize| before.log.get(at).copied();
        let is_new = |at: &usize| old(*at) != Some(self.log[*at]);
        let first = (0..self.log.len()).find(is_new)?;
        let last = (0..self.log.len()).rfind(is_new)?;
        let arrived = first + (last - first) * usize::try_from(percent).unwrap() / 100;
        self.database.clone_from(&before.database);
        match rest {
            Rest::Old => {
                self.log.truncate(arrived);
                self.log.extend(before.log.iter().skip(arrived));
            }
            Rest::Nothing => self.log.truncate(arrived),
            Rest::Rubbish => self.log.iter_mut().skip(arrived).for_each(|byte| *byte ^= 0x5a),
        }
        Some(self)
    }

    /// These files while pages were being copied into the database: some have arrived, and the log is as it was `before`.
    pub(super) fn half_copied(mut self, before: &Self, random: &mut Random) -> Self {
        self.log.clone_from(&before.log);
        let old = before.database.chunks(PAGE_BYTES).map(Some).chain(std::iter::repeat(None));
        let new = self.database.chunks(PAGE_BYTES);
        // The file grows as far as its last page; what has not arrived there is empty.
        let pages = new.zip(old).map(|(new, old)| match old {
            _ if random.chance(50) => new.to_vec(),
            Some(old) => old.to_vec(),
            None => vec![0; new.len()],
        });
        self.database = pages.collect::<Vec<_>>().concat();
        self
    }

    /// The database alone, as before anything was written to the log.
    pub(super) fn without_log(&self) -> Self {
        Self { database: self.database.clone(), log: Vec::new() }
    }

    fn write_to(&self, directory: &Path) {
        fs::write(directory.join(FILE), &self.database).unwrap();
        fs::write(directory.join(format!("{FILE}-wal")), &self.log).unwrap();
    }
}

async fn run(store: &Store, notify: &Notify, op: &Op) -> String {
    let done = |()| "done".to_owned();
    let result = match op.clone() {
        Op::Create { order, ask_at, key } => {
            let creation = Creation { order, language: None, ask_at, idempotency: key.map(idempotency) };
            let created = store.create_order(creation).await.map_err(name_of);
            created.map(|created| if created.repeated { "repeated" } else { "created" }.to_owned())
        }
        Op::Notify { payload, client, at, .. } => {
            let receipt = Receipt { received_at: at, client: Some(client), method: "GET", payload: payload.0 };
            match notify.take(receipt, client).await {
                NotificationOutcome::Unanswered(_) => Ok(FAILED.to_owned()),
                outcome => Ok(outcome.name().to_owned()),
            }
        }
        Op::Settle { settle } => {
            store.settle(settle).await.map_err(name_of).map(|settlement| settlement.outcome.name().to_owned())
        }
        Op::KeepAnswer { order_no, at, answer, hold } => {
            let answered = Answered { order_no, at, cause: Cause::Reconcile, answer, detail: String::new(), hold };
            store.keep_answer(answered).await.map_err(name_of).map(done)
        }
        Op::Schedule { order_no, step, next } => {
            store.schedule_question(order_no, step, next).await.map_err(name_of).map(done)
        }
        Op::DueQuestions { merchant, now, limit } => {
            store.due_questions(merchant, now, limit).await.map_err(name_of).map(|due| {
                listed(due.into_iter().map(|question| format!("{}/{}", question.order.terms.order_no, question.step)))
            })
        }
        Op::SettleByHand { order_no, payment, at } => {
            store.settle_by_hand(by_hand(order_no, at), payment).await.map_err(name_of).map(|_| "done".to_owned())
        }
        Op::Cancel { order_no, at } => {
            store.cancel(by_hand(order_no, at)).await.map_err(name_of).map(|_| "done".to_owned())
        }
        Op::Acknowledge { order_no, at } => {
            store.acknowledge(by_hand(order_no, at), None).await.map_err(name_of).map(listed)
        }
        Op::BeginRefund { order_no, even_if_spent, at } => {
            let begun = store.begin_refund(by_hand(order_no, at), even_if_spent).await.map_err(name_of);
            begun.map(|(Refund { state, .. }, is_new)| match (state, is_new) {
                (RefundState::Requested, true) => "requested".to_owned(),
                (state, _) => format!("{state} before"),
            })
        }
        Op::RefundAnswered { order_no, state, answer, at } => {
            store.refund_answered(order_no, state, answer, at).await.map_err(name_of).map(done)
        }
        Op::FinishRefund { order_no, answer, proved, at } => store
            .finish_refund(order_no, answer, proved, at)
            .await
            .map_err(name_of)
            .map(|order| order.stored_status.to_string()),
        Op::Grant { user, credits, key, at } => {
            let grant = Grant { telegram_id: user, credits, reason: REASON.into(), at };
            match key {
                None => store.grant(grant).await.map_err(name_of).map(|user| format!("booked, {}", user.credits)),
                Some(key) => store.grant_once(grant, idempotency(key)).await.map_err(name_of).map(booked),
            }
        }
        Op::Spend { user, credits, key, at } => {
            let spend = Spend { telegram_id: user, credits, reason: None, at, idempotency: idempotency(key) };
            store.spend(spend).await.map_err(name_of).map(booked)
        }
        Op::Claim { channel, now, limit } => {
            store.claim_due(channel, now, LEASE, limit).await.map_err(name_of).map(|claimed| {
                listed(claimed.into_iter().map(|delivery| {
                    format!("{}:{}/{}/{}", delivery.id, delivery.order.terms.order_no, delivery.news, delivery.attempts)
                }))
            })
        }
        Op::Attempted { message, attempt, now } => {
            store.attempted(message.id, attempt, now).await.map_err(name_of).map(done)
        }
        Op::GiveUp { channel, until, now } => store
            .give_up_older(channel, until, REASON.into(), now)
            .await
            .map_err(name_of)
            .map(|count| format!("gave up {count}")),
        Op::DeliverAgain { channel, order_no, now } => {
            let filter = DeliveryFilter { order_no: Some(order_no), ..DeliveryFilter::default() };
            store.deliver_again(channel, filter, now).await.map_err(name_of).map(|count| format!("again {count}"))
        }
        Op::AddMissingEvents { since, now } => {
            store.add_missing_events(since, now).await.map_err(name_of).map(|count| format!("added {count}"))
        }
    };
    result.unwrap_or_else(str::to_owned)
}

fn booked(booked: Booked) -> String {
    format!("{}, {}", if booked.repeated { "repeated" } else { "booked" }, booked.credits_after)
}

fn by_hand(order_no: String, at: crate::domain::clock::Timestamp) -> ByHand {
    ByHand { order_no, reason: REASON.into(), at }
}

fn idempotency(key: Key) -> Idempotency {
    Idempotency { key: key.key, fingerprint: key.fingerprint }
}

/// An error of the store, by the name that the model has for it.
trait Named {
    fn name(&self) -> &'static str;
}

impl Named for StoreError {
    fn name(&self) -> &'static str {
        match self {
            Self::Failed(_) => FAILED,
            // Only a planted bug leaves a job without an answer.
            Self::Closed => "closed",
            other => panic!("{other:?}"),
        }
    }
}

impl Named for AccountError {
    fn name(&self) -> &'static str {
        match self {
            Self::NoSuchUser(_) => "no_such_user",
            Self::OutOfBounds { .. } => "out_of_bounds",
            Self::KeyReused => "key_reused",
            Self::Store(error) => error.name(),
        }
    }
}

impl Named for DecisionError {
    fn name(&self) -> &'static str {
        match self {
            Self::NoSuchOrder(_) => "no_such_order",
            Self::Refused { refused, .. } => match refused {
                Refused::WrongStatus(_) => "wrong_status",
                Refused::Spent { .. } => "out_of_bounds",
                Refused::TradeReused { .. } => "trade_reused",
                Refused::ChoosePayment { .. } => "choose_payment",
                Refused::NotPaidAgain => "not_paid_again",
            },
            Self::Store(error) => error.name(),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
fn name_of(error: impl Named) -> &'static str {
    error.name()
}
