//! BENCHMARKS.md says what was measured: its table and its plots are those of the numbers that were recorded.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Outcome, find_program};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/bench");
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results.json");

/// What `scripts/bench` makes of the results in a file.
fn told(python: &Path, results: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(python);
    command.args([SCRIPT, "--results"]).arg(results).args(arguments);
    let outcome = Outcome::of(command.output().unwrap());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome.stdout
}

#[test]
fn the_page_says_what_was_measured() {
    let Some(python) = find_program("python3", "python3") else { return };
    let table = told(&python, Path::new(RECORDED), &[]);
    assert!(
        include_str!("../../BENCHMARKS.md").contains(&format!("<!-- table -->\n{table}<!-- end of table -->")),
        "scripts/bench --results … --record"
    );
    assert_eq!(told(&python, Path::new(RECORDED), &["--svg"]), include_str!("../../benches/results.svg"));
}

#[test]
fn whatever_was_measured_can_be_plotted() {
    let Some(python) = find_program("python3", "python3") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("results.json");
    let recorded: Value = serde_json::from_slice(&fs::read(RECORDED).unwrap()).unwrap();
    for percent in (100..1000).step_by(75) {
        let mut results = recorded.clone();
        for cell in results["cells"].as_array_mut().unwrap() {
            for round in cell["rounds"].as_array_mut().unwrap() {
                round["per_s"] = (round["per_s"].as_f64().unwrap() * f64::from(percent) / 100.0).into();
            }
        }
        fs::write(&file, results.to_string()).unwrap();
        let plots = told(&python, &file, &["--svg"]);
        assert!(plots.starts_with("<svg ") && plots.ends_with("</svg>\n"), "{percent} %");
        // A plot that nobody can read the values of is none.
        assert!(plots.matches("text-anchor=\"end\"").count() >= 3 * 3, "{percent} %");
    }
}
