//! Answers to the commands of the manager.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;

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

/// Answers commands from now on.
pub(super) fn serve(host: Arc<Host>, listener: StdListener) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    tokio::spawn(async move {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = Arc::clone(&permits).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) if may_ask(&stream) => {
                    let host = Arc::clone(&host);
                    tokio::spawn(async move {
                        let _permit = permit;
                        // Whoever asked may go away at any time.
                        let _ = answer(&host, BufReader::new(stream)).await;
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    log::error!("{}", t!("log.no_control", error = error));
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(host: &Host, mut stream: BufReader<UnixStream>) -> std::io::Result<()> {
    while let Some(request) = next_request(&mut stream).await? {
        let answer = match request {
            Request::Wait => match host.wait_until_ready().await {
                Some(listen) => Answer::Ready { listen },
                None => refused(t!("manager.other_start_failed")),
            },
            Request::Reload => match host.reload().await {
                Ok(keys) => Answer::Reloaded { after_restart: keys.into_iter().map(str::to_owned).collect() },
                Err(error) => Answer::Refused {
                    cause: format!("{error:#}"),
                    bad_configuration: exit_of(&error) == Exit::BadConfiguration,
                },
            },
            Request::HandOver => return hand_over(host, stream).await,
            Request::Leave => refused("?"),
        };
        stream.get_mut().write_all(&line(&answer)).await?;
    }
    Ok(())
}

/// Shares the listener and the lock with the process that asks, and leaves once that is ready.
async fn hand_over(host: &Host, mut stream: BufReader<UnixStream>) -> std::io::Result<()> {
    let Ok(_handing_over) = host.handing_over.try_lock() else {
        return stream.get_mut().write_all(&line(&refused(t!("manager.already_handing_over")))).await;
    };
    if let Some(cause) = why_not(host) {
        return stream.get_mut().write_all(&line(&refused(cause))).await;
    }
    log::info!("{}", t!("log.handing_over"));
    let share = || {
        let seat = host.seat();
        let answer = Answer::HandedOver { listen: seat.listen };
        send_with(stream.get_ref(), &answer, [seat.listener()?.as_fd(), seat.pid_file.as_fd()])
    };
    stream.get_ref().async_io(Interest::WRITABLE, share).await?;
    let word = next_request(&mut stream).await;
    if !matches!(word, Ok(Some(Request::Leave))) || host.phase() != Phase::Serving {
        log::warn!("{}", t!("log.hand_over_failed"));
        return Ok(());
    }
    host.seat().pid_file.leave();
    host.reach(Phase::Leaving);
    log::info!("{}", t!("log.handed_over"));
    // From here on whoever took over decides; its end is ours too.
    let sent = stream.get_mut().write_all(&line(&Answer::Left)).await;
    let _ = stream.read(&mut [0]).await;
    host.reach(Phase::Stopping);
    sent
}

fn why_not(host: &Host) -> Option<String> {
    if host.phase() != Phase::Serving {
        return Some(t!("manager.is_stopping").into());
    }
    let unit = host.seat().unit.clone();
    unit.map(|unit| t!("manager.owned_by_systemd", unit = unit, verb = "restart").into())
}

fn refused(cause: impl Into<String>) -> Answer {
    Answer::Refused { cause: cause.into(), bad_configuration: false }
}

/// The next request; `None` where there is no other, or none that we understand.
async fn next_request(stream: &mut BufReader<UnixStream>) -> std::io::Result<Option<Request>> {
    let mut line = Vec::new();
    stream.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line).ok())
}
