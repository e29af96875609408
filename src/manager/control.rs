//! What the commands ask of the running service, over a Unix socket of its own.
//!
//! Signals carry no answer, and `reload` and `restart` need one: why not, or what now. The socket has an abstract name made of the
//! pid file's identity and the service's pid, so it leaves nothing behind, needs no directory, and cannot be another service's.
//! Each side makes sure who the other one is: the kernel tells. A request is one line of JSON, and so is an answer; the answer
//! to [`Request::HandOver`] carries the listener and the pid file's lock as descriptors.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

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
    /// Read the configuration again, and open the log file anew.
    Reload,
    /// Let this process accept from your listener. Its next word is [`Request::Leave`], or it goes away and nothing has happened.
    HandOver,
    /// It is ready: accept no more, and finish what you have.
    Leave,
}

/// What the service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// It is ready, listening there.
    Ready { listen: SocketAddr },
    /// The configuration is in force, but for these keys: they take a restart.
    Reloaded { after_restart: Vec<String> },
    /// The listener and the pid file's lock come with this.
    HandedOver { listen: SocketAddr },
    /// It accepts no more.
    Left,
    /// It cannot do that.
    Refused { cause: String, bad_configuration: bool },
}

/// The socket's name for the service of this pid.
fn name(pid_file: &Path, pid: u32) -> io::Result<UnixAddr> {
    let file = std::fs::metadata(pid_file)?;
    UnixAddr::from_abstract_name(format!("webhookctl/{:x}/{:x}/{pid}", file.dev(), file.ino()))
}

/// The service's end, before it serves.
pub(crate) fn listen(pid_file: &Path) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&name(pid_file, std::process::id())?)
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
    /// Connects to the service of this pid, which may take so long for each answer.
    pub(crate) fn open(pid_file: &Path, pid: u32, timeout: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect_addr(&name(pid_file, pid)?)?;
        let peer = socket_peercred(&stream)?.pid.as_raw_nonzero().get();
        if u32::try_from(peer) != Ok(pid) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("pid {peer} has the service's socket"),
            ));
        }
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { stream: BufReader::with_capacity(LINE_BYTES_MAX, stream) })
    }

    pub(crate) fn ask(&mut self, request: Request) -> io::Result<Answer> {
        self.send(request)?;
        let mut answer = String::new();
        io::Read::take(&mut self.stream, LINE_BYTES_MAX as u64).read_line(&mut answer)?;
        understood(&answer)
    }

    /// [`Request::HandOver`], and the descriptors that come with a friendly answer.
    pub(crate) fn ask_to_hand_over(&mut self) -> io::Result<(Answer, Vec<OwnedFd>)> {
        self.send(Request::HandOver)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; LINE_BYTES_MAX];
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(self.stream.get_ref(), buffers, &mut attached, RecvFlags::CMSG_CLOEXEC)?;
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

fn understood(answer: &str) -> io::Result<Answer> {
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
