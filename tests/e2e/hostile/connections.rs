//! Clients that take their time, or everybody's connections.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::*;

/// How long a connection may be silent at least, from its beginning.
const SILENCE: Duration = Duration::from_secs(10);

/// Sends this on each connection once a second, until the service has lost its patience with all of them.
#[track_caller]
fn once_a_second(streams: Vec<TcpStream>, bytes: &[u8]) {
    let streams = RefCell::new(streams);
    let next = Cell::new(Instant::now());
    wait_until("they are cut off", || {
        if Instant::now() >= next.get() {
            next.set(Instant::now() + Duration::from_secs(1));
            offer_all(&mut streams.borrow_mut(), bytes);
        }
        open(&streams.borrow()) == 0
    });
}

fn nonblocking(streams: Vec<TcpStream>) -> Vec<TcpStream> {
    for stream in &streams {
        stream.set_nonblocking(true).unwrap();
    }
    streams
}

/// [`offer`] over each of these.
fn offer_all(streams: &mut [TcpStream], bytes: &[u8]) {
    for stream in streams {
        offer(stream, bytes);
    }
}

/// How many of these the service has not closed. They are not blocking.
fn open(streams: &[TcpStream]) -> usize {
    let mut buffer = [0; 4096];
    let mut is_open = |mut stream: &TcpStream| loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    };
    streams.iter().filter(|stream| is_open(stream)).count()
}

#[test]
fn two_thousand_idle_connections() {
    under_attack(|scene| {
        let began = Instant::now();
        let idle = nonblocking(scene.crowd(PROXY, CROWD));
        scene.honest.go_on(100);
        let open_now = open(&idle);
        // Which all of this takes only on a very busy machine.
        let is_over = began.elapsed() >= SILENCE;
        assert!(open_now == CROWD || is_over, "{open_now}: a proxy's connections are many clients'");
        wait_until("silent connections are closed", || open(&idle) == 0);
    });
}

#[test]
fn heads_of_one_byte_a_second() {
    under_attack(|scene| {
        let mut slow = nonblocking(scene.crowd(PROXY, CROWD));
        let mut head = b"GET /payment/notify HTTP/1.1\r\nHost: x\r\nX: ".to_vec();
        head.resize(15 * 1024, b'x');
        offer_all(&mut slow, &head);
        once_a_second(slow, b"x");
    });
}

#[test]
fn bodies_of_one_byte_a_second() {
    under_attack(|scene| {
        let mut slow = nonblocking(scene.crowd(PROXY, CROWD));
        let mut request = b"POST /payment/notify HTTP/1.1\r\nHost: x\r\nContent-Length: 16384\r\n\r\nx=".to_vec();
        request.resize(15 * 1024, b'x');
        offer_all(&mut slow, &request);
        once_a_second(slow, b"x");
    });
}

#[test]
fn chunks_of_one_byte_each() {
    under_attack(|scene| {
        let mut slow = nonblocking(scene.crowd(PROXY, CROWD));
        let head = b"POST /payment/notify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        offer_all(&mut slow, head);
        once_a_second(slow, &b"1\r\nx\r\n".repeat(1000));
    });
}

#[test]
fn requests_without_end_and_answers_that_nobody_reads() {
    under_attack(|scene| {
        // Their own systems keep little for them, as each would that has no memory to give away.
        let greedy = (0..CROWD / 2).map(|_| connect_with_buffer(PROXY, scene.service.address, Some(4096)).unwrap());
        let mut greedy = nonblocking(greedy.collect());
        let requests = b"GET /payment/return HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
        for _ in 0..5 {
            offer_all(&mut greedy, &requests);
            scene.honest.go_on(SENDERS);
        }
        let is_cut_off = |mut stream: &TcpStream| {
            use ErrorKind::{BrokenPipe, ConnectionReset};
            matches!(stream.write(b"x"), Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset))
        };
        wait_until("they are cut off", || greedy.iter().all(is_cut_off));
    });
}

#[test]
fn connections_that_are_used_again_and_again() {
    under_attack(|scene| {
        let request = b"GET /payment/return?x HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut clients: Vec<_> = (0..200).map(|_| scene.client(STRANGER)).collect();
        let until = Instant::now() + Duration::from_secs(5);
        // All at once, so that there is always something to do for the service, and little for this machine's other half.
        while Instant::now() < until {
            for client in &mut clients {
                client.write(request);
            }
            assert!(clients.iter_mut().all(|client| client.response().unwrap().status == 200));
        }
    });
}

/// A stranger that takes 2,000 connections and holds them by whatever it does with them.
fn crowd_of_a_stranger(hold: impl Fn(&mut TcpStream)) {
    under_attack(|scene| {
        let mut crowd = nonblocking(scene.crowd(STRANGER, CROWD));
        for _ in 0..5 {
            crowd.iter_mut().for_each(&hold);
            scene.honest.go_on(50);
        }
        let open = open(&crowd);
        assert!(open <= 256, "{open} connections of one address");
        // Its own newcomers are served: behind that address there may be others.
        assert_eq!(scene.client(STRANGER).get("/payment/health").status, 200);
    });
}

#[test]
fn a_stranger_has_so_many_connections_and_the_newest_of_them() {
    crowd_of_a_stranger(|_| {});
}

#[test]
fn a_strangers_slow_heads_make_room_for_others() {
    crowd_of_a_stranger(|stream| offer(stream, b"GET / HTTP/1.1\r\nX: "));
}

#[test]
fn connections_of_many_addresses_do_not_take_all_that_there_are() {
    under_attack(|scene| {
        let crowds: Vec<_> = (0..40).map(|n| nonblocking(scene.crowd(Ipv4Addr::new(127, 0, 1, n), 120))).collect();
        scene.honest.go_on(200);
        drop(crowds);
    });
}
