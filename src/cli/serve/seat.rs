//! What only one service can have: the pid file's lock, and the listener. It is taken, or taken over from the service before.
//!
//! While a service hands over, two processes have both. The new one decides: it is the service as soon as it has written itself
//! into the pid file, and everything that can fail comes before that. The old one lets go when it hears of it
//! ([`Request::Leave`]), or goes on if the other one goes away first. An old one that is told to stop meanwhile leaves
//! the pid file as it is: by then it may not be its own any more.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rust_i18n::t;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{block_in_place, spawn_blocking};

use crate::config::{Config, ConfigError};
use crate::manager::control::{self, Answer, Connection, Request};
use crate::manager::pid_file::{Found, LockError, PidFile, Record, look};
use crate::manager::port;
use crate::manager::process::Process;
use crate::manager::start::unknown;
use crate::manager::systemd;
use crate::server::Phase;

/// How many connections wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;

/// This process's seat.
pub(super) struct Seat {
    pub(super) listen: SocketAddr,
    pid_file: PathBuf,
    /// The name of the socket that commands ask us over.
    control: Option<String>,
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
}

/// A seat with what comes with it.
pub(super) struct Taken {
    pub(super) seat: Seat,
    /// Where commands come in; `None` where the system does not let us.
    pub(super) control: Option<UnixListener>,
    pub(super) predecessor: Option<Predecessor>,
}

/// Another service has the seat.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Already(String);

impl Seat {
    /// Takes it where it is free.
    pub(super) fn take(config: &Config, is_daemon: bool) -> anyhow::Result<Taken> {
        let path = &config.service.pid_file;
        let locked = PidFile::lock(path);
        if is_daemon && matches!(locked, Err(LockError::Held)) {
            return Err(Already(t!("manager.other_start_failed").into()).into());
        }
        // Before the lock's failure is told: if the port is taken as well, that says more.
        let socket = match systemd::listener().with_context(|| t!("log.bad_activation").into_owned())? {
            Some(listener) => Socket::Listening(listener),
            None => Socket::bind(config.listen)?,
        };
        let mut lock = match locked {
            Ok(lock) => lock,
            Err(LockError::Held) => return Err(already(config)),
            Err(LockError::Io(error)) => {
                return Err(error).with_context(|| t!("log.pid_file_failed", path = path.display()).into_owned());
            }
        };
        // What somebody who died has left is not ours.
        lock.clear();
        Self::sit(config, lock, socket.listen(config.listen)?, None)
    }

    /// Asks the service that runs to share it. That one goes on as if nothing had happened unless it is dismissed.
    pub(super) fn take_over(config: &Config, deadline: Instant) -> anyhow::Result<Taken> {
        let path = &config.service.pid_file;
        let (record, process) = match look(path)? {
            Found::Running(record, process) => (record, process),
            Found::Unknown(riddle) => return Err(unknown(path, &riddle)),
            _ => bail!(t!("manager.gone_meanwhile").into_owned()),
        };
        let ask = || {
            let mut service = Connection::open(&record, deadline.saturating_duration_since(Instant::now()))?;
            let (answer, descriptors) = service.ask_to_hand_over()?;
            io::Result::Ok((service, answer, descriptors))
        };
        let (service, answer, descriptors) =
            block_in_place(ask).with_context(|| t!("manager.no_answer", pid = record.pid).into_owned())?;
        let (listen, merchants) = match answer {
            Answer::HandedOver { listen, merchants } => (listen, merchants),
            Answer::Refused { cause, .. } => bail!(cause),
            other => bail!("{other:?}"),
        };
        if config.merchants.is_empty() && merchants > 0 {
            // Its merchants may have come from an environment that this process does not have.
            return Err(ConfigError::of(None, "merchant", t!("config.no_merchant_left")).into());
        }
        let [socket, lock] = descriptors.try_into().map_err(|_| anyhow!("no descriptors"))?;
        let took_listener = config.listen == listen || (config.listen.port() == 0 && config.listen.ip() == listen.ip());
        let socket = if took_listener {
            socket.into()
        } else {
            let moved = Socket::bind(config.listen).and_then(|socket| socket.listen(config.listen));
            moved.with_context(|| t!("log.move_failed", old = listen).into_owned())?
        };
        Self::sit(config, PidFile::inherit(lock), socket, Some(Predecessor { service, process, took_listener }))
    }

    fn sit(
        config: &Config,
        lock: PidFile,
        socket: TcpListener,
        predecessor: Option<Predecessor>,
    ) -> anyhow::Result<Taken> {
        let control = control::listen().inspect_err(|error| log::warn!("{}", t!("log.no_control", error = error)));
        let (control, name) = control.ok().unzip();
        let control = control.map(UnixListener::from_std).transpose()?;
        socket.set_nonblocking(true)?;
        let mut seat = Self {
            listen: socket.local_addr()?,
            pid_file: config.service.pid_file.clone(),
            control: name,
            unit: systemd::unit(),
            held: Some(Held { lock, socket: Some(socket), is_shared: predecessor.is_some() }),
        };
        if predecessor.is_none() {
            seat.sign(None)?;
        }
        Ok(Taken { seat, control, predecessor })
    }

    /// Writes us into the pid file, starting or listening there: it is ours from then on.
    pub(super) fn sign(&mut self, listen: Option<SocketAddr>) -> anyhow::Result<()> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let record = Record::own(listen, self.control.clone(), self.unit.clone());
        let signed = held.lock.write(&record);
        held.is_shared &= signed.is_err();
        signed.with_context(|| t!("log.pid_file_failed", path = self.pid_file.display()).into_owned())
    }

    /// Another handle on the listener.
    pub(super) fn listener(&self) -> io::Result<TcpListener> {
        self.held.as_ref().and_then(|held| held.socket.as_ref()).ok_or(io::ErrorKind::NotConnected)?.try_clone()
    }

    /// Shares it with a process that wants to take over; `None` where another one does already.
    pub(super) fn share(&mut self) -> io::Result<Option<[OwnedFd; 2]>> {
        let Some(Held { lock, socket: Some(socket), is_shared }) = &mut self.held else { return Ok(None) };
        if *is_shared {
            return Ok(None);
        }
        let descriptors = [socket.as_fd().try_clone_to_owned()?, lock.as_fd().try_clone_to_owned()?];
        *is_shared = true;
        Ok(Some(descriptors))
    }

    /// The other process has gone away again.
    pub(super) fn keep(&mut self) -> anyhow::Result<()> {
        // It may have got as far as to sign.
        self.sign(Some(self.listen))
    }

    /// It is the other process's alone now.
    pub(super) fn leave(&mut self) {
        self.held = None;
    }

    /// Lets nobody in any more but those who are in the server's own queue.
    pub(super) fn close(&mut self) {
        if let Some(held) = &mut self.held {
            held.socket = None;
        }
    }

    /// The end, a clean one.
    pub(super) fn clear(&mut self) {
        if let Some(Held { lock, is_shared: false, .. }) = &mut self.held {
            lock.clear();
        }
    }

    /// Puts the pid file back where somebody has removed it: without it the service can only be found by its port.
    pub(super) fn restore(&mut self) -> anyhow::Result<bool> {
        let Some(held) = &mut self.held else { return Ok(false) };
        if held.is_shared || held.lock.is_at(&self.pid_file) {
            return Ok(false);
        }
        held.lock = PidFile::lock(&self.pid_file)?;
        self.sign(Some(self.listen))?;
        Ok(true)
    }
}

/// Who else runs.
fn already(config: &Config) -> anyhow::Error {
    let path = &config.service.pid_file;
    match look(path) {
        Ok(Found::Running(record, _)) => Already(t!("manager.already_running", pid = record.pid).into()).into(),
        Ok(Found::Unknown(riddle)) => unknown(path, &riddle),
        Ok(_) => Already(t!("manager.other_start_failed").into()).into(),
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
        bind().map(Self::Bound).with_context(|| bind_failed(address))
    }

    /// With a longer queue than tokio's own: a sale may bring many buyers in the same moment, and who finds the queue full
    /// tries again only after a second.
    fn listen(self, address: SocketAddr) -> anyhow::Result<TcpListener> {
        match self {
            Self::Listening(listener) => Ok(listener),
            Self::Bound(socket) => {
                let listener = socket.listen(BACKLOG).and_then(tokio::net::TcpListener::into_std);
                listener.with_context(|| bind_failed(address))
            }
        }
    }
}

fn bind_failed(address: SocketAddr) -> String {
    match port::holder(address) {
        Some(port::Holder { pid, command }) => {
            t!("log.bind_failed_held", address = address, pid = pid, command = command).into()
        }
        None => t!("log.bind_failed", address = address).into(),
    }
}

/// The service that ran before this one, still serving.
pub(super) struct Predecessor {
    service: Connection,
    process: Process,
    took_listener: bool,
}

impl Predecessor {
    pub(super) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// From now on it accepts no more. Where it cannot be told, it has ended: what it had is ours already.
    pub(super) fn dismiss(&mut self) {
        if let Err(error) = self.service.send(Request::Leave { took_listener: self.took_listener }) {
            log::warn!("{}", t!("log.predecessor_gone", error = error));
        }
    }

    /// Waits for its end; when we are to stop, it is too, within `patience`.
    pub(super) async fn see_off(self, mut phases: watch::Receiver<Phase>, patience: Duration) {
        let Self { service, process, .. } = self;
        let stream = service.into_stream();
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        let Ok(mut stream) = stream else { return };
        let mut byte = [0];
        let is_over = tokio::select! {
            _ = stream.read(&mut byte) => true,
            _ = phases.wait_for(|phase| *phase >= Phase::Stopping) => false,
        };
        if !is_over {
            // It takes the end of our half for our end.
            let _ = stream.shutdown().await;
        }
        let _ = spawn_blocking(move || process.wait(patience)).await;
    }
}
