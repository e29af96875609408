//! `restart`: a new process in the place of the one that runs.

use rust_i18n::t;

use super::failure::Exit;
use super::output;
use super::start::{self, Arguments};
use crate::config::Loaded;
use crate::manager::pid_file::{Found, look};
use crate::manager::start::Started;

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
    if let Started::Ready { pid, listen } = start::plan(arguments, loaded).take_over(&process).map_err(|error| {
        let goes_on = t!("manager.old_goes_on", pid = old.pid);
        error.context(goes_on.into_owned())
    })? {
        output::line(&t!("manager.restarted", old = old.pid, pid = pid, address = listen))?;
    }
    Ok(Exit::Done)
}
