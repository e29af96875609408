//! What buyers, gateways, the bot, the operator and the clock do, as a seed decides.

mod service;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::books::{Books, OrderLine};
use super::callbacks::{ANSWERS, Answering, answer, damaged, genuine, mistaken};
use super::ops::{Key, Meaning, Op, Payload, Told};
use super::outside::Outside;
use super::process::ServiceBug;
use super::random::Random;
use super::run::{Broken, Run, Step, Tally, Trouble, any_trouble};
use super::world::{MERCHANTS, Settings, key_of};
use crate::channel::epay::Credentials;
use crate::channel::epay::client::Answer;
use crate::domain::clock::Timestamp;
use crate::domain::decisions::{PaymentOfDecision, RefundState};
use crate::domain::money::Amount;
use crate::domain::order::{NewOrder, PaymentState, SettledBy};
use crate::domain::secret::Secret;
use crate::domain::settlement::{Claim, ClaimProof, Echo, LatePolicy, Policy};
use crate::payments::gateways::{hold_of, name_of};
use crate::store::sqlite::faults::Bug;
use crate::store::{Channel, Receipt, Settle};

/// How many steps a run has before everything is allowed to come right.
const STEPS: u64 = 60;
const START: i64 = 1_767_323_045_000;
const EXPIRES_AFTER_S: u32 = 1800;
const HOUR_MS: i64 = 3_600_000;
/// How often the couriers come by at the end, at most.
const ROUNDS_MAX: u32 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Create,
    Pay,
    Tell,
    TellWrongly,
    TellTogether,
    Reconcile,
    Question,
    TellOperator,
    Vouch,
    Person,
    Refund,
    Bot,
    Deliver,
    Outbox,
    Clock,
    Crash,
    Reopen,
    Checkpoint,
    Handover,
    TellBot,
}

const ACTIONS: [(Action, u64); 20] = [
    (Action::Create, 16),
    (Action::Pay, 16),
    (Action::Tell, 24),
    (Action::TellWrongly, 10),
    (Action::TellTogether, 5),
    (Action::Reconcile, 4),
    (Action::Question, 14),
    (Action::TellOperator, 4),
    (Action::Vouch, 8),
    (Action::Person, 5),
    (Action::Refund, 6),
    (Action::Bot, 6),
    (Action::Deliver, 30),
    (Action::Outbox, 3),
    (Action::Clock, 4),
    (Action::Crash, 3),
    (Action::Reopen, 1),
    (Action::Checkpoint, 2),
    (Action::Handover, 2),
    (Action::TellBot, 2),
];

/// Without these nothing happens.
const NEEDED: [Action; 3] = [Action::Create, Action::Pay, Action::Tell];

/// A payment that a gateway has.
#[derive(Clone, Debug)]
struct Payment {
    merchant: String,
    order_no: String,
    trade_no: String,
    fen: i64,
    param: Option<String>,
}

struct Workload {
    run: Run,
    random: Random,
    outside: Outside,
    late: LatePolicy,
    actions: Vec<(Action, u64)>,
    /// How many of a hundred writes get into trouble.
    trouble_percent: u64,
    payments: Vec<Payment>,
    numbers: u64,
    is_handing_over: bool,
}

/// A bug on purpose.
#[derive(Clone, Copy, Debug)]
pub(super) enum Planted {
    Store(Bug),
    Service(ServiceBug),
}

/// Runs a seed: its log and how much was done, or what was wrong.
pub(super) async fn run_seed(
    seed: u64,
    planted: Option<Planted>,
) -> Result<(Vec<String>, Tally), (Vec<String>, Broken)> {
    let mut random = Random::new(seed);
    let late = *random.pick(LatePolicy::ALL);
    // Some actions are missing in some runs, and some are much more frequent: what is rare among many shall meet itself.
    let mut actions = ACTIONS.to_vec();
    actions.retain(|(action, _)| NEEDED.contains(action) || random.chance(80));
    for (_, weight) in &mut actions {
        *weight *= *random.pick(&[1, 1, 1, 6]);
    }
    let trouble_percent = *random.pick(&[0, 5, 15, 40, 70]);
    let outside = Outside::new(Timestamp::from_ms(START));
    let (bug, service_bug) = match planted {
        Some(Planted::Store(bug)) => (Some(bug), None),
        Some(Planted::Service(bug)) => (None, Some(bug)),
        None => (None, None),
    };
    let settings = Settings { late, tells_bot: false, bug, service_bug, seed };
    let run = Run::new(settings, outside.clone()).await;
    let mut workload = Workload {
        run,
        random,
        outside,
        late,
        actions,
        trouble_percent,
        payments: Vec::new(),
        numbers: 0,
        is_handing_over: false,
    };
    match workload.go().await {
        Ok(()) => {
            let log = workload.run.log.clone();
            workload.run.conclude(planted.is_some()).await.map_err(|broken| (log, broken))
        }
        Err(broken) => Err((workload.run.log, broken)),
    }
}

impl Workload {
    async fn go(&mut self) -> Step {
        let tells_bot = self.random.chance(60);
        self.run.tell_bot(tells_bot);
        self.begin_to_tell().await?;
        self.create().await?;
        for _ in 0..STEPS {
            self.outside.clock.pass(Duration::from_millis(self.random.below(2_001)));
            self.run.turn_to(self.random.index(2));
            let action = self.random.weighted(&self.actions);
            match action {
                Action::Create => self.create().await?,
                Action::Pay => self.pay(),
                Action::Tell => self.tell().await?,
                Action::TellWrongly => self.tell_wrongly().await?,
                Action::TellTogether => self.tell_together().await?,
                Action::Reconcile => self.reconcile().await?,
                Action::Question => self.question().await?,
                Action::TellOperator => self.tell_operator().await?,
                Action::Vouch => self.vouch().await?,
                Action::Person => self.person().await?,
                Action::Refund => self.refund().await?,
                Action::Bot => self.bot().await?,
                Action::Deliver => self.deliver().await?,
                Action::Outbox => self.outbox().await?,
                Action::Clock => self.move_clock().await?,
                Action::Crash => {
                    self.is_handing_over = false;
                    self.run.crash().await?;
                }
                Action::Reopen => {
                    self.is_handing_over = false;
                    self.run.reopen().await?;
                }
                Action::Checkpoint if self.random.chance(50) => self.run.checkpoint()?,
                Action::Checkpoint => {
                    self.is_handing_over = false;
                    self.run.crash_in_checkpoint(&mut self.random).await?;
                }
                Action::Handover if self.is_handing_over => {
                    self.is_handing_over = false;
                    self.run.end_handover().await?;
                }
                Action::Handover => {
                    self.is_handing_over = true;
                    self.run.begin_handover().await;
                }
                Action::TellBot => {
                    let yes = self.random.chance(60);
                    self.run.tell_bot(yes);
                }
            }
        }
        self.come_right().await
    }

    fn now(&self) -> Timestamp {
        self.outside.clock.now()
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Does a write, which may get into trouble.
    async fn step(&mut self, op: Op) -> Step<String> {
        // What matters most gets into trouble most.
        let is_settling = self.run.model.apply(&op).iter().any(|(reply, _)| reply == "settled");
        let percent = if is_settling { (self.trouble_percent * 3).min(90) } else { self.trouble_percent };
        let trouble = if self.random.chance(percent) { any_trouble(&mut self.random) } else { Trouble::None };
        let trouble = if self.run.can_fail(&op) { trouble } else { Trouble::None };
        let crashes = self.run.tally.crashes;
        let reply = self.run.step(op, trouble).await;
        if self.run.tally.crashes > crashes {
            // Whoever had these in hand is gone.
            self.is_handing_over = false;
        }
        reply
    }

    async fn create(&mut self) -> Step {
        let number = self.number();
        let param = self.random.pick(&[None, Some("a<b"), Some("it's"), Some("7")]).map(str::to_owned);
        let order = NewOrder {
            order_no: format!("S{number:06}").parse().unwrap(),
            merchant: self
                .random
                .weighted(&[(MERCHANTS[0], 5), (MERCHANTS[1], 2), (MERCHANTS[2], 1), (MERCHANTS[3], 2)])
                .into(),
            telegram_id: self.random.between(1, 3),
            package: None,
            name: "VIP白银".into(),
            payment_type: "alipay".into(),
            amount: Amount::from_fen(*self.random.pick(&[1, 100, 3600, 999_999])).unwrap(),
            credits: self.random.between(1, 100),
            param,
            created_at: self.now(),
            expires_at: self.now().plus_seconds(EXPIRES_AFTER_S),
        };
        let soon = u32::try_from(self.random.between(0, 15)).unwrap();
        let ask_at = self.random.chance(80).then(|| self.now().plus_seconds(soon));
        let key = self.random.chance(50).then(|| Key { key: format!("K{number}"), fingerprint: "order".into() });
        let is_keyed = key.is_some();
        let op = Op::Create { order, ask_at, key };
        self.step(op.clone()).await?;
        if is_keyed && self.random.chance(30) {
            // The bot did not hear of it.
            self.step(op).await?;
        }
        Ok(())
    }

    fn an_order(&mut self) -> Option<(String, OrderLine)> {
        let orders = &self.run.model.books.orders;
        // Mostly one of the newest: on old ones everything has happened.
        let orders: Vec<_> = orders.iter().collect();
        let newest = orders.len().saturating_sub(if self.random.chance(70) { 3 } else { orders.len() });
        let (order_no, order) = *orders.get(newest + self.random.index((orders.len() - newest).max(1)))?;
        Some((order_no.clone(), order.clone()))
    }

    /// A buyer pays at the gateway, sometimes for what is paid already, sometimes another amount.
    fn pay(&mut self) {
        let Some((order_no, order)) = self.an_order() else { return };
        let fen = if self.random.chance(10) { order.fen + self.random.between(1, 5) } else { order.fen };
        let number = self.number();
        // Numbers of payments are each merchant's own.
        let trade_no = format!("T{}", if self.random.chance(10) { number / 2 } else { number });
        self.run.log.push(format!("{order_no} is paid by {trade_no}: {fen} fen"));
        self.payments.push(Payment { merchant: order.merchant, order_no, trade_no, fen, param: order.param });
    }

    /// What the gateway says of one of its payments, the newer the more often.
    fn told(&mut self) -> Option<Told> {
        let newest = self.payments.len().saturating_sub(if self.random.chance(60) { 3 } else { self.payments.len() });
        let payment = self.payments.get(newest + self.random.index((self.payments.len() - newest).max(1)))?.clone();
        let param = match payment.param {
            Some(param) if self.random.chance(80) => Some(param),
            _ => None,
        };
        let Payment { merchant, order_no, trade_no, fen, .. } = payment;
        Some(Told { merchant, order_no, trade_no: Some(trade_no), fen: Some(fen), payment: PaymentState::Paid, param })
    }

    /// An address that may send this merchant's notifications.
    fn client(&mut self) -> IpAddr {
        format!("203.0.113.{}", self.random.between(1, 9)).parse().unwrap()
    }

    async fn tell(&mut self) -> Step {
        let Some(told) = self.told() else { return Ok(()) };
        let op = self.notification(told);
        self.step(op).await?;
        Ok(())
    }

    fn notification(&mut self, told: Told) -> Op {
        let at = self.now();
        let payload = Payload(genuine(&told, at, &mut self.random));
        Op::Notify { payload, client: self.client(), at, meaning: Meaning::Genuine(told) }
    }

    async fn tell_wrongly(&mut self) -> Step {
        let Some(mut told) = self.told() else { return Ok(()) };
        let (at, client) = (self.now(), self.client());
        let op = match self.random.below(12) {
            // The gateway itself is wrong: what it signs has to be believed, and does no harm.
            0 => {
                let by = self.random.between(-1, 1);
                told.fen = told.fen.map(|fen| (fen + by).max(1)).filter(|_| self.random.chance(70));
                self.notification(told)
            }
            1 => {
                told.payment = *self.random.pick(&[PaymentState::Unpaid, PaymentState::Unclear]);
                self.notification(told)
            }
            9 => {
                told.trade_no = None;
                self.notification(told)
            }
            2 => {
                told.param = Some("another".into());
                self.notification(told)
            }
            3 => {
                // Another order with the number of this payment.
                let Some((order_no, _)) = self.an_order() else { return Ok(()) };
                told.order_no = order_no;
                self.notification(told)
            }
            4 => {
                // Another merchant's gateway speaks of this order.
                told.merchant = (*self.random.pick(&MERCHANTS)).into();
                self.notification(told)
            }
            5 if told.merchant == "1003" => {
                let payload = Payload(genuine(&told, at, &mut self.random));
                let client = "198.51.100.1".parse().unwrap();
                Op::Notify { payload, client, at, meaning: Meaning::Refused("address_not_allowed") }
            }
            6 => {
                let payload = Payload(damaged(&told, at, &mut self.random));
                Op::Notify { payload, client, at, meaning: Meaning::Damaged(told) }
            }
            _ => {
                let (payload, meaning) = mistaken(&told, at, &mut self.random);
                Op::Notify { payload: Payload(payload), client, at, meaning }
            }
        };
        self.step(op).await?;
        Ok(())
    }

    /// Several callbacks come while the writer is busy, and something of the bot's.
    async fn tell_together(&mut self) -> Step {
        let mut ops = Vec::new();
        for _ in 0..self.random.between(2, 6) {
            if let Some(told) = self.told() {
                let op = self.notification(told);
                // The same one several times, as gateways do.
                for _ in 0..self.random.between(1, 2) {
                    ops.push(op.clone());
                }
            }
        }
        if self.random.chance(50) {
            let key = Key { key: format!("K{}", self.number()), fingerprint: "credits".into() };
            let credits = self.random.between(1, 60);
            ops.push(Op::Spend { user: self.random.between(1, 4), credits, key, at: self.now() });
        }
        let lasts = self.random.chance(20);
        let trouble = match self.random.below(4) {
            _ if !self.random.chance(self.trouble_percent) => Trouble::None,
            0 => Trouble::Veto,
            1 => Trouble::Deny { at: self.random.below(30), lasts },
            _ => Trouble::Interrupt { at: self.random.below(300), lasts },
        };
        self.run.together(&ops, trouble).await
    }

    /// The gateway is asked about what is unpaid, and answers somehow.
    async fn reconcile(&mut self) -> Step {
        // V2 answers are signed with the time of this machine's clock.
        let merchant = *self.random.pick(&[MERCHANTS[1], MERCHANTS[3]]);
        let limit = u32::try_from(self.random.between(1, 4)).unwrap();
        let due = self.step(Op::DueQuestions { merchant: merchant.into(), now: self.now(), limit }).await?;
        for question in due.split_whitespace() {
            let (order_no, step) = question.split_once('/').unwrap();
            self.ask(order_no, step.parse().unwrap()).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, order_no: &str, step: u32) -> Step {
        let answering = self.random.weighted(&ANSWERS);
        self.ask_and_hear(order_no, step, answering).await
    }

    async fn ask_and_hear(&mut self, order_no: &str, step: u32, answering: Answering) -> Step {
        let order = self.run.world().store().order(order_no).await.unwrap().unwrap();
        let (merchant, fen) = (order.terms.merchant.clone(), order.terms.amount.fen());
        let paid = self.paid_by(order_no, fen);
        let (body, expected) = answer(answering, &merchant, order_no, fen, paid.as_deref());
        let credentials = Credentials::V1 { key: Secret::new(key_of(&merchant)), key_previous: None };
        let read = body.map(|body| Answer::of_reply(&credentials, body.as_bytes(), self.now()));
        let verdict = match &read {
            Some(Ok(answer)) => name_of(&answer.verdict(&merchant, &order.terms.order_no)),
            Some(Err(crate::channel::epay::client::GatewayError::UnknownOrder)) => "unknown_order".into(),
            Some(Err(_)) | None => "no_answer".into(),
        };
        if verdict != expected {
            return Err(Broken(format!(
                "{answering:?} about {order_no} is taken for {verdict}, and not for {expected}"
            )));
        }
        let believed = match &read {
            Some(Ok(answer)) => Some(answer.verdict(&merchant, &order.terms.order_no)),
            _ => None,
        };
        let hold = believed.as_ref().and_then(hold_of);
        self.step(Op::KeepAnswer { order_no: order_no.into(), at: self.now(), answer: verdict, hold }).await?;
        let later = u32::try_from(self.random.between(1, 60)).unwrap();
        let mut next = self.random.chance(90).then(|| self.now().plus_seconds(later));
        let policy = Policy { late: self.late, can_ask: true };
        if let (Some(Ok(answer)), Some(verdict)) = (read, believed)
            && let Some(settle) = Settle::by_answer(&order, &verdict, answer, policy, self.now())
        {
            self.step(Op::Settle { settle }).await?;
            next = None;
        }
        self.step(Op::Schedule { order_no: order_no.into(), step: step + 1, next }).await?;
        Ok(())
    }

    /// A merchant wants the gateway's own word beside the signature, and it is there or not.
    async fn vouch(&mut self) -> Step {
        let Some(told) = self.told() else { return Ok(()) };
        let receipt = Receipt {
            received_at: self.now(),
            client: Some(self.client()),
            method: "POST",
            payload: genuine(&told, self.now(), &mut self.random),
        };
        let settle = Settle {
            claim: Claim {
                merchant: told.merchant,
                order_no: told.order_no,
                trade_no: told.trade_no,
                amount: told.fen.and_then(Amount::from_fen),
                payment: told.payment,
                param: told.param.map(|param| Echo::new(param, [])),
                proof: self.random.weighted(&[
                    (ClaimProof::Missing, 6),
                    (ClaimProof::Signature, 2),
                    (ClaimProof::Gateway, 2),
                ]),
            },
            source: SettledBy::Notify,
            policy: Policy { late: self.late, can_ask: self.random.chance(70) },
            receipt,
        };
        self.step(Op::Settle { settle }).await?;
        Ok(())
    }

    async fn person(&mut self) -> Step {
        let Some((order_no, _)) = self.an_order() else { return Ok(()) };
        let at = self.now();
        let op = match self.random.below(5) {
            0 => Op::Cancel { order_no, at },
            1 => Op::Acknowledge { order_no, at },
            2 | 3 => {
                let newest = self.payments.last().map(|payment| payment.trade_no.clone());
                // The gateway knows a payment of the order, or it was not asked.
                let own = self.payments.iter().rfind(|payment| payment.order_no == order_no);
                let own = own.map(|payment| payment.trade_no.clone());
                let payment = PaymentOfDecision {
                    proved: own.filter(|_| self.random.chance(30)),
                    typed: newest.filter(|_| self.random.chance(40)),
                    paid_outside: self.random.chance(20),
                };
                Op::SettleByHand { order_no, payment, at }
            }
            _ => {
                Op::Grant { user: self.random.between(1, 4), credits: *self.random.pick(&[-20, 5, 50]), key: None, at }
            }
        };
        self.step(op).await?;
        Ok(())
    }

    async fn refund(&mut self) -> Step {
        let Some((order_no, _)) = self.an_order() else { return Ok(()) };
        let at = self.now();
        let even_if_spent = self.random.chance(30);
        let begun = self.step(Op::BeginRefund { order_no: order_no.clone(), even_if_spent, at }).await?;
        let is_begun = begun == "requested" || begun.ends_with("before");
        let answer = "what the gateway says".to_owned();
        let op = match self.random.below(4) {
            // Nobody hears how it went, or it was never begun.
            0 => return Ok(()),
            1 => Op::RefundAnswered { order_no, state: RefundState::Refused, answer, at },
            2 => Op::RefundAnswered { order_no, state: RefundState::Unclear, answer, at },
            _ => Op::FinishRefund { order_no, answer, proved: self.random.chance(50), at },
        };
        if is_begun || self.random.chance(20) {
            self.step(op.clone()).await?;
            if self.random.chance(20) {
                self.step(op).await?;
            }
        }
        Ok(())
    }

    /// The bot spends and gives, and asks again where it heard nothing.
    async fn bot(&mut self) -> Step {
        let (user, at) = (self.random.between(1, 4), self.now());
        let key = Key { key: format!("K{}", self.number()), fingerprint: "credits".into() };
        let credits = self.random.between(1, 60);
        let op = if self.random.chance(70) {
            Op::Spend { user, credits, key, at }
        } else {
            Op::Grant { user, credits, key: Some(key), at }
        };
        self.step(op.clone()).await?;
        if self.random.chance(30) {
            self.step(op.clone()).await?;
        }
        if let (Op::Spend { user, credits, mut key, at }, true) = (op, self.random.chance(10)) {
            key.fingerprint = "another".into();
            self.step(Op::Spend { user, credits, key, at }).await?;
        }
        Ok(())
    }

    fn channel(&mut self) -> Channel {
        *self.random.pick(&[Channel::Telegram, Channel::Telegram, Channel::Event])
    }

    async fn outbox(&mut self) -> Step {
        let (channel, now) = (self.channel(), self.now());
        let op = match self.random.below(3) {
            0 => Op::GiveUp { channel, until: Timestamp::from_ms(now.ms() - 24 * HOUR_MS), now },
            1 => {
                let Some((order_no, _)) = self.an_order() else { return Ok(()) };
                Op::DeliverAgain { channel, order_no, now }
            }
            _ => Op::AddMissingEvents { since: Timestamp::from_ms(now.ms() - HOUR_MS), now },
        };
        self.step(op).await?;
        Ok(())
    }

    /// Nothing goes wrong any more: gateways say once more what they have, couriers deliver, and then all must be in order.
    async fn come_right(&mut self) -> Step {
        self.trouble_percent = 0;
        self.run.end_handover().await?;
        self.run.turn_to(0);
        self.follow_clock().await?;
        self.ask_all().await?;
        for payment in self.payments.clone() {
            let Payment { merchant, order_no, trade_no, fen, param } = payment;
            let told = Told {
                merchant,
                order_no,
                trade_no: Some(trade_no),
                fen: Some(fen),
                payment: PaymentState::Paid,
                param,
            };
            let op = self.notification(told);
            self.step(op).await?;
        }
        // Payments of orders on hold need the gateway's own word, which it gives now.
        let on_hold = |(_, order): &(&String, &OrderLine)| order.status == "pending" && order.hold.is_some();
        let on_hold: Vec<_> = self.run.model.books.orders.iter().filter(on_hold).map(|(no, _)| no.clone()).collect();
        for order_no in on_hold {
            self.ask_and_hear(&order_no, 0, Answering::Truly).await?;
        }
        for channel in [Channel::Telegram, Channel::Event] {
            self.deliver_all(channel).await?;
        }
        self.tell_all().await?;
        self.check_gateways()?;
        self.check_messages()
    }

    /// Credits are given for payments that a gateway has, and for every such payment of the right amount.
    fn check_gateways(&self) -> Step {
        let books = self.run.world().books();
        let mut paid: BTreeMap<&str, Vec<&Payment>> = BTreeMap::new();
        for payment in &self.payments {
            paid.entry(&payment.order_no).or_default().push(payment);
        }
        for (order_no, order) in &books.orders {
            let payments = paid.get(order_no.as_str()).map_or(&[][..], Vec::as_slice);
            let is_by_gateway = matches!(order.settled_by.as_deref(), Some("notify" | "reconcile"));
            if is_by_gateway && !self.payments.iter().any(|payment| Some(&payment.trade_no) == order.trade_no.as_ref())
            {
                return Err(Broken(format!("{order_no} was settled by a payment that no gateway has: {order:?}")));
            }
            let is_paid = payments.iter().any(|payment| payment.fen == order.fen);
            if is_paid && order.status == "pending" && is_free(&books, order, payments) {
                return Err(Broken(format!("{order_no} was paid, and that had no consequence: {order:?}")));
            }
        }
        Ok(())
    }

    /// Every message has arrived at least once, or was given up.
    fn check_messages(&self) -> Step {
        for (place, message) in &self.run.world().books().messages {
            if message.state == "due" || message.state == "sent" && !self.run.delivered.contains(place) {
                return Err(Broken(format!("{place:?} did not arrive: {message:?}")));
            }
        }
        Ok(())
    }
}

/// Whether one of these payments of the right amount has settled no other order.
fn is_free(books: &Books, order: &OrderLine, payments: &[&Payment]) -> bool {
    payments.iter().filter(|payment| payment.fen == order.fen).any(|payment| {
        let mut others = books.orders.values().filter(|other| other.merchant == order.merchant);
        !others.any(|other| other.trade_no.as_ref() == Some(&payment.trade_no))
    })
}
