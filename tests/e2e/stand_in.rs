//! A small HTTP server in the place of somebody whom the service asks: it keeps what it was sent, and answers as a test wants.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::support::{PATIENCE, wait_until};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Request {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What a request gets.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status, header lines with their line ends, and a body.
    Answer(u16, String, String),
    /// The connection is closed without a word.
    Close,
}

impl Reply {
    pub fn of(status: u16, body: &str) -> Self {
        Self::Answer(status, String::new(), body.to_owned())
    }

    pub fn with(status: u16, headers: &str, body: &str) -> Self {
        Self::Answer(status, headers.to_owned(), body.to_owned())
    }
}

/// A server on loopback, as long as it lives.
pub struct StandIn {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Answers each request with what `answer` says.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_refusing(|_| false, answer)
    }

    /// Closes the connections that `refuses` says, by their number, before anything is read.
    pub fn start_refusing(
        refuses: impl Fn(usize) -> bool + Send + 'static,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (kept, over, answer) = (Arc::clone(&requests), Arc::clone(&is_over), Arc::new(answer));
        let accepting = std::thread::spawn(move || {
            for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                if refuses(number) {
                    let _ = stream.shutdown(Shutdown::Both);
                    continue;
                }
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                // A client may be killed at any time, which ends its connection and nothing else.
                std::thread::spawn(move || serve(&stream, &kept, &*answer));
            }
        });
        Self { address, requests, is_over, accepting: Some(accepting) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until so many requests have come; all of them.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<Request> {
        wait_until(&format!("{count} requests"), || self.requests.lock().unwrap().len() >= count);
        self.requests()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve(stream: &TcpStream, requests: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = read(stream)?;
    requests.lock().unwrap().push(request.clone());
    if let Reply::Answer(status, headers, body) = answer(&request) {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
        { stream }.write_all((head + &body).as_bytes()).ok()?;
    }
    Some(())
}

/// One whole request; none where the connection ends before.
fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    lines.read_exact(&mut body).ok()?;
    Some(Request { path, headers, body: String::from_utf8(body).unwrap() })
}
