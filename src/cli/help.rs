//! The command line's help in the configured language.
//!
//! English stands beside each command and option in the code, where clap takes it from. The Chinese catalogue has a text for each
//! of them, under `help` and the path of commands, such as `help.orders.create.telegram_id`; `about` is the command itself,
//! and `after_help` what stands below the options of some.

use clap::Command;

use crate::domain::language::{Language, text};

/// What stands above, between and below the texts of a page of help; clap's own template has English words in it.
const TEMPLATE: &str = "{about-with-newline}\n用法：{usage}\n\n{all-args}{after-help}";

/// The command line with its help in `language`.
pub(super) fn in_language(mut command: Command, language: Language) -> Command {
    match language {
        Language::English => command,
        Language::Chinese => {
            // Adds what clap adds by itself: `help`, `--help`, `--version`.
            command.build();
            translated(command, "help")
        }
    }
}

fn translated(command: Command, path: &str) -> Command {
    let command = match command.get_after_help() {
        Some(_) => command.after_help(text(path, "after_help")),
        None => command,
    };
    command
        .about(text(path, "about"))
        .help_template(TEMPLATE)
        .subcommand_help_heading("命令")
        .mut_args(|arg| {
            let heading = if arg.is_positional() { "参数" } else { "选项" };
            let help = text(path, arg.get_id().as_str());
            arg.help(help).help_heading(heading)
        })
        .mut_subcommands(|subcommand| match subcommand.get_name() {
            "help" => subcommand.about(text("help.options", "help_command")),
            name => {
                let path = format!("{path}.{name}");
                translated(subcommand, &path)
            }
        })
}

fn text(path: &str, name: &str) -> String {
    // What every command has is told once.
    let key = match name {
        "config" | "json" | "help" | "version" => format!("help.options.{name}"),
        name => format!("{path}.{name}"),
    };
    text!(Language::Chinese, key, locale = Language::Chinese.name()).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Arguments;
    use super::*;

    fn pages(mut command: Command) -> Vec<String> {
        let help = command.render_help().to_string();
        let subcommands = command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help");
        std::iter::once(help).chain(subcommands.cloned().flat_map(pages)).collect()
    }

    #[test]
    fn every_command_and_option_is_told_in_chinese() {
        let command = in_language(Arguments::command(), Language::Chinese);
        command.clone().debug_assert();
        let pages = pages(command);
        assert!(pages.len() > 10);
        for page in pages {
            // A text that is not there is told by its key.
            assert!(!page.contains("help."), "{page}");
            for english in ["Usage", "Options", "Print"] {
                assert!(!page.contains(english), "{page}");
            }
        }
    }
}
