//! What the commands ask of the running service, over a Unix socket of its own.
//!
//! Signals carry no answer, and `reload` and `restart` need one: why not, or what now. The socket has an abstract name, so it leaves
//! nothing behind and needs no directory; the name is a random one, which the pid file tells, so nobody can take it in advance.
//! Each side makes sure who the other one is: the kernel tells. A request is one line of JSON, and so is an answer; the answer
//! to [`Request::HandOver`] carries the listener and the pid file's lock as descriptors.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::pid_file::Record;

/// No request or answer is longer, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;
/// How many descriptors an answer carries at most.
const DESCRIPTORS_MAX: usize = 2;

/// What a command asks of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Answer when you are ready.
    Wait,
    /// End, unless you are about to.
    End,
    /// Read the configuration again, and open the log file anew.
    Reload,
    /// Let this process have your listener and your lock, too. Its next word is [`Request::Leave`], or it goes away and nothing has
    /// happened.
    HandOver,
    /// It is the service now: accept no more, finish what you have, and end when this connection does. There is no answer.
    Leave {
        /// Whether it accepts from your listener, and not from one of its own.
        took_listener: bool,
    },
}

/// What the service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It is ready, listening there.
    Ready { listen: SocketAddr },
    /// It is about to end.
    Ending,
    /// The configuration is in force, but for these keys: they take a restart.
    Reloaded { after_restart: Vec<String> },
    /// The listener and the pid file's lock come with this.
    HandedOver {
        listen: SocketAddr,
        seat: String,
        /// Whether systemd keeps the listener, whatever becomes of the service.
        is_systemds: bool,
        merchants: usize,
    },
    /// Another process is the service now: ask again whoever the pid file tells of.
    HasLeft,
    /// It cannot do that: why, and what the command exits with.
    Refused { cause: String, exit: u8 },
}

/// How long it is until the pid file is looked at again, when whom it told of has left.
pub(crate) const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// Asks the service that the pid file tells of one thing; it may take so long to answer.
pub(crate) fn ask(service: &Record, timeout: Duration, request: Request) -> io::Result<Answer> {
    Connection::open(service, timeout)?.ask(request)
}

fn address(name: &str) -> io::Result<UnixAddr> {
    UnixAddr::from_abstract_name(format!("webhookctl/{name}"))
}

/// The service's end, before it serves, and its name.
pub(crate) fn listen() -> io::Result<(UnixListener, String)> {
    let name = random_name()?;
    let listener = UnixListener::bind_addr(&address(&name)?)?;
    listener.set_nonblocking(true)?;
    Ok((listener, name))
}

/// A name that nobody can guess.
pub(crate) fn random_name() -> io::Result<String> {
    let random = || getrandom::u64().map_err(io::Error::other);
    Ok(format!("{:016x}{:016x}", random()?, random()?))
}

/// Whether whoever is at the other end may ask: our own user, or root.
pub(crate) fn may_ask(stream: impl AsFd) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

/// A line of JSON.
pub(crate) fn line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("a message of ours is JSON");
    line.push(b'\n');
    line
}

/// Sends an answer with descriptors, in one piece.
pub(crate) fn send_with(
    stream: impl AsFd,
    answer: &Answer,
    descriptors: [BorrowedFd<'_>; DESCRIPTORS_MAX],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    attached.push(SendAncillaryMessage::ScmRights(&descriptors));
    let line = line(answer);
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut attached, SendFlags::NOSIGNAL)?;
    if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// A command's end.
pub(crate) struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the service that the pid file tells of, which may take so long for each answer.
    pub(crate) fn open(service: &Record, timeout: Duration) -> io::Result<Self> {
        let name = service.control.as_deref().ok_or(io::ErrorKind::Unsupported)?;
        let stream = UnixStream::connect_addr(&address(name)?)?;
        let peer = socket_peercred(&stream)?.pid.as_raw_nonzero().get();
        if u32::try_from(peer) != Ok(service.pid) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("pid {peer} has the service's socket"),
            ));
        }
        // Zero would mean for ever.
        let timeout = timeout.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream: BufReader::with_capacity(LINE_BYTES_MAX, stream) })
    }

    fn ask(&mut self, request: Request) -> io::Result<Answer> {
        self.send(request)?;
        let mut answer = String::new();
        io::Read::take(&mut self.stream, LINE_BYTES_MAX as u64).read_line(&mut answer).map_err(timed_out)?;
        understood(&answer)
    }

    /// [`Request::HandOver`], and the descriptors that come with a friendly answer.
    pub(crate) fn ask_to_hand_over(&mut self) -> io::Result<(Answer, Vec<OwnedFd>)> {
        self.send(Request::HandOver)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; LINE_BYTES_MAX];
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let received = loop {
            match recvmsg(self.stream.get_ref(), buffers, &mut attached, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received.map_err(|error| timed_out(error.into()))?,
            }
        };
        let descriptors = attached.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        Ok((understood(&String::from_utf8_lossy(&bytes[..received.bytes]))?, descriptors))
    }

    /// What is left for the rest of the two processes' lives: it ends when one of them does.
    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream.into_inner()
    }

    fn send(&mut self, request: Request) -> io::Result<()> {
        self.stream.get_mut().write_all(&line(&request))
    }
}

/// Whether the service has ended, or gone over to another process, instead of answering.
pub(crate) fn has_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | UnexpectedEof)
}

/// Says it in words that fit: a socket's time limit ends in "resource temporarily unavailable".
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

fn understood(answer: &str) -> io::Result<Answer> {
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
