//! Each kind of write, and each round of the service's loops, fails at its first step, then at its second, until it has no more.

use std::time::Duration;

use super::callbacks::Answering;
use super::ops::{Key, Meaning, Message, Op, Payload, Told};
use super::outside::{Fate, Outside, Part};
use super::process::Act;
use super::random::Random;
use super::run::{Broken, Run, Trouble};
use super::world::{Rest, Settings};
use super::{callbacks, runtime};
use crate::domain::clock::Timestamp;
use crate::domain::decisions::{PaymentOfDecision, RefundState};
use crate::domain::money::Amount;
use crate::domain::order::{Hold, NewOrder, PaymentState, SettledBy};
use crate::domain::settlement::{Claim, ClaimProof, LatePolicy, Policy};
use crate::store::{Attempt, Channel, Receipt, Settle};

const CREATED: i64 = 1_767_323_045_000;
/// More than any write has.
const STEPS_MAX: u64 = 2_000;

fn outside() -> Outside {
    Outside::new(Timestamp::from_ms(CREATED))
}

fn at(seconds: u32) -> Timestamp {
    Timestamp::from_ms(CREATED).plus_seconds(seconds)
}

fn order(order_no: &str) -> NewOrder {
    NewOrder {
        order_no: order_no.parse().unwrap(),
        merchant: "1002".into(),
        telegram_id: 1001,
        package: None,
        name: "VIP白银".into(),
        payment_type: "alipay".into(),
        amount: Amount::from_fen(3600).unwrap(),
        credits: 70,
        param: None,
        created_at: at(0),
        expires_at: at(1800),
    }
}

fn create(order_no: &str) -> Op {
    Op::Create { order: order(order_no), ask_at: Some(at(15)), key: None }
}

fn told(order_no: &str, trade_no: &str, fen: i64) -> Told {
    Told {
        merchant: "1002".into(),
        order_no: order_no.into(),
        trade_no: Some(trade_no.into()),
        fen: Some(fen),
        payment: PaymentState::Paid,
        param: None,
    }
}

fn notify(told: Told, seconds: u32) -> Op {
    // One that needs pages of its own.
    let payloads = (0..).map(|seed| callbacks::genuine(&told, at(seconds), &mut Random::new(seed)));
    let payload = Payload(payloads.into_iter().find(|payload| payload.len() > 9_000).unwrap());
    let client = "203.0.113.7".parse().unwrap();
    Op::Notify { payload, client, at: at(seconds), meaning: Meaning::Genuine(told) }
}

fn paid(order_no: &str, trade_no: &str) -> Op {
    notify(told(order_no, trade_no, 3600), 20)
}

fn unconfirmed(order_no: &str) -> Op {
    let claim = Claim {
        merchant: "1002".into(),
        order_no: order_no.into(),
        trade_no: Some("T1".into()),
        amount: Amount::from_fen(3600),
        payment: PaymentState::Paid,
        param: None,
        proof: ClaimProof::Missing,
    };
    let receipt = Receipt { received_at: at(5), client: None, method: "POST", payload: vec![b'x'; 9_000] };
    let policy = Policy { late: LatePolicy::Review, can_ask: true };
    Op::Settle { settle: Settle { claim, source: SettledBy::Notify, policy, receipt } }
}

fn key() -> Key {
    Key { key: "K1".into(), fingerprint: "f".into() }
}

fn begin_refund() -> Op {
    Op::BeginRefund { order_no: "A1".into(), even_if_spent: false, at: at(30) }
}

fn claim() -> Op {
    Op::Claim { channel: Channel::Telegram, now: at(40), limit: 8 }
}

fn attempted(attempt: Attempt) -> Op {
    let message = Message { id: 1, order_no: "A1".into(), kind: "settled".into(), channel: "telegram".into() };
    Op::Attempted { message, attempt, now: at(45) }
}

/// Every kind of write, with what comes before it.
fn writes() -> Vec<(&'static str, Vec<Op>, Op)> {
    let settled = || vec![create("A1"), paid("A1", "T1")];
    let with = |mut before: Vec<Op>, op: Op| {
        before.push(op);
        before
    };
    let order_no = || "A1".to_owned();
    vec![
        ("create", vec![], create("A1")),
        ("create, once", vec![], Op::Create { order: order("A1"), ask_at: None, key: Some(key()) }),
        ("settle", vec![create("A1")], paid("A1", "T1")),
        ("duplicate", settled(), paid("A1", "T1")),
        ("paid again", settled(), paid("A1", "T2")),
        ("trade reused", with(settled(), create("A2")), paid("A2", "T1")),
        ("unknown order", vec![], paid("A1", "T1")),
        ("other amount", vec![create("A1")], notify(told("A1", "T1", 1), 20)),
        ("late", vec![create("A1")], notify(told("A1", "T1", 3600), 1800)),
        ("unconfirmed", vec![create("A1")], unconfirmed("A1")),
        (
            "keep an answer",
            vec![create("A1")],
            Op::KeepAnswer { order_no: order_no(), at: at(15), answer: "frozen".into(), hold: Some(Hold::Frozen) },
        ),
        ("ask again", vec![create("A1")], Op::Schedule { order_no: order_no(), step: 1, next: Some(at(60)) }),
        ("ask no more", vec![create("A1")], Op::Schedule { order_no: order_no(), step: 1, next: None }),
        ("tidy up", settled(), Op::DueQuestions { merchant: "1002".into(), now: at(20), limit: 8 }),
        (
            "by hand",
            vec![create("A1")],
            Op::SettleByHand { order_no: order_no(), payment: PaymentOfDecision::default(), at: at(20) },
        ),
        (
            "by hand, out of review",
            vec![create("A1"), notify(told("A1", "T1", 1), 20)],
            Op::SettleByHand { order_no: order_no(), payment: PaymentOfDecision::default(), at: at(25) },
        ),
        (
            "adopt",
            vec![
                create("A1"),
                Op::SettleByHand { order_no: order_no(), payment: PaymentOfDecision::default(), at: at(20) },
            ],
            paid("A1", "T1"),
        ),
        (
            "by hand, with a second payment",
            vec![create("A1"), notify(told("A1", "T1", 1), 20), notify(told("A1", "T2", 2), 21)],
            Op::SettleByHand {
                order_no: order_no(),
                payment: PaymentOfDecision { typed: Some("T1".into()), ..PaymentOfDecision::default() },
                at: at(25),
            },
        ),
        ("cancel", vec![create("A1")], Op::Cancel { order_no: order_no(), at: at(20) }),
        ("acknowledge", with(settled(), paid("A1", "T2")), Op::Acknowledge { order_no: order_no(), at: at(30) }),
        ("begin a refund", settled(), begin_refund()),
        (
            "refund refused",
            with(settled(), begin_refund()),
            Op::RefundAnswered { order_no: order_no(), state: RefundState::Refused, answer: "no".into(), at: at(35) },
        ),
        (
            "finish a refund",
            with(settled(), begin_refund()),
            Op::FinishRefund { order_no: order_no(), answer: "yes".into(), proved: true, at: at(35) },
        ),
        ("spend", settled(), Op::Spend { user: 1001, credits: 30, key: key(), at: at(30) }),
        ("grant", settled(), Op::Grant { user: 1001, credits: 30, key: None, at: at(30) }),
        ("claim", settled(), claim()),
        ("sent", with(settled(), claim()), attempted(Attempt::Sent)),
        ("try again", with(settled(), claim()), attempted(Attempt::Again { at: at(90), error: "no".into() })),
        ("give up", settled(), Op::GiveUp { channel: Channel::Telegram, until: at(100), now: at(101) }),
        (
            "deliver again",
            with(with(settled(), claim()), attempted(Attempt::Sent)),
            Op::DeliverAgain { channel: Channel::Telegram, order_no: order_no(), now: at(50) },
        ),
        ("add events", settled(), Op::AddMissingEvents { since: at(0), now: at(50) }),
    ]
}

/// Does each write in more and more trouble, until nothing comes of it: how often something did, all in all.
fn fail_everywhere(trouble: impl Fn(u64) -> Trouble) -> u64 {
    let mut failed = 0;
    for (name, before, op) in writes() {
        let times = runtime().block_on(fail_one(name != "add events", before, &op, &trouble));
        let times = times.unwrap_or_else(|broken| panic!("{name}: {}", broken.0));
        println!("{name}: {times}");
        failed += times;
    }
    failed
}

async fn fail_one(tells_bot: bool, before: Vec<Op>, op: &Op, trouble: impl Fn(u64) -> Trouble) -> Result<u64, Broken> {
    let mut run =
        Run::new(Settings { late: LatePolicy::Review, tells_bot, bug: None, service_bug: None, seed: 0 }, outside())
            .await;
    run.tell_bot(tells_bot);
    for op in before {
        run.step(op, Trouble::None).await?;
    }
    let books = run.model.books.clone();
    for at in 0..STEPS_MAX {
        let mut reply = run.attempt(op, trouble(at)).await?;
        if run.model.books != books && reply.is_none() {
            // It was done, and nobody heard of it: whoever sends it again does no harm.
            reply = run.attempt(op, Trouble::None).await?;
        }
        if reply.is_some() {
            // It is done, once: the books say so, and the audit has to.
            run.conclude(false).await?;
            return Ok(at);
        }
    }
    Err(Broken("it never succeeds".into()))
}

#[test]
fn every_write_is_interrupted_at_every_step() {
    let failed = fail_everywhere(|at| Trouble::Interrupt { at, lasts: false });
    assert!(failed > 1_000, "{failed}");
}

#[test]
fn every_write_is_interrupted_at_every_step_for_good() {
    let failed = fail_everywhere(|at| Trouble::Interrupt { at, lasts: true });
    assert!(failed > 1_000, "{failed}");
}

#[test]
fn every_write_is_refused_each_of_its_statements() {
    let failed = fail_everywhere(|at| Trouble::Deny { at, lasts: false });
    assert!(failed > 300, "{failed}");
}

#[test]
fn every_write_is_killed_at_every_step() {
    let failed = fail_everywhere(|at| Trouble::Crash { at: at * 7 });
    assert!(failed > 500, "{failed}");
}

#[test]
fn every_write_is_cut_off_from_the_disk() {
    for rest in [Rest::Old, Rest::Nothing, Rest::Rubbish] {
        let cut = |at| if at < 10 { Trouble::Torn { percent: at * 11, rest } } else { Trouble::None };
        let failed = fail_everywhere(cut);
        assert!(failed > 250, "{rest:?}: {failed}");
    }
}

#[test]
fn every_write_finds_no_room() {
    let failed = fail_everywhere(|at| Trouble::Full { pages: i64::try_from(at).unwrap() });
    assert!(failed > 5, "{failed}");
}

#[test]
fn every_write_finds_a_lock_and_a_commit_that_fails() {
    let failed = fail_everywhere(|at| match at {
        0 => Trouble::Locked,
        1 => Trouble::Veto,
        _ => Trouble::None,
    });
    assert!(failed > 50, "{failed}");
}

/// Rounds of the service's loops, with the writes that come before them.
fn acts() -> Vec<(&'static str, Vec<Op>, Vec<Act>, Act)> {
    let settled = || vec![create("A1"), paid("A1", "T1")];
    let channel = Channel::Telegram;
    let part = |status, body: &str| Part {
        fate: Fate::Answered { status, body: body.into(), retry_after_s: Some(7) },
        after_ms: 100,
    };
    let deliver = |part| Act::Deliver { hand: 0, part };
    let ask = |answering| {
        let (body, word) = callbacks::answer(answering, "1002", "A1", 3600, Some("T1"));
        Act::Ask { hand: 0, part: part(200, &body.unwrap()), word }
    };
    let taken_up = || vec![Act::TakeUp { channel }];
    let questions = || vec![Act::TakeUpQuestions];
    vec![
        ("take up", settled(), vec![], Act::TakeUp { channel }),
        ("deliver", settled(), taken_up(), deliver(part(200, r#"{"ok":true}"#))),
        ("put off", settled(), taken_up(), deliver(part(429, "{}"))),
        ("refused", settled(), taken_up(), deliver(part(403, "{}"))),
        ("try again", settled(), taken_up(), deliver(part(500, ""))),
        ("take up questions", vec![create("A1")], vec![], Act::TakeUpQuestions),
        ("paid", vec![create("A1")], questions(), ask(Answering::Truly)),
        ("other amount", vec![create("A1")], questions(), ask(Answering::OtherAmount)),
        ("other order", vec![create("A1")], questions(), ask(Answering::OtherOrder)),
        ("frozen", vec![create("A1")], questions(), ask(Answering::Frozen)),
        ("unknown", vec![create("A1")], questions(), ask(Answering::UnknownOrder)),
    ]
}

/// Does an act with a trouble, and then everything that is left to do; whether the trouble came.
async fn act_in_trouble(before: Vec<Op>, acts: Vec<Act>, act: Act, trouble: Trouble) -> Result<bool, Broken> {
    let settings = Settings { late: LatePolicy::Review, tells_bot: false, bug: None, service_bug: None, seed: 0 };
    let outside = outside();
    let mut run = Run::new(settings, outside.clone()).await;
    for op in before {
        run.step(op, Trouble::None).await?;
    }
    outside.clock.pass(Duration::from_secs(20));
    for act in acts {
        run.act(act, Trouble::None).await?;
    }
    run.act(act, trouble).await?;
    let came = run.tally.crashes + run.tally.failures > 0;
    // Longer than a lease.
    outside.clock.pass(Duration::from_mins(1));
    run.act(Act::TakeUp { channel: Channel::Telegram }, Trouble::None).await?;
    run.act(Act::TakeUpQuestions, Trouble::None).await?;
    run.conclude(false).await?;
    Ok(came)
}

fn trouble_everywhere(trouble: impl Fn(u64) -> Trouble) -> u64 {
    let mut times = 0;
    for (name, before, acts, act) in acts() {
        for at in 0..STEPS_MAX {
            let came = act_in_trouble(before.clone(), acts.clone(), act.clone(), trouble(at));
            let came = runtime().block_on(came).unwrap_or_else(|broken| panic!("{name}, {at}: {}", broken.0));
            if !came {
                break;
            }
            times += 1;
        }
    }
    times
}

#[test]
fn every_act_of_the_service_is_killed_on_the_way() {
    let times = trouble_everywhere(|at| Trouble::Crash { at: at * 23 });
    assert!(times > 30, "{times}");
}

#[test]
fn every_act_of_the_service_is_interrupted_on_the_way() {
    let times = trouble_everywhere(|at| Trouble::Interrupt { at: at * 23, lasts: false });
    assert!(times > 30, "{times}");
}

#[test]
fn every_act_of_the_service_is_refused_its_statements() {
    let times = trouble_everywhere(|at| Trouble::Deny { at: at * 3, lasts: at % 2 == 1 });
    assert!(times > 20, "{times}");
}

#[test]
fn a_database_whose_opening_was_cut_short_is_opened_again() {
    let settings = Settings { late: LatePolicy::Review, tells_bot: true, bug: None, service_bug: None, seed: 0 };
    let waits_already = Op::Create { order: order("A1"), ask_at: Some(at(0)), key: None };
    for rest in [Rest::Old, Rest::Nothing, Rest::Rubbish] {
        for percent in (0..100).step_by(9) {
            let made = async {
                let mut run = Run::new(settings, outside()).await;
                run.tell_bot(true);
                run.cut_off_the_opening(percent, rest).await?;
                run.step(create("A1"), Trouble::None).await?;
                run.step(paid("A1", "T1"), Trouble::None).await?;
                run.conclude(false).await
            };
            let brought_up_to_date = async {
                let mut run = Run::of_version_1(settings, outside(), &waits_already).await;
                run.tell_bot(true);
                run.cut_off_the_opening(percent, rest).await?;
                run.step(paid("A1", "T1"), Trouble::None).await?;
                run.conclude(false).await
            };
            runtime().block_on(made).unwrap_or_else(|broken| panic!("{percent} {rest:?}: {}", broken.0));
            runtime().block_on(brought_up_to_date).unwrap_or_else(|broken| panic!("{percent} {rest:?}: {}", broken.0));
        }
    }
}
