//! `restart`: a new process in the place of the one that runs.

use std::time::Duration;

use rust_i18n::t;

use super::failure::Exit;
use super::start::{self, Arguments};
use crate::config::Loaded;
use crate::manager::pid_file::{Found, look};

pub(super) fn run(arguments: &Arguments, loaded: &Loaded) -> anyhow::Result<Exit> {
    let pid_file = &loaded.config.service.pid_file;
    let Found::Running(old, process) = look(pid_file)? else {
        // Nobody to take over from; a pid file that tells nothing is told by `start`.
        return start::run(arguments, loaded);
    };
    if let Some(unit) = old.unit {
        anyhow::bail!(t!("manager.owned_by_systemd", unit = unit, verb = "restart").into_owned());
    }
    start::prepare(loaded)?;
    let restarted = start::plan(arguments, loaded).take_over(&process).map_err(|error| {
        // It may have ended for a reason of its own.
        let goes_on = process.wait(Duration::ZERO).is_ok_and(|has_ended| !has_ended);
        if goes_on { error.context(t!("manager.old_goes_on", pid = old.pid).into_owned()) } else { error }
    });
    start::tell(restarted?)
}
