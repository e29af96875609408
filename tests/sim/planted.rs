//! The simulation itself is tested: each of these bugs must be found by some of the first seeds.

use super::process::ServiceBug;
use super::workload::Planted;
use super::{run_seed, runtime};
use crate::store::sqlite::faults::Bug;

impl From<Bug> for Planted {
    fn from(bug: Bug) -> Self {
        Self::Store(bug)
    }
}

impl From<ServiceBug> for Planted {
    fn from(bug: ServiceBug) -> Self {
        Self::Service(bug)
    }
}

/// How many seeds may be needed.
const SEEDS: u64 = 200;

#[track_caller]
fn is_found(bug: impl Into<Planted>) {
    let bug = bug.into();
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

#[test]
fn a_failed_attempt_that_counts_as_a_delivery_is_found() {
    is_found(ServiceBug::TakesFailureForDelivery);
}

#[test]
fn a_message_that_is_given_up_at_once_is_found() {
    is_found(ServiceBug::GivesUpAtOnce);
}

#[test]
fn a_channel_that_is_not_left_alone_is_found() {
    is_found(ServiceBug::IgnoresPause);
}

#[test]
fn a_lease_that_is_ignored_is_found() {
    is_found(ServiceBug::IgnoresLease);
}

#[test]
fn a_question_that_is_left_out_is_found() {
    is_found(ServiceBug::SkipsAQuestion);
}

#[test]
fn a_settlement_of_an_unpaid_order_is_found() {
    is_found(ServiceBug::BelievesUnpaid);
}

#[test]
fn a_settlement_by_an_answer_about_another_order_is_found() {
    is_found(ServiceBug::BelievesOtherOrder);
}

#[test]
fn trouble_that_the_operator_does_not_hear_of_is_found() {
    is_found(ServiceBug::ForgetsTheOperator);
}
