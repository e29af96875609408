//! `backup create`, `backup verify`, `backup restore`: copies of the database.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{audit, output};
use crate::config::{Config, DatabaseUrl};
use crate::domain::clock::Timestamp;
use crate::domain::failure::{LocalizedError, OrFailure, failure};
use crate::domain::language::{Language, Localized, LocalizedText, localized, text};
use crate::process::exit::{Exit, eprint};
use crate::process::pid_file::{LockError, PidFile};
use crate::store::audit::Audit;
use crate::store::sqlite::maintenance::{BackupError, DatabaseFile};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// Copy the database, as it is now, to one file; the service may run
    Create {
        /// The file, which only its owner can read
        file: PathBuf,
        /// Replace the file if it is there
        #[arg(long)]
        overwrite: bool,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Prove that a copy is whole and its books are right; it is copied to $TMPDIR for that, and not touched
    Verify {
        /// The copy
        file: PathBuf,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
    /// Put a copy in the place of the database, which is kept under another name; the service must be stopped
    Restore {
        /// The copy
        file: PathBuf,
        /// Take it even if something is wrong with its books
        #[arg(long)]
        even_with_findings: bool,
        /// Report as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<Exit> {
    let url = &config.database.url;
    match command {
        Command::Create { file, overwrite, json } => create(url, file, overwrite, json, config.language).await,
        Command::Verify { file, json } => verify(url, file, json, config.language).await,
        Command::Restore { file, even_with_findings, json } => restore(config, file, even_with_findings, json).await,
    }
}

async fn create(
    url: &DatabaseUrl,
    file: PathBuf,
    overwrite: bool,
    json: bool,
    language: Language,
) -> anyhow::Result<Exit> {
    let file = std::path::absolute(file)?;
    let (bar, is_over) = (output::progress_bar(0, json), Arc::new(AtomicBool::new(false)));
    let (shown, told) = (bar.clone(), Arc::clone(&is_over));
    let copying = DatabaseFile::of(url).back_up(file.clone(), overwrite, move |done, total| {
        show(&shown, done, total);
        if told.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    tokio::pin!(copying);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let bytes = loop {
        // What has begun is removed before the process ends.
        tokio::select! {
            copied = &mut copying => break copied,
            _ = interrupt.recv() => is_over.store(true, Ordering::Relaxed),
            _ = terminate.recv() => is_over.store(true, Ordering::Relaxed),
        }
    };
    bar.finish_and_clear();
    let bytes = bytes?;
    if json {
        output::json(&json!({ "bytes": bytes, "file": file }))?;
    } else {
        output::line(&text!(language, "backup.created", path = file.display(), kib = bytes.div_ceil(1024)))?;
    }
    Ok(Exit::Done)
}

async fn verify(url: &DatabaseUrl, file: PathBuf, json: bool, language: Language) -> anyhow::Result<Exit> {
    let file = std::path::absolute(file)?;
    let bar = output::progress_bar(0, json);
    let shown = bar.clone();
    let audit = DatabaseFile::of(url).verify(file.clone(), move |done, total| show(&shown, done, total)).await;
    bar.finish_and_clear();
    let audit = audit?;
    if json {
        output::json(&view(&audit, &file)?)?;
    } else {
        audit::print(&audit, language)?;
        if audit.findings() > 0 {
            eprint(&text!(language, "backup.found"));
        }
    }
    Ok(if audit.findings() == 0 { Exit::Done } else { Exit::Found })
}

async fn restore(config: &Config, file: PathBuf, even_with_findings: bool, json: bool) -> anyhow::Result<Exit> {
    let language = config.language;
    let file = std::path::absolute(file)?;
    let DatabaseUrl::Sqlite(database) = &config.database.url;
    ensure_own(database)?;
    // Held to the end: whatever starts the service meanwhile is refused.
    let _stopped = PidFile::lock(&config.service.pid_file).map_err(|error| match error {
        LockError::Held => failure!("backup.running"),
        LockError::Io(error) => {
            LocalizedError::because(localized!("log.pid_file_failed", path = config.service.pid_file.display()), error)
        }
    })?;
    let bar = output::progress_bar(0, json);
    let shown = bar.clone();
    let candidate = DatabaseFile::of(&config.database.url)
        .candidate(file.clone(), move |done, total| show(&shown, done, total))
        .await;
    bar.finish_and_clear();
    let candidate = match candidate {
        // Nothing of it can be taken.
        Err(error @ BackupError::Unreadable(..)) => {
            return refuse(
                &Audit::of_damaged(error.text(language)),
                &file,
                &localized!("backup.unusable"),
                json,
                language,
            );
        }
        candidate => candidate?,
    };
    let audit = candidate.audit.clone();
    if !audit.is_sound() && !even_with_findings {
        return refuse(&audit, &file, &localized!("backup.unsound"), json, language);
    }
    if !audit.can_be_opened() {
        return refuse(&audit, &file, &localized!("backup.other_schema"), json, language);
    }
    let restored = candidate.install(Timestamp::now()).await?;
    for path in &restored.removed {
        eprint(&text!(language, "backup.leftover_removed", path = path.display()));
    }
    let kept = restored.kept;
    if json {
        let mut view = view(&audit, &file)?;
        view["restored"] = json!(true);
        view["kept"] = json!(kept);
        output::json(&view)?;
    } else {
        let (database, path) = (database.display(), file.display());
        let (orders, settled) = (audit.orders, audit.settled);
        output::line(&text!(
            language,
            "backup.restored",
            database = database,
            path = path,
            orders = orders,
            settled = settled
        ))?;
        if let Some(kept) = kept {
            output::line(&text!(language, "backup.kept", path = kept.display()))?;
        }
        eprint(&text!(language, "backup.what_to_do"));
    }
    Ok(Exit::Done)
}

/// Tells why a copy does not come into the database's place.
fn refuse(audit: &Audit, file: &Path, remedy: &LocalizedText, json: bool, language: Language) -> anyhow::Result<Exit> {
    if json {
        let mut view = view(audit, file)?;
        view["restored"] = json!(false);
        view["kept"] = json!(null);
        output::json(&view)?;
    } else {
        audit::print(audit, language)?;
    }
    eprint(&remedy.text(language));
    Ok(Exit::Found)
}

/// An audit as `audit --json` shows it, with the file that it is of.
fn view(audit: &Audit, file: &Path) -> anyhow::Result<serde_json::Value> {
    let mut view = serde_json::to_value(audit::View::of(audit))?;
    view["file"] = json!(file);
    Ok(view)
}

/// Refuses to put a file there that the service's user could not open.
fn ensure_own(database: &Path) -> anyhow::Result<()> {
    let own = rustix::process::geteuid();
    // Where there is no database, root's would stand in the way of whoever has the directory.
    let directory = database.parent().filter(|_| own.is_root()).unwrap_or(database);
    match database.metadata().or_else(|_| directory.metadata()) {
        Ok(metadata) if metadata.uid() != own.as_raw() => {
            Err(io::Error::from(io::ErrorKind::PermissionDenied)).or_failure(|| localized!("backup.other_user"))
        }
        _ => Ok(()),
    }
}

fn show(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}
