//! What only one service can have: the pid file's lock, and the listener. It is taken, or taken over from the service before.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rust_i18n::t;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UnixStream};
use tokio::sync::watch;
use tokio::task::block_in_place;

use crate::config::Config;
use crate::manager::control::{self, Answer, Connection, Request};
use crate::manager::pid_file::{Found, LockError, PidFile, Record, look};
use crate::manager::port;
use crate::manager::start::unknown;
use crate::manager::systemd;
use crate::server::Phase;

/// How many connections wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;
/// How long the service before us may take to answer.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Seat {
    pub(super) pid_file: PidFile,
    pub(super) listen: SocketAddr,
    /// Shared with whoever takes over from us; not there any more when the service ends, so that nobody can connect.
    pub(super) socket: Option<std::net::TcpListener>,
    /// Where the manager's commands come in; `None` where the system does not let us.
    pub(super) control: Option<UnixListener>,
    /// The systemd unit that owns this process.
    pub(super) unit: Option<String>,
    pub(super) predecessor: Option<Predecessor>,
}

/// Another service has the seat.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Already(String);

impl Seat {
    pub(super) fn take(config: &Config, is_daemon: bool) -> anyhow::Result<Self> {
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
        let pid_file = match locked {
            Ok(pid_file) => pid_file,
            Err(LockError::Held) => return Err(already(config)),
            Err(LockError::Io(error)) => {
                return Err(error).with_context(|| t!("log.pid_file_failed", path = path.display()).into_owned());
            }
        };
        let socket = socket.listen(config.listen)?;
        Self::sit(config, pid_file, socket, None)
    }

    /// Asks the service that runs for its listener and its lock. It goes on as if nothing had happened unless it is dismissed.
    pub(super) fn take_over(config: &Config) -> anyhow::Result<Self> {
        let path = &config.service.pid_file;
        let record = match look(path)? {
            Found::Running(record, _) => record,
            Found::Unknown(riddle) => return Err(unknown(path, &riddle)),
            _ => bail!(t!("manager.gone_meanwhile").into_owned()),
        };
        let pid = record.pid;
        let ask = || {
            let mut service = Connection::open(path, pid, PREDECESSOR_TIMEOUT)?;
            let (answer, descriptors) = service.ask_to_hand_over()?;
            io::Result::Ok((service, answer, descriptors))
        };
        let (service, answer, descriptors) =
            block_in_place(ask).with_context(|| t!("manager.no_answer", pid = pid).into_owned())?;
        let listen = match answer {
            Answer::HandedOver { listen } => listen,
            Answer::Refused { cause, .. } => bail!(cause),
            other => bail!("{other:?}"),
        };
        let [socket, lock] = descriptors.try_into().map_err(|_| anyhow!("no descriptors"))?;
        let is_same = config.listen == listen || (config.listen.port() == 0 && config.listen.ip() == listen.ip());
        let socket = if is_same { socket.into() } else { Socket::bind(config.listen)?.listen(config.listen)? };
        Self::sit(config, PidFile::inherit(lock), socket, Some(Predecessor { service }))
    }

    fn sit(
        config: &Config,
        mut pid_file: PidFile,
        socket: std::net::TcpListener,
        predecessor: Option<Predecessor>,
    ) -> anyhow::Result<Self> {
        let path = &config.service.pid_file;
        let control = control::listen(path).inspect_err(|error| log::warn!("{}", t!("log.no_control", error = error)));
        let unit = systemd::unit();
        if predecessor.is_none() {
            let written = pid_file.write(&Record::own(None, unit.clone()));
            written.with_context(|| t!("log.pid_file_failed", path = path.display()).into_owned())?;
        }
        socket.set_nonblocking(true)?;
        let listen = socket.local_addr()?;
        Ok(Self { pid_file, listen, socket: Some(socket), control: control.ok(), unit, predecessor })
    }

    /// Another handle on the listener.
    pub(super) fn listener(&self) -> io::Result<std::net::TcpListener> {
        self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?.try_clone()
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
    Listening(std::net::TcpListener),
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
    fn listen(self, address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
        match self {
            Self::Listening(listener) => Ok(listener),
            Self::Bound(socket) => {
                let listener = socket.listen(BACKLOG).and_then(TcpListener::into_std);
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
}

impl Predecessor {
    /// From now on it accepts no more.
    pub(super) fn dismiss(&mut self) -> anyhow::Result<()> {
        match block_in_place(|| self.service.ask(Request::Leave)) {
            Ok(Answer::Left) => Ok(()),
            Ok(other) => bail!("{other:?}"),
            // It died in this very moment; we have its listener and its lock.
            Err(error) => {
                log::warn!("{}", t!("log.predecessor_gone", error = error));
                Ok(())
            }
        }
    }

    /// Waits for its end; when we are to stop, it is too.
    pub(super) async fn see_off(self, mut phases: watch::Receiver<Phase>) {
        let stream = self.service.into_stream();
        let stream = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream));
        let Ok(mut stream) = stream else { return };
        let mut byte = [0];
        tokio::select! {
            _ = stream.read(&mut byte) => return,
            _ = phases.wait_for(|phase| *phase >= Phase::Stopping) => {}
        }
        // It takes the end of our half for our end.
        if stream.shutdown().await.is_ok() {
            let _ = stream.read(&mut byte).await;
        }
    }
}
