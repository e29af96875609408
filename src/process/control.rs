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
use rustix::process::{Uid, geteuid};
use serde::{Deserialize, Serialize};

use super::pid_file::Record;
use super::pidfd::Process;

/// No request or answer is longer, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;
/// The uid of users that a namespace does not map, where the system does not tell another one.
const UNMAPPED_UID_DEFAULT: u32 = 65534;
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
pub(crate) fn ask(service: &Record, process: &Process, timeout: Duration, request: Request) -> io::Result<Answer> {
    Connection::open(service, process, timeout)?.ask(request)
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
    let own = geteuid();
    let is_ours = |peer: Uid| peer == own && !is_shared(own.as_raw(), &read_proc("self/uid_map"));
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || is_ours(peer.uid))
}

/// Whether other users may look to us as if they had this uid: in a user namespace (`PrivateUsers=`), all that it does not map have
/// one uid, which may be our own (`User=nobody`).
fn is_shared(uid: u32, uid_map: &str) -> bool {
    let counts = uid_map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    // All but the one uid that means none.
    let maps_everybody = counts.sum::<u64>() >= u64::from(u32::MAX);
    let unmapped = read_proc("sys/kernel/overflowuid").trim().parse().unwrap_or(UNMAPPED_UID_DEFAULT);
    uid == unmapped && !maps_everybody
}

/// Empty where it is hidden, as by `ProcSubset=pid`.
fn read_proc(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/{name}")).unwrap_or_default()
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
    /// Connects to the service that the pid file tells of, which may take so long for each answer. Anybody may take a name that is
    /// free, so the peer has to be that process: by the kernel's word, while its pid cannot mean another one.
    pub(crate) fn open(service: &Record, process: &Process, timeout: Duration) -> io::Result<Self> {
        let name = service.control.as_deref().ok_or(io::ErrorKind::Unsupported)?;
        let stream = UnixStream::connect_addr(&address(name)?)?;
        let peer = socket_peercred(&stream)?;
        let (pid, uid) = (peer.pid.as_raw_nonzero().get(), peer.uid.as_raw());
        // The uid is unknown where other processes are hidden (`hidepid`).
        let is_service = u32::try_from(pid) == Ok(process.pid()) && process.uid().map_or(true, |own| own == uid);
        if process.has_ended()? {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if !is_service {
            let cause = format!("pid {pid} of user {uid} has the service's socket");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, cause));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_another_process_is_not_asked() {
        let (_listener, name) = listen().unwrap();
        let service = |pid| Record {
            pid,
            start_time: 0,
            listen: None,
            version: "1".into(),
            seat: String::new(),
            control: Some(name.clone()),
            program: None,
            unit: None,
        };
        let open = |pid| {
            let process = Process::open(pid).unwrap().unwrap();
            Connection::open(&service(pid), &process, Duration::from_secs(30))
        };
        assert!(open(std::process::id()).is_ok());
        let mut other = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let refused = open(other.id()).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::PermissionDenied), "it is ours");
        other.kill().unwrap();
        // Not waited for yet, so that its pid cannot become another process's.
        let ended = Process::open(other.id()).unwrap().unwrap();
        assert!(ended.wait(Duration::from_secs(30)).unwrap());
        let refused = Connection::open(&service(std::process::id()), &ended, Duration::from_secs(30));
        assert!(refused.err().is_some_and(|error| has_gone(&error)));
        other.wait().unwrap();
    }

    #[test]
    fn a_uid_is_shared_where_not_every_user_has_one() {
        let everybody = "         0          0 4294967295\n";
        let under_systemd = "         0          0          1\n     65534      65534          1\n";
        for (uid, uid_map, expected) in [
            (65534, everybody, false),
            (65534, under_systemd, true),
            (65534, "", true),
            (998, under_systemd, false),
            (0, "", false),
        ] {
            assert_eq!(is_shared(uid, uid_map), expected, "{uid} {uid_map}");
        }
    }
}
