//! From what was written to what is in force: every value parsed, every file read, every mistake collected.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hyper::Uri;
use ipnet::IpNet;

use super::{
    AddressList, Config, Database, DatabaseUrl, Environment, Finding, Log, LogLevel, Merchant, OrdersConfig, Package,
    PayPageSource, Proof, Protocol, SecretPlaces, ServiceConfig, Telegram, file,
};
use crate::channel::epay::{self, Credentials, PlatformKey, PrivateKey};
use crate::domain::language::{Language, LocalizedText, localized};
use crate::domain::money::{Amount, AmountError};
use crate::domain::secret::{MASK, Secret};
use crate::domain::settlement::LatePolicy;

/// How many bytes of a product name gateways keep.
const NAME_BYTES_MAX: usize = 127;
/// The credits that one package or order may give.
pub(crate) const CREDITS_MAX: i64 = 1_000_000_000;

/// Turns the file into a configuration, or tells everything that is wrong with it.
pub(super) fn resolve(
    mut written: file::File,
    directory: &Path,
    environment: Environment,
) -> Result<(Config, Vec<Finding>, SecretPlaces), Vec<Finding>> {
    let inline = written.holds_secrets();
    let secrets = SecretPlaces { files: Vec::new(), inline };
    let mut check = Check { directory, errors: Vec::new(), warnings: Vec::new(), secrets };
    if written.merchant.is_empty() {
        check.take_older_environment(&mut written, environment);
    }
    let config = check.config(written);
    match config {
        Some(config) if check.errors.is_empty() => Ok((config, check.warnings, check.secrets)),
        _ => Err(check.errors),
    }
}

/// Collects findings; a method that returns `None` has added one.
pub(super) struct Check<'a> {
    directory: &'a Path,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    secrets: SecretPlaces,
}

impl Check<'_> {
    pub(super) fn error<T>(&mut self, key: &str, text: LocalizedText) -> Option<T> {
        self.errors.push(Finding { key: key.to_owned(), text });
        None
    }

    pub(super) fn has_error_about(&self, key: &str) -> bool {
        self.errors.iter().any(|error| error.key.starts_with(key))
    }

    pub(super) fn warn(&mut self, key: &str, text: LocalizedText) {
        self.warnings.push(Finding { key: key.to_owned(), text });
    }

    fn config(&mut self, written: file::File) -> Option<Config> {
        let listen = match SocketAddr::from_str(&written.listen) {
            Ok(listen) => Some(listen),
            Err(_) => self.error("listen", localized!("config.bad_listen", value = written.listen)),
        };
        let language = self.one_of("language", &written.language, Language::from_name, Language::known);
        let trusted_proxies = self.addresses("trusted_proxies", &written.trusted_proxies);
        if trusted_proxies.0.iter().any(|net| net.prefix_len() == 0) {
            self.warn("trusted_proxies", localized!("config.trusts_everyone"));
        }
        let database = self.database(&written.database.url);
        let level = self.one_of("log.level", &written.log.level, LogLevel::from_name, LogLevel::known);
        for (key, timeout) in [
            ("service.start_timeout_s", written.service.start_timeout_s),
            ("service.stop_timeout_s", written.service.stop_timeout_s),
            ("orders.expire_after_s", written.orders.expire_after_s),
        ] {
            if timeout == 0 {
                self.error::<()>(key, localized!("config.not_positive"));
            }
        }
        for (key, path) in [("log.file", &written.log.file), ("service.pid_file", &written.service.pid_file)] {
            if path.is_empty() {
                self.error::<()>(key, localized!("config.empty_path"));
            }
        }
        let merchants = self.merchants(written.merchant);
        let packages = self.packages(written.package);
        let late = self.one_of("orders.late", &written.orders.late, LatePolicy::from_name, LatePolicy::known);
        let reconcile = self.reconcile(written.reconcile);
        let telegram = self.telegram(written.telegram);
        let api = self.api(written.api);
        let events = self.events(written.events);
        Some(Config {
            listen: listen?,
            language: language?,
            trusted_proxies,
            database: Database { url: database? },
            log: Log { file: self.path(&written.log.file), level: level?, console: written.log.console },
            service: ServiceConfig {
                pid_file: self.path(&written.service.pid_file),
                start_timeout_s: written.service.start_timeout_s,
                stop_timeout_s: written.service.stop_timeout_s,
            },
            merchants,
            packages,
            orders: OrdersConfig { expire_after_s: written.orders.expire_after_s, late: late? },
            reconcile,
            telegram: telegram?,
            api,
            events,
        })
    }

    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.directory.join(written)
    }

    fn one_of<T>(
        &mut self,
        key: &str,
        value: &str,
        from_name: fn(&str) -> Option<T>,
        known: fn() -> String,
    ) -> Option<T> {
        let found = from_name(value);
        if found.is_none() {
            self.error::<()>(key, localized!("config.not_one_of", value = value, known = known()));
        }
        found
    }

    fn addresses(&mut self, key: &str, written: &[String]) -> AddressList {
        let mut nets = Vec::new();
        for text in written {
            let address = text.parse().map(|address: std::net::IpAddr| IpNet::from(address.to_canonical()));
            match address.or_else(|_| text.parse()) {
                Ok(net) => nets.push(net),
                Err(_) => {
                    self.error::<()>(key, localized!("config.bad_address", value = text));
                }
            }
        }
        AddressList(nets)
    }

    fn database(&mut self, url: &str) -> Option<DatabaseUrl> {
        let path = url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
        match path {
            Some(memory) if memory.starts_with(":memory:") => {
                self.error("database.url", localized!("config.memory_database"))
            }
            Some(path) if !path.is_empty() => Some(DatabaseUrl::Sqlite(self.path(path))),
            _ => self.error("database.url", localized!("config.bad_database_url", value = url)),
        }
    }

    /// A secret from its key or the file that its `…_file` key names; `None` without a finding where neither is there.
    pub(super) fn secret(&mut self, key: &str, inline: Option<String>, file: Option<String>) -> Option<Secret> {
        let file_key = format!("{key}_file");
        match (inline, file) {
            (Some(_), Some(_)) => self.error(key, localized!("config.secret_twice", key = key, file_key = file_key)),
            (Some(text), None) => self.secret_text(key, &text),
            (None, Some(file)) => {
                self.secrets.files.push(self.path(&file));
                let text = self.read_file(&file_key, &file)?;
                self.secret_text(&file_key, text.trim_end_matches(['\r', '\n']))
            }
            (None, None) => None,
        }
    }

    fn secret_text(&mut self, key: &str, text: &str) -> Option<Secret> {
        if text.trim().is_empty() {
            return self.error(key, localized!("config.secret_empty"));
        }
        if text == MASK {
            return self.error(key, localized!("config.secret_masked"));
        }
        if text.trim() != text || text.chars().any(char::is_control) {
            return self.error(key, localized!("config.secret_white_space"));
        }
        Some(Secret::new(text))
    }

    fn read_file(&mut self, key: &str, file: &str) -> Option<String> {
        let path = self.path(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) => {
                let text = localized!("config.secret_unreadable", path = path.display(), error = error);
                self.error(key, text)
            }
        }
    }

    fn merchants(&mut self, written: Vec<file::Merchant>) -> Vec<Merchant> {
        if written.is_empty() {
            self.warn("merchant", localized!("config.no_merchant"));
        }
        let mut pids = HashSet::new();
        let mut merchants = Vec::new();
        for merchant in written {
            if !pids.insert(merchant.pid.clone()) {
                self.error::<()>("merchant.pid", localized!("config.pid_twice", pid = merchant.pid));
            }
            merchants.extend(self.merchant(merchant));
        }
        merchants
    }

    fn merchant(&mut self, written: file::Merchant) -> Option<Merchant> {
        let pid = written.pid;
        let key = |name: &str| format!("merchant[{pid}].{name}");
        if pid.is_empty() || !pid.bytes().all(|b| b.is_ascii_graphic() && b != b'&') {
            return self.error("merchant.pid", localized!("config.bad_pid", pid = pid));
        }
        let protocol = self.one_of(&key("protocol"), &written.protocol, Protocol::from_name, Protocol::known)?;
        let has_platform_key = written.platform_public_key_file.is_some();
        let file_of = |file: &Option<String>| file.as_ref().map(|file| self.path(file));
        let platform_public_key_file = file_of(&written.platform_public_key_file);
        let private_key_file = file_of(&written.private_key_file);
        let credentials = match protocol {
            Protocol::V1 => {
                if has_platform_key || written.private_key_file.is_some() {
                    return self.error(&key("protocol"), localized!("config.v1_with_v2_keys"));
                }
                if written.key.is_none() && written.key_file.is_none() {
                    return self.error(&key("key"), localized!("config.key_missing", pid = pid));
                }
                let previous = self.secret(&key("key_previous"), written.key_previous, written.key_previous_file);
                let current = self.secret(&key("key"), written.key, written.key_file)?;
                if previous.as_ref() == Some(&current) {
                    self.warn(&key("key_previous"), localized!("config.key_previous_same"));
                }
                Credentials::V1 { key: current, key_previous: previous }
            }
            Protocol::V2 => {
                let v1_keys = [&written.key, &written.key_file, &written.key_previous, &written.key_previous_file];
                if v1_keys.into_iter().any(Option::is_some) {
                    return self.error(&key("key"), localized!("config.v2_with_v1_key"));
                }
                let private_key = match written.private_key_file {
                    Some(file) => Some(self.private_key(&key("private_key_file"), &file)?),
                    None => None,
                };
                Credentials::V2 {
                    platform_key: self.platform_key(&key, written.platform_public_key_file)?,
                    private_key,
                }
            }
        };
        let allow_ips = self.addresses(&key("allow_ips"), &written.allow_ips);
        let gateway_url = self.url(&key("gateway_url"), written.gateway_url, true);
        let notify_url = self.url(&key("notify_url"), written.notify_url, false);
        let return_url = self.url(&key("return_url"), written.return_url, false);
        let can_ask = super::can_be_asked(gateway_url.as_deref(), &credentials);
        let proof = self.proof(&key("proof"), &written.proof, can_ask)?;
        let query_above = match written.query_above {
            Some(amount) => self.query_above(&key("query_above"), &amount, proof),
            None => None,
        };
        if can_ask && (notify_url.is_none() || return_url.is_none()) {
            self.warn(&key("notify_url"), localized!("config.no_notify_url"));
        }
        let pay_page =
            self.one_of(&key("pay_page"), &written.pay_page, PayPageSource::from_name, PayPageSource::known)?;
        if pay_page == PayPageSource::Link && protocol == Protocol::V2 {
            return self.error(&key("pay_page"), localized!("config.pay_link_v2"));
        }
        Some(Merchant {
            protocol,
            credentials,
            platform_public_key_file,
            private_key_file,
            gateway_url,
            notify_url,
            return_url,
            pay_page,
            proof,
            query_above,
            allow_ips,
            sandbox: written.sandbox,
            pid,
        })
    }

    fn proof(&mut self, key: &str, written: &str, can_ask: bool) -> Option<Proof> {
        let proof = self.one_of(key, written, Proof::from_name, Proof::known)?;
        if proof != Proof::Signature && !can_ask {
            return self.error(key, localized!("config.proof_without_gateway", value = written));
        }
        Some(proof)
    }

    fn query_above(&mut self, key: &str, written: &str, proof: Proof) -> Option<Amount> {
        if proof != Proof::SignatureAndQuery {
            self.warn(key, localized!("config.query_above_unused"));
        }
        match Amount::parse_price(written) {
            Ok(amount) => Some(amount),
            Err(_) => self.error(key, localized!("config.bad_price", value = written)),
        }
    }

    fn platform_key(&mut self, key: &dyn Fn(&str) -> String, file: Option<String>) -> Option<PlatformKey> {
        let name = key("platform_public_key_file");
        let Some(file) = file else {
            return self.error(&name, localized!("config.platform_key_missing"));
        };
        let text = self.read_file(&name, &file)?;
        match PlatformKey::parse(&text) {
            Ok(platform_key) => Some(platform_key),
            Err(_) => self.error(&name, localized!("config.bad_platform_key", path = self.path(&file).display())),
        }
    }

    fn private_key(&mut self, key: &str, file: &str) -> Option<PrivateKey> {
        self.secrets.files.push(self.path(file));
        let text = self.read_file(key, file)?;
        match PrivateKey::parse(&text) {
            Ok(private_key) => Some(private_key),
            Err(_) => self.error(key, localized!("config.bad_private_key", path = self.path(file).display())),
        }
    }

    pub(super) fn url(&mut self, key: &str, written: Option<String>, with_query: bool) -> Option<String> {
        let written = written?;
        let parsed: Option<Uri> = written.parse().ok();
        let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        match parsed.filter(is_http) {
            None => self.error(key, localized!("config.bad_url", value = written)),
            Some(uri) if uri.query().is_some() && !with_query => self.error(key, localized!("config.url_with_query")),
            Some(_) => Some(written),
        }
    }

    fn packages(&mut self, written: Vec<file::Package>) -> Vec<Package> {
        let mut ids = HashSet::new();
        let mut packages = Vec::new();
        for package in written {
            if !ids.insert(package.id.clone()) {
                self.error::<()>("package.id", localized!("config.package_twice", id = package.id));
            }
            packages.extend(self.package(package));
        }
        packages
    }

    fn package(&mut self, written: file::Package) -> Option<Package> {
        let id = written.id;
        let key = |name: &str| format!("package[{id}].{name}");
        let id_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if id.is_empty() || !id.bytes().all(id_byte) {
            return self.error("package.id", localized!("config.bad_package_id", id = id));
        }
        let fatal = fatal_faults_of_gateway_text(&written.name);
        for fault in faults_of_gateway_text(&written.name) {
            if fatal.is_empty() {
                self.warn(&key("name"), fault);
            } else {
                self.error::<()>(&key("name"), fault);
            }
        }
        if !(1..=CREDITS_MAX).contains(&written.credits) {
            self.error::<()>(&key("credits"), localized!("config.bad_credits", max = CREDITS_MAX));
        }
        let price = match Amount::parse_price(&written.price) {
            Ok(price) if price.fen() > 0 => price,
            Err(AmountError::TooFine) => {
                return self.error(&key("price"), localized!("config.price_decimals", value = written.price));
            }
            _ => return self.error(&key("price"), localized!("config.bad_price", value = written.price)),
        };
        Some(Package { name: written.name, price, credits: written.credits, id })
    }

    fn telegram(&mut self, written: file::Telegram) -> Option<Telegram> {
        let user_char = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let bot_username = written.bot_username.strip_prefix('@').unwrap_or(&written.bot_username).to_owned();
        if !bot_username.bytes().all(user_char) {
            self.error::<()>("telegram.bot_username", localized!("config.bad_bot_username", value = bot_username));
        }
        let texts = self.texts(written.texts);
        Some(Telegram {
            bot_username,
            token: self.secret("telegram.token", written.token, written.token_file),
            api_base: self.url("telegram.api_base", Some(written.api_base), false).unwrap_or_default(),
            admin_chat_id: written.admin_chat_id,
            texts: texts?,
        })
    }

    /// The variables that configured the older service, for a file that names no merchant.
    fn take_older_environment(&mut self, written: &mut file::File, environment: Environment) {
        let telegram = &mut written.telegram;
        if telegram.token.is_none() && telegram.token_file.is_none() {
            telegram.token = environment("BOT_TOKEN");
        }
        let (pid, key) = (environment("PAYMENT_PID"), environment("PAYMENT_KEY"));
        let Some(pid) = pid else {
            if key.is_some() {
                self.error::<()>("PAYMENT_PID", localized!("config.environment_pid"));
            }
            return;
        };
        if key.is_none() {
            self.error::<()>("PAYMENT_KEY", localized!("config.environment_key"));
            return;
        }
        let page = environment("PAYMENT_SUBMIT_URL").or_else(|| environment("PAYMENT_API_URL"));
        written.merchant.push(file::Merchant {
            pid,
            key,
            key_file: None,
            key_previous: None,
            key_previous_file: None,
            platform_public_key_file: None,
            private_key_file: None,
            protocol: Protocol::V1.name().into(),
            gateway_url: page.map(|page| base_of(&page).to_owned()),
            notify_url: environment("PAYMENT_NOTIFY_URL"),
            return_url: environment("PAYMENT_RETURN_URL"),
            pay_page: PayPageSource::Api.name().into(),
            proof: Proof::Signature.name().into(),
            query_above: None,
            allow_ips: Vec::new(),
            sandbox: false,
        });
    }
}

/// The reasons why a product name or `param` must not be sent to a gateway.
pub(crate) fn faults_of_gateway_text(text: &str) -> Vec<LocalizedText> {
    let mut faults = fatal_faults_of_gateway_text(text);
    if faults.is_empty() {
        faults.extend(
            epay::forbidden_char(text).map(|c| localized!("config.name_comes_back_changed", char = shown_char(c))),
        );
    }
    faults
}

/// Those of them that make a configuration unusable. Others only keep the package from being sold.
fn fatal_faults_of_gateway_text(text: &str) -> Vec<LocalizedText> {
    let ambiguous = text.chars().find(|&c| epay::is_ambiguous(c));
    let ambiguous = ambiguous.map(|c| localized!("config.name_forbidden", char = shown_char(c)));
    let is_short_and_visible = !text.trim().is_empty() && text.len() <= NAME_BYTES_MAX;
    let length = (!is_short_and_visible).then(|| localized!("config.name_length", max = NAME_BYTES_MAX));
    ambiguous.into_iter().chain(length).collect()
}

/// A character as a person can see it: by its number where it is blank or a control character.
fn shown_char(c: char) -> String {
    if c.is_control() || c.is_whitespace() { format!("U+{:04X}", u32::from(c)) } else { c.to_string() }
}

/// The gateway's base URL: that of its page, such as `https://pay.example.com/submit.php`, without the page.
fn base_of(page: &str) -> &str {
    let (base, last) = page.split_at(page.rfind('/').map_or(0, |at| at + 1));
    if last.contains(".php") { base } else { page }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Loaded, Source, parse};
    use super::*;

    fn load_in(directory: &Path, text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Vec<String>> {
        let lookup = |name: &str| environment.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let source = Source { file: None, directory: directory.to_owned() };
        parse(source, text, &lookup).map_err(|error| error.findings.into_iter().map(|finding| finding.key).collect())
    }

    /// The keys of what is wrong with a file.
    fn errors(text: &str) -> Vec<String> {
        load_in(Path::new("/x"), text, &[]).err().unwrap_or_default()
    }

    const MERCHANT: &str = "[[merchant]]\npid = \"1002\"\nkey = \"k\"\n";
    const PACKAGE: &str = "[[package]]\nid = \"silver\"\nname = \"VIP白银\"\nprice = \"36.00\"\ncredits = 70\n";

    #[test]
    fn the_defaults_run_as_they_are() {
        let loaded = load_in(Path::new("/srv"), "", &[]).unwrap();
        let config = &loaded.config;
        assert_eq!(config.listen.to_string(), "0.0.0.0:5002");
        assert_eq!(config.language, Language::Chinese);
        assert_eq!(config.database.url, DatabaseUrl::Sqlite("/srv/data/telegram_bot_v2.db".into()));
        assert_eq!(config.log.file, Path::new("/srv/logs/payment_webhook_v1.log"));
        assert!(config.trusted_proxies.contains("::ffff:127.0.0.1".parse().unwrap()));
        assert_eq!(config.orders.expire_after_s, 1800);
        assert_eq!(loaded.warnings.len(), 1, "no merchant: {:?}", loaded.warnings);
    }

    #[test]
    fn each_mistake_names_its_key() {
        for (text, key) in [
            ("lisen = 1", "lisen"),
            ("listen = 1", "listen"),
            ("a\nlisten = ", ""),
            ("[[package]]\nid = \"x\"", "name"),
            ("listen = \"localhost\"", "listen"),
            ("language = \"fr\"", "language"),
            ("trusted_proxies = [\"10.0.0.0/33\"]", "trusted_proxies"),
            ("[database]\nurl = \"mysql://x\"", "database.url"),
            ("[database]\nurl = \"sqlite::memory:\"", "database.url"),
            ("[database]\nurl = \"sqlite:\"", "database.url"),
            ("[log]\nlevel = \"loud\"", "log.level"),
            ("[log]\nfiel = \"x\"", "fiel"),
            ("[log]\nfile = \"\"", "log.file"),
            ("[service]\nstop_timeout_s = 0", "service.stop_timeout_s"),
            ("[orders]\nexpire_after_s = 0", "orders.expire_after_s"),
            ("[orders]\nlate = \"never\"", "orders.late"),
            ("[[merchant]]\npid = \"1002\"", "merchant[1002].key"),
            ("[[merchant]]\npid = \"1002\"\nkey = \"\"", "merchant[1002].key"),
            ("[[merchant]]\npid = \"1002\"\nkey = \" k\"", "merchant[1002].key"),
            ("[[merchant]]\npid = \"1002\"\nkey_file = \"none.key\"", "merchant[1002].key_file"),
            (&format!("{MERCHANT}key_previous = \"\""), "merchant[1002].key_previous"),
            (&format!("{MERCHANT}key_previous_file = \"none.key\""), "merchant[1002].key_previous_file"),
            (
                "[[merchant]]\npid = \"1\"\nprotocol = \"v2\"\nkey_previous = \"k\"\nplatform_public_key_file = \"x\"",
                "merchant[1].key",
            ),
            ("[[merchant]]\npid = \"1002\"\nkey = \"k\"\nkey_file = \"f\"", "merchant[1002].key"),
            ("[[merchant]]\npid = \"\"\nkey = \"k\"", "merchant.pid"),
            (&format!("{MERCHANT}{MERCHANT}"), "merchant.pid"),
            (&format!("{MERCHANT}proof = \"query\""), "merchant[1002].proof"),
            (&format!("{MERCHANT}proof = \"trust\""), "merchant[1002].proof"),
            (&format!("{MERCHANT}pay_page = \"qr\""), "merchant[1002].pay_page"),
            (&format!("{MERCHANT}query_above = \"1,5\""), "merchant[1002].query_above"),
            ("[reconcile]\nschedule_s = [60, 15]", "reconcile.schedule_s"),
            ("[reconcile]\nper_minute = 0", "reconcile.per_minute"),
            ("[telegram.texts.en]\nsettled = \"{kredits}\"", "telegram.texts.en.settled"),
            ("[telegram.texts.zh]\nreview = \"\"", "telegram.texts.zh.review"),
            ("[telegram]\nbot_username = \"https://t.me/x\"", "telegram.bot_username"),
            ("[api]\nlisten = \"127.0.0.1:5003\"", "api.token_file"),
            ("[api]\nlisten = \"here\"\ntoken = \"t\"", "api.listen"),
            ("[api]\nlisten = \"127.0.0.1:5003\"\ntoken_file = \"none\"", "api.token_file"),
            ("[events]\nurl = \"http://127.0.0.1/\"", "events.secret_file"),
            ("[events]\nurl = \"http://127.0.0.1/\"\nsecret = \"whsec_x\"", "events.secret"),
            (&format!("{MERCHANT}protocol = \"v3\""), "merchant[1002].protocol"),
            (&format!("{MERCHANT}protocol = \"v2\""), "merchant[1002].key"),
            ("[[merchant]]\npid = \"1\"\nprotocol = \"v2\"", "merchant[1].platform_public_key_file"),
            (&format!("{MERCHANT}allow_ips = [\"x\"]"), "merchant[1002].allow_ips"),
            (&format!("{MERCHANT}notify_url = \"http://a/b?c=d\""), "merchant[1002].notify_url"),
            (&format!("{MERCHANT}gateway_url = \"pay.example.com\""), "merchant[1002].gateway_url"),
            (&PACKAGE.replace("36.00", "36.000"), "package[silver].price"),
            (&PACKAGE.replace("36.00", "0.00"), "package[silver].price"),
            (&PACKAGE.replace("36.00", "free"), "package[silver].price"),
            (&PACKAGE.replace("VIP白银", "A&B"), "package[silver].name"),
            (&PACKAGE.replace("VIP白银", "100%"), "package[silver].name"),
            (&PACKAGE.replace("VIP白银", " "), "package[silver].name"),
            (&PACKAGE.replace("silver", "sil ver"), "package.id"),
            (&PACKAGE.replace("70", "0"), "package[silver].credits"),
            (&format!("{PACKAGE}{PACKAGE}"), "package.id"),
            ("[telegram]\ntoken_file = \"none\"", "telegram.token_file"),
        ] {
            assert_eq!(errors(text), [key], "{text}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let text = format!("listen = \"x\"\n{MERCHANT}{}", PACKAGE.replace("36.00", "1.234"));
        assert_eq!(errors(&text), ["listen", "package[silver].price"]);
    }

    #[test]
    fn a_key_file_may_end_in_a_newline() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("k"), "secret\r\n").unwrap();
        let loaded = load_in(directory.path(), "[[merchant]]\npid = \"1\"\nkey_file = \"k\"", &[]).unwrap();
        let Credentials::V1 { key, .. } = &loaded.config.merchants[0].credentials else { panic!("not V1") };
        assert_eq!(key.expose(), "secret");
    }

    #[test]
    fn the_older_environment_counts_where_the_file_names_no_merchant() {
        let environment = [
            ("PAYMENT_PID", "1002"),
            ("PAYMENT_KEY", "k"),
            ("PAYMENT_SUBMIT_URL", "https://pay.example.com/submit.php"),
            ("BOT_TOKEN", "1:x"),
        ];
        let config = load_in(Path::new("/x"), "", &environment).unwrap().config;
        assert_eq!(config.merchants[0].pid, "1002");
        assert_eq!(config.merchants[0].gateway_url.as_deref(), Some("https://pay.example.com/"));
        assert!(config.telegram.token.is_some());
        let config = load_in(Path::new("/x"), &MERCHANT.replace("1002", "7"), &environment).unwrap().config;
        assert_eq!(config.merchants.len(), 1);
        assert_eq!(config.merchants[0].pid, "7");
        assert_eq!(load_in(Path::new("/x"), "", &environment[..1]).unwrap_err(), ["PAYMENT_KEY"]);
        assert_eq!(load_in(Path::new("/x"), "", &environment[1..2]).unwrap_err(), ["PAYMENT_PID"]);
    }

    #[test]
    fn what_is_shown_has_no_secret_and_cannot_be_mistaken_for_one() {
        let text = format!("{MERCHANT}{PACKAGE}[telegram]\ntoken = \"1:hunter2\"");
        let config = Config::from_toml(&text.replace("\"k\"", "\"hunter2\""), Path::new("/x")).unwrap();
        let shown = toml::to_string(&config).unwrap();
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!format!("{config:?}").contains("hunter2"));
        // A mask that was taken for a key would be a key that everybody knows.
        assert_eq!(errors(&shown), ["merchant[1002].key", "telegram.token"]);
        Config::from_toml(&shown.replace("***", "k"), Path::new("/y")).unwrap();
    }

    #[test]
    fn the_database_that_is_shown_is_the_one_in_force() {
        for (url, shown) in [
            ("sqlite:x.db", "sqlite:/srv/x.db"),
            ("sqlite://x.db", "sqlite:/srv/x.db"),
            ("sqlite:///x.db", "sqlite:/x.db"),
            ("sqlite:////x.db", "sqlite:////x.db"),
        ] {
            let show = |url: &str, directory: &str| {
                let text = format!("[database]\nurl = \"{url}\"");
                let config = Config::from_toml(&text, Path::new(directory)).unwrap();
                serde_json::to_value(&config.database.url).unwrap().as_str().unwrap().to_owned()
            };
            assert_eq!(show(url, "/srv"), shown);
            assert_eq!(show(shown, "/elsewhere"), shown, "read again: {url}");
        }
    }

    #[test]
    fn the_example_is_valid() {
        Config::from_toml(&super::super::EXAMPLE.replace("%{sandbox_key}", "k"), Path::new("/x")).unwrap();
    }
}
