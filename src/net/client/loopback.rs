//! A server for tests that does what each test tells it to, however bad.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What becomes of one request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// These bytes are sent, and the connection is closed.
    Send(Vec<u8>),
    /// The connection is closed without a word.
    Close,
    /// These bytes are sent, then nothing comes, and nothing is closed.
    SendAndWait(Vec<u8>),
    /// Nothing comes, and nothing is closed.
    Wait,
}

impl Act {
    /// A whole reply.
    pub(crate) fn reply(status: &str, body: &str) -> Self {
        Self::reply_with(status, "", body)
    }

    /// A whole reply with header lines of its own, each with its line end.
    pub(crate) fn reply_with(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
        Self::Send([head.as_bytes(), body.as_bytes()].concat())
    }
}

/// A server on loopback, as long as it lives.
#[derive(Debug)]
pub(crate) struct Loopback {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Loopback {
    /// Starts a server that does to its first request the first of `acts`, and so on, and to later ones the last.
    pub(crate) async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn(serve(listener, acts, Arc::clone(&requests)));
        Self { address, requests, task }
    }

    /// The URL of a page of its.
    pub(crate) fn url(&self, page: &str) -> String {
        format!("http://{}/{page}", self.address)
    }

    /// The requests so far, each as it came.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, acts: Vec<Act>, requests: Arc<Mutex<Vec<String>>>) {
    let mut acts = acts.into_iter().peekable();
    let mut waiting = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        requests.lock().unwrap().push(request);
        let act = acts.next().expect("a test says what becomes of a request");
        if acts.peek().is_none() {
            acts = vec![act.clone()].into_iter().peekable();
        }
        match act {
            // A client that has had enough may be gone before the end.
            Act::Send(bytes) => drop(stream.write_all(&bytes).await),
            Act::Close => {}
            Act::SendAndWait(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                waiting.push(stream);
            }
            Act::Wait => waiting.push(stream),
        }
    }
}

/// One request, its body by its Content-Length.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return text;
        }
    }
}
