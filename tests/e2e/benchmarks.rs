//! BENCHMARKS.md says what was measured: its table and its plots are those of the numbers that were recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Outcome, find_program};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What `scripts/bench` makes of the results in a file.
fn told(python: &Path, results: &Path, arguments: &[&str]) -> String {
    let script = root().join("scripts/bench");
    let mut command = Command::new(python);
    let outcome = Outcome::of(command.arg(script).arg("--results").arg(results).args(arguments).output().unwrap());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome.stdout
}

#[test]
fn the_page_says_what_was_measured() {
    let Some(python) = find_program("python3", "python3") else { return };
    let results = root().join("benches/results.json");
    let page = fs::read_to_string(root().join("BENCHMARKS.md")).unwrap();
    let table = told(&python, &results, &[]);
    assert!(
        page.contains(&format!("<!-- table -->\n{table}<!-- end of table -->")),
        "scripts/bench --results … --record"
    );
    let plots = fs::read_to_string(root().join("benches/results.svg")).unwrap();
    assert_eq!(told(&python, &results, &["--svg"]), plots);
}

#[test]
fn whatever_was_measured_can_be_plotted() {
    let Some(python) = find_program("python3", "python3") else { return };
    let directory = tempfile::tempdir().unwrap();
    let file: PathBuf = directory.path().join("results.json");
    let recorded: Value = serde_json::from_slice(&fs::read(root().join("benches/results.json")).unwrap()).unwrap();
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
