//! What the machine does for the service: rotating its log, starting it after a reboot.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Check, State, Subject};
use crate::domain::language::{LocalizedText, localized};
use crate::process::pid_file::Record;

/// Where units are, those first that win.
const UNIT_DIRECTORIES: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// There when systemd has started the machine.
const SYSTEMD_RUNS: &str = "run/systemd/system";

/// Whether logrotate is told of the log file, and tells the service.
pub(super) fn log_rotation(root: &Path, log_file: &Path) -> Check {
    let check = |state, text: LocalizedText| Check::new(Subject::LogRotation, state, text);
    let files = [root.join("etc/logrotate.conf")].into_iter().chain(files_in(&root.join("etc/logrotate.d")));
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let path = file.display();
        match blocks(&text).into_iter().find(|block| block.names(log_file)) {
            None => {}
            Some(block) if block.has("copytruncate") => {
                return check(State::Warning, localized!("doctor.rotation_truncates", path = path));
            }
            Some(block) if !block.has("reload") && !block.has("HUP") && !block.has("restart") => {
                return check(State::Warning, localized!("doctor.rotation_tells_nobody", path = path));
            }
            Some(_) => return check(State::Fine, localized!("doctor.rotation_fine", path = path)),
        }
    }
    check(State::Warning, localized!("doctor.rotation_missing", path = log_file.display()))
}

/// A stanza of a logrotate configuration.
struct Block {
    patterns: Vec<String>,
    body: String,
}

impl Block {
    fn names(&self, file: &Path) -> bool {
        file.to_str().is_some_and(|file| self.patterns.iter().any(|pattern| fits(pattern.as_bytes(), file.as_bytes())))
    }

    fn has(&self, word: &str) -> bool {
        self.body.split(|c: char| !c.is_ascii_alphanumeric()).any(|other| other == word)
    }
}

/// The stanzas of a configuration; what stands outside of them is no path.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut patterns = Vec::new();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    while let Some(line) = lines.next() {
        let (head, rest) = line.split_once('{').map_or((line, None), |(head, rest)| (head, Some(rest)));
        let named = head.split_whitespace().map(|word| word.trim_matches(['"', '\'']));
        patterns.extend(named.filter(|word| word.starts_with('/')).map(str::to_owned));
        if let Some(rest) = rest {
            // A script in it may have braces of its own, but not alone on a line.
            let body: Vec<_> = std::iter::once(rest).chain(lines.by_ref().take_while(|line| *line != "}")).collect();
            blocks.push(Block { patterns: std::mem::take(&mut patterns), body: body.join("\n") });
        }
    }
    blocks
}

/// Whether a path fits a pattern with `*` and `?`, of which neither stands for a `/`.
fn fits(pattern: &[u8], path: &[u8]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        ([b'*', pattern @ ..], path) => {
            let end = path.iter().position(|&byte| byte == b'/').unwrap_or(path.len());
            (0..=end).any(|skipped| fits(pattern, &path[skipped..]))
        }
        ([b'?', pattern @ ..], [byte, path @ ..]) => *byte != b'/' && fits(pattern, path),
        ([wanted, pattern @ ..], [byte, path @ ..]) => wanted == byte && fits(pattern, path),
        _ => false,
    }
}

/// Whether systemd starts the service with this configuration after a reboot.
pub(super) fn systemd(root: &Path, config_file: Option<&Path>, running: Option<&Record>) -> Check {
    let check = |state, text: LocalizedText| Check::new(Subject::Systemd, state, text);
    if !root.join(SYSTEMD_RUNS).is_dir() {
        return check(State::Skipped, localized!("doctor.no_systemd"));
    }
    let Some(unit) = unit(root, config_file) else {
        return check(State::Warning, localized!("doctor.unit_missing"));
    };
    let name = unit.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !is_enabled(root, &name) {
        return check(State::Warning, localized!("doctor.unit_disabled", unit = name));
    }
    match running {
        // Then there are two who start and stop it.
        Some(Record { unit: None, .. }) => check(State::Warning, localized!("doctor.unit_beside", unit = name)),
        _ => check(State::Fine, localized!("doctor.unit_fine", unit = name)),
    }
}

/// The unit that runs `serve` with this configuration.
fn unit(root: &Path, config_file: Option<&Path>) -> Option<PathBuf> {
    let runs_it = |file: &PathBuf| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let mut starts = text.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
        starts.any(|command| {
            let words: Vec<_> = command.split_whitespace().collect();
            let names_config = words.iter().any(|word| {
                word.trim_start_matches("--config=").starts_with('/') && {
                    let named = Path::new(word.trim_start_matches("--config="));
                    config_file == Some(named)
                }
            });
            let names_any = words.iter().any(|word| word.starts_with("--config"));
            command.contains("webhookctl") && words.contains(&"serve") && (names_config || !names_any)
        })
    };
    let files = UNIT_DIRECTORIES.iter().flat_map(|directory| files_in(&root.join(directory)));
    files.filter(|file| file.extension().is_some_and(|extension| extension == "service")).find(runs_it)
}

fn is_enabled(root: &Path, unit: &str) -> bool {
    UNIT_DIRECTORIES.iter().flat_map(|directory| files_in(&root.join(directory))).any(|directory| {
        let is_wants = directory.extension().is_some_and(|extension| extension == "wants" || extension == "requires");
        is_wants && directory.join(unit).symlink_metadata().is_ok()
    })
}

/// What is in a directory, in the order of names; nothing where it cannot be read.
fn files_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::language::{Language, Localized};

    #[test]
    fn a_log_file_is_found_by_its_pattern() {
        for (pattern, path, expected) in [
            ("/var/log/w/*.log", "/var/log/w/a.log", true),
            ("/var/log/*/a.log", "/var/log/w/a.log", true),
            ("/var/log/w/?.log", "/var/log/w/a.log", true),
            ("/var/log/*.log", "/var/log/w/a.log", false),
            ("/var/log/w/a.log", "/var/log/w/a.log", true),
            ("/var/log/w/a.log", "/var/log/w/a.log.1", false),
            ("/var/log/w/*", "/var/log/w/a.log", true),
            ("", "/var/log/w/a.log", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn the_stanza_that_names_the_log_says_how_it_is_rotated() {
        let rotate = |text: &str| {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("etc/logrotate.d")).unwrap();
            fs::write(root.path().join("etc/logrotate.conf"), "weekly\ninclude /etc/logrotate.d\n").unwrap();
            fs::write(root.path().join("etc/logrotate.d/x"), text).unwrap();
            let check = log_rotation(root.path(), Path::new("/var/log/webhookctl/payment_webhook_v1.log"));
            (check.state, check.text.text(Language::English))
        };
        let shipped = include_str!("../../scripts/webhookctl.logrotate");
        assert_eq!(rotate(shipped).0, State::Fine);
        assert!(
            rotate(&shipped.replace("/var/log/webhookctl/", "/var/log/other/")).1.contains("payment_webhook_v1.log")
        );
        let (state, text) = rotate(&shipped.replace(" reload", " status"));
        assert!(state == State::Warning && text.contains("logrotate.d/x"), "{text}");
        let copied = "/a.log \"/var/log/webhookctl/*.log\" {\n  copytruncate\n}\n";
        assert!(rotate(copied).1.contains("copytruncate"));
        assert_eq!(rotate(&format!("/a.log {{\n postrotate\n x ${{1}}\n endscript\n}}\n{shipped}")).0, State::Fine);
    }

    #[test]
    fn a_unit_counts_that_starts_this_configuration_at_boot() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let config = Path::new("/etc/webhookctl/webhookctl.toml");
        let look = |config: &Path| systemd(root.path(), Some(config), None).state;
        assert_eq!(look(config), State::Skipped);
        fs::create_dir_all(path("run/systemd/system")).unwrap();
        assert_eq!(look(config), State::Warning);
        fs::create_dir_all(path("etc/systemd/system/multi-user.target.wants")).unwrap();
        let unit = path("etc/systemd/system/webhookctl.service");
        fs::write(&unit, include_str!("../../scripts/webhookctl.service")).unwrap();
        assert!(systemd(root.path(), Some(config), None).text.text(Language::English).contains("enable"));
        std::os::unix::fs::symlink(&unit, path("etc/systemd/system/multi-user.target.wants/webhookctl.service"))
            .unwrap();
        assert_eq!(look(config), State::Fine);
        assert_eq!(look(Path::new("/etc/other.toml")), State::Warning);
        let by_hand = Record {
            pid: 1,
            start_time: 1,
            listen: None,
            version: "1".into(),
            seat: String::new(),
            control: None,
            program: None,
            unit: None,
        };
        assert_eq!(systemd(root.path(), Some(config), Some(&by_hand)).state, State::Warning);
        let by_unit = Record { unit: Some("webhookctl.service".into()), ..by_hand };
        assert_eq!(systemd(root.path(), Some(config), Some(&by_unit)).state, State::Fine);
    }
}
