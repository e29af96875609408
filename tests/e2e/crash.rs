//! SIGKILL at a bad moment.

use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;

use crate::support::*;

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_doubled_when_killed_under_load() {
    const ORDERS: usize = 500;
    const SENDERS: usize = 8;
    const KILL_AFTER: usize = 200;
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    let orders = Arc::new(sandbox.insert_orders(ORDERS));
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let (enough, wait_for_enough) = std::sync::mpsc::channel();
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (address, enough) = (service.address, enough.clone());
            let (orders, acknowledged) = (Arc::clone(&orders), Arc::clone(&acknowledged));
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                for n in (sender..ORDERS).step_by(SENDERS) {
                    let form = Notification::of(&orders[n]).form();
                    let request = format!("GET /payment/notify?{form} HTTP/1.1\r\nHost: x\r\n\r\n");
                    // The service is killed somewhere in between: only a whole answer counts.
                    if std::io::Write::write_all(&mut client.stream, request.as_bytes()).is_err() {
                        return;
                    }
                    let Some(answer) = client.response() else { return };
                    assert_eq!(answer.body, "success");
                    let mut acknowledged = acknowledged.lock().unwrap();
                    acknowledged.push(n);
                    if acknowledged.len() == KILL_AFTER {
                        enough.send(()).unwrap();
                    }
                }
            })
        })
        .collect();
    wait_for_enough.recv_timeout(PATIENCE).unwrap();
    service.signal(Signal::SIGKILL);
    service.wait();
    for sender in senders {
        sender.join().unwrap();
    }

    let service = sandbox.serve();
    let acknowledged = acknowledged.lock().unwrap();
    assert!(acknowledged.len() >= KILL_AFTER && acknowledged.len() < ORDERS, "{}", acknowledged.len());
    let database = sandbox.database();
    for &n in &*acknowledged {
        let status: String =
            database.query_row("SELECT status FROM orders WHERE order_no = ?", [&orders[n]], |row| row.get(0)).unwrap();
        assert_eq!(status, "paid", "{n} was acknowledged");
    }
    let mut client = service.client();
    for order in &*orders {
        assert_eq!(client.notify(&Notification::of(order).form()), (200, "success".into()));
    }
    let credited = i64::try_from(ORDERS).unwrap();
    assert_eq!(sandbox.credits(1001), credited * 70);
    assert_eq!(sandbox.count("SELECT count(*) FROM ledger"), credited);
    assert_eq!(sandbox.count("SELECT count(*) FROM outbox"), credited);
    assert_eq!(sandbox.count("SELECT count(*) FROM receipts WHERE outcome = 'settled'"), credited);
}
