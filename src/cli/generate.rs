//! `completions`, `man`: what the command line itself is enough for.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{help, output};
use crate::domain::failure::OrFailure;
use crate::domain::language::{Language, localized};
use crate::process::exit::Exit;

const PROGRAM: &str = "webhookctl";

#[derive(clap::Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

#[derive(clap::Args)]
pub(super) struct Man {
    /// Write a page for each command into this directory, which is made where it is missing
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Prints what a shell needs to complete our commands.
pub(super) fn completions(arguments: &Completions, language: Language) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    // Into memory: the generator panics where it cannot write.
    clap_complete::generate(arguments.shell, &mut command(language), PROGRAM, &mut script);
    output::bytes(&script)?;
    Ok(Exit::Done)
}

/// Prints the manual's main page, or writes all pages into a directory.
pub(super) fn man(arguments: &Man, language: Language) -> anyhow::Result<Exit> {
    if let Some(directory) = &arguments.directory {
        let failed = || localized!("cli.cannot_write", path = directory.display());
        std::fs::create_dir_all(directory).or_failure(failed)?;
        clap_mangen::generate_to(command(language), directory).or_failure(failed)?;
    } else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command(language)).render(&mut page)?;
        output::bytes(&page)?;
    }
    Ok(Exit::Done)
}

fn command(language: Language) -> clap::Command {
    help::in_language(super::Arguments::command(), language)
}
