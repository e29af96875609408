//! `config init`, `config check`, `config show`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;

use super::{output, parse_language};
use crate::config::{ConfigError, DEFAULT_FILE, EXAMPLE, Finding, Loaded, asked_for, file_name, process_environment};
use crate::domain::failure::{LocalizedError, failure};
use crate::domain::language::{Language, Localized, localized, text};
use crate::files::Audience;
use crate::process::exit::{Exit, eprint};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Write a commented example that works at once, with a sandbox merchant of its own
    Init {
        /// The language to write into it: zh or en
        #[arg(long, default_value = "zh", value_parser = parse_language)]
        language: Language,
    },
    /// Check the configuration, and say what is wrong and what to do
    Check {
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is in force, with secrets masked
    Show {
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(
    command: &Command,
    file: Option<&Path>,
    loaded: impl FnOnce() -> Result<Loaded, ConfigError>,
    language: Language,
) -> anyhow::Result<Exit> {
    match command {
        Command::Init { language } => init(file, *language),
        Command::Check { json } => check(loaded(), *json, language),
        Command::Show { json } => show(&loaded()?, *json, language),
    }
}

fn init(file: Option<&Path>, language: Language) -> anyhow::Result<Exit> {
    let path = asked_for(file, &process_environment).unwrap_or_else(|| DEFAULT_FILE.into());
    // It holds a key: for its owner only, and never over a file that is there.
    let mut example =
        OpenOptions::new().write(true).create_new(true).mode(Audience::Owner.mode()).open(&path).map_err(|error| {
            match error.kind() {
                io::ErrorKind::AlreadyExists => failure!("cli.init_exists", path = path.display()),
                _ => LocalizedError::because(localized!("cli.init_failed", path = path.display()), error),
            }
        })?;
    let text = EXAMPLE.replace("%{sandbox_key}", &random_key()?);
    let text = text.replace("language = \"zh\"", &format!("language = \"{language}\""));
    example.write_all(text.as_bytes())?;
    output::line(&path.display().to_string())?;
    eprint(&text!(language, "cli.init_next"));
    Ok(Exit::Done)
}

/// A key like those of gateways: 32 hexadecimal digits, from the system's random numbers.
pub(super) fn random_key() -> anyhow::Result<String> {
    let bytes = [getrandom::u64()?, getrandom::u64()?];
    Ok(bytes.map(|half| format!("{half:016x}")).concat())
}

fn check(loaded: Result<Loaded, ConfigError>, json: bool, language: Language) -> anyhow::Result<Exit> {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) if json => {
            report(error.file.as_deref(), &error.findings, &[], language)?;
            return Ok(Exit::BadConfiguration);
        }
        Err(error) => return Err(error.into()),
    };
    let file = loaded.source.file.as_deref();
    if json {
        report(file, &[], &loaded.warnings, language)?;
    } else if loaded.warnings.is_empty() {
        output::line(&text!(language, "cli.check_passed", file = file_name(file, language)))?;
    } else {
        for warning in &loaded.warnings {
            output::line(&text!(language, "cli.check_warning", file = file_name(file, language), finding = warning))?;
        }
    }
    Ok(if loaded.warnings.is_empty() { Exit::Done } else { Exit::Found })
}

fn report(file: Option<&Path>, errors: &[Finding], warnings: &[Finding], language: Language) -> anyhow::Result<()> {
    let list = |findings: &[Finding]| -> Vec<_> {
        findings.iter().map(|finding| json!({ "key": finding.key, "text": finding.text.text(language) })).collect()
    };
    output::json(&json!({
        "errors": list(errors),
        "file": file,
        "ok": errors.is_empty() && warnings.is_empty(),
        "warnings": list(warnings),
    }))
}

fn show(loaded: &Loaded, json: bool, language: Language) -> anyhow::Result<Exit> {
    if json {
        output::json(&serde_json::to_value(&loaded.config)?)?;
    } else {
        output::line(&format!("# {}", file_name(loaded.source.file.as_deref(), language)))?;
        output::line(toml::to_string(&loaded.config)?.trim_end())?;
    }
    Ok(Exit::Done)
}
