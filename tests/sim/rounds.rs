//! The reference for what the service does by itself: what each round must do to the books, by the words of the contract.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;

use super::books::Books;
use super::model::Model;
use super::ops::{Message, Op};
use super::outside::{Contact, Fate, Part};
use super::process::{Promises, SCHEDULE_S};
use crate::channel::epay::Credentials;
use crate::channel::epay::client::Answer;
use crate::domain::clock::Timestamp;
use crate::domain::order::Order;
use crate::domain::secret::Secret;
use crate::domain::settlement::Policy;
use crate::payments::gateways::hold_of;
use crate::store::{Attempt, Channel, Settle};

/// The only merchant whose gateway can be asked.
pub(super) const ASKED: &str = "1002";
const HOUR_MS: i64 = 3_600_000;
/// How many questions a gateway is asked at the same time.
const QUESTIONS: usize = 4;
/// Telegram lets some 30 messages a second through.
const TELEGRAM_GAP: Duration = Duration::from_millis(40);
const RETRY_FOR_S: i64 = 3 * 24 * 3600;
const DAY_S: i64 = 24 * 3600;

/// What a round may have done when it ends, however it ends.
pub(super) struct Possible {
    pub(super) reply: String,
    pub(super) model: Model,
}

/// The ends of a round: the last is that of one in which nothing goes wrong.
pub(super) struct Ends {
    /// Where a crash, too, may leave the books.
    pub(super) prefixes: Vec<Possible>,
    /// Where only a store that fails, and works again, may.
    pub(super) failures: Vec<Possible>,
}

impl Ends {
    fn of(prefixes: Vec<Possible>) -> Self {
        Self { prefixes, failures: Vec::new() }
    }
}

fn possible(reply: &str, model: &Model) -> Possible {
    Possible { reply: reply.into(), model: model.clone() }
}

/// How long a row of a channel is tried.
fn tried_for_ms(channel: Channel) -> i64 {
    HOUR_MS
        * match channel {
            Channel::Telegram => 24,
            Channel::Event => 72,
        }
}

/// The longest pause between two attempts, in seconds.
fn longest_pause_s(channel: Channel) -> u64 {
    match channel {
        Channel::Telegram => 300,
        Channel::Event => 7200,
    }
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upshot {
    Arrived,
    Never,
    /// Not earlier than that.
    Again(Option<u64>),
    /// The whole channel rests for so many seconds.
    Rest(u64),
}

/// What the other side's behaviour means, by its own documentation.
fn upshot(channel: Channel, fate: &Fate) -> Upshot {
    let Fate::Answered { status, body, retry_after_s } = fate else { return Upshot::Again(None) };
    match (channel, status) {
        (Channel::Telegram, 200) if body.contains("\"ok\":true") => Upshot::Arrived,
        (Channel::Telegram, 400 | 403) => Upshot::Never,
        (Channel::Telegram, 401 | 404) => Upshot::Rest(60),
        (Channel::Telegram, 429) => Upshot::Rest(retry_after_s.unwrap_or(5).clamp(1, 3600)),
        (Channel::Event, 200..=299) => Upshot::Arrived,
        (Channel::Event, _) => Upshot::Again(*retry_after_s),
        (Channel::Telegram, _) => Upshot::Again(None),
    }
}

/// The message that is delivered.
pub(super) struct InHand {
    pub(super) channel: Channel,
    pub(super) message: Message,
    pub(super) attempts: u32,
    pub(super) tried_since: Timestamp,
}

impl Model {
    /// When the next message of a channel is due.
    pub(super) fn next_due(&self, channel: Channel) -> Option<i64> {
        let messages = self.books.messages.iter();
        let due = messages.filter(|((_, _, of), message)| of == channel.name() && message.state == "due");
        due.map(|(_, message)| message.due_at).min()
    }

    pub(super) fn after_take_up(&self, channel: Channel, room: usize, rests: bool, now: Timestamp) -> Ends {
        let is_due = self.next_due(channel).is_some_and(|due_at| due_at <= now.ms());
        if room == 0 || rests || !is_due {
            return Ends::of(vec![possible("", self)]);
        }
        let until = Timestamp::from_ms(now.ms() - tried_for_ms(channel));
        let (_, given_up) = self.apply(&Op::GiveUp { channel, until, now }).swap_remove(0);
        let claim = Op::Claim { channel, now, limit: u32::try_from(room).unwrap() };
        let (reply, claimed) = given_up.apply(&claim).swap_remove(0);
        // A process whose claim was not confirmed delivers nothing.
        let unheard = possible("", &claimed);
        Ends::of(vec![possible("", self), possible("", &given_up), unheard, possible(&reply, &claimed)])
    }

    pub(super) fn after_delivery(
        &self,
        hand: &InHand,
        part: &Part,
        contact: &Contact,
        promises: &mut Promises,
        found: &Books,
    ) -> Ends {
        let InHand { channel, message, attempts, tried_since } = hand;
        let (channel, took) = (*channel, Duration::from_millis(part.after_ms));
        let now = contact.at.plus(took);
        let attempt = match upshot(channel, &part.fate) {
            Upshot::Arrived => Attempt::Sent,
            Upshot::Never => Attempt::Failed { error: String::new() },
            Upshot::Rest(seconds) => {
                let paused_until = &mut promises.paused_until[place_of(channel)];
                *paused_until = (*paused_until).max(contact.instant + took + Duration::from_secs(seconds));
                let at = now.plus(Duration::from_secs(seconds));
                Attempt::NotNow { at, attempts_before: attempts - 1, error: String::new() }
            }
            Upshot::Again(after_s) => {
                let longest_s = longest_pause_s(channel);
                let doubled_s = 1_u64.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX).min(longest_s);
                let asked_ms = after_s.map_or(0, |after_s| after_s.min(longest_s) * 1000);
                let pause = |percent: u64| Duration::from_millis((doubled_s * 10 * percent).max(asked_ms));
                let (earliest, latest) = (now.plus(pause(80)), now.plus(pause(120)));
                let place = (message.order_no.clone(), message.kind.clone(), message.channel.clone());
                let line = found.messages.get(&place);
                let deadline = tried_since.ms() + tried_for_ms(channel);
                let is_over = line.is_some_and(|line| line.state == "failed") || earliest.ms() > deadline;
                let at = line
                    .map_or(earliest.ms(), |line| line.due_at)
                    .clamp(earliest.ms(), latest.ms().min(deadline).max(earliest.ms()));
                if is_over && latest.ms() > deadline {
                    Attempt::Failed { error: String::new() }
                } else {
                    Attempt::Again { at: Timestamp::from_ms(at), error: String::new() }
                }
            }
        };
        let op = Op::Attempted { message: message.clone(), attempt, now };
        Ends::of(vec![possible("", self), possible("", &self.apply(&op).swap_remove(0).1)])
    }

    pub(super) fn after_questions(&self, in_hand: &[String], rests: bool, now: Timestamp) -> Ends {
        if rests {
            return Ends::of(vec![possible("", self)]);
        }
        let limit = u32::try_from(QUESTIONS + in_hand.len()).unwrap();
        let (due, after) = self.apply(&Op::DueQuestions { merchant: ASKED.into(), now, limit }).swap_remove(0);
        let is_new = |question: &&str| !in_hand.iter().any(|order_no| question.starts_with(&format!("{order_no}/")));
        let new: Vec<_> = due.split_whitespace().filter(is_new).collect();
        Ends::of(vec![possible("", self), possible("", &after), possible(&new.join(" "), &after)])
    }

    pub(super) fn unchanged(&self) -> Ends {
        Ends::of(vec![possible("", self)])
    }

    pub(super) fn after_set_back(&self, by_ms: i64, now: Timestamp) -> Ends {
        let mut moved = self.clone();
        let books = &mut moved.books;
        let is_ahead = |at: &&mut i64| **at > now.ms();
        let due =
            books.messages.values_mut().filter(|message| message.state == "due").map(|message| &mut message.due_at);
        due.filter(is_ahead).for_each(|at| *at -= by_ms);
        books.questions.values_mut().map(|(_, at)| at).filter(is_ahead).for_each(|at| *at -= by_ms);
        let pending = books.orders.values_mut().filter(|order| order.status == "pending");
        pending.map(|order| &mut order.expires_at).filter(is_ahead).for_each(|at| *at -= by_ms);
        Ends::of(vec![possible("", self), possible("", &moved)])
    }

    /// Asks about an order. `contact` is the question, if the gateway was asked at all.
    #[allow(clippy::too_many_arguments, reason = "all that an answer depends on")]
    pub(super) fn after_question(
        &self,
        (order, step): (&Order, u32),
        part: &Part,
        word: &'static str,
        contact: Option<&Contact>,
        began: Timestamp,
        promises: &mut Promises,
        found: &Books,
    ) -> Ends {
        let (order_no, created_at) = (order.terms.order_no.to_string(), order.terms.created_at);
        let Some(contact) = contact else {
            let soon = began.plus_seconds(1).ms();
            let busy = self.with_next(&order_no, step, Some((step, soon..=soon)), began, found);
            return Ends::of(vec![possible("", self), possible("", &busy)]);
        };
        let took = Duration::from_millis(part.after_ms);
        let now = contact.at.plus(took);
        promises.hear_of_gateway(&part.fate, contact.instant + took);
        let answer = match &part.fate {
            Fate::Answered { status: 200, body, .. } => {
                let credentials = Credentials::V1 { key: Secret::new(super::world::key_of(ASKED)), key_previous: None };
                Answer::of_reply(&credentials, body.as_bytes(), now).ok()
            }
            _ => None,
        };
        let verdict = answer.as_ref().map(|answer| answer.verdict(ASKED, &order.terms.order_no));
        let hold = verdict.as_ref().and_then(hold_of);
        let keep = Op::KeepAnswer { order_no: order_no.clone(), at: contact.at, answer: word.into(), hold };
        let kept = self.apply(&keep).swap_remove(0).1;
        let planned = |model: &Model, next| model.with_next(&order_no, step, next, now, found);
        let retry = retry_range(created_at, now).map(|range| (step, range));
        let policy = Policy { late: self.late, can_ask: true };
        let is_believed = matches!(word, "paid" | "refunded");
        let settle = answer
            .zip(verdict)
            .filter(|_| is_believed)
            .and_then(|(answer, verdict)| Settle::by_answer(order, &verdict, answer, policy, now));
        let failures = vec![possible("", &planned(self, retry.clone())), possible("", &planned(&kept, retry.clone()))];
        let Some(settle) = settle else {
            let next = if word == "no_answer" || word.starts_with("contradicts") {
                retry
            } else {
                next_range(created_at, step, now)
            };
            let prefixes = [self.clone(), kept.clone(), planned(&kept, next)];
            return Ends { prefixes: prefixes.iter().map(|model| possible("", model)).collect(), failures };
        };
        let settled = kept.apply(&Op::Settle { settle }).swap_remove(0).1;
        let mut done = settled.clone();
        done.books.questions.remove(&order_no);
        let unheard = planned(&settled, retry);
        let prefixes = [self.clone(), kept, settled, done];
        Ends {
            prefixes: prefixes.iter().map(|model| possible("", model)).collect(),
            failures: failures.into_iter().chain([possible("", &unheard)]).collect(),
        }
    }

    /// With the next question of an order: at the time that the books have found for it, where that is one that is promised.
    fn with_next(
        &self,
        order_no: &str,
        step: u32,
        next: Option<(u32, RangeInclusive<i64>)>,
        now: Timestamp,
        found: &Books,
    ) -> Self {
        let mut model = self.clone();
        let order = &self.books.orders[order_no];
        let is_unproved = |receipt: &super::books::ReceiptLine| {
            receipt.is_filed && receipt.order_no == order_no && receipt.outcome == "unconfirmed"
        };
        let awaits_word =
            matches!(order.status.as_str(), "pending" | "cancelled") && self.books.receipts.iter().any(is_unproved);
        let next = next.or_else(|| awaits_word.then(|| (step, seconds_from(now, DAY_S))));
        match next {
            None => _ = model.books.questions.remove(order_no),
            Some((step, range)) => {
                if let Some(question) = model.books.questions.get_mut(order_no) {
                    let at = found.questions.get(order_no).map_or(*range.start(), |(_, at)| *at);
                    *question = (step, at.clamp(*range.start(), *range.end()));
                }
            }
        }
        model
    }
}

impl Promises {
    fn hear_of_gateway(&mut self, fate: &Fate, now: Instant) {
        let pause_s = match fate {
            Fate::Answered { status: 429, retry_after_s, .. } => Some(retry_after_s.unwrap_or(5)),
            Fate::Answered { body, .. } if body.starts_with('{') => None,
            _ => {
                self.gateway_failures += 1;
                Some(1 << (self.gateway_failures.min(10) - 1))
            }
        };
        if pause_s.is_none() {
            self.gateway_failures = 0;
        }
        self.gateway_paused_until = now + Duration::from_secs(pause_s.unwrap_or(0).min(300));
    }

    /// Telegram gets messages one after the other.
    pub(super) fn keeps_distance(&mut self, contact: &Contact) -> bool {
        let before = self.sent_at.replace(contact.instant);
        before.is_none_or(|before| contact.instant >= before + TELEGRAM_GAP)
    }

    pub(super) fn rests(&self, channel: Channel, now: Instant) -> bool {
        self.paused_until[place_of(channel)] > now
    }
}

/// How long the operator is left alone after a message that they have, or never will: none where it has to be sent again.
pub(super) fn operator_pause_s(fate: &Fate) -> Option<u64> {
    matches!(upshot(Channel::Telegram, fate), Upshot::Arrived | Upshot::Never).then_some(60)
}

pub(super) fn place_of(channel: Channel) -> usize {
    usize::from(channel == Channel::Event)
}

/// So many seconds from then, up to a tenth more.
fn seconds_from(time: Timestamp, seconds: i64) -> RangeInclusive<i64> {
    time.ms() + seconds * 1000..=time.ms() + seconds * 1100
}

/// When an order is asked about again whose gateway gave an answer to go by, with the times of the schedule that have passed.
fn next_range(created_at: Timestamp, step: u32, now: Timestamp) -> Option<(u32, RangeInclusive<i64>)> {
    let schedule = SCHEDULE_S.map(i64::from);
    let (index, range) = if created_at > now {
        let index = step as usize + 1;
        (index, seconds_from(now, schedule.get(index)? - schedule[step as usize]))
    } else {
        let index = schedule.iter().position(|seconds| created_at.ms() + seconds * 1000 > now.ms())?;
        (index, seconds_from(created_at, schedule[index]))
    };
    Some((u32::try_from(index).unwrap(), range))
}

/// When an order is asked about again whose gateway gave none.
fn retry_range(created_at: Timestamp, now: Timestamp) -> Option<RangeInclusive<i64>> {
    let age_s = (now.ms() - created_at.ms()).max(0) / 1000;
    let last_s = i64::from(*SCHEDULE_S.last().unwrap());
    (age_s <= last_s + RETRY_FOR_S).then(|| seconds_from(now, (age_s / 10).clamp(5, 3600)))
}
