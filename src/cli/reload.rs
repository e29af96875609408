//! `reload`: the running service reads its configuration again.

use super::output;
use super::start::listener_beside;
use crate::config::Essentials;
use crate::domain::failure::failure;
use crate::domain::language::text;
use crate::process::exit::{Exit, eprint};
use crate::process::reload::{Reloaded, reload};

pub(super) fn run(essentials: &Essentials) -> anyhow::Result<Exit> {
    let language = essentials.language;
    match reload(&essentials.pid_file)? {
        Reloaded::Done { pid, after_restart } => {
            output::line(&text!(language, "manager.reloaded", pid = pid))?;
            if !after_restart.is_empty() {
                eprint(&text!(language, "log.reloaded_but", keys = after_restart.join(", ")));
            }
            Ok(Exit::Done)
        }
        Reloaded::Refused { cause, exit } => {
            eprint(&text!(language, "log.reload_failed", cause = cause));
            Ok(Exit::of_code(exit))
        }
        Reloaded::NotRunning => {
            if let Some(text) = listener_beside(essentials) {
                eprint(&text);
            }
            Err(failure!("manager.nothing_to_reload"))
        }
    }
}
