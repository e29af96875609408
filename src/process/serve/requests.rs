//! Answers to the commands of the manager.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};

use super::host::Host;
use crate::domain::language::{Localized, LocalizedText, localized};
use crate::logging::{self, log_text};
use crate::net::acceptor::{Acceptor, Slots};
use crate::process::control::{Answer, LINE_BYTES_MAX, Request, line, may_ask, send_with};
use crate::process::exit::{Exit, exit_of};
use crate::process::failure::text_of;
use crate::server::Phase;

/// How many commands are answered at the same time; more wait.
const CONNECTIONS_MAX: u32 = 64;
/// How long it is until a restart that waits for another one looks again.
const SHARED_PAUSE: Duration = Duration::from_millis(20);

/// Answers commands for as long as the process lives.
pub(super) async fn serve(host: Arc<Host>, listener: UnixListener) {
    let mut acceptor = Acceptor::new(listener, Slots::new(CONNECTIONS_MAX));
    loop {
        let (stream, slot) = acceptor.accept(pending).await;
        let host = Arc::clone(&host);
        tokio::spawn(async move {
            let _slot = slot;
            // The command that asked may end at any time.
            let _ = answer(&host, BufReader::new(stream)).await;
        });
    }
}

async fn answer(host: &Host, mut stream: BufReader<UnixStream>) -> io::Result<()> {
    let may_ask = may_ask(stream.get_ref());
    while let Some(request) = next_request(&mut stream).await? {
        let answer = match request {
            request if !may_ask && request != Request::Wait => {
                refused(&localized!("manager.may_not_ask"), Exit::NoPermission)
            }
            Request::Wait => match host.wait_until_ready().await {
                Some(listen) => Answer::Ready { listen },
                None => refused(&localized!("manager.is_stopping"), Exit::Failed),
            },
            Request::End => match host.end() {
                Ok(()) => Answer::Ending,
                Err(error) => refused(&LocalizedText::verbatim("signal_failed", &error.to_string()), Exit::Failed),
            },
            Request::Reload => match host.reload().await {
                Err(_) if host.has_left() => Answer::HasLeft,
                Ok(keys) => Answer::Reloaded { after_restart: keys.into_iter().map(str::to_owned).collect() },
                Err(error) => {
                    Answer::Refused { cause: text_of(&error, logging::language()), exit: exit_of(&error).code() }
                }
            },
            Request::HandOver => return hand_over(host, stream).await,
            Request::Leave { .. } => refused(&LocalizedText::verbatim("unexpected", "?"), Exit::Failed),
        };
        say(&mut stream, &answer).await?;
    }
    Ok(())
}

/// Shares the listener and the lock with the process that asks, and lets go of them when that is the service.
async fn hand_over(host: &Host, mut stream: BufReader<UnixStream>) -> io::Result<()> {
    if let Err(answer) = share_in_turn(host).await {
        return say(&mut stream, &answer).await;
    }
    log::info!("{}", log_text!("log.handing_over"));
    host.shares_database(true);
    let (listen, seat) = host.seat().name();
    let is_systemds = host.seat().is_systemds();
    let answer = Answer::HandedOver { listen, seat, is_systemds, merchants: host.merchants() };
    let send = || {
        let seat = host.seat();
        let descriptors = seat.descriptors().ok_or(io::ErrorKind::NotConnected)?;
        send_with(stream.get_ref(), &answer, descriptors)
    };
    let is_sent = stream.get_ref().async_io(Interest::WRITABLE, send).await.is_ok();
    let word = if is_sent { last_word(host, &mut stream).await } else { LastWord::None };
    match word {
        LastWord::Leave { took_listener } => {
            host.leave(took_listener);
            log::info!("{}", log_text!("log.handed_over"));
            // From here on the other process decides; its end is ours too.
            let _ = stream.read(&mut [0]).await;
            host.reach(Phase::Stopping);
            // It takes the end of this connection for our end, which is to come.
            pending().await
        }
        LastWord::None => {
            log::warn!("{}", log_text!("log.hand_over_failed"));
            host.shares_database(false);
            host.seat().keep();
            // It may have got as far as to write its name.
            if let Err(error) = host.seat().sign(Some(listen)) {
                log::error!("{}", text_of(&error, logging::language()));
            }
            Ok(())
        }
        LastWord::ToldToStop => {
            // Who stops the service means the one that is about to be it, too.
            let told = say(&mut stream, &refused(&localized!("manager.is_stopping"), Exit::Failed)).await;
            host.seat().keep();
            told
        }
    }
}

/// Shares what a process that takes over needs, when no other one has it; or what to answer instead.
async fn share_in_turn(host: &Host) -> Result<(), Answer> {
    // One that is starting is as good as ready.
    host.wait_until_ready().await;
    loop {
        if host.has_left() {
            return Err(Answer::HasLeft);
        }
        if let Some(cause) = why_not(host) {
            return Err(refused(&cause, Exit::Failed));
        }
        if host.seat().share() {
            return Ok(());
        }
        // Another restart comes first.
        tokio::time::sleep(SHARED_PAUSE).await;
    }
}

/// How it ends with a process that wants to take over.
enum LastWord {
    /// It is the service now.
    Leave { took_listener: bool },
    /// It has gone away.
    None,
    /// There was none yet when we were told to stop.
    ToldToStop,
}

async fn last_word(host: &Host, stream: &mut BufReader<UnixStream>) -> LastWord {
    let mut phases = host.phases();
    let mut word = Vec::new();
    let mut bytes = stream.take(LINE_BYTES_MAX as u64);
    tokio::select! {
        // However it ends, what counts is whether there was a whole word.
        _ = bytes.read_until(b'\n', &mut word) => {}
        _ = phases.wait_for(|phase| *phase >= Phase::Stopping) => return LastWord::ToldToStop,
    }
    match serde_json::from_slice(&word) {
        _ if !word.ends_with(b"\n") => LastWord::None,
        Ok(Request::Leave { took_listener }) => LastWord::Leave { took_listener },
        // A newer version may say it in another way, but by now it is the service.
        _ => LastWord::Leave { took_listener: true },
    }
}

fn why_not(host: &Host) -> Option<LocalizedText> {
    if !host.is_serving() {
        return Some(localized!("manager.is_stopping"));
    }
    if std::process::id() == 1 {
        return Some(localized!("manager.is_first"));
    }
    let unit = host.seat().unit.clone();
    unit.map(|unit| localized!("manager.owned_by_systemd", unit = unit, verb = "restart"))
}

/// In the language of the service: the command shows it as it is.
fn refused(cause: &impl Localized, exit: Exit) -> Answer {
    Answer::Refused { cause: cause.text(logging::language()), exit: exit.code() }
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
