//! Where the API listens. It is bound when the service is opened, so that an address in use is an error of the start, and open for
//! connections from when the service serves: until then those that come belong to the process before, if there is one.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};
use tokio_util::either::Either;

use super::Api;
use crate::config;
use crate::domain::failure::LocalizedError;
use crate::domain::language::localized;
use crate::files::{FileIdentity, with_ending};
use crate::logging::log_text;

/// How many connections wait to be accepted.
const BACKLOG: u32 = 1024;
/// Who may connect to the socket's file: its user and its group, so that a bot of another user can be let in.
const SOCKET_MODE: u32 = 0o660;

/// An address that is ours.
pub(crate) struct Bound(Socket);

enum Socket {
    Tcp(TcpSocket),
    Unix(UnixSocket, SocketFile),
}

impl Api {
    /// Takes the address, without letting anybody connect to it yet.
    pub(crate) fn bind(config: &config::Api) -> io::Result<Bound> {
        let socket = match &config.listen {
            config::ApiListen::Tcp(address) => Socket::Tcp(bind_tcp(*address)?),
            config::ApiListen::Unix(path) => {
                let socket = UnixSocket::new_stream()?;
                let file = SocketFile::bind(&socket, path)?;
                Socket::Unix(socket, file)
            }
        };
        Ok(Bound(socket))
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of an earlier process that still time out are no obstacle.
    socket.set_reuseaddr(true)?;
    // At a restart the new process binds while the old one is still finishing. That two services are started by mistake is
    // prevented by the pid file, and another program's listener is in the way all the same.
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Bound {
    /// Lets clients connect; says where.
    pub(crate) fn listen(self) -> io::Result<Listening> {
        let listening = match self.0 {
            Socket::Tcp(socket) => Listening { listener: Either::Left(socket.listen(BACKLOG)?), file: None },
            Socket::Unix(socket, mut file) => {
                let listener = Either::Right(socket.listen(BACKLOG)?);
                file.place()?;
                Listening { listener, file: Some(file) }
            }
        };
        log::info!("{}", log_text!("log.api_listening", address = listening.address()?));
        Ok(listening)
    }
}

/// An address that clients connect to.
pub(crate) struct Listening {
    pub(super) listener: Either<TcpListener, UnixListener>,
    pub(super) file: Option<SocketFile>,
}

impl Listening {
    fn address(&self) -> io::Result<String> {
        Ok(match (&self.listener, &self.file) {
            (Either::Left(listener), _) => format!("http://{}", listener.local_addr()?),
            (Either::Right(_), file) => file.as_ref().map(SocketFile::to_string).unwrap_or_default(),
        })
    }
}

/// The file that clients connect to. It is made under another name and renamed into its place: a restart's new process replaces
/// the old one's without a gap, and one that a killed process left behind is no obstacle.
pub(super) struct SocketFile {
    path: PathBuf,
    temporary: PathBuf,
    /// What tells our file from that of a process which has taken over.
    identity: FileIdentity,
    is_placed: bool,
}

impl SocketFile {
    fn bind(socket: &UnixSocket, path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let text = localized!("api.not_a_socket", path = path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, LocalizedError::from(text)));
            }
            _ => {}
        }
        let temporary = with_ending(path, &format!(".{}", std::process::id()));
        // No other living process has our number.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        socket.bind(&temporary)?;
        let identity = identity(&temporary)?;
        let file = Self { path: path.to_owned(), temporary, identity, is_placed: false };
        // Nobody listens yet, so it does not matter who might have connected until now.
        fs::set_permissions(&file.temporary, fs::Permissions::from_mode(SOCKET_MODE))?;
        Ok(file)
    }

    fn place(&mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.is_placed = true;
        Ok(())
    }
}

impl fmt::Display for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.path.display())
    }
}

impl Drop for SocketFile {
    /// Removes the file if it is still ours. Whoever takes over has put theirs in its place before we are told to go, and nobody
    /// else starts while we have the pid file: nothing changes between the look and the removal.
    fn drop(&mut self) {
        let file = if self.is_placed { &self.path } else { &self.temporary };
        if identity(file).is_ok_and(|found| found == self.identity) {
            // What is left behind is no obstacle.
            let _ = fs::remove_file(file);
        }
    }
}

/// Of the file itself and not of one that a link leads to.
fn identity(path: &Path) -> io::Result<FileIdentity> {
    fs::symlink_metadata(path).map(|metadata| FileIdentity::of(&metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiListen;
    use crate::domain::secret::Secret;

    fn bind(listen: ApiListen) -> io::Result<Bound> {
        Api::bind(&config::Api { listen, token: Secret::new("t") })
    }

    #[tokio::test]
    async fn a_socket_file_is_replaced_without_a_gap_and_removed_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let names = || fs::read_dir(directory.path()).unwrap().count();
        let bind = || bind(ApiListen::Unix(path.clone())).unwrap();
        let old = bind().listen().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        let before = identity(&path).unwrap();
        let new = bind();
        assert_eq!(identity(&path).unwrap(), before, "nobody is let in before the new one listens");
        let new = new.listen().unwrap();
        assert_ne!(identity(&path).unwrap(), before);
        drop(old);
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok(), "the new one's is left alone");
        drop(bind());
        assert_eq!(names(), 1, "and a start that failed leaves nothing");
        drop(new);
        assert_eq!(names(), 0);
    }

    #[tokio::test]
    async fn a_stale_file_is_no_obstacle_and_a_file_of_another_kind_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listening = bind(ApiListen::Unix(path.clone())).unwrap().listen().unwrap();
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
        drop(listening);
        fs::write(&path, "precious").unwrap();
        let error = bind(ApiListen::Unix(path.clone())).err().unwrap();
        assert!(error.to_string().contains("api.sock"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn another_programs_port_is_refused_and_our_own_is_shared() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(ApiListen::Tcp(other.local_addr().unwrap())).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let old = bind(ApiListen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap().listen().unwrap();
        let Either::Left(listener) = &old.listener else { panic!("a TCP address") };
        let new = bind(ApiListen::Tcp(listener.local_addr().unwrap())).unwrap();
        assert!(new.listen().is_ok());
    }
}
