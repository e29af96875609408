//! Rounds of the service's loops, with and without faults in them, compared with the promises of the service.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ops::Message;
use super::outside::{Contact, Part};
use super::process::{Act, Promises};
use super::rounds::{Ends, InHand, operator_pause_s};
use super::run::{Broken, Run, Step, Trouble};
use crate::store::Channel;
use crate::store::sqlite::faults::Happened;

/// How long the loop of an outbox sleeps at most.
const LOOK_EVERY_MS: i64 = 5_000;

/// How an act ended.
enum Ended {
    Well,
    /// The store may have failed on the way.
    Hindered,
    Crashed,
}

/// What was in hand before an act.
enum Before {
    Nothing,
    Message(InHand),
    Question(Box<crate::store::Question>),
}

impl Run {
    /// Has the service do something by itself; what it took in hand.
    pub(super) async fn act(&mut self, act: Act, trouble: Trouble) -> Step<String> {
        self.tally.steps += 1;
        self.log.push(format!("{act:?}"));
        if !matches!(trouble, Trouble::None) {
            self.log.push(format!("  with {trouble:?}"));
        }
        let outside = self.world().outside.clone();
        let (began, instant) = (outside.clock.now(), outside.clock.instant());
        let process = self.world_mut().process();
        let (before, mut promises) = (in_hand(process, &act), process.promises);
        let (room, asking) = match act {
            Act::TakeUp { channel } => (process.room(channel), Vec::new()),
            _ => (0, process.questions.iter().map(|question| question.order.terms.order_no.to_string()).collect()),
        };
        let (reply, ended) = self.end_of(&act, trouble).await;
        // A transaction that could not even be given up ends with the next job.
        self.write_rejections().await?;
        let contacts = outside.contacts();
        for contact in &contacts {
            *self.tally.contacts.entry(contact.whom).or_default() += 1;
        }
        let found = self.world().books();
        let ends = match (&act, &before) {
            (Act::TakeUp { channel }, _) => {
                expect_none(&contacts)?;
                self.model.after_take_up(*channel, room, promises.rests(*channel, instant), began)
            }
            (Act::Deliver { part, .. }, Before::Message(hand)) => {
                let contact = the_only(&contacts)?;
                let Message { order_no, kind, channel, .. } = &hand.message;
                if (contact.whom, &contact.order_no, &contact.kind) != (channel.as_str(), order_no, kind) {
                    return Err(Broken(format!("{contact:?} is not about {:?}", hand.message)));
                }
                if contact.has_arrived {
                    self.delivered.insert((order_no.clone(), kind.clone(), channel.clone()));
                }
                if hand.channel == Channel::Telegram && !promises.keeps_distance(contact) {
                    return Err(Broken(format!("{contact:?} comes too soon after the message before it")));
                }
                self.model.after_delivery(hand, part, contact, &mut promises, &found)
            }
            (Act::TakeUpQuestions, _) => {
                expect_none(&contacts)?;
                self.model.after_questions(&asking, promises.gateway_paused_until > instant, began)
            }
            (Act::Ask { part, word, .. }, Before::Question(question)) => {
                let rests = promises.gateway_paused_until > instant;
                let contact = if rests { None } else { Some(the_only(&contacts)?) };
                if rests {
                    expect_none(&contacts)?;
                }
                if let Some(contact) =
                    contact.filter(|contact| contact.order_no != question.order.terms.order_no.as_str())
                {
                    return Err(Broken(format!("{contact:?} is not about {}", question.order.terms.order_no)));
                }
                let asked = (&question.order, question.step);
                self.model.after_question(asked, part, word, contact, began, &mut promises, &found)
            }
            (Act::TellOperator { part }, _) => {
                self.check_report(part, &contacts, &mut promises, matches!(ended, Ended::Well))?;
                self.model.unchanged()
            }
            (Act::FollowClock, _) => {
                expect_none(&contacts)?;
                let back_ms = -std::mem::take(&mut promises.set_by_ms);
                self.model.after_set_back(back_ms.max(0), began)
            }
            (Act::Deliver { .. } | Act::Ask { .. }, _) => unreachable!("what is in hand is known"),
        };
        self.log.extend(
            contacts.iter().map(|contact| format!("  {} of {} at {}", contact.whom, contact.order_no, contact.at.ms())),
        );
        self.compare(&ends, &reply, &ended)?;
        self.log.push(format!("  {reply}"));
        if matches!(ended, Ended::Crashed) {
            return Ok(String::new());
        }
        self.world_mut().process().promises = promises;
        if matches!(ended, Ended::Well) {
            self.is_awake_in_time(&act, instant)?;
        }
        match self.world().books().lost_money() {
            Some(lost) => Err(Broken(format!("proved money that nobody hears of: {lost}"))),
            None => Ok(reply),
        }
    }

    /// Does it, and crashes where it is to: what it took in hand, and how it ended.
    async fn end_of(&mut self, act: &Act, trouble: Trouble) -> (String, Ended) {
        match trouble {
            Trouble::None | Trouble::Torn { .. } => (self.world_mut().act(act).await, Ended::Well),
            Trouble::Crash { at } => {
                let copy = self.copy_at(at);
                let reply = self.world_mut().act(act).await;
                self.world().faults().disarm();
                let copy = copy.lock().unwrap().take();
                // The round may have had fewer steps than the fault waits for.
                let Some(copy) = copy else { return (reply, Ended::Well) };
                self.go_on_with(copy).await;
                (reply, Ended::Crashed)
            }
            trouble => {
                let hindrance = self.hinder(trouble).await;
                let reply = self.world_mut().act(act).await;
                if self.relieve(hindrance).await == Happened::No {
                    return (reply, Ended::Well);
                }
                self.tally.failures += 1;
                (reply, Ended::Hindered)
            }
        }
    }

    /// Takes over the books that were found, where a promise allows for them.
    fn compare(&mut self, ends: &Ends, reply: &str, ended: &Ended) -> Step {
        let found = self.world().books();
        let last = ends.prefixes.last().expect("an act ends somehow");
        let allowed = ends.prefixes.iter().chain(&ends.failures).filter(|end| match ended {
            Ended::Well => std::ptr::eq(*end, last),
            Ended::Hindered => end.reply == reply,
            Ended::Crashed => !ends.failures.iter().any(|failure| std::ptr::eq(failure, *end)),
        });
        let mut allowed = allowed.filter(|end| matches!(ended, Ended::Crashed) || end.reply == reply);
        if let Some(end) = allowed.find(|end| end.model.books == found) {
            self.model = end.model.clone();
            return Ok(());
        }
        let difference = last.model.books.difference(&found).unwrap_or_default();
        let expected = &last.reply;
        let taken =
            if reply == expected { String::new() } else { format!("took {reply:?} in hand, and not {expected:?}; ") };
        Err(Broken(format!("{taken}other books after an act (- expected, + found):\n{difference}")))
    }

    /// Each trouble is told until the operator knows of it, and not more often than is promised.
    fn check_report(&mut self, part: &Part, contacts: &[Contact], promises: &mut Promises, is_well: bool) -> Step {
        let mut newest = BTreeMap::new();
        for receipt in &self.model.books.receipts[self.told..] {
            newest.extend(receipt.trouble().map(|kind| (kind.to_owned(), &receipt.order_no)));
        }
        let contact = match contacts {
            [] if newest.is_empty() || !is_well => return Ok(()),
            [] => return Err(Broken(format!("the operator does not hear of {newest:?}"))),
            contacts => the_only(contacts)?,
        };
        if contact.whom != "operator" || contact.instant < promises.operator_paused_until {
            return Err(Broken(format!("{contact:?} comes before {:?}", promises.operator_paused_until)));
        }
        if !promises.keeps_distance(contact) {
            return Err(Broken(format!("{contact:?} comes too soon after the message before it")));
        }
        if let Some((kind, order_no)) = newest.iter().find(|(_, order_no)| !contact.kind.contains(order_no.as_str())) {
            return Err(Broken(format!("{contact:?} says nothing of {kind} of {order_no}")));
        }
        let pause_s = operator_pause_s(&part.fate);
        if pause_s.is_some() {
            self.told = self.model.books.receipts.len();
        }
        let took = Duration::from_millis(part.after_ms);
        promises.operator_paused_until = contact.instant + took + Duration::from_secs(pause_s.unwrap_or(1));
        Ok(())
    }

    /// A loop that took up nothing may not sleep past what is due.
    fn is_awake_in_time(&mut self, act: &Act, instant: tokio::time::Instant) -> Step {
        let Act::TakeUp { channel } = *act else { return Ok(()) };
        let now = self.world().outside.clock.now();
        let process = self.world_mut().process();
        let (rests, next_after) = (process.promises.rests(channel, instant), process.next_after);
        let due_in = self.model.next_due(channel).map(|due_at| (due_at - now.ms()).max(0));
        let sleeps = i64::try_from(next_after.as_millis()).unwrap();
        if rests
            || sleeps <= due_in.unwrap_or(LOOK_EVERY_MS).min(LOOK_EVERY_MS)
            || self.world_mut().process().room(channel) == 0
        {
            return Ok(());
        }
        Err(Broken(format!("sleeps for {sleeps} ms, and something is due in {due_in:?} ms")))
    }
}

fn in_hand(process: &super::process::Process, act: &Act) -> Before {
    match act {
        Act::Deliver { hand, .. } => {
            let hand = &process.hands[*hand];
            let (order_no, kind, channel) = hand.place.clone();
            Before::Message(InHand {
                channel: Channel::from_name(&channel).unwrap(),
                message: Message { id: hand.id, order_no, kind, channel },
                attempts: hand.attempts,
                tried_since: hand.tried_since,
            })
        }
        Act::Ask { hand, .. } => Before::Question(Box::new(process.questions[*hand].clone())),
        _ => Before::Nothing,
    }
}

fn the_only(contacts: &[Contact]) -> Step<&Contact> {
    match contacts {
        [Contact { fault: Some(fault), .. }] => Err(Broken(format!("{contacts:?}: {fault}"))),
        [contact] => Ok(contact),
        _ => Err(Broken(format!("one request was expected, and these came: {contacts:?}"))),
    }
}

fn expect_none(contacts: &[Contact]) -> Step {
    if contacts.is_empty() {
        Ok(())
    } else {
        Err(Broken(format!("no request was expected, and these came: {contacts:?}")))
    }
}
