//! What only one service can have: the pid file's lock, and the listener. It is taken, or taken over from the service before.
//!
//! While a service hands over, two processes have both. The new one decides: it is the service as soon as it has written itself
//! into the pid file, and everything that can fail comes before that. The old one lets go when it hears of it
//! ([`Request::Leave`]), or goes on if the other one goes away first. An old one that is told to stop meanwhile tells the new
//! one, which ends, too.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use socket2::{SockFilter, SockRef};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{block_in_place, spawn_blocking};

use crate::config::{Config, ConfigError};
use crate::domain::failure::{OrFailure, failure};
use crate::domain::language::{LocalizedText, localized};
use crate::logging::log_text;
use crate::process::control::{self, Answer, Connection, LOOK_AGAIN_AFTER, Request};
use crate::process::pid_file::{Found, LockError, PidFile, Record, look};
use crate::process::pidfd::{Process, Program, start_time};
use crate::process::port;
use crate::process::start::{Already, NotStarted};
use crate::process::systemd;
use crate::server::Phase;

/// How many connections wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;

/// This process's seat.
pub(super) struct Seat {
    pub(super) listen: SocketAddr,
    pid_file: PathBuf,
    /// See [`Record::seat`].
    id: String,
    /// The name of the socket that commands ask us over.
    control: Option<String>,
    program: Option<Program>,
    /// The systemd unit that owns this process.
    pub(super) unit: Option<String>,
    /// `None` when another process has it for good.
    held: Option<Held>,
}

struct Held {
    lock: PidFile,
    /// `None` as soon as the service is to end, so that the server's own handle is the last one, and nobody can connect.
    socket: Option<TcpListener>,
    /// Whether another process has both, too.
    is_shared: bool,
    /// Whether the socket outlives this service, as one of systemd's does.
    is_systemds: bool,
}

/// A seat with what comes with it.
pub(super) struct Taken {
    pub(super) seat: Seat,
    /// Where commands come in; `None` where the system does not let us.
    pub(super) control: Option<UnixListener>,
    pub(super) predecessor: Option<Predecessor>,
}

impl Seat {
    /// Takes it where it is free.
    pub(super) fn take(config: &Config, is_daemon: bool) -> anyhow::Result<Taken> {
        let path = &config.service.pid_file;
        let locked = PidFile::lock(path);
        if is_daemon && matches!(locked, Err(LockError::Held)) {
            return Err(Already(localized!("manager.other_start_failed")).into());
        }
        // Before the lock's failure is told: if the port is taken as well, that says more.
        let given = systemd::listener().or_failure(|| localized!("log.bad_activation"))?;
        let is_systemds = given.is_some();
        let socket = given.map_or_else(|| Socket::bind(config.listen), |listener| Ok(Socket::Listening(listener)))?;
        let lock = match locked {
            Ok(lock) => lock,
            Err(LockError::Held) => return Err(already(config)),
            Err(LockError::Io(error)) => {
                return Err(error).or_failure(|| localized!("log.pid_file_failed", path = path.display()));
            }
        };
        let socket = Some(socket.listen(config.listen)?);
        Self::sit(config, control::random_name()?, Held { lock, socket, is_shared: false, is_systemds }, None)
    }

    /// Asks the service that runs to share it. That one goes on as if nothing had happened unless it is dismissed.
    pub(super) fn take_over(config: &Config, deadline: Instant) -> anyhow::Result<Taken> {
        let path = &config.service.pid_file;
        let (service, process, answer, descriptors) = loop {
            let (record, process) = match look(path)? {
                Found::Running(record, process) => (record, process),
                Found::Unknown(riddle) => return Err(riddle.explain(path)),
                _ => return Err(failure!("manager.gone_meanwhile")),
            };
            let ask = || {
                let mut service =
                    Connection::open(&record, &process, deadline.saturating_duration_since(Instant::now()))?;
                let (answer, descriptors) = service.ask_to_hand_over()?;
                io::Result::Ok((service, answer, descriptors))
            };
            match block_in_place(ask) {
                // Another restart was quicker; now it is our turn with what came of it.
                Ok((_, Answer::HasLeft, _)) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN_AFTER),
                Err(error) if control::has_gone(&error) && Instant::now() < deadline => {
                    std::thread::sleep(LOOK_AGAIN_AFTER);
                }
                Ok((service, answer, descriptors)) => break (service, process, answer, descriptors),
                Err(error) => {
                    return Err(error).or_failure(|| localized!("manager.no_answer", pid = record.pid));
                }
            }
        };
        let (listen, id, is_systemds, merchants) = match answer {
            Answer::HandedOver { listen, seat, is_systemds, merchants } => (listen, seat, is_systemds, merchants),
            Answer::Refused { cause, exit } => {
                let cause = LocalizedText::verbatim("refused", &cause);
                return Err(NotStarted { exit, cause, log: Vec::new() }.into());
            }
            other => bail!("{other:?}"),
        };
        if config.merchants.is_empty() && merchants > 0 {
            // Its merchants may have come from an environment that this process does not have.
            return Err(ConfigError::of(None, "merchant", localized!("config.no_merchant_left")).into());
        }
        let [socket, lock] = descriptors.try_into().map_err(|_| anyhow!("no descriptors"))?;
        let took_listener = config.listen == listen || (config.listen.port() == 0 && config.listen.ip() == listen.ip());
        let socket = if took_listener {
            socket.into()
        } else {
            let moved = Socket::bind(config.listen).and_then(|socket| socket.listen(config.listen));
            moved.or_failure(|| localized!("log.move_failed", old = listen))?
        };
        let stream = service.into_stream();
        stream.set_nonblocking(true)?;
        let predecessor = Predecessor { stream: UnixStream::from_std(stream)?, process, took_listener };
        let is_systemds = is_systemds && took_listener;
        let held = Held { lock: PidFile::inherit(lock), socket: Some(socket), is_shared: true, is_systemds };
        Self::sit(config, id, held, Some(predecessor))
    }

    fn sit(config: &Config, id: String, held: Held, predecessor: Option<Predecessor>) -> anyhow::Result<Taken> {
        let control =
            control::listen().inspect_err(|error| log::warn!("{}", log_text!("log.no_control", error = error)));
        let (control, name) = control.ok().unzip();
        let control = control.map(UnixListener::from_std).transpose()?;
        let socket = held.socket.as_ref().context("no listener")?;
        socket.set_nonblocking(true)?;
        let mut seat = Self {
            listen: socket.local_addr()?,
            pid_file: config.service.pid_file.clone(),
            id,
            control: name,
            program: Program::of_own(),
            unit: systemd::unit(),
            held: Some(held),
        };
        if predecessor.is_none() {
            seat.sign(None)?;
        }
        Ok(Taken { seat, control, predecessor })
    }

    /// Writes us into the pid file: starting, or listening there.
    pub(super) fn sign(&mut self, listen: Option<SocketAddr>) -> anyhow::Result<()> {
        let record = self.record(listen);
        let Some(held) = &mut self.held else { return Ok(()) };
        let signed = held.lock.write(&record);
        signed.or_failure(|| localized!("log.pid_file_failed", path = self.pid_file.display()))
    }

    fn record(&self, listen: Option<SocketAddr>) -> Record {
        let pid = std::process::id();
        Record {
            pid,
            start_time: start_time(pid).unwrap_or_default(),
            listen,
            version: env!("CARGO_PKG_VERSION").into(),
            seat: self.id.clone(),
            control: self.control.clone(),
            program: self.program.clone(),
            unit: self.unit.clone(),
        }
    }

    /// Where it is, and which one it is.
    pub(super) fn name(&self) -> (SocketAddr, String) {
        (self.listen, self.id.clone())
    }

    pub(super) fn is_systemds(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.is_systemds)
    }

    /// Another handle on the listener.
    pub(super) fn listener(&self) -> io::Result<TcpListener> {
        self.held.as_ref().and_then(|held| held.socket.as_ref()).ok_or(io::ErrorKind::NotConnected)?.try_clone()
    }

    /// Begins to share it with a process that wants to take over; false where another one does already.
    pub(super) fn share(&mut self) -> bool {
        match &mut self.held {
            Some(Held { socket: Some(_), is_shared, .. }) => !std::mem::replace(is_shared, true),
            _ => false,
        }
    }

    /// The listener and the lock. Borrowed: closing a copy of the lock would take our mark away, see [`PidFile::mark`].
    pub(super) fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        let held = self.held.as_ref()?;
        Some([held.socket.as_ref()?.as_fd(), held.lock.as_fd()])
    }

    /// It is ours alone: the other process has gone away.
    pub(super) fn keep(&mut self) {
        if let Some(held) = &mut self.held {
            held.is_shared = false;
        }
    }

    /// It is the other process's alone now.
    pub(super) fn leave(&mut self) {
        self.held = None;
    }

    /// Lets nobody in any more but those who are in the server's own queue.
    pub(super) fn close(&mut self) {
        let Some(held) = &mut self.held else { return };
        let socket = held.socket.take();
        if let Some(socket) = socket.filter(|_| !held.is_shared && !held.is_systemds)
            && let Err(error) = seal(&socket)
        {
            log::debug!("{error}");
        }
    }

    /// The end, a clean one.
    pub(super) fn clear(&mut self) {
        if let Some(Held { lock, is_shared: false, .. }) = &mut self.held {
            lock.clear();
        }
    }

    /// Puts the pid file right where somebody has removed or changed it: without it the service can only be found by its port.
    pub(super) fn restore(&mut self) -> anyhow::Result<bool> {
        let Some(held) = &self.held else { return Ok(false) };
        let record = self.record(Some(self.listen));
        let is_there = held.lock.is_at(&self.pid_file);
        // Where it cannot be had, that has been said.
        let _ = held.lock.mark();
        if held.is_shared || (is_there && held.lock.says(&record)) {
            return Ok(false);
        }
        if is_there {
            return self.sign(Some(self.listen)).map(|()| true);
        }
        let mut lock = PidFile::lock(&self.pid_file)?;
        lock.write(&record)?;
        if let Some(held) = &mut self.held {
            held.lock = lock;
        }
        Ok(true)
    }
}

/// Who else runs.
fn already(config: &Config) -> anyhow::Error {
    let path = &config.service.pid_file;
    match look(path) {
        Ok(Found::Running(record, _)) => Already(localized!("manager.already_running", pid = record.pid)).into(),
        Ok(Found::Unknown(riddle)) => riddle.explain(path),
        Ok(_) => Already(localized!("manager.other_start_failed")).into(),
        Err(error) => error,
    }
}

/// A socket with an address.
enum Socket {
    Bound(TcpSocket),
    Listening(TcpListener),
}

impl Socket {
    fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let bind = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // Connections of an earlier run may linger; a second listener is refused all the same.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            io::Result::Ok(socket)
        };
        bind().map(Self::Bound).or_failure(|| bind_failed(address))
    }

    /// With a longer queue than tokio's own: a sale may bring many buyers in the same moment, and who finds the queue full
    /// tries again only after a second.
    fn listen(self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        match self {
            Self::Listening(listener) => Ok(listener),
            Self::Bound(socket) => {
                let listener = socket.listen(BACKLOG).and_then(tokio::net::TcpListener::into_std);
                listener.or_failure(|| bind_failed(address))
            }
        }
    }
}

/// Makes the system ignore whoever connects from now on, so that the queue comes to an end before the socket does: closing it
/// resets whoever is in there. Who was ignored tries again a second later, and is refused or finds the next service.
fn seal(socket: &TcpListener) -> io::Result<()> {
    // `BPF_RET | BPF_K`: of every packet, keep nothing. Connections that exist already have been given their own filters: none.
    const KEEP_NOTHING: SockFilter = SockFilter::new(6, 0, 0, 0);
    SockRef::from(socket).attach_filter(&[KEEP_NOTHING])
}

fn bind_failed(address: SocketAddr) -> LocalizedText {
    match port::holder(address) {
        Some(port::Holder { pid, command }) => {
            localized!("log.bind_failed_held", address = address, pid = pid, command = command)
        }
        None => localized!("log.bind_failed", address = address),
    }
}

/// The service that ran before this one, still serving.
pub(super) struct Predecessor {
    stream: UnixStream,
    process: Process,
    took_listener: bool,
}

impl Predecessor {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.process.wait(Duration::ZERO).unwrap_or(false)
    }

    /// Comes back when it is told to stop, which means us as well. Its mere end does not: then we are needed all the more.
    pub(super) async fn is_told_to_stop(&mut self) {
        if !matches!(self.stream.read(&mut [0]).await, Ok(1)) {
            std::future::pending::<()>().await;
        }
    }

    /// From now on it accepts no more. Where it cannot be told, it has ended: what it had is ours already.
    pub(super) async fn dismiss(&mut self) {
        let leave = control::line(&Request::Leave { took_listener: self.took_listener });
        if let Err(error) = self.stream.write_all(&leave).await {
            log::warn!("{}", log_text!("log.predecessor_gone", error = error));
        }
    }

    /// Waits for its end; when we are to stop, it is too, within `patience`. Whether it was the one that was told to stop.
    pub(super) async fn see_off(mut self, mut phases: watch::Receiver<Phase>, patience: Duration) -> bool {
        let mut byte = [0];
        let read = tokio::select! {
            read = self.stream.read(&mut byte) => Some(read),
            _ = phases.wait_for(|phase| *phase >= Phase::Stopping) => None,
        };
        if matches!(read, Some(Ok(1))) {
            return true;
        }
        // It takes the end of our half for our end.
        let _ = self.stream.shutdown().await;
        let _ = spawn_blocking(move || self.process.wait(patience)).await;
        false
    }
}
