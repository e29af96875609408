//! Whose request it is, when proxies may stand in between.

use std::net::{IpAddr, SocketAddr};

use hyper::HeaderMap;

use crate::config::AddressList;

/// The client's address: the peer's, or what trusted proxies say of it.
///
/// Each proxy adds the address that it saw at the right end of `X-Forwarded-For`, so the list is read from there, and only as
/// long as the address that vouches for the next one is trusted. Whatever a client writes itself stands further left.
pub(super) fn client(peer: IpAddr, headers: &HeaderMap, trusted: &AddressList) -> IpAddr {
    let mut client = peer.to_canonical();
    let values = headers.get_all("x-forwarded-for").iter().rev();
    let hops = values.flat_map(|value| value.as_bytes().rsplit(|&b| b == b','));
    for hop in hops {
        if !trusted.contains(client) {
            break;
        }
        match std::str::from_utf8(hop).ok().and_then(|hop| parse(hop.trim())) {
            Some(address) => client = address.to_canonical(),
            None => break,
        }
    }
    client
}

/// An address, with a port or without: some proxies add it.
fn parse(hop: &str) -> Option<IpAddr> {
    hop.parse().ok().or_else(|| hop.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted = AddressList(vec!["127.0.0.1/32".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        for (peer, forwarded, expected) in [
            ("203.0.113.7", &[][..], "203.0.113.7"),
            ("203.0.113.7", &["1.1.1.1"], "203.0.113.7"),
            ("127.0.0.1", &[], "127.0.0.1"),
            ("127.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("::ffff:127.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("127.0.0.1", &["9.9.9.9, 1.1.1.1"], "1.1.1.1"),
            ("127.0.0.1", &["9.9.9.9, 1.1.1.1, 10.1.2.3"], "1.1.1.1"),
            ("127.0.0.1", &["9.9.9.9", "1.1.1.1 , 10.1.2.3"], "1.1.1.1"),
            ("127.0.0.1", &["10.0.0.1, 10.0.0.2"], "10.0.0.1"),
            ("127.0.0.1", &["1.1.1.1, unknown"], "127.0.0.1"),
            ("127.0.0.1", &["1.1.1.1, "], "127.0.0.1"),
            ("127.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("127.0.0.1", &["1.1.1.1:5566"], "1.1.1.1"),
            ("127.0.0.1", &["[2001:db8::1]:5566"], "2001:db8::1"),
        ] {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            let found = client(peer.parse().unwrap(), &headers, &trusted);
            assert_eq!(found, expected.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
        }
    }
}
