//! `reload`: the running service reads its configuration again.

use anyhow::anyhow;
use rust_i18n::t;

use super::output;
use super::start::listener_beside;
use crate::config::Essentials;
use crate::process::exit::{Exit, eprint};
use crate::process::reload::{Reloaded, reload};

pub(super) fn run(essentials: &Essentials) -> anyhow::Result<Exit> {
    match reload(&essentials.pid_file)? {
        Reloaded::Done { pid, after_restart } => {
            output::line(&t!("manager.reloaded", pid = pid))?;
            if !after_restart.is_empty() {
                eprint(&t!("log.reloaded_but", keys = after_restart.join(", ")));
            }
            Ok(Exit::Done)
        }
        Reloaded::Refused { cause, exit } => {
            eprint(&t!("log.reload_failed", cause = cause));
            Ok(Exit::of_code(exit))
        }
        Reloaded::NotRunning => {
            if let Some(text) = listener_beside(essentials) {
                eprint(&text);
            }
            Err(anyhow!(t!("manager.nothing_to_reload").into_owned()))
        }
    }
}
