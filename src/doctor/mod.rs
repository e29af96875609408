//! Whether everything that a payment needs is in place: each check looks at one thing, says what to do about it, and changes nothing.
//!
//! [`network`] asks others, all at the same time and none for long; [`files`] and [`host`] look at this machine. Texts never hold
//! a secret: what others answer comes through clients that leave keys out.

mod files;
mod host;
mod network;

use std::collections::BTreeSet;
use std::path::Path;

use tokio::task::JoinHandle;

use crate::config::{Config, ConfigError, Loaded};
use crate::domain::language::{Localized, LocalizedText, localized};
use crate::domain::named::named_enum;
use crate::net::client::Client;
use crate::process::failure::text_of;
use crate::process::health::Health;
use crate::process::pid_file::Record;
use crate::process::status::{Status, status};
use crate::store::OpenError;
use crate::store::sqlite::maintenance::{DatabaseFile, Inspection};

named_enum! {
    /// What is looked at.
    Subject {
        /// The configuration file.
        Configuration = "configuration",
        /// Who may read keys and tokens.
        Secrets = "secrets",
        /// Where files are kept.
        Directories = "directories",
        /// Room for what is to come.
        Disk = "disk",
        /// The database file.
        Database = "database",
        /// Whether the service runs.
        Service = "service",
        /// The machine's clock.
        Clock = "clock",
        /// A merchant's gateway, and its key.
        Gateway = "gateway",
        /// The way of a callback from outside to the service.
        NotifyUrl = "notify_url",
        /// The bot and its token.
        Telegram = "telegram",
        /// What keeps the log file from growing for ever.
        LogRotation = "log_rotation",
        /// What starts the service after a reboot.
        Systemd = "systemd",
    }
}

named_enum! {
    /// What a check came to.
    State {
        /// As it should be.
        Fine = "ok",
        /// It works, and may not for long or not as it is meant to.
        Warning = "warning",
        /// Payments are, or will be, lost or held up.
        Problem = "problem",
        /// There is nothing to check, or not yet.
        Skipped = "skipped",
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    pub(crate) subject: Subject,
    /// Which of several it is: a merchant, a URL.
    pub(crate) of: Option<String>,
    pub(crate) state: State,
    /// What was found, and the remedy where it needs one.
    pub(crate) text: LocalizedText,
}

impl Check {
    fn new(subject: Subject, state: State, text: LocalizedText) -> Self {
        Self { subject, of: None, state, text }
    }

    fn of(self, which: &str) -> Self {
        Self { of: Some(which.to_owned()), ..self }
    }
}

/// Looks at everything. `root` is where the system's own files are looked for.
pub(crate) async fn examine(loaded: Result<Loaded, ConfigError>, root: &Path) -> Vec<Check> {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let others = Subject::ALL.iter().filter(|subject| **subject != Subject::Configuration);
            let skipped =
                others.map(|&subject| Check::new(subject, State::Skipped, localized!("doctor.configuration_first")));
            let broken = Check::new(Subject::Configuration, State::Problem, joined(&error.findings));
            return [broken].into_iter().chain(skipped).collect();
        }
    };
    let config = &loaded.config;
    let (running, service) = service(config).await;
    // Those that wait for others begin before the first of them is waited for.
    let client = Client::new();
    let gateways: Vec<_> =
        config.merchants.iter().map(|merchant| begin(network::gateway(client.clone(), merchant.clone()))).collect();
    let urls: BTreeSet<_> = config.merchants.iter().filter_map(|merchant| merchant.notify_url.clone()).collect();
    let urls: Vec<_> = urls
        .into_iter()
        .filter(|_| running.is_some())
        .map(|url| begin(network::notify_url(client.clone(), url, config.database.url.clone())))
        .collect();
    let telegram = begin(network::telegram(client.clone(), config.telegram.clone()));
    let database = database(&config.database.url).await;

    let mut checks = vec![
        configuration(&loaded),
        files::secrets(&loaded),
        files::directories(config),
        files::disk(config),
        database,
        service,
    ];
    let gateways: Vec<_> = all(gateways).await;
    checks.push(network::clock(gateways.iter().filter_map(|(_, offset)| *offset)));
    checks.extend(gateways.into_iter().map(|(check, _)| check));
    if config.merchants.is_empty() {
        checks.push(Check::new(Subject::Gateway, State::Skipped, localized!("doctor.no_merchant")));
    }
    if urls.is_empty() {
        let text =
            if running.is_some() { localized!("doctor.no_notify_url") } else { localized!("doctor.start_first") };
        checks.push(Check::new(Subject::NotifyUrl, State::Skipped, text));
    }
    checks.extend(all(urls).await);
    checks.extend(all(vec![telegram]).await);
    checks.push(host::log_rotation(root, &config.log.file));
    checks.push(host::systemd(root, loaded.source.file.as_deref(), running.as_ref()));
    checks
}

fn begin<T: Send + 'static>(check: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(check)
}

/// What all of them come to, in their own order.
async fn all<T>(begun: Vec<JoinHandle<T>>) -> Vec<T> {
    let mut results = Vec::new();
    for task in begun {
        results.push(task.await.expect("a check that panics is a bug"));
    }
    results
}

/// Several findings as one text.
fn joined(findings: &[impl Localized]) -> LocalizedText {
    let texts = |language| findings.iter().map(|finding| finding.text(language)).collect::<Vec<_>>();
    LocalizedText::new("findings", |language| texts(language).join("; "))
}

fn configuration(loaded: &Loaded) -> Check {
    match (&loaded.source.file, loaded.warnings.as_slice()) {
        (file, []) => {
            let name = LocalizedText::new("file", |language| crate::config::file_name(file.as_deref(), language));
            Check::new(Subject::Configuration, State::Fine, localized!("doctor.configuration_fine", file = name))
        }
        (_, warnings) => Check::new(Subject::Configuration, State::Warning, joined(warnings)),
    }
}

async fn database(url: &crate::config::DatabaseUrl) -> Check {
    let check = |state, text: LocalizedText| Check::new(Subject::Database, state, text);
    match DatabaseFile::of(url).inspect().await {
        Err(OpenError::Missing(_)) => check(State::Skipped, localized!("doctor.database_missing")),
        Err(error) => check(State::Problem, LocalizedText::of("database", &error)),
        Ok(Inspection { damages, .. }) if !damages.is_empty() => {
            check(State::Problem, localized!("doctor.database_damaged", cause = damages.join("; ")))
        }
        Ok(Inspection { version, known, .. }) if version < known => {
            check(State::Warning, localized!("doctor.database_older", found = version, known = known))
        }
        Ok(Inspection { version, .. }) => check(State::Fine, localized!("doctor.database_fine", version = version)),
    }
}

/// How the service is, and what it says of itself where it answers.
async fn service(config: &Config) -> (Option<Record>, Check) {
    let check = |state, text: LocalizedText| Check::new(Subject::Service, state, text);
    match status(&config.service.pid_file).await {
        Err(error) => {
            let text = LocalizedText::new("unknown", |language| text_of(&error, language));
            (None, check(State::Problem, text))
        }
        Ok(Status::Stopped) => (None, check(State::Warning, localized!("doctor.service_stopped"))),
        Ok(Status::Dead(record)) => {
            let text = localized!("doctor.service_dead", pid = record.pid, command = record.command("start"));
            (None, check(State::Problem, text))
        }
        Ok(Status::Garbage(_)) => (None, check(State::Problem, localized!("doctor.service_unknown"))),
        Ok(Status::Unknown(riddle)) => (None, check(State::Problem, riddle)),
        Ok(Status::Running { record, health: Health::Ok(_), .. }) => {
            let text = localized!("doctor.service_fine", pid = record.pid, version = record.version);
            (Some(record), check(State::Fine, text))
        }
        Ok(Status::Running { record, .. }) => {
            let text = localized!("doctor.service_not_well", pid = record.pid);
            (None, check(State::Problem, text))
        }
    }
}
