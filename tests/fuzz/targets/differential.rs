//! The other program is the `epay-sdk` crate.
#![no_main]

use std::sync::LazyLock;

use epay_sdk::{ProtocolContext, parse_notify_params};
use webhookctl::fuzzing::{KEY, OtherReading, PID, differential};

static OTHER: LazyLock<ProtocolContext> = LazyLock::new(|| {
    let pid = PID.parse().expect("the merchant's number is one");
    ProtocolContext::new(pid, KEY, "https://pay.example.com/").expect("it takes these")
});

fn other(query: &str) -> Option<OtherReading> {
    let fields = parse_notify_params(Some(query), None).ok()?;
    let read = OTHER.verify_notify(&fields).ok()?;
    Some(OtherReading {
        money_fen: read.money.try_to_fen().ok(),
        paid: read.is_success(),
        out_trade_no: read.out_trade_no,
        trade_no: read.trade_no,
        param: read.param,
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| differential(data, other));
