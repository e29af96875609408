//! The command line: what may be asked for, and one file for each command that answers.

mod callback;
mod config;
mod demo;
mod failure;
mod help;
mod orders;
mod output;
mod serve;
mod trigger;
mod users;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Language, Loaded, language, load, process_environment};
use failure::Exit;

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
    Serve,
    /// Write, check and show the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Create and look at orders
    #[command(subcommand)]
    Orders(orders::Command),
    /// Look at users, and give them credits
    #[command(subcommand)]
    Users(users::Command),
    /// Send the running service the callback that a gateway would send for an order
    Trigger(trigger::Arguments),
    /// Try everything in a sandbox: service, order, callback, duplicate, forgery, credits
    Demo(demo::Arguments),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let language = configured_language();
    language.activate();
    let command = help::in_language(Arguments::command(), language);
    let arguments = command.get_matches();
    let arguments = Arguments::from_arg_matches(&arguments).unwrap_or_else(|error| error.exit());
    match run(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => failure::report(&error).into(),
    }
}

/// The language to speak before the configuration is read: the command line names the file, and has errors of its own.
fn configured_language() -> Language {
    let mut arguments = std::env::args_os().skip(1);
    let mut named = None;
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            named = arguments.next().map(PathBuf::from);
        } else if let Some(file) = argument.to_str().and_then(|argument| argument.strip_prefix("--config=")) {
            named = Some(PathBuf::from(file));
        }
    }
    language(named.as_deref(), &process_environment)
}

fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let file = arguments.config.as_deref();
    let loaded = || -> anyhow::Result<Loaded> { Ok(load(file, &process_environment)?) };
    match arguments.command {
        Command::Serve => Ok(serve::run(load(file, &process_environment))),
        Command::Config(command) => config::run(&command, file),
        Command::Orders(command) => in_runtime(orders::run(command, &loaded()?.config)),
        Command::Users(command) => in_runtime(users::run(command, &loaded()?.config)),
        Command::Trigger(arguments) => in_runtime(trigger::run(arguments, &loaded()?.config)),
        Command::Demo(arguments) => in_runtime(demo::run(arguments)),
    }
}

/// Runs one command to its end, on this thread.
fn in_runtime(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
