//! The simulation itself is tested: each of these bugs must be found by some of the first seeds.

use super::{run_seed, runtime};
use crate::store::sqlite::faults::Bug;

/// How many seeds may be needed.
const SEEDS: u64 = 200;

#[track_caller]
fn is_found(bug: Bug) {
    let found =
        (0..SEEDS).find_map(|seed| runtime().block_on(run_seed(seed, Some(bug))).err().map(|found| (seed, found)));
    let Some((seed, (_, broken))) = found else { panic!("{bug:?} is found by none of {SEEDS} seeds") };
    println!("{bug:?} is found by seed {seed}: {}", broken.0);
}

#[test]
fn an_answer_before_the_commit_is_found() {
    is_found(Bug::AnswersBeforeCommit);
}

#[test]
fn a_settlement_that_ignores_the_amount_is_found() {
    is_found(Bug::IgnoresAmount);
}

#[test]
fn a_settlement_that_believes_every_merchant_is_found() {
    is_found(Bug::IgnoresMerchant);
}

#[test]
fn a_payment_that_settles_two_orders_is_found() {
    is_found(Bug::IgnoresTrade);
}

#[test]
fn a_settlement_that_ignores_the_clock_is_found() {
    is_found(Bug::IgnoresExpiry);
}

#[test]
fn a_callback_that_settles_a_frozen_payment_is_found() {
    is_found(Bug::IgnoresHold);
}

#[test]
fn held_money_that_puts_no_order_into_review_is_found() {
    is_found(Bug::ForgetsReview);
}

#[test]
fn credits_for_every_payment_of_an_order_are_found() {
    is_found(Bug::CreditsEveryPayment);
}

#[test]
fn a_ledger_entry_for_every_duplicate_is_found() {
    is_found(Bug::CreditsDuplicates);
}

#[test]
fn a_forgotten_message_is_found() {
    is_found(Bug::ForgetsMessage);
}

#[test]
fn a_message_in_a_transaction_of_its_own_is_found() {
    is_found(Bug::CommitsInParts);
}

#[test]
fn a_forgotten_receipt_is_found() {
    is_found(Bug::ForgetsReceipt);
}

#[test]
fn half_of_a_failure_that_stays_is_found() {
    is_found(Bug::KeepsHalfOfAFailure);
}
