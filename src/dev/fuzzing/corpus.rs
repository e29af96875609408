//! The bytes that the fuzzer found worth keeping, through the same functions.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::{KEY, OtherReading, PID, plain};

/// What a target is fed with.
type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("config", super::config),
    ("differential", |data| super::differential(data, protocol_itself)),
    ("head", super::head),
    ("money", super::money),
    ("notification", super::notification),
    ("reply", super::reply),
    ("signed", super::signed),
];

/// How few files a target may have: without any, the test would pass and prove nothing.
const FILES_MIN: usize = 10;

/// How much of it git is to keep.
const BYTES_MAX: usize = 60 * 1024;

/// In the place of another program, which only the fuzzer's own crate depends on: the protocol as it stands in its
/// words.
fn protocol_itself(query: &str) -> Option<OtherReading> {
    let fields = plain::read(query.as_bytes())?;
    let is_believed = plain::has_one_reading(&fields) && plain::is_complete(&fields) && plain::is_signed(&fields, KEY);
    let value = |key| plain::value(&fields, key).unwrap_or_default().to_owned();
    (is_believed && value("pid") == PID).then(|| OtherReading {
        out_trade_no: value("out_trade_no"),
        trade_no: value("trade_no"),
        money_fen: plain::fen(&value("money")),
        paid: value("trade_status") == "TRADE_SUCCESS",
        param: value("param"),
    })
}

#[test]
fn what_fuzzing_found_worth_keeping_still_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut bytes = 0;
    let mut files = BTreeMap::new();
    for directory in fs::read_dir(&corpus).unwrap() {
        let directory = directory.unwrap().path();
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        let mut inputs: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).collect();
        inputs.sort();
        files.insert(name, inputs);
    }
    assert!(files.keys().eq(TARGETS.iter().map(|(name, _)| name)), "a target for each corpus, and the other way round");
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        assert!(files[name].len() >= FILES_MIN, "{name} has {} files", files[name].len());
        for file in &files[name] {
            let data = fs::read(file).unwrap();
            bytes += data.len();
            if std::panic::catch_unwind(|| target(&data)).is_err() {
                broken.push(file);
            }
        }
    }
    assert!(broken.is_empty(), "what these say of the code is no longer so: {broken:?}");
    assert!(bytes <= BYTES_MAX, "{bytes} bytes: minimise the corpus with scripts/fuzz --minimise");
}
