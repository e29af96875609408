//! The reference: what each write must do to the books, in plain maps, by the words of the contract.

use std::collections::BTreeSet;

use super::books::{Books, KeyLine, LedgerLine, MessageLine, OrderLine, ReceiptLine, RefundLine};
use super::ops::{Key, Meaning, Message, Op, Payload, REJECTIONS, Told};
use super::world::can_be_asked;
use crate::domain::clock::Timestamp;
use crate::domain::decisions::{PaymentOfDecision, RefundState};
use crate::domain::money::Amount;
use crate::domain::order::{NewOrder, PaymentState};
use crate::domain::settlement::{ClaimProof, LatePolicy, Policy};
use crate::store::Attempt;

/// How long a message that is claimed stays away.
pub(super) const LEASE_MS: i64 = 30_000;
/// How long after an answer the next question may come because of a notification.
const ASK_PAUSE_MS: i64 = 10_000;

/// What the store does not do when it says so.
pub(super) const FAILED: &str = "failed";

/// The books as they should be, and what else the outcome of a write depends on.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) books: Books,
    pub(super) late: LatePolicy,
    pub(super) tells_bot: bool,
}

/// How a write may turn out: the reply, and the books after it.
pub(super) type Outcomes = Vec<(String, Model)>;

impl Model {
    pub(super) fn new(late: LatePolicy) -> Self {
        Self { books: Books::default(), late, tells_bot: false }
    }

    /// Every way in which this write may turn out where nothing fails.
    pub(super) fn apply(&self, op: &Op) -> Outcomes {
        if let Op::Notify { meaning, at, payload, .. } = op {
            return self.notify(meaning, *at, &payload.0);
        }
        let mut after = self.clone();
        let reply = after.write(op);
        vec![(reply, after)]
    }

    fn notify(&self, meaning: &Meaning, at: Timestamp, payload: &[u8]) -> Outcomes {
        let believed = |told: &Told| {
            let mut after = self.clone();
            let policy = Policy { late: self.late, can_ask: can_be_asked(&told.merchant) };
            let outcome = after.settle(told, "notify", policy, ClaimProof::Signature, at, payload);
            (outcome.to_owned(), after)
        };
        let refused = |outcome: &str| {
            let mut after = self.clone();
            after.books.rejections += 1;
            (outcome.to_owned(), after)
        };
        let in_any_way = || REJECTIONS.map(refused);
        match meaning {
            Meaning::Genuine(told) => vec![believed(told)],
            Meaning::Refused(outcome) => vec![refused(outcome)],
            Meaning::Forged => in_any_way().to_vec(),
            Meaning::Damaged(told) => in_any_way().into_iter().chain([believed(told)]).collect(),
        }
    }

    fn write(&mut self, op: &Op) -> String {
        match op {
            Op::Create { order, ask_at, key } => self.create(order, *ask_at, key.as_ref()).into(),
            Op::Notify { .. } => unreachable!("has several outcomes"),
            Op::Settle { settle } => {
                let claim = &settle.claim;
                let told = Told {
                    merchant: claim.merchant.clone(),
                    order_no: claim.order_no.clone(),
                    trade_no: claim.trade_no.clone(),
                    fen: claim.amount.map(Amount::fen),
                    payment: claim.payment,
                    param: claim.param.as_ref().map(|param| param.as_received().to_owned()),
                };
                let (receipt, source) = (&settle.receipt, settle.source.name());
                self.settle(&told, source, settle.policy, claim.proof, receipt.received_at, &receipt.payload).into()
            }
            Op::KeepAnswer { order_no, at, answer, .. } => {
                if let Some(order) = self.books.orders.get_mut(order_no) {
                    self.books.answers.push((order_no.clone(), at.ms(), answer.clone()));
                    let is_hold = matches!(answer.as_str(), "frozen" | "pre_authorised" | "refunded");
                    let is_refunded = order.hold.as_deref() == Some("refunded");
                    if is_hold && order.paid_at.is_none() && !is_refunded {
                        order.hold = Some(answer.clone());
                    }
                }
                "done".into()
            }
            Op::Schedule { order_no, step, next } => {
                match (self.books.questions.get_mut(order_no), next) {
                    (Some(question), Some(next)) => *question = (*step, next.ms()),
                    (_, None) => _ = self.books.questions.remove(order_no),
                    (None, Some(_)) => {}
                }
                "done".into()
            }
            Op::DueQuestions { merchant, now, limit } => self.due_questions(merchant, *now, *limit),
            Op::SettleByHand { order_no, payment, at } => {
                self.settle_by_hand(order_no, payment, *at).unwrap_or_else(|refused| refused).into()
            }
            Op::Cancel { order_no, at } => self.cancel(order_no, *at).unwrap_or_else(|refused| refused).into(),
            Op::Acknowledge { order_no, at } => self.acknowledge(order_no, *at),
            Op::BeginRefund { order_no, even_if_spent, at } => {
                self.begin_refund(order_no, *even_if_spent, *at).unwrap_or_else(str::to_owned)
            }
            Op::RefundAnswered { order_no, state, answer, at } => {
                if let Some(refund) = self.books.refunds.get_mut(order_no).filter(|refund| refund.state != "done") {
                    refund.state = state.name().into();
                    refund.answer = Some(answer.clone());
                    refund.changed_at = at.ms();
                }
                "done".into()
            }
            Op::FinishRefund { order_no, answer, proved, at } => {
                self.finish_refund(order_no, answer, *proved, *at).unwrap_or_else(|refused| refused).into()
            }
            Op::Grant { user, credits, key, at } => self.book("grant", *user, *credits, key.as_ref(), *at),
            Op::Spend { user, credits, key, at } => self.book("spend", *user, -credits, Some(key), *at),
            Op::Claim { channel, now, limit } => self.claim(channel.name(), *now, *limit),
            Op::Attempted { message, attempt, now } => {
                self.attempted(message, attempt, *now);
                "done".into()
            }
            Op::GiveUp { channel, until, now } => {
                let mut count = 0;
                for ((_, _, of), message) in &mut self.books.messages {
                    let began_at = message.retried_at.unwrap_or(message.created_at);
                    let is_due = message.state == "due" && message.due_at <= now.ms();
                    if of == channel.name() && is_due && began_at < until.ms() {
                        message.state = "failed".into();
                        message.finished_at = Some(now.ms());
                        count += 1;
                    }
                }
                format!("gave up {count}")
            }
            Op::DeliverAgain { channel, order_no, now } => {
                let mut count = 0;
                for ((order, _, of), message) in &mut self.books.messages {
                    if of == channel.name() && order == order_no {
                        let (id, created_at) = (message.id, message.created_at);
                        *message = MessageLine { retried_at: Some(now.ms()), ..due(id, created_at, *now) };
                        count += 1;
                    }
                }
                format!("again {count}")
            }
            Op::AddMissingEvents { since, now } => self.add_missing_events(*since, *now),
        }
    }

    fn create(&mut self, order: &NewOrder, ask_at: Option<Timestamp>, key: Option<&Key>) -> &'static str {
        let books = &mut self.books;
        if let Some(key) = key
            && let Some(earlier) = books.keys.get(&key.key)
        {
            return match (earlier.fingerprint == key.fingerprint, &earlier.order_no) {
                (true, Some(_)) => "repeated",
                (true, None) => unreachable!("the workload gives each request a key of its own"),
                (false, _) => "key_reused",
            };
        }
        let order_no = order.order_no.to_string();
        if books.orders.contains_key(&order_no) {
            return FAILED;
        }
        books.balances.entry(order.telegram_id).or_insert(0);
        let line = OrderLine {
            merchant: order.merchant.clone(),
            user: order.telegram_id,
            fen: order.amount.fen(),
            credits: order.credits,
            param: order.param.clone(),
            expires_at: order.expires_at.ms(),
            status: "pending".into(),
            trade_no: None,
            settled_by: None,
            paid_at: None,
            paid_outside: false,
            review_reason: None,
            hold: None,
        };
        books.orders.insert(order_no.clone(), line);
        if let Some(ask_at) = ask_at {
            books.questions.insert(order_no.clone(), (0, ask_at.ms()));
        }
        if let Some(Key { key, fingerprint }) = key {
            let line = KeyLine { fingerprint: fingerprint.clone(), order_no: Some(order_no), credits_after: None };
            books.keys.insert(key.clone(), line);
        }
        "created"
    }

    /// The order that this payment has settled.
    fn settled_by(&self, merchant: &str, trade_no: &str) -> Option<&String> {
        let settled = |order: &OrderLine| order.merchant == merchant && order.trade_no.as_deref() == Some(trade_no);
        self.books.orders.iter().find(|(_, order)| settled(order)).map(|(order_no, _)| order_no)
    }

    /// The name of the outcome, by the table of the contract from top to bottom, with the reason for a review.
    fn outcome(&self, told: &Told, policy: Policy, proof: ClaimProof, now: Timestamp) -> (&'static str, &'static str) {
        let plain = |outcome| (outcome, "");
        let own = self.books.orders.get(&told.order_no).filter(|order| order.merchant == told.merchant);
        let is_settled = |order: &OrderLine| matches!(order.status.as_str(), "paid" | "refunded");
        match (told.payment, own) {
            (PaymentState::Unclear, Some(order)) if !is_settled(order) && !policy.can_ask => {
                return plain("unconfirmed");
            }
            (PaymentState::Unpaid | PaymentState::Unclear, _) => return plain("not_paid"),
            _ => {}
        }
        let Some(order) = own else { return plain("unknown_order") };
        if is_settled(order) && told.payment == PaymentState::Refunded {
            return plain("not_paid");
        }
        if is_settled(order) && order.trade_no.is_some() && order.trade_no == told.trade_no {
            return plain("duplicate");
        }
        let waits_for_word = !is_settled(order)
            && matches!(order.hold.as_deref(), Some("frozen" | "pre_authorised" | "restored"))
            && proof != ClaimProof::Gateway;
        let is_unproved = proof == ClaimProof::Missing && told.payment == PaymentState::Paid;
        if is_unproved || (waits_for_word && policy.can_ask) {
            return plain("unconfirmed");
        }
        let used = told.trade_no.as_ref().and_then(|trade_no| self.settled_by(&told.merchant, trade_no));
        if used.is_some_and(|other| *other != told.order_no) {
            return plain("trade_reused");
        }
        if is_settled(order) {
            let adopts = order.status == "paid"
                && order.settled_by.as_deref() == Some("manual")
                && order.trade_no.is_none()
                && !order.paid_outside
                && told.trade_no.is_some()
                && told.fen == Some(order.fen);
            return plain(if adopts { "duplicate" } else { "paid_again" });
        }
        if told.payment == PaymentState::Refunded || order.hold.as_deref() == Some("refunded") {
            return ("held", "refunded");
        }
        if told.fen != Some(order.fen) {
            return ("amount_mismatch", "amount");
        }
        let is_expired = order.status == "pending" && now.ms() >= order.expires_at;
        let is_foreign = matches!((&order.param, &told.param), (Some(sent), Some(received)) if sent != received);
        match order.status.as_str() {
            "review" => plain("held"),
            "cancelled" => ("held", "cancelled"),
            _ if is_expired && policy.late == LatePolicy::Review => ("held", "late"),
            _ if is_foreign => ("held", "param"),
            _ if told.trade_no.is_none() => ("held", "no_trade_no"),
            _ if waits_for_word => ("held", "too_old"),
            _ => plain("settled"),
        }
    }

    fn settle(
        &mut self,
        told: &Told,
        source: &str,
        policy: Policy,
        proof: ClaimProof,
        now: Timestamp,
        payload: &[u8],
    ) -> &'static str {
        let (outcome, reason) = self.outcome(told, policy, proof, now);
        let mut alert = None;
        let own = self.books.orders.get_mut(&told.order_no).filter(|order| order.merchant == told.merchant);
        if outcome == "held" && reason == "refunded" {
            alert = Some("refunded".to_owned());
        }
        match (outcome, own) {
            ("settled", _) => self.pay(&told.order_no, told.trade_no.clone(), source, false, now),
            ("duplicate", Some(order)) if order.trade_no.is_none() => {
                order.trade_no.clone_from(&told.trade_no);
                alert = Some("adopted".to_owned());
            }
            ("amount_mismatch" | "held", Some(order)) if order.status != "review" => {
                order.status = "review".into();
                order.review_reason = Some(reason.to_owned());
                self.enqueue(&told.order_no, "review", now);
            }
            ("unconfirmed", Some(_)) if told.payment == PaymentState::Unclear => {
                alert = Some("status_unclear".to_owned());
            }
            ("unconfirmed", Some(_)) => self.ask_soon(&told.order_no, now),
            ("not_paid", Some(order)) if told.payment == PaymentState::Unclear && order.paid_at.is_none() => {
                self.ask_soon(&told.order_no, now);
            }
            _ => {}
        }
        let is_filed = self.books.orders.get(&told.order_no).is_some_and(|order| order.merchant == told.merchant);
        self.books.receipts.push(ReceiptLine {
            at: now.ms(),
            source: source.into(),
            outcome: outcome.into(),
            merchant: told.merchant.clone(),
            order_no: told.order_no.clone(),
            trade_no: told.trade_no.clone().unwrap_or_default(),
            is_filed,
            payload: Payload(payload.to_vec()),
            fen: told.fen,
            alert,
        });
        outcome
    }

    fn pay(&mut self, order_no: &str, trade_no: Option<String>, source: &str, paid_outside: bool, now: Timestamp) {
        let order = self.books.orders.get_mut(order_no).unwrap();
        order.status = "paid".into();
        order.trade_no = trade_no;
        order.settled_by = Some(source.into());
        order.paid_at = Some(now.ms());
        order.paid_outside = paid_outside;
        let (user, credits) = (order.user, order.credits);
        self.enter("order", user, credits, Some(order_no), now);
        self.enqueue(order_no, "settled", now);
    }

    fn enter(&mut self, kind: &str, user: i64, credits: i64, order_no: Option<&str>, now: Timestamp) {
        *self.books.balances.get_mut(&user).unwrap() += credits;
        let order_no = order_no.map(str::to_owned);
        self.books.ledger.push(LedgerLine { user, kind: kind.into(), credits, order_no, at: now.ms() });
    }

    fn enqueue(&mut self, order_no: &str, kind: &str, now: Timestamp) {
        let channels = if self.tells_bot { &["telegram", "event"][..] } else { &["telegram"] };
        for channel in channels {
            let id = next_id(self.books.messages.len());
            let place = (order_no.to_owned(), kind.to_owned(), (*channel).to_owned());
            self.books.messages.entry(place).or_insert(due(id, now.ms(), now));
        }
    }

    fn ask_soon(&mut self, order_no: &str, now: Timestamp) {
        // An answer from a time that is yet to come is one from before the clock was set back.
        let is_own = |(order, at, _): &&(String, i64, String)| order == order_no && *at <= now.ms();
        let last = self.books.answers.iter().filter(is_own).map(|(_, at, _)| *at).max();
        let soon = last.map_or(now.ms(), |last| now.ms().max(last + ASK_PAUSE_MS));
        let question = self.books.questions.entry(order_no.into()).or_insert((0, soon));
        question.1 = question.1.min(soon);
    }

    fn due_questions(&mut self, merchant: &str, now: Timestamp, limit: u32) -> String {
        let is_own = |order_no: &str| self.books.orders[order_no].merchant == merchant;
        let mut due: Vec<_> = self
            .books
            .questions
            .iter()
            .filter(|(order_no, (_, at))| *at <= now.ms() && is_own(order_no))
            .map(|(order_no, (step, at))| (*at, order_no.clone(), *step))
            .collect();
        due.sort();
        due.truncate(limit as usize);
        let (open, done): (Vec<_>, Vec<_>) = due.into_iter().partition(|(_, order_no, _)| {
            matches!(self.books.orders[order_no].status.as_str(), "pending" | "cancelled")
        });
        for (_, order_no, _) in done {
            self.books.questions.remove(&order_no);
        }
        listed(open.into_iter().map(|(_, order_no, step)| format!("{order_no}/{step}")))
    }

    fn status(&self, order_no: &str) -> Result<&str, &'static str> {
        self.books.orders.get(order_no).map(|order| order.status.as_str()).ok_or("no_such_order")
    }

    fn note(&mut self, order_no: &str, outcome: &str, trade_no: &str, at: Timestamp) {
        let is_of_payment = |receipt: &&ReceiptLine| {
            receipt.is_filed && receipt.order_no == order_no && receipt.trade_no == trade_no && !trade_no.is_empty()
        };
        let fen = self.books.receipts.iter().rfind(is_of_payment).and_then(|receipt| receipt.fen);
        self.note_with(order_no, outcome, trade_no, super::world::REASON.into(), at);
        self.books.receipts.last_mut().unwrap().fen = fen;
    }

    fn note_with(&mut self, order_no: &str, outcome: &str, trade_no: &str, reason: String, at: Timestamp) {
        self.books.receipts.push(ReceiptLine {
            at: at.ms(),
            source: "manual".into(),
            outcome: outcome.into(),
            merchant: self.books.orders[order_no].merchant.clone(),
            order_no: order_no.into(),
            trade_no: trade_no.into(),
            is_filed: true,
            payload: Payload(reason.into()),
            fen: None,
            alert: None,
        });
    }

    fn settle_by_hand(
        &mut self,
        order_no: &str,
        payment: &PaymentOfDecision,
        at: Timestamp,
    ) -> Result<&'static str, &'static str> {
        if !matches!(self.status(order_no)?, "pending" | "review") {
            return Err("wrong_status");
        }
        let is_waiting = |receipt: &&ReceiptLine| {
            receipt.is_filed
                && receipt.order_no == order_no
                && matches!(receipt.outcome.as_str(), "amount_mismatch" | "held")
                && !receipt.trade_no.is_empty()
                && receipt.alert.as_deref() != Some("refunded")
        };
        let waiting = self.books.receipts.iter().filter(is_waiting).map(|receipt| receipt.trade_no.clone());
        let waiting: BTreeSet<String> = waiting.chain(payment.proved.clone()).collect();
        let typed = payment.typed.clone();
        let known = match &typed {
            _ if payment.paid_outside || waiting.is_empty() => None,
            Some(typed) if waiting.contains(typed) => Some(typed.clone()),
            None if waiting.len() == 1 => waiting.first().cloned(),
            _ => return Err("choose_payment"),
        };
        let merchant = &self.books.orders[order_no].merchant;
        if known.iter().chain(&typed).any(|trade_no| self.settled_by(merchant, trade_no).is_some()) {
            return Err("trade_reused");
        }
        self.pay(order_no, known.clone(), "manual", payment.paid_outside, at);
        let reason = match &typed {
            Some(typed) if known.as_ref() != Some(typed) => format!("{} [trade_no {typed}]", super::world::REASON),
            _ => super::world::REASON.into(),
        };
        self.note_with(order_no, "settled", known.as_deref().unwrap_or_default(), reason, at);
        for other in waiting.iter().filter(|trade_no| known.as_ref() != Some(trade_no)) {
            self.note(order_no, "paid_again", other, at);
        }
        Ok("done")
    }

    fn cancel(&mut self, order_no: &str, at: Timestamp) -> Result<&'static str, &'static str> {
        if !matches!(self.status(order_no)?, "pending" | "review") {
            return Err("wrong_status");
        }
        self.books.orders.get_mut(order_no).unwrap().status = "cancelled".into();
        self.note(order_no, "cancelled", "", at);
        Ok("done")
    }

    fn acknowledge(&mut self, order_no: &str, at: Timestamp) -> String {
        if !self.books.orders.contains_key(order_no) {
            return "no_such_order".into();
        }
        let trades = |outcome: &str| -> BTreeSet<String> {
            let own =
                |receipt: &&ReceiptLine| receipt.is_filed && receipt.order_no == order_no && receipt.outcome == outcome;
            self.books.receipts.iter().filter(own).map(|receipt| receipt.trade_no.clone()).collect()
        };
        let open = &trades("paid_again") - &trades("acknowledged");
        for trade_no in &open {
            self.note(order_no, "acknowledged", trade_no, at);
        }
        if open.is_empty() { "not_paid_again".into() } else { listed(open) }
    }

    fn begin_refund(&mut self, order_no: &str, even_if_spent: bool, at: Timestamp) -> Result<String, &'static str> {
        if self.status(order_no)? != "paid" {
            return Err("wrong_status");
        }
        if let Some(before) = self.books.refunds.get(order_no).filter(|refund| refund.state != "refused") {
            return Ok(format!("{} before", before.state));
        }
        let order = &self.books.orders[order_no];
        if self.books.balances[&order.user] < order.credits && !even_if_spent {
            return Err("out_of_bounds");
        }
        let wanted = RefundLine {
            state: RefundState::Requested.name().into(),
            answer: None,
            proved: false,
            requested_at: at.ms(),
            changed_at: at.ms(),
        };
        self.books.refunds.insert(order_no.into(), wanted);
        Ok("requested".into())
    }

    fn finish_refund(
        &mut self,
        order_no: &str,
        answer: &str,
        proved: bool,
        at: Timestamp,
    ) -> Result<&'static str, &'static str> {
        let status = self.status(order_no)?.to_owned();
        match (status.as_str(), self.books.refunds.get_mut(order_no)) {
            ("refunded", _) => return Ok("refunded"),
            ("paid", Some(refund)) => {
                refund.state = "done".into();
                refund.answer = Some(answer.into());
                refund.proved = proved;
                refund.changed_at = at.ms();
            }
            _ => return Err("wrong_status"),
        }
        let order = self.books.orders.get_mut(order_no).unwrap();
        order.status = "refunded".into();
        let (user, credits) = (order.user, order.credits);
        self.enter("refund", user, -credits, Some(order_no), at);
        self.enqueue(order_no, "refunded", at);
        Ok("refunded")
    }

    fn book(&mut self, kind: &str, user: i64, credits: i64, key: Option<&Key>, at: Timestamp) -> String {
        if let Some(key) = key
            && let Some(earlier) = self.books.keys.get(&key.key)
        {
            return match (earlier.fingerprint == key.fingerprint, earlier.credits_after) {
                (true, Some(after)) => format!("repeated, {after}"),
                (true, None) => unreachable!("the workload gives each request a key of its own"),
                (false, _) => "key_reused".into(),
            };
        }
        let Some(&before) = self.books.balances.get(&user) else { return "no_such_user".into() };
        let after = before + credits;
        if credits < 0 && after < 0 {
            return "out_of_bounds".into();
        }
        self.enter(kind, user, credits, None, at);
        if let Some(Key { key, fingerprint }) = key {
            let line = KeyLine { fingerprint: fingerprint.clone(), order_no: None, credits_after: Some(after) };
            self.books.keys.insert(key.clone(), line);
        }
        format!("booked, {after}")
    }

    fn claim(&mut self, channel: &str, now: Timestamp, limit: u32) -> String {
        let mut due: Vec<_> = self
            .books
            .messages
            .iter_mut()
            .filter(|((_, _, of), message)| of == channel && message.state == "due" && message.due_at <= now.ms())
            .collect();
        due.sort_by_key(|(_, message)| (message.due_at, message.id));
        listed(due.into_iter().take(limit as usize).map(|((order_no, kind, _), message)| {
            message.due_at = now.ms() + LEASE_MS;
            message.attempts += 1;
            format!("{}:{order_no}/{kind}/{}", message.id, message.attempts)
        }))
    }

    fn attempted(&mut self, of: &Message, attempt: &Attempt, now: Timestamp) {
        let place = (of.order_no.clone(), of.kind.clone(), of.channel.clone());
        let Some(message) = self.books.messages.get_mut(&place) else { return };
        // What has come to its end stays there, unless it did arrive after all.
        if message.state != "due" && *attempt != Attempt::Sent {
            return;
        }
        match attempt {
            Attempt::Sent => (message.state, message.finished_at) = ("sent".into(), Some(now.ms())),
            Attempt::Failed { .. } => (message.state, message.finished_at) = ("failed".into(), Some(now.ms())),
            Attempt::Again { at, .. } => message.due_at = at.ms(),
            Attempt::NotNow { at, attempts_before, .. } => {
                message.due_at = at.ms();
                message.attempts = message.attempts.min(*attempts_before);
            }
        }
    }

    fn add_missing_events(&mut self, since: Timestamp, now: Timestamp) -> String {
        let messages = &mut self.books.messages;
        let mut told: Vec<_> = messages
            .iter()
            .filter(|((_, _, channel), message)| channel == "telegram" && message.created_at >= since.ms())
            .map(|((order_no, kind, _), message)| (message.id, order_no.clone(), kind.clone(), message.created_at))
            .collect();
        told.sort();
        let before = messages.len();
        for (_, order_no, kind, created_at) in told {
            let id = next_id(messages.len());
            let event = MessageLine { retried_at: Some(now.ms()), ..due(id, created_at, now) };
            messages.entry((order_no, kind, "event".into())).or_insert(event);
        }
        format!("added {}", messages.len() - before)
    }
}

fn next_id(messages: usize) -> i64 {
    i64::try_from(messages).unwrap() + 1
}

/// A message that is due now.
fn due(id: i64, created_at: i64, now: Timestamp) -> MessageLine {
    MessageLine {
        id,
        created_at,
        due_at: now.ms(),
        attempts: 0,
        state: "due".into(),
        finished_at: None,
        retried_at: None,
    }
}

/// How replies list what they name.
pub(super) fn listed(names: impl IntoIterator<Item = String>) -> String {
    names.into_iter().collect::<Vec<_>>().join(" ")
}
