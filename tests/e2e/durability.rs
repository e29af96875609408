//! Power may go at any moment: `success` is not written to a socket before the write-ahead log that holds the payment is on disk.
//!
//! A kill cannot show this: what a dead process has written is in the system's memory. So the system calls themselves are watched.

use std::collections::HashMap;
use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::support::*;

#[test]
fn success_is_written_after_the_sync_of_the_log_that_holds_the_payment() {
    const CONNECTIONS: usize = 4;
    let Some(strace) = find_program("strace", "strace") else { return };
    let sandbox = Sandbox::new();
    let orders = sandbox.create_database_with_orders(60);
    let trace = sandbox.path("trace");
    let mut command = sandbox.command_of(strace.to_str().unwrap());
    let calls = "trace=fdatasync,fsync,pwrite64,read,recvfrom,recvmsg,sendmsg,sendto,write,writev";
    // Whole pages are shown, and what each descriptor is. Behind the service, which so keeps its parent.
    command.args(["-D", "-f", "-y", "-s", "5000", "-e", calls, "-e", "signal=none", "-o", trace.to_str().unwrap()]);
    command.args([env!("CARGO_BIN_EXE_webhookctl"), "serve"]).stdin(Stdio::null());
    let service = Service::start(command);
    let address = service.address;
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let mine = orders.iter().skip(connection).step_by(CONNECTIONS);
            scope.spawn(move || {
                let mut client = Client::connect(address);
                for order in mine {
                    assert_eq!(client.notify(&Notification::of(order).form()), (200, "success".into()));
                }
            });
        }
    });
    service.signal(Signal::SIGTERM);
    let mut service = service;
    assert_eq!(service.wait().code(), Some(0));
    // The tracer writes its last lines when the service has gone.
    wait_until("the trace is whole", || fs::read_to_string(&trace).unwrap().trim_end().ends_with("+++"));

    let calls = calls_of(&fs::read_to_string(&trace).unwrap());
    for order in &orders {
        assert_eq!(answered(&calls, &format!("T{order}")), Ok(()), "{order}");
    }
}

/// A system call, with the lines of the trace between which it ran.
#[derive(Debug)]
struct Call {
    name: String,
    /// Its arguments and its result, as strace shows them.
    text: String,
    began: usize,
    ended: usize,
}

impl Call {
    /// The descriptor that it is about, with what that is: `8</srv/data/x.db-wal>`.
    fn descriptor(&self) -> &str {
        self.text.split(',').next().unwrap_or_default().trim_end_matches(" <unfinished ...>")
    }

    fn is_on_the_log(&self) -> bool {
        self.text.split_once('>').is_some_and(|(descriptor, _)| descriptor.ends_with("-wal"))
    }
}

/// What a trace of `strace -f -y` says, in the order in which the calls began.
fn calls_of(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: HashMap<&str, usize> = HashMap::new();
    for (line_no, line) in trace.lines().enumerate() {
        let Some((thread, what)) = line.split_once(' ') else { continue };
        let what = what.trim_start();
        if let Some(rest) = what.strip_prefix("<... ") {
            let Some(call) = unfinished.remove(thread) else { continue };
            let rest = rest.split_once("resumed>").map_or("", |(_, rest)| rest);
            calls[call].text.push_str(rest);
            calls[call].ended = line_no;
        } else if let Some((name, text)) = what.split_once('(') {
            let (text, ended) = match text.strip_suffix("<unfinished ...>") {
                Some(text) => (text, usize::MAX),
                None => (text, line_no),
            };
            if ended == usize::MAX {
                unfinished.insert(thread, calls.len());
            }
            calls.push(Call { name: name.into(), text: text.into(), began: line_no, ended });
        }
    }
    calls
}

/// Whether the payment of this number was answered as it must be.
///
/// The first call that writes it to the log is in its own transaction's; so is the first sync that begins after that. What later
/// transactions write of the same pages does not count.
fn answered(calls: &[Call], trade_no: &str) -> Result<(), &'static str> {
    let has = |call: &&Call, names: &[&str]| names.contains(&call.name.as_str());
    let request = calls.iter().find(|call| {
        has(call, &["read", "recvfrom", "recvmsg"])
            && call.descriptor().contains("socket:")
            && call.text.contains(&format!("trade_no={trade_no}&"))
    });
    let request = request.ok_or("never received")?;
    let answer = calls.iter().find(|call| {
        has(call, &["write", "writev", "sendto", "sendmsg"])
            && call.began > request.ended
            && call.descriptor() == request.descriptor()
    });
    let answer = answer.filter(|answer| answer.text.contains("success")).ok_or("never answered")?;
    let write =
        calls.iter().find(|call| has(call, &["pwrite64"]) && call.is_on_the_log() && call.text.contains(trade_no));
    let write = write.filter(|write| write.ended < answer.began).ok_or("answered before it was written")?;
    let sync = calls
        .iter()
        .find(|call| has(call, &["fdatasync", "fsync"]) && call.is_on_the_log() && call.began > write.ended);
    let sync = sync.filter(|sync| sync.ended < answer.began).ok_or("answered before the sync had ended")?;
    if sync.text.trim_end().ends_with("= 0") { Ok(()) } else { Err("answered after a sync that failed") }
}

/// The checker would see it.
#[test]
fn a_trace_with_an_answer_that_is_too_early_is_refused() {
    let request = r#"11 recvfrom(18<socket:[7]>, "GET /payment/notify?trade_no=T1&pid=2 HTTP/1.1\r\n", 4096, 0) = 40"#;
    let write = r#"12 pwrite64(9</srv/x.db-wal>, "\0\0T1 TRADE_SUCCESS"..., 4096, 32) = 4096"#;
    let write_begins = r#"12 pwrite64(9</srv/x.db-wal>, "\0\0T1 TRADE_SUCCESS"..., 4096, 32 <unfinished ...>"#;
    let write_ends = "12 <... pwrite64 resumed>) = 4096";
    let sync = "12 fdatasync(9</srv/x.db-wal>) = 0";
    let sync_begins = "12 fdatasync(9</srv/x.db-wal> <unfinished ...>";
    let other_thread = "13 fdatasync(9</srv/x.db-wal> <unfinished ...>";
    let sync_ends = "12 <... fdatasync resumed>) = 0";
    let sync_fails = "12 fdatasync(9</srv/x.db-wal>) = -1 EIO (Input/output error)";
    let other_sync = "12 fdatasync(8</srv/x.db>) = 0";
    let answer = r#"11 writev(18<socket:[7]>, [{iov_base="HTTP/1.1 200 OK\r\n"}, {iov_base="success"}], 2) = 99"#;
    let other_answer = r#"11 writev(19<socket:[8]>, [{iov_base="HTTP/1.1 200 OK\r\n"}, {iov_base="success"}], 2) = 99"#;
    let refusal = r#"11 writev(18<socket:[7]>, [{iov_base="HTTP/1.1 200 OK\r\n"}, {iov_base="fail"}], 2) = 99"#;
    let (early, unwritten) = (Err("answered before the sync had ended"), Err("answered before it was written"));
    let cases: [(&[&str], _); 13] = [
        (&[request, write, sync, answer], Ok(())),
        (&[request, write_begins, write_ends, sync_begins, other_answer, sync_ends, answer], Ok(())),
        (&[request, write, sync, answer, write, answer, sync], Ok(())),
        (&[request, write, answer, sync], early),
        (&[request, write, answer], early),
        (&[request, write, sync_begins, answer, sync_ends], early),
        (&[request, write, other_sync, answer, sync], early),
        (&[request, write_begins, other_thread, write_ends, answer], early),
        (&[request, sync, answer, write, sync], unwritten),
        (&[request, sync, answer], unwritten),
        (&[request, write, sync_fails, answer], Err("answered after a sync that failed")),
        (&[request, write, sync, other_answer], Err("never answered")),
        (&[request, write, sync, refusal, answer], Err("never answered")),
    ];
    for (lines, expected) in cases {
        assert_eq!(answered(&calls_of(&lines.join("\n")), "T1"), expected, "{lines:#?}");
    }
}
