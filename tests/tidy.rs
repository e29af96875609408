//! Promises about the code that the compiler does not keep.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// No file is longer than this.
const LINES_MAX: usize = 800;

/// The modules from the bottom up: each may name those before it, and nothing after it.
const ORDER: &[&str] = &[
    "sync", "domain", "files", "net", "channel", "config", "logging", "store", "payments", "outbox", "server", "api",
    "service", "process", "dev", "doctor", "cli",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Every file below `directory` that ends so, by its path from the root.
fn files(directory: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "{directory}");
    found
}

/// The top-level module that a file belongs to.
fn module(file: &str) -> &str {
    let below = file.strip_prefix("src/").unwrap();
    below.split('/').next().unwrap().trim_end_matches(".rs")
}

/// What a file does outside its tests: all of it but what `#[cfg(test)]` stands before, a module or a single line.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let margin = &line[..line.len() - line.trim_start().len()];
        let is_end = |line: &&str| {
            let own = line.strip_prefix(margin).unwrap_or_default();
            !own.starts_with([' ', '#']) && own.ends_with([';', ',', '}'])
        };
        lines.find(is_end);
    }
    kept
}

#[test]
fn only_tests_are_left_out() {
    let text = "a\n#[cfg(test)]\n#[path = \"x.rs\"]\nmod b;\nc {\n    #[cfg(test)]\n    if d {\n        e;\n    }\n    f\n}\n#[cfg(test)]\nmod g {\n    h;\n}\n";
    assert_eq!(without_tests(text), "a\nc {\n    f\n}\n");
}

#[test]
fn files_stay_readable() {
    for directory in ["src", "tests"] {
        for (file, text) in files(directory, ".rs") {
            assert!(text.lines().count() <= LINES_MAX, "{file} has more than {LINES_MAX} lines");
            for (number, line) in text.lines().enumerate() {
                assert!(!line.ends_with([' ', '\t', '\r']), "{file}:{}: white space at the end", number + 1);
            }
        }
    }
}

/// The paths that a text names, each from its first segment on: groups in braces are taken apart.
fn paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in text.match_indices(start) {
            let is_start = !text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '$'));
            if is_start {
                take_apart(&text[at..], "", &mut found);
            }
        }
    }
    found
}

/// Adds the paths at the beginning of `text`, and returns what follows them.
fn take_apart<'a>(text: &'a str, before: &str, found: &mut Vec<String>) -> &'a str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | ':'))).unwrap_or(text.len());
    let (own, mut rest) = text.split_at(end);
    let path = format!("{before}{own}");
    if !own.ends_with("::") || !rest.starts_with('{') {
        found.push(path);
        return rest;
    }
    while !rest.starts_with('}') {
        let Some(next) = rest.find(|c: char| c.is_alphanumeric() || matches!(c, '_' | '}')) else { return "" };
        rest = &rest[next..];
        if !rest.starts_with('}') {
            rest = take_apart(rest, &path, found);
            // Another name for it.
            if let Some(renamed) = rest.strip_prefix(" as ") {
                rest = &renamed[renamed.find([',', '}']).unwrap_or(renamed.len())..];
            }
        }
    }
    &rest[1..]
}

#[test]
fn groups_of_imports_are_seen() {
    let text = "use crate::{a, b::{c, D}};\nuse super::x::{self, Y as Z};\nfn f(_: crate::e::F) {}";
    let expected = ["crate::a", "crate::b::c", "crate::b::D", "crate::e::F", "super::x::self", "super::x::Y"];
    assert_eq!(paths(text), expected);
}

#[test]
fn modules_use_only_what_stands_before_them() {
    for (file, text) in files("src", ".rs") {
        let Some(own) = ORDER.iter().position(|name| *name == module(&file)) else {
            assert!(matches!(file.as_str(), "src/lib.rs" | "src/main.rs"), "{file} has no place in the order");
            continue;
        };
        for path in paths(&without_tests(&text)) {
            let Some(used) = path.strip_prefix("crate::").and_then(|path| path.split("::").next()) else { continue };
            let Some(place) = ORDER.iter().position(|name| *name == used) else { continue };
            assert!(place <= own, "{file} uses {used}, which stands after it");
        }
    }
}

/// The modules that each module names, except those that it lies in or that lie in it.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let name = |file: &str| {
        let below = file.strip_prefix("src/").unwrap().trim_end_matches(".rs");
        below.trim_end_matches("/mod").replace('/', "::")
    };
    let files: Vec<_> = files("src", ".rs").into_iter().map(|(file, text)| (name(&file), text)).collect();
    let known: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let is_within = |inner: &str, outer: &str| inner == outer || inner.starts_with(&format!("{outer}::"));
    let mut imports = BTreeMap::new();
    for (own, text) in files.iter().filter(|(name, _)| !matches!(name.as_str(), "lib" | "main")) {
        let named = paths(&without_tests(text)).into_iter().filter_map(|path| {
            let mut place: Vec<&str> = own.split("::").collect();
            for segment in path.split("::").filter(|segment| !segment.is_empty()) {
                match segment {
                    "crate" => place.clear(),
                    "super" => _ = place.pop(),
                    "self" => {}
                    segment => place.push(segment),
                }
            }
            while !place.is_empty() && !known.contains(place.join("::").as_str()) {
                place.pop();
            }
            Some(place.join("::")).filter(|named| !named.is_empty())
        });
        let others = named.filter(|named| !is_within(named, own) && !is_within(own, named)).collect();
        imports.insert(own.clone(), others);
    }
    imports
}

#[test]
fn no_modules_import_each_other() {
    let imports = imports();
    let reached_from = |start: &String| {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&String> = imports[start].iter().collect();
        while let Some(name) = next.pop() {
            if reached.insert(name) {
                next.extend(imports.get(name).into_iter().flatten());
            }
        }
        reached
    };
    let in_circles: Vec<_> = imports.keys().filter(|name| reached_from(name).contains(name)).collect();
    assert!(in_circles.is_empty(), "in circles of imports: {in_circles:?}");
}

/// Triggers against it are in force for others only, see `store::schema`; a failed constraint has to be an error.
#[test]
fn no_statement_replaces_rows_or_passes_over_failures() {
    for (file, text) in files("src/store", ".rs") {
        let is_test = file.ends_with("tests.rs") || file.contains("/tests/") || file.ends_with("faults.rs");
        for (number, line) in without_tests(&text).lines().enumerate().filter(|_| !is_test) {
            let says_so = ["OR REPLACE", "OR IGNORE", "REPLACE INTO"].iter().any(|words| line.contains(words));
            assert!(!says_so || line.trim_start().starts_with("//"), "{file}:{}: {line}", number + 1);
        }
    }
}

#[test]
fn what_only_one_module_may_name() {
    for (name, allowed) in [
        ("rusqlite", &["store/sqlite"][..]),
        ("SystemTime", &[]),
        ("jiff", &["domain"]),
        ("Md5", &["channel", "dev"]),
        ("ring::signature", &["channel"]),
        ("ring::hmac", &["outbox"]),
        ("reqwest", &["net"]),
        ("rustls", &["net"]),
        ("fern", &["logging"]),
        ("daemonize", &["process"]),
        // A text is in the language that is given for it, never in one of the process.
        ("set_locale", &[]),
        ("set_language", &["domain", "logging"]),
        ("process::exit(", &["cli", "process"]),
        ("println!", &[]),
    ] {
        for (file, text) in files("src", ".rs") {
            let named =
                without_tests(&text).lines().any(|line| !line.trim_start().starts_with("//") && line.contains(name));
            let may = allowed.iter().any(|module| file.starts_with(&format!("src/{module}")));
            assert!(!named || may, "{file} names {name}");
        }
    }
}

/// The names of outcomes are declared once: whoever needs one takes it from there. SQL gets them as parameters.
#[test]
fn outcomes_are_named_in_one_place() {
    let declared = fs::read_to_string(root().join("src/domain/outcome.rs")).unwrap();
    // Those that nothing else is called by: a verdict, a diagnosis or an order's status may have one of the other names.
    let names = ["malformed", "unknown_merchant", "address_not_allowed", "not_paid", "amount_mismatch", "store_error"];
    for name in names {
        assert!(declared.contains(&format!("= \"{name}\"")), "{name}");
        for (file, text) in files("src", ".rs").into_iter().filter(|(file, _)| !file.ends_with("tests.rs")) {
            let program = text.split("mod tests {").next().unwrap();
            let says_it = program.contains(&format!("\"{name}\"")) || program.contains(&format!("'{name}'"));
            assert!(!says_it || file == "src/domain/outcome.rs", "{file} names {name}");
        }
    }
    for (file, text) in files("src/store/sqlite", ".rs").into_iter().filter(|(file, _)| !file.contains("tests")) {
        let program = text.split("mod tests {").next().unwrap();
        assert!(!program.contains("outcome = '") && !program.contains("outcome IN ('"), "{file}");
    }
}

/// A program that takes another way in its tests is not the one that is tested: faults are injected by a value.
#[test]
fn only_items_are_for_tests_alone() {
    for (file, text) in files("src", ".rs") {
        assert!(!text.contains("cfg(not(test))"), "{file}");
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.trim() == "#[cfg(test)]" {
                let item = lines.find(|line| !line.trim().starts_with("#[")).unwrap_or_default().trim();
                let item = item.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
                let is_item = ["mod ", "fn ", "async fn ", "impl ", "use ", "pub(in "]
                    .iter()
                    .any(|start| item.starts_with(start));
                assert!(is_item, "{file}: {item}");
            }
        }
    }
}

/// Whatever waits or looks at the time is given its clock, so that the simulation drives it: the wall clock is read by the modules that
/// people run by hand, by records and by names of files, and the modules that the simulation drives read no clock of the machine.
#[test]
fn the_time_is_that_of_the_clock_that_is_given() {
    let reads_wall = |line: &str| line.contains("Timestamp::now");
    let waits = |line: &str| {
        line.contains("Instant::now") || line.match_indices("sleep").any(|(at, _)| !line[..at].ends_with('.'))
    };
    for line in ["sleep(TICK).await", "use tokio::time::{sleep, timeout};", "sleep_until(slot)", "x(Instant::now)"] {
        assert!(waits(line), "{line}");
    }
    assert!(!waits("self.clock.sleep(TICK).await") && reads_wall("Timestamp::now)"));
    for (file, text) in files("src", ".rs") {
        if file.ends_with("tests.rs") || file.contains("/tests/") {
            continue;
        }
        let may_read_wall = ["domain", "logging", "store", "process", "dev", "doctor", "cli"].contains(&module(&file));
        let may_wait = !["channel", "payments", "outbox"].contains(&module(&file));
        for line in without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            assert!(may_read_wall || !reads_wall(line), "{file}: {line}");
            assert!(may_wait || !waits(line), "{file}: {line}");
        }
    }
}

/// Each text is told in a language that is given as a value: `text!` sees to it.
#[test]
fn only_the_language_names_the_catalogues() {
    for (file, text) in files("src", ".rs") {
        let named = text.lines().any(|line| line.contains("rust_i18n") && !line.trim_start().starts_with("//"));
        let may = matches!(file.as_str(), "src/domain/language.rs" | "src/lib.rs");
        assert!(!named || may, "{file} names rust_i18n");
        let asks = text
            .match_indices("t!(")
            .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':')));
        assert!(!asks, "{file} asks for a text without a language");
    }
}

/// Where tests may sleep: between two looks, as long as a loop of real processes or clients is to pause, or before a kill at a
/// moment of chance. Nothing is asserted of how long it was.
const SLEEPS: &[&str] = &[
    "tests/e2e/support.rs",
    "tests/e2e/backup.rs",
    "tests/e2e/crash.rs",
    "tests/e2e/restart.rs",
    "tests/e2e/hostile/honest.rs",
    "tests/e2e/hostile/connections.rs",
    "tests/e2e/trouble/disk.rs",
];

/// The assertions of a text, each up to its semicolon.
fn assertions(text: &str) -> impl Iterator<Item = &str> {
    text.split("assert").skip(1).map(|rest| rest.split(";\n").next().unwrap_or_default())
}

/// Whether an assertion fails where something took too long.
fn is_timed(assertion: &str) -> bool {
    assertion.match_indices("elapsed()").any(|(at, call)| assertion[at + call.len()..].trim_start().starts_with('<'))
        || assertion.match_indices("> ").any(|(at, _)| {
            let right: String = assertion[at + 2..].chars().take_while(|c| !matches!(c, ',' | '&' | '|')).collect();
            right.contains("elapsed()")
        })
}

#[test]
fn timed_assertions_are_known() {
    for timed in ["!(a.elapsed() < B)", "!(a.elapsed() <= B, \"x\")", "!(B > a.elapsed())"] {
        assert!(is_timed(timed), "{timed}");
    }
    for fine in ["!(a.elapsed() >= B)", "!(n <= 50 + a.elapsed().as_secs())", "!(x > 1, \"{:?}\", a.elapsed())"] {
        assert!(!is_timed(fine), "{fine}");
    }
}

/// A loaded machine can exceed any number of seconds.
#[test]
fn no_test_fails_for_being_slow() {
    for (file, text) in files("tests", ".rs").into_iter().chain(files("src", ".rs")) {
        if file == "tests/tidy.rs" {
            continue;
        }
        let timed = assertions(&text).find(|assertion| is_timed(assertion));
        assert!(timed.is_none(), "{file}: assert{}", timed.unwrap_or_default());
        let sleeps = text.contains("thread::sleep") || text.contains("time::sleep");
        let is_test = file.starts_with("tests/");
        assert!(!sleeps || !is_test || SLEEPS.contains(&file.as_str()), "{file} sleeps: use wait_until");
    }
}

/// The port may be another program's.
#[test]
fn no_test_listens_on_a_fixed_port() {
    for (file, text) in files("tests", ".rs").into_iter().chain(files("src", ".rs")) {
        for call in text.split("bind(\"").skip(1) {
            let address = call.split('"').next().unwrap_or_default();
            let port = address.rsplit_once(':').map_or("", |(_, port)| port);
            assert!(port.parse::<u16>().is_ok_and(|port| port == 0) || port.contains('{'), "{file}: {address}");
        }
    }
}

#[test]
fn no_release_has_what_only_development_needs() {
    let text = fs::read_to_string(root().join("src/dev/mod.rs")).unwrap();
    let mut condition = false;
    let mut in_a_release = Vec::new();
    for line in text.lines() {
        if let Some((_, module)) = line.split_once("mod ").filter(|_| line.ends_with(';')) {
            in_a_release.extend((!condition).then_some(module));
            condition = false;
        }
        condition |= line.starts_with("#[cfg(");
    }
    assert_eq!(in_a_release, ["simulator;"], "`gateway simulate` and `demo` are for users");
}

#[test]
fn nothing_is_called_utils_or_helpers() {
    for (file, _) in files("src", ".rs") {
        for word in ["util", "helper", "common", "misc"] {
            assert!(!file.contains(word), "{file}");
        }
    }
}

/// The keys of a catalogue, as `table.key`.
fn catalogue(language: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join(format!("src/locales/{language}.toml"))).unwrap();
    let table: toml::Table = text.parse().unwrap();
    // The help texts have a test of their own beside the command line.
    let groups = table.iter().filter(|(group, _)| *group != "help");
    let mut texts = Vec::new();
    for (group, value) in groups {
        for (key, text) in value.as_table().into_iter().flatten() {
            texts.push((format!("{group}.{key}"), text.as_str().unwrap().to_owned()));
        }
    }
    texts
}

fn placeholders(text: &str) -> BTreeSet<&str> {
    text.split("%{").skip(1).map(|rest| rest.split('}').next().unwrap()).collect()
}

#[test]
fn both_catalogues_say_the_same_things() {
    let (zh, en) = (catalogue("zh"), catalogue("en"));
    let keys = |texts: &[(String, String)]| texts.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
    assert_eq!(keys(&zh), keys(&en));
    for ((key, zh), (_, en)) in zh.iter().zip(&en) {
        assert_eq!(placeholders(zh), placeholders(en), "{key}");
    }
}

/// The macros that take a text out of the catalogues, and the argument that is its key.
const TEXT_MACROS: &[(&str, usize)] = &[("text!(", 1), ("localized!(", 0), ("failure!(", 0), ("log_text!(", 0)];

/// A use of a text that is named by a literal key.
#[derive(Debug, PartialEq)]
struct TextUse {
    key: String,
    placeholders: BTreeSet<String>,
}

/// The arguments that stand behind an opening parenthesis, up to its end.
fn arguments(text: &str) -> Vec<&str> {
    let (mut found, mut start, mut depth, mut in_literal) = (Vec::new(), 0, 0, false);
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' if in_literal => _ = characters.next(),
            '"' => in_literal = !in_literal,
            _ if in_literal => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => {
                found.push(text[start..at].trim());
                break;
            }
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|argument| !argument.is_empty());
    found
}

fn text_uses(source: &str) -> Vec<TextUse> {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let source = source.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    let mut uses = Vec::new();
    for (name, place) in TEXT_MACROS {
        let is_whole = |at: usize| !source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        for (at, call) in source.match_indices(name).filter(|(at, _)| is_whole(*at)) {
            let arguments = arguments(&source[at + call.len()..]);
            let Some(key) = arguments.get(*place).and_then(|key| key.strip_prefix('"')) else { continue };
            let is_name = |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let placeholders = arguments[place + 1..].iter().filter_map(|argument| argument.split_once(" = "));
            let placeholders = placeholders.map(|(name, _)| name).filter(is_name).map(str::to_owned).collect();
            uses.push(TextUse { key: key.trim_end_matches('"').to_owned(), placeholders });
        }
    }
    uses
}

#[test]
fn texts_are_found_however_they_are_written() {
    let source = "text!(language, \"a.b\", x = f(1, \"q, )\"), y = z)\nlocalized!(\n    \"c.d\",\n    x = {y, 1},\n)\n\
                  failure!(\"e.f\") log_text!(\"g.h\", n = 1)\n\
                  /// failure!(\"no.no\")\nmytext!(language, \"no\") text!(language, format!(\"i.{j}\"))";
    let expected = [("a.b", &["x", "y"][..]), ("c.d", &["x"]), ("e.f", &[]), ("g.h", &["n"])];
    let expected = expected.map(|(key, placeholders)| TextUse {
        key: key.to_owned(),
        placeholders: placeholders.iter().map(|&name| name.to_owned()).collect(),
    });
    assert_eq!(text_uses(source), expected);
}

#[test]
fn every_text_is_there_and_every_text_is_used() {
    let known: BTreeSet<String> = catalogue("en").into_iter().map(|(key, _)| key).collect();
    let source: String = files("src", ".rs").into_iter().map(|(_, text)| text).collect();
    let uses = text_uses(&source);
    assert!(uses.len() > 400, "{}", uses.len());
    for TextUse { key, .. } in uses {
        assert!(known.contains(&key), "{key} is in no catalogue");
    }
    // These are looked up by the name of what they stand for.
    let by_name = [
        "order.",
        "status.",
        "user.",
        "message.",
        "notice.",
        "delivery.",
        "audit.",
        "check.",
        "fault.",
        "outcome.",
        "diagnosis.",
        "explain.",
        "verdict.",
        "review_reason.",
        "hold.",
    ];
    for key in &known {
        let is_used = source.contains(&format!("\"{key}\"")) || by_name.iter().any(|group| key.starts_with(group));
        assert!(is_used, "{key} is used nowhere");
    }
}

#[test]
fn every_text_is_given_what_it_has_a_place_for() {
    let texts: BTreeMap<_, _> = catalogue("en").into_iter().collect();
    for (file, source) in files("src", ".rs") {
        for TextUse { key, placeholders: given } in text_uses(&source) {
            let Some(text) = texts.get(&key) else { continue };
            let wanted: BTreeSet<_> = placeholders(text).into_iter().map(str::to_owned).collect();
            assert_eq!(given, wanted, "{file}: {key}");
        }
    }
}

/// The types that `start` begins a line about, each up to what is no part of a name.
fn types_of<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix(start)).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

/// A type of error that people read is put into their language wherever it arrives as an `anyhow::Error`.
#[test]
fn every_localized_error_is_known_where_failures_are_told() {
    let teller = fs::read_to_string(root().join("src/process/failure.rs")).unwrap();
    let mut count = 0;
    for (file, text) in files("src", ".rs") {
        for name in types_of(&text, "impl Localized for ") {
            let is_error = name.ends_with("Error") || ["Already", "FilesChanged", "NotStarted"].contains(&name);
            count += usize::from(is_error);
            assert!(!is_error || teller.contains(&format!("as_localized::<{name}>")), "{file}: {name}");
        }
    }
    assert!(count > 10, "{count}");
}

#[test]
fn the_top_level_holds_what_it_should() {
    let allowed: BTreeSet<&str> = [
        ".ci",
        ".cargo",
        ".gitignore",
        "ARCHITECTURE.md",
        "BENCHMARKS.md",
        "CHANGELOG.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "README.zh-CN.md",
        "SECURITY.md",
        "benches",
        "clippy.toml",
        "data",
        "deny.toml",
        "logs",
        "rustfmt.toml",
        "scripts",
        "src",
        "tests",
    ]
    .into();
    // What git keeps: a working copy may hold more. Nothing is listed where this is no checkout.
    let listed = Command::new("git").arg("ls-files").current_dir(root()).output();
    let listed = listed.map(|output| String::from_utf8(output.stdout).unwrap()).unwrap_or_default();
    for file in listed.lines() {
        let name = file.split('/').next().unwrap();
        assert!(allowed.contains(name), "{name}");
    }
    assert!(fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count() <= 150);
}
