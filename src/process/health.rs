//! Whether a service answers its health check.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::server::HEALTH_PATH;

/// Longer than the service takes to say that it is not well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// What a health check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// A payment that came now would be written; after so long.
    Ok(Duration),
    /// It answers that it would not, or something else is there.
    Unavailable,
    /// Nothing answers.
    NoAnswer,
}

/// Asks the service that listens on `address`.
pub(crate) async fn check(address: SocketAddr) -> Health {
    let asked = Instant::now();
    match timeout(ANSWER_TIMEOUT, ask(reachable(address))).await {
        Ok(Ok(StatusCode::OK)) => Health::Ok(asked.elapsed()),
        Ok(Ok(_)) => Health::Unavailable,
        Ok(Err(_)) | Err(_) => Health::NoAnswer,
    }
}

async fn ask(address: SocketAddr) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(HEALTH_PATH).header(HOST, address.to_string()).header(CONNECTION, "close");
    Ok(sender.send_request(request.body(Empty::new())?).await?.status())
}

/// Where to connect to reach a service that listens on `address`, which may be every address of the machine.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
