//! The command line: what may be asked for, and one file for each command that answers.

mod audit;
mod backup;
mod callback;
mod config;
mod deliveries;
mod demo;
mod doctor;
mod events;
mod explain;
mod failure;
mod gateway;
mod generate;
mod help;
mod logs;
mod messages;
mod orders;
mod output;
mod reconcile;
mod reload;
mod restart;
mod serve;
mod start;
mod status;
mod stop;
mod trigger;
mod users;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{ConfigError, Current, Document, process_environment};
use crate::domain::clock::Clock;
use crate::domain::failure::LocalizedError;
use crate::domain::language::{Language, localized};
use crate::net::client::Client;
use crate::payments::gateways::Gateways;
use crate::process::exit::Exit;
use crate::store::Store;

const FILE_HELP: &str = "The configuration file [default: $WEBHOOKCTL_CONFIG, else ./webhookctl.toml if it is there]";

/// Takes payment callbacks for Telegram bots that sell credits, and settles each order exactly once.
#[derive(Parser)]
#[command(name = "webhookctl", version, max_term_width = 100)]
struct Arguments {
    #[arg(long, global = true, value_name = "FILE", help = FILE_HELP)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service in the foreground
    Serve(serve::Arguments),
    /// Start the service in the background; returns when it answers, or failed and why
    Start(start::Arguments),
    /// Stop the service, letting it finish what is under way
    Stop(stop::Arguments),
    /// Replace the running service by a new process, dropping no request
    Restart(start::Arguments),
    /// Have the service read its configuration again and reopen its log file
    Reload,
    /// Show whether the service runs, and how it is
    Status(status::Arguments),
    /// Write, check and show the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Create and look at orders
    #[command(subcommand)]
    Orders(orders::Command),
    /// Look at users, and give them credits
    #[command(subcommand)]
    Users(users::Command),
    /// Ask the gateways about unpaid orders, now
    Reconcile(reconcile::Arguments),
    /// Prove the books: every settled order, every credit, every balance
    Audit(audit::Arguments),
    /// Check that everything a payment needs is in place: files, database, gateway, Telegram, callbacks
    Doctor(doctor::Arguments),
    /// Copy the database beside the running service, prove a copy, put one back
    #[command(subcommand)]
    Backup(backup::Command),
    /// Tell the whole story of an order or a payment, and what it comes to
    Explain(explain::Arguments),
    /// Look at messages to buyers, and send them again
    #[command(subcommand)]
    Messages(messages::Command),
    /// Look at events for the bot, and send them again
    #[command(subcommand)]
    Events(events::Command),
    /// Send the running service the callback that a gateway would send for an order
    Trigger(trigger::Arguments),
    /// Show the last lines of the log file, and follow it
    Logs(logs::Arguments),
    /// A pretend gateway
    #[command(subcommand)]
    Gateway(gateway::Command),
    /// Try everything in a sandbox: service, order, callback, duplicate, forgery, credits
    Demo(demo::Arguments),
    /// Print what a shell needs to complete commands
    Completions(generate::Completions),
    /// Print the manual page
    Man(generate::Man),
}

impl Command {
    /// The language that the command itself is asked to speak.
    fn language(&self) -> Option<Language> {
        match self {
            Self::Config(config::Command::Init { language }) => Some(*language),
            Self::Demo(demo) => Some(demo.language),
            _ => None,
        }
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let named = configuration_argument();
    // The command line has errors of its own, so the language is needed before it is parsed. A file that cannot be read is told
    // by the command that needs it.
    let document = crate::config::read(named.as_deref(), &process_environment);
    let language = document.as_ref().map_or(Language::Chinese, Document::language);
    let command = help::in_language(Arguments::command(), language);
    let matches = match command.try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return failure::report_usage(&error, language),
    };
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let language = arguments.command.language().unwrap_or(language);
    match run(arguments, &document, language) {
        Ok(exit) => exit.into(),
        Err(error) => failure::report(&error, language).into(),
    }
}

/// The file that `--config` names, as [`Arguments`] will find it.
fn configuration_argument() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1).take_while(|argument| argument != "--");
    let mut named = None;
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            named = arguments.next().map(PathBuf::from);
        } else if let Some(file) = argument.to_str().and_then(|argument| argument.strip_prefix("--config=")) {
            named = Some(PathBuf::from(file));
        }
    }
    named
}

fn run(arguments: Arguments, document: &Result<Document, ConfigError>, language: Language) -> anyhow::Result<Exit> {
    let file = arguments.config;
    let document = || document.as_ref().map_err(Clone::clone);
    let loaded = || document()?.load(&process_environment);
    // Who stops the service must not need what only serving needs.
    let essentials = || document().map(Document::essentials);
    match arguments.command {
        Command::Serve(arguments) => Ok(crate::process::serve::run(arguments.into(), loaded(), essentials(), language)),
        Command::Stop(arguments) => stop::run(&arguments, &essentials()?),
        Command::Reload => reload::run(&essentials()?),
        Command::Status(arguments) => in_runtime(status::run(&arguments, &essentials()?)),
        Command::Start(arguments) => start::run(&arguments, &loaded()?),
        Command::Restart(arguments) => restart::run(&arguments, &loaded()?),
        Command::Config(command) => config::run(&command, file.as_deref(), loaded, language),
        Command::Orders(command) => in_runtime(orders::run(command, &loaded()?.config)),
        Command::Users(command) => in_runtime(users::run(command, &loaded()?.config)),
        Command::Reconcile(arguments) => in_runtime(reconcile::run(arguments, &loaded()?.config)),
        Command::Audit(arguments) => in_background(audit::run(arguments, &loaded()?.config)),
        Command::Doctor(arguments) => in_runtime(doctor::run(arguments, loaded(), language)),
        Command::Backup(command) => in_background(backup::run(command, &loaded()?.config)),
        Command::Explain(arguments) => in_runtime(explain::run(arguments, &loaded()?.config)),
        Command::Messages(command) => in_runtime(messages::run(command, &loaded()?.config)),
        Command::Events(command) => in_runtime(events::run(command, &loaded()?.config)),
        Command::Trigger(arguments) => in_runtime(trigger::run(arguments, &loaded()?.config)),
        Command::Logs(arguments) => logs::run(&arguments, &essentials()?.log_file, language),
        Command::Gateway(command) => in_runtime(gateway::run(command, loaded, language)),
        Command::Demo(arguments) => in_runtime(demo::run(arguments)),
        Command::Completions(arguments) => generate::completions(&arguments, language),
        Command::Man(arguments) => generate::man(&arguments, language),
    }
}

fn parse_language(text: &str) -> Result<Language, LocalizedError> {
    chosen(Language::from_name(text), Language::known)
}

/// The value that an argument names; `known` are the names that there are.
fn chosen<T>(found: Option<T>, known: fn() -> String) -> Result<T, LocalizedError> {
    found.ok_or_else(|| localized!("cli.not_one_of", known = known()).into())
}

/// The gateways, as a command asks them.
fn gateways(config: &Current, store: &Store) -> Gateways {
    Gateways::new(config, store, &Client::new(), &Clock::system())
}

/// Runs one command to its end, on this thread.
fn in_runtime(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command)
}

/// The same for what takes long, beside a service that has payments to settle: it gets the processor when that does not want it.
fn in_background(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    const NICENESS: i32 = 10;
    if let Err(error) = rustix::process::nice(NICENESS) {
        log::debug!("nice: {error}");
    }
    in_runtime(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
