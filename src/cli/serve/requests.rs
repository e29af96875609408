//! Answers to the commands of the manager.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rust_i18n::t;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::host::Host;
use crate::cli::failure::{Exit, exit_of};
use crate::manager::control::{Answer, LINE_BYTES_MAX, Request, line, may_ask, send_with};
use crate::server::Phase;

/// How many commands are answered at the same time; more wait.
const CONNECTIONS_MAX: usize = 64;
/// How long accepting pauses when the system has no descriptors for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Answers commands for as long as the process lives.
pub(super) async fn serve(host: Arc<Host>, listener: UnixListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let host = Arc::clone(&host);
                tokio::spawn(async move {
                    let _permit = permit;
                    // Whoever asked may go away at any time.
                    let _ = answer(&host, BufReader::new(stream)).await;
                });
            }
            Err(error) => {
                log::error!("{}", t!("log.no_control", error = error));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(host: &Host, mut stream: BufReader<UnixStream>) -> io::Result<()> {
    if !may_ask(stream.get_ref()) {
        return say(&mut stream, &refused(t!("manager.may_not_ask"), Exit::NoPermission)).await;
    }
    while let Some(request) = next_request(&mut stream).await? {
        let answer = match request {
            Request::Wait => match host.wait_until_ready().await {
                Some(listen) => Answer::Ready { listen },
                None => refused(t!("manager.is_stopping"), Exit::Failed),
            },
            Request::IsEnding => Answer::Ending(host.phase() >= Phase::Stopping),
            Request::Reload => match host.reload().await {
                Ok(keys) => Answer::Reloaded { after_restart: keys.into_iter().map(str::to_owned).collect() },
                Err(error) => refused(format!("{error:#}"), exit_of(&error)),
            },
            Request::HandOver => return hand_over(host, stream).await,
            Request::Leave { .. } => refused("?", Exit::Failed),
        };
        say(&mut stream, &answer).await?;
    }
    Ok(())
}

/// Shares the listener and the lock with the process that asks, and lets go of them when that is the service.
async fn hand_over(host: &Host, mut stream: BufReader<UnixStream>) -> io::Result<()> {
    if let Some(cause) = why_not(host) {
        return say(&mut stream, &refused(cause, Exit::Failed)).await;
    }
    let Some(descriptors) = host.seat().share()? else {
        return say(&mut stream, &refused(t!("manager.already_handing_over"), Exit::Failed)).await;
    };
    log::info!("{}", t!("log.handing_over"));
    host.shares_database(true);
    let answer = Answer::HandedOver { listen: host.seat().listen, merchants: host.merchants() };
    let share = || send_with(stream.get_ref(), &answer, descriptors.each_ref().map(AsFd::as_fd));
    let shared = stream.get_ref().async_io(Interest::WRITABLE, share).await;
    drop(descriptors);
    let word = match shared {
        Ok(()) => next_request(&mut stream).await,
        Err(error) => Err(error),
    };
    let Ok(Some(Request::Leave { took_listener })) = word else {
        log::warn!("{}", t!("log.hand_over_failed"));
        host.shares_database(false);
        if let Err(error) = host.seat().keep() {
            log::error!("{error:#}");
        }
        return Ok(());
    };
    host.leave(took_listener);
    log::info!("{}", t!("log.handed_over"));
    // From here on the other process decides; its end is ours too.
    let _ = stream.read(&mut [0]).await;
    host.reach(Phase::Stopping);
    // It takes the end of this connection for our end, which is to come.
    std::future::pending().await
}

fn why_not(host: &Host) -> Option<String> {
    if !host.is_serving() {
        return Some(t!("manager.is_stopping").into());
    }
    if std::process::id() == 1 {
        return Some(t!("manager.is_first").into());
    }
    let unit = host.seat().unit.clone();
    unit.map(|unit| t!("manager.owned_by_systemd", unit = unit, verb = "restart").into())
}

fn refused(cause: impl Into<String>, exit: Exit) -> Answer {
    Answer::Refused { cause: cause.into(), exit: exit.code() }
}

async fn say(stream: &mut BufReader<UnixStream>, answer: &Answer) -> io::Result<()> {
    stream.get_mut().write_all(&line(answer)).await
}

/// The next request; `None` where there is no other, or none that we understand.
async fn next_request(stream: &mut BufReader<UnixStream>) -> io::Result<Option<Request>> {
    let mut line = Vec::new();
    stream.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line).ok())
}
