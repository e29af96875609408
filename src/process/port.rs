//! Who listens on an address.

use std::net::{IpAddr, SocketAddr};

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, all_processes};

use super::pidfd::command_line;

/// A process that listens.
pub(crate) struct Holder {
    pub(crate) pid: u32,
    /// How it was called.
    pub(crate) command: String,
}

/// The process that keeps others from listening on `address`, as far as `/proc` tells: other users' processes may be hidden.
pub(crate) fn holder(address: SocketAddr) -> Option<Holder> {
    let listens = |socket: &TcpNetEntry| {
        socket.state == TcpState::Listen
            && socket.local_address.port() == address.port()
            && overlap(socket.local_address.ip(), address.ip())
    };
    let sockets = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let inodes: Vec<u64> = sockets.filter(listens).map(|socket| socket.inode).collect();
    let holds = |target: &FDTarget| matches!(target, FDTarget::Socket(inode) if inodes.contains(inode));
    let mut processes = all_processes().ok()?.flatten();
    let holder = processes.find(|process| {
        process.fd().is_ok_and(|mut descriptors| descriptors.any(|fd| fd.is_ok_and(|fd| holds(&fd.target))))
    })?;
    let pid = holder.pid().try_into().ok()?;
    Some(Holder { pid, command: command_line(pid).unwrap_or_else(|| "?".into()) })
}

fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one == other || one.is_unspecified() || other.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_its_address_and_by_any() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let anywhere = SocketAddr::from(([0, 0, 0, 0], address.port()));
        for address in [address, anywhere] {
            assert_eq!(holder(address).map(|holder| holder.pid), Some(std::process::id()), "{address}");
        }
        drop(listener);
        // Another process may have taken the port by now.
        assert_ne!(holder(address).map(|holder| holder.pid), Some(std::process::id()));
    }
}
