//! The ceiling: the least that an HTTP server can do with a callback. hyper reads the body and answers `success`; nothing is looked
//! at, nothing is kept. `scripts/bench` holds the service against it.
//!
//! It prints the address that it listens on.

use std::convert::Infallible;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "whoever starts it has to know the port")]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // How a client ends its connection is its own affair.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    std::hint::black_box(body.ok());
    Ok(Response::new(Full::new(Bytes::from_static(b"success"))))
}
