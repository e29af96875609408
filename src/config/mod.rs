//! The configuration: a TOML file, a few environment variables of the older service, and defaults that run as they are.
//!
//! [`read`] and [`Document::load`] read and check everything once: what they return is in force as it stands, with absolute
//! paths, keys read from their files and amounts parsed. [`Config`] serializes to what `config show` prints, with secrets masked.

mod check;
mod current;
mod file;
mod outward;

pub(crate) use check::{CREDITS_MAX, faults_of_gateway_text};
pub(crate) use current::Current;
pub(crate) use outward::{Api, ApiListen, Events, Reconcile, Texts};

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Serialize;

use crate::channel::epay::{self, Credentials, Diagnosis};
use crate::domain::language::{Language, Localized, LocalizedText, localized, text};
use crate::domain::money::Amount;
use crate::domain::named::named_enum;
use crate::domain::secret::Secret;
use crate::domain::settlement::LatePolicy;

/// The file that is read where none is named.
pub(crate) const DEFAULT_FILE: &str = "webhookctl.toml";
/// The environment variable that names the file.
const FILE_VARIABLE: &str = "WEBHOOKCTL_CONFIG";
/// A commented example, with `%{sandbox_key}` where a key of its own belongs.
pub(crate) const EXAMPLE: &str = include_str!("example.toml");

/// The whole configuration, checked.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Where the public HTTP server listens; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The language of logs, command output and texts for buyers.
    pub language: Language,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: AddressList,
    /// Where orders and credits are kept.
    pub database: Database,
    /// Where log records go.
    pub log: Log,
    /// How the service is run.
    pub service: ServiceConfig,
    /// Whose notifications are accepted.
    #[serde(rename = "merchant")]
    pub merchants: Vec<Merchant>,
    /// What can be bought.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
    /// How orders expire.
    pub orders: OrdersConfig,
    /// How gateways are asked about unpaid orders.
    pub reconcile: Reconcile,
    /// How buyers and the operator are told.
    pub telegram: Telegram,
    /// The local HTTP API for the bot, where there is to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// Where the bot hears of orders, if it wants to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Events>,
}

/// Addresses and networks, such as `127.0.0.1` or `10.0.0.0/8`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AddressList(pub Vec<IpNet>);

impl AddressList {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them contains `address`; an IPv4 address counts as itself in its IPv6 form too.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|net| net.contains(&address))
    }
}

/// `[database]`
#[derive(Clone, Debug, Serialize)]
pub struct Database {
    /// Which engine, and where.
    pub url: DatabaseUrl,
}

/// A database that the store can open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// An SQLite file.
    Sqlite(PathBuf),
}

impl Serialize for DatabaseUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Sqlite(path) = self;
        let path = path.display().to_string();
        // Two slashes behind the scheme are not taken for a part of the path.
        let scheme = if path.starts_with("//") { "sqlite://" } else { "sqlite:" };
        serializer.collect_str(&format_args!("{scheme}{path}"))
    }
}

/// `[log]`
#[derive(Clone, Debug, Serialize)]
pub struct Log {
    /// The log file.
    pub file: PathBuf,
    /// The least level that is logged.
    pub level: LogLevel,
    /// Whether records go to standard error too.
    pub console: bool,
}

named_enum! {
    /// How important a log record is.
    LogLevel {
        /// For finding a fault in the program.
        Debug = "debug",
        /// What happened.
        Info = "info",
        /// What a person should look at.
        Warning = "warning",
        /// What did not work.
        Error = "error",
    }
}

impl LogLevel {
    /// The filter that lets this level and all above it through.
    pub fn filter(self) -> log::LevelFilter {
        match self {
            Self::Debug => log::LevelFilter::Debug,
            Self::Info => log::LevelFilter::Info,
            Self::Warning => log::LevelFilter::Warn,
            Self::Error => log::LevelFilter::Error,
        }
    }
}

/// `[service]`
#[derive(Clone, Debug, Serialize)]
pub struct ServiceConfig {
    /// The file that the running service holds locked.
    pub pid_file: PathBuf,
    /// How long a start may take, in seconds.
    pub start_timeout_s: u32,
    /// How long requests may take to finish when the service stops, in seconds.
    pub stop_timeout_s: u32,
}

/// `[[merchant]]`: an account at a gateway.
#[derive(Clone, Debug, Serialize)]
pub struct Merchant {
    /// Its id at the gateway.
    pub pid: String,
    /// How its notifications are signed.
    pub protocol: Protocol,
    /// What its notifications are verified with.
    #[serde(flatten)]
    pub credentials: Credentials,
    /// V2: the file of the gateway's public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform_public_key_file: Option<PathBuf>,
    /// V2: the file of our private key, which signs requests to the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_file: Option<PathBuf>,
    /// The gateway's base URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_url: Option<String>,
    /// Our public URL for notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify_url: Option<String>,
    /// Our public URL for returning buyers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_url: Option<String>,
    /// How a payment page is made.
    pub pay_page: PayPageSource,
    /// What proves a payment.
    pub proof: Proof,
    /// With `signature+query`: up to this amount the signature is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_above: Option<Amount>,
    /// Where its notifications may come from; empty for anywhere.
    pub allow_ips: AddressList,
    /// Whether `trigger` may pay its orders.
    pub sandbox: bool,
}

impl Merchant {
    /// Whether its gateway can be asked about an order.
    pub fn can_be_asked(&self) -> bool {
        can_be_asked(self.gateway_url.as_deref(), &self.credentials)
    }
}

fn can_be_asked(gateway_url: Option<&str>, credentials: &Credentials) -> bool {
    gateway_url.is_some() && !matches!(credentials, Credentials::V2 { private_key: None, .. })
}

named_enum! {
    /// How a gateway signs.
    Protocol {
        /// MD5 with a shared key.
        V1 = "v1",
        /// RSA.
        V2 = "v2",
    }
}

named_enum! {
    /// What proves a payment.
    Proof {
        /// The notification's signature.
        Signature = "signature",
        /// The notification's signature, and the gateway's own answer to our question.
        SignatureAndQuery = "signature+query",
        /// The gateway's own answer to our question: a notification only causes it.
        Query = "query",
    }
}

named_enum! {
    /// How a payment page is made.
    PayPageSource {
        /// The gateway is asked for one; V1 falls back on a link where it cannot be had.
        Api = "api",
        /// V1: a signed link to the gateway's page, for which nobody has to be asked.
        Link = "link",
    }
}

/// `[[package]]`: credits for a price.
#[derive(Clone, Debug, Serialize)]
pub struct Package {
    /// What commands call it.
    pub id: String,
    /// What gateways and buyers call it.
    pub name: String,
    /// What it costs.
    pub price: Amount,
    /// The credits that the buyer gets.
    pub credits: i64,
}

/// `[orders]`
#[derive(Clone, Debug, Serialize)]
pub struct OrdersConfig {
    /// How long an order waits for its payment, in seconds.
    pub expire_after_s: u32,
    /// What to do with money that comes later.
    pub late: LatePolicy,
}

/// `[telegram]`
#[derive(Clone, Debug, Serialize)]
pub struct Telegram {
    /// The bot's name, without `@`.
    pub bot_username: String,
    /// The bot's token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// The base URL of the Bot API.
    pub api_base: String,
    /// Who hears of reviews and trouble; 0 for nobody.
    pub admin_chat_id: i64,
    /// What buyers are told.
    pub texts: Texts,
}

impl Config {
    /// The merchant of this `pid`.
    pub fn merchant(&self, pid: &str) -> Option<&Merchant> {
        self.merchants.iter().find(|merchant| merchant.pid == pid)
    }

    /// In which known wrong way a notification is signed that names `pid` and does not verify: for a person to read.
    pub(crate) fn diagnose(&self, pid: &str, payload: &[u8]) -> Option<Diagnosis> {
        let keys_of = |merchant: &'_ Merchant| match &merchant.credentials {
            Credentials::V1 { key, key_previous } => [Some(key.clone()), key_previous.clone()],
            Credentials::V2 { .. } => [None, None],
        };
        let others: Vec<_> = self
            .merchants
            .iter()
            .filter(|merchant| merchant.pid != pid)
            .flat_map(|merchant| keys_of(merchant).into_iter().flatten().map(|key| (merchant.pid.as_str(), key)))
            .collect();
        let others = others.iter().map(|(pid, key)| (*pid, key));
        epay::diagnose(payload, &self.merchant(pid)?.credentials, others)
    }

    /// The package of this id.
    pub fn package(&self, id: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.id == id)
    }

    /// Reads a configuration from TOML text instead of a file; its relative paths are relative to `directory`.
    ///
    /// No environment variable is looked at.
    pub fn from_toml(text: &str, directory: &Path) -> Result<Self, ConfigError> {
        let source = Source { file: None, directory: directory.to_owned() };
        parse(source, text, &|_| None).map(|loaded| loaded.config)
    }
}

/// Where a configuration came from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The file; `None` for the defaults alone.
    pub file: Option<PathBuf>,
    /// What relative paths are relative to.
    directory: PathBuf,
}

/// A configuration with what is worth saying about it.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// What is in force.
    pub config: Config,
    /// Where it came from.
    pub source: Source,
    /// What works, and is probably not meant.
    pub warnings: Vec<Finding>,
    /// Where its keys and tokens were read from.
    pub secrets: SecretPlaces,
}

/// Where keys and tokens stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct SecretPlaces {
    /// Files of their own.
    pub files: Vec<PathBuf>,
    /// Whether the configuration file itself has some.
    pub inline: bool,
}

/// Something wrong with one key, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The key, as `table.key`, with its merchant or package where there are several.
    pub key: String,
    /// What is wrong, and the remedy.
    pub(crate) text: LocalizedText,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        self.text.fmt(f)
    }
}

impl Localized for Finding {
    fn text(&self, language: Language) -> String {
        let text = self.text.text(language);
        if self.key.is_empty() { text } else { format!("{}: {text}", self.key) }
    }
}

/// A configuration that cannot be put in force, with everything that is wrong with it.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ConfigError {
    /// The file; `None` where the defaults and the environment alone are at fault.
    pub file: Option<PathBuf>,
    /// What is wrong, never empty.
    pub findings: Vec<Finding>,
}

impl ConfigError {
    /// A single finding.
    pub(crate) fn of(file: Option<PathBuf>, key: &str, text: LocalizedText) -> Self {
        Self { file, findings: vec![Finding { key: key.to_owned(), text }] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad_configuration: ")?;
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("no file")?,
        }
        self.findings.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

impl Localized for ConfigError {
    fn text(&self, language: Language) -> String {
        let mut text = text!(language, "config.error", file = file_name(self.file.as_deref(), language)).into_owned();
        for finding in &self.findings {
            text.push_str("\n  ");
            text.push_str(&finding.text(language));
        }
        text
    }
}

/// The file's name for a person, or that there is none.
pub(crate) fn file_name(file: Option<&Path>, language: Language) -> String {
    match file {
        Some(file) => file.display().to_string(),
        None => text!(language, "config.no_file").into_owned(),
    }
}

/// An environment variable's value, empty values counting as none.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub(crate) fn process_environment(name: &str) -> Option<String> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    // A value that is not UTF-8 must fail where it is used, not be taken for an absent one.
    value.map(|value| value.to_string_lossy().into_owned())
}

/// The file that is asked for: the one named, else the one that the environment names.
pub(crate) fn asked_for(named: Option<&Path>, environment: Environment) -> Option<PathBuf> {
    named.map(Path::to_owned).or_else(|| environment(FILE_VARIABLE).map(PathBuf::from))
}

/// The file to read: the one asked for, else the default one if it is there.
fn locate(named: Option<&Path>, environment: Environment) -> Option<PathBuf> {
    // A directory that cannot be searched is an error to tell, not an absent file.
    let is_there = |file: &PathBuf| file.try_exists().unwrap_or(true);
    asked_for(named, environment).or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(is_there))
}

/// What it takes to find the service and to stop it: read from a file in which anything else may be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Essentials {
    /// The language of what commands print.
    pub language: Language,
    /// The file that the running service holds locked.
    pub pid_file: PathBuf,
    /// How long requests may take to finish when the service stops, in seconds.
    pub stop_timeout_s: u32,
    /// Where the service listens, if that can be read.
    pub listen: Option<SocketAddr>,
    /// The log file.
    pub log_file: PathBuf,
}

/// A configuration file as it was read, once: it may be a pipe.
pub(crate) struct Document {
    source: Source,
    text: String,
}

/// Reads the configuration file, if there is one.
pub(crate) fn read(named: Option<&Path>, environment: Environment) -> Result<Document, ConfigError> {
    let file = locate(named, environment).map(|file| std::path::absolute(&file).unwrap_or(file));
    let error = |text: LocalizedText| ConfigError::of(file.clone(), "", text);
    let (text, directory) = if let Some(file) = &file {
        let text = std::fs::read_to_string(file).map_err(|e| error(localized!("config.unreadable", error = e)))?;
        (text, file.parent().unwrap_or(Path::new("/")).to_owned())
    } else {
        (String::new(), std::env::current_dir().map_err(|e| error(localized!("config.unreadable", error = e)))?)
    };
    Ok(Document { source: Source { file, directory }, text })
}

/// Reads the file that a service has read before, which must be one that can be read twice.
pub(crate) fn read_again(file: Option<&Path>, environment: Environment) -> Result<Document, ConfigError> {
    ensure_rereadable(file)?;
    read(file, environment)
}

/// Whether a second reading of the file finds the same as the first: a pipe would be empty by then.
pub(crate) fn ensure_rereadable(file: Option<&Path>) -> Result<(), ConfigError> {
    match file.map(|file| (file, file.metadata())) {
        Some((file, Ok(metadata))) if !metadata.is_file() => {
            Err(ConfigError::of(Some(file.to_owned()), "", localized!("config.not_a_file")))
        }
        _ => Ok(()),
    }
}

impl Document {
    /// A file of this text in `directory`, for the fuzz target.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(text: &str, directory: &Path) -> Self {
        Self { source: Source { file: None, directory: directory.to_owned() }, text: text.to_owned() }
    }

    /// The language that it asks for, whatever else may be wrong with it.
    pub(crate) fn language(&self) -> Language {
        file::language(&self.text)
    }

    /// What the manager needs of it; defaults stand in for values that cannot be used.
    pub(crate) fn essentials(&self) -> Essentials {
        file::essentials(&self.text, &self.source.directory)
    }

    /// Checks everything in it, and takes the older service's environment where it names no merchant.
    pub(crate) fn load(&self, environment: Environment) -> Result<Loaded, ConfigError> {
        parse(self.source.clone(), &self.text, environment)
    }
}

fn parse(source: Source, text: &str, environment: Environment) -> Result<Loaded, ConfigError> {
    let failed = |findings| ConfigError { file: source.file.clone(), findings };
    let written = file::parse(text).map_err(|finding| failed(vec![finding]))?;
    let (config, warnings, secrets) = check::resolve(written, &source.directory, environment).map_err(failed)?;
    Ok(Loaded { config, source, warnings, secrets })
}
