//! Time passes, and the service's loops run their rounds, in an order that a seed decides.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::callbacks::{ANSWERS, Answering, answer};
use super::super::outside::{Fate, Part};
use super::super::process::Act;
use super::super::random::Random;
use super::super::rounds::ASKED;
use super::super::run::{Broken, Step, Trouble, any_trouble};
use super::{HOUR_MS, Payment, ROUNDS_MAX, Workload, is_free};
use crate::domain::clock::Timestamp;
use crate::store::Channel;

impl Workload {
    /// Has the service do something by itself, which may get into trouble.
    async fn act(&mut self, act: Act) -> Step<String> {
        let trouble = self.any_trouble();
        let crashes = self.run.tally.crashes;
        let reply = self.run.act(act, trouble).await;
        self.is_handing_over &= self.run.tally.crashes == crashes;
        reply
    }

    /// The loop of an outbox looks what is due, or one of its deliveries goes on.
    pub(super) async fn deliver(&mut self) -> Step {
        let in_hand = self.run.world_mut().process().hands.len();
        if in_hand == 0 || self.random.chance(30) {
            let channel = self.channel();
            self.act(Act::TakeUp { channel }).await?;
            return Ok(());
        }
        let hand = self.random.index(in_hand);
        self.deliver_one(hand, false).await
    }

    async fn deliver_one(&mut self, hand: usize, well: bool) -> Step {
        let channel = self.run.world_mut().process().hands[hand].place.2.clone();
        let part = if well {
            play(&channel, 0, &mut self.random)
        } else {
            play(&channel, self.random.below(12), &mut self.random)
        };
        self.act(Act::Deliver { hand, part }).await?;
        Ok(())
    }

    /// The schedule looks whom to ask about, or one of its questions goes on.
    pub(super) async fn question(&mut self) -> Step {
        let in_hand = self.run.world_mut().process().questions.len();
        if in_hand == 0 || self.random.chance(30) {
            self.act(Act::TakeUpQuestions).await?;
            return Ok(());
        }
        let hand = self.random.index(in_hand);
        let answering = self.random.weighted(&ANSWERS);
        self.ask_one(hand, answering).await
    }

    async fn ask_one(&mut self, hand: usize, answering: Answering) -> Step {
        let terms = self.run.world_mut().process().questions[hand].order.terms.clone();
        let (order_no, fen) = (terms.order_no.to_string(), terms.amount.fen());
        let paid = self.paid_by(&order_no, fen);
        let (body, word) = answer(answering, &terms.merchant, &order_no, fen, paid.as_deref());
        let late = self.random.chance(20);
        let after_ms = if late { self.random.below(9_000) } else { self.random.below(300) };
        let is_limited = matches!(answering, Answering::Nothing) && self.random.chance(40);
        let fate = match body {
            Some(body) => Fate::Answered { status: 200, body, retry_after_s: None },
            None if is_limited => {
                let retry_after_s = self.random.chance(50).then(|| self.random.below(400));
                Fate::Answered { status: 429, body: String::new(), retry_after_s }
            }
            None if self.random.chance(50) => Fate::Unanswered,
            None => Fate::NotConnected,
        };
        self.act(Act::Ask { hand, part: Part { fate, after_ms }, word }).await?;
        Ok(())
    }

    /// The payment of the right amount that the gateway has for an order.
    pub(super) fn paid_by(&self, order_no: &str, fen: i64) -> Option<String> {
        let is_own = |payment: &&Payment| payment.order_no == order_no && payment.fen == fen;
        self.payments.iter().find(is_own).map(|payment| payment.trade_no.clone())
    }

    /// Nothing happens for a while, or the clock is set, which the service notices sooner or later.
    pub(super) async fn move_clock(&mut self) -> Step {
        let clock = self.outside.clock.clone();
        if self.random.chance(50) {
            let by_s = *self.random.pick(&[20, 60, 300, 3600, 25 * 3600]);
            self.run.log.push(format!("{by_s} s pass"));
            clock.pass(Duration::from_secs(by_s));
        } else {
            let by_ms = *self.random.pick(&[20_000, HOUR_MS, 25 * HOUR_MS, -20_000, -HOUR_MS]);
            self.run.log.push(format!("the clock is set by {by_ms} ms"));
            clock.set(Timestamp::from_ms(clock.now().ms() + by_ms));
            for process in self.run.world_mut().processes() {
                process.promises.set_by_ms += by_ms;
            }
        }
        if self.random.chance(70) { self.follow_clock().await } else { Ok(()) }
    }

    /// Done by the newest process alone: one that is taken over from leaves such work to the other.
    pub(super) async fn follow_clock(&mut self) -> Step {
        self.run.turn_to(1);
        let trouble = if self.random.chance(self.trouble_percent) {
            Trouble::Crash { at: self.random.below(200) }
        } else {
            Trouble::None
        };
        let crashes = self.run.tally.crashes;
        self.run.act(Act::FollowClock, trouble).await?;
        self.is_handing_over &= self.run.tally.crashes == crashes;
        Ok(())
    }

    /// Before anything happens: the operator hears of what comes from then on.
    pub(super) async fn begin_to_tell(&mut self) -> Step {
        self.tell_by(Trouble::None, 0).await
    }

    /// The operator is told what there is to tell, where the time has come.
    pub(super) async fn tell_operator(&mut self) -> Step {
        self.run.turn_to(1);
        if self.run.world_mut().process().watch_due > self.outside.clock.instant() {
            return Ok(());
        }
        let trouble = self.any_trouble();
        let number = self.random.below(12);
        self.tell_by(trouble, number).await
    }

    async fn tell_by(&mut self, trouble: Trouble, number: u64) -> Step {
        let part = play("telegram", number, &mut self.random);
        let crashes = self.run.tally.crashes;
        self.run.act(Act::TellOperator { part }, trouble).await?;
        self.is_handing_over &= self.run.tally.crashes == crashes;
        Ok(())
    }

    /// Tells the operator all that is left to tell.
    pub(super) async fn tell_all(&mut self) -> Step {
        self.run.turn_to(1);
        let due = self.run.world_mut().process().watch_due;
        self.outside.clock.pass(due.saturating_duration_since(self.outside.clock.instant()));
        self.tell_by(Trouble::None, 0).await
    }

    fn any_trouble(&mut self) -> Trouble {
        if self.random.chance(self.trouble_percent) { any_trouble(&mut self.random) } else { Trouble::None }
    }

    /// Asks about every order whose time comes, until there is no more of it, or it has been paid: a payment whose callback was lost is
    /// found by that.
    pub(super) async fn ask_all(&mut self) -> Step {
        let mut asked = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            self.run.act(Act::TakeUpQuestions, Trouble::None).await?;
            while !self.run.world_mut().process().questions.is_empty() {
                asked.insert(self.run.world_mut().process().questions[0].order.terms.order_no.to_string());
                self.ask_one(0, Answering::Truly).await?;
            }
            let books = &self.run.model.books;
            let waits = |order_no: &String| books.orders[order_no].merchant == ASKED && !asked.contains(order_no);
            let next = books.questions.iter().filter(|(order_no, _)| waits(order_no)).map(|(_, (_, at))| *at).min();
            let Some(next) = next else { return self.check_questions(&asked) };
            let ahead_ms = u64::try_from(next - self.now().ms()).unwrap_or(0);
            // A gateway that was in trouble is left alone for five minutes at most.
            self.outside.clock.pass(Duration::from_millis(ahead_ms) + Duration::from_secs(301));
        }
        Err(Broken("there are always more questions".into()))
    }

    /// A question about a payment has an end: its order is not left unpaid.
    fn check_questions(&self, asked: &BTreeSet<String>) -> Step {
        let books = &self.run.model.books;
        for order_no in asked {
            let order = &books.orders[order_no];
            // The gateway tells of one payment. Another order may have had it.
            let told = self.payments.iter().find(|p| p.order_no == *order_no && p.fen == order.fen);
            if let Some(told) = told
                && order.status == "pending"
                && is_free(books, order, &[told])
            {
                return Err(Broken(format!(
                    "{order_no} was paid and asked about, and that had no consequence: {order:?}"
                )));
            }
        }
        Ok(())
    }

    /// Delivers until nothing is due any more.
    pub(super) async fn deliver_all(&mut self, channel: Channel) -> Step {
        for _ in 0..ROUNDS_MAX {
            self.run.act(Act::TakeUp { channel }, Trouble::None).await?;
            while !self.run.world_mut().process().hands.is_empty() {
                self.deliver_one(0, true).await?;
            }
            let Some(next) = self.run.model.next_due(channel) else { return Ok(()) };
            let ahead_ms = u64::try_from(next - self.now().ms()).unwrap_or(0);
            // Telegram may have asked for an hour's rest.
            let rests = self.run.world_mut().process().promises.rests(channel, self.outside.clock.instant());
            self.outside
                .clock
                .pass(Duration::from_millis(ahead_ms) + Duration::from_secs(if rests { 3600 } else { 0 }));
        }
        Err(Broken("the outbox does not get empty".into()))
    }
}

/// What the other side does with a message: the lower the number, the better it goes.
fn play(channel: &str, number: u64, random: &mut Random) -> Part {
    let is_telegram = channel == "telegram";
    let after_ms = if random.chance(20) { random.below(10_000) } else { random.below(200) };
    let retry_after_s = random.chance(60).then(|| *random.pick(&[1, 3, 30, 900, 9_000]));
    let answered = |status, body: &str| Fate::Answered { status, body: body.into(), retry_after_s: None };
    let fate = match number {
        0..=4 if is_telegram => answered(200, r#"{"ok":true}"#),
        0..=4 => answered(*random.pick(&[200, 204]), ""),
        5 => Fate::Unanswered,
        6 => Fate::NotConnected,
        7 => answered(*random.pick(&[500, 502]), "<html>"),
        8 if is_telegram => answered(*random.pick(&[400, 403]), r#"{"ok":false}"#),
        9 if is_telegram => answered(401, "{}"),
        8 | 9 => answered(*random.pick(&[302, 404, 429]), ""),
        _ => Fate::Answered { status: 429, body: "{}".into(), retry_after_s },
    };
    Part { fate, after_ms }
}
