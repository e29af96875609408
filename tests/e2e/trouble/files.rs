//! The database's files are removed, moved or replaced while the service has them open.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use super::Shop;
use crate::support::*;

impl Shop {
    /// One of the database's files.
    fn file(&self, ending: &str) -> PathBuf {
        let mut name = self.sandbox.database_file().into_os_string();
        name.push(ending);
        name.into()
    }

    /// What was kept when another file stood in the database's place.
    fn rescued(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.sandbox.path("data")).unwrap();
        files.map(|file| file.unwrap().path()).filter(|file| file.to_str().unwrap().contains(".rescued-")).collect()
    }
}

fn paid_in(database: &Path) -> isize {
    let database = rusqlite::Connection::open(database).unwrap();
    database.query_row("SELECT count(*) FROM orders WHERE status = 'paid'", [], |row| row.get(0)).unwrap()
}

/// Pays for many orders at the same time, each until it is acknowledged, while `trouble` is made underneath.
fn is_survived_under_load(trouble: impl FnOnce(&Shop)) {
    const SENDERS: usize = 4;
    const ORDERS: usize = 240;
    let mut shop = Shop::new(ORDERS);
    let service = shop.sandbox.serve();
    let acknowledged = AtomicUsize::new(0);
    let (enough, wait_for_enough) = channel();
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (shop, service, acknowledged, enough) = (&shop, &service, &acknowledged, enough.clone());
            scope.spawn(move || {
                for order in shop.orders.iter().skip(sender).step_by(SENDERS) {
                    let form = Notification::of(order).form();
                    wait_until("acknowledged", || {
                        let answer = service.notify(&form);
                        let expected = if answer.1 == "success" { 200 } else { 503 };
                        assert_eq!(answer.0, expected, "{answer:?}");
                        expected == 200
                    });
                    if acknowledged.fetch_add(1, Ordering::Relaxed) == ORDERS / 4 {
                        enough.send(()).unwrap();
                    }
                }
            });
        }
        wait_for_enough.recv_timeout(PATIENCE).unwrap();
        trouble(&shop);
    });
    service.wait_for_log("已用服务手中打开的内容恢复文件");
    shop.paid = ORDERS;
    shop.settles_the_books(service);
}

#[test]
fn a_database_that_is_removed_under_load_is_written_back_and_nothing_is_lost() {
    is_survived_under_load(|shop| fs::remove_file(shop.file("")).unwrap());
}

#[test]
fn a_write_ahead_log_that_is_removed_under_load_costs_nothing() {
    is_survived_under_load(|shop| fs::remove_file(shop.file("-wal")).unwrap());
}

#[test]
fn an_index_of_the_log_that_is_removed_under_load_costs_nothing() {
    is_survived_under_load(|shop| fs::remove_file(shop.file("-shm")).unwrap());
}

#[test]
fn a_directory_that_is_moved_away_under_load_comes_back_with_everything_in_it() {
    is_survived_under_load(|shop| fs::rename(shop.sandbox.path("data"), shop.sandbox.path("data.old")).unwrap());
}

#[test]
fn files_that_are_removed_while_nothing_happens_are_put_right_all_the_same() {
    let mut shop = Shop::new(20);
    let service = shop.sandbox.serve();
    shop.sell(&service);
    let cases: [&[&str]; 6] = [&[""], &["-wal"], &["-shm"], &["", "-wal"], &["-wal", "-shm"], &["", "-wal", "-shm"]];
    for (restored, endings) in cases.iter().enumerate() {
        for ending in *endings {
            fs::remove_file(shop.file(ending)).unwrap();
        }
        service.wait_for_logs("已用服务手中打开的内容恢复文件", restored + 1);
        shop.books_are_right();
        shop.sell(&service);
    }
    fs::remove_dir_all(shop.sandbox.path("data")).unwrap();
    service.wait_for_logs("已用服务手中打开的内容恢复文件", cases.len() + 1);
    shop.sell(&service);
    // Without its pid file nobody would find the service.
    wait_until("a pid file", || shop.sandbox.pid_file().exists());
    assert!(shop.rescued().is_empty());
    shop.settles_the_books(service);
}

#[test]
fn a_file_in_the_databases_place_is_left_alone_and_what_the_service_has_is_kept_beside_it() {
    let mut shop = Shop::new(20);
    let service = shop.sandbox.serve();
    shop.sell(&service);
    let (database, aside) = (shop.file(""), shop.sandbox.path("aside.db"));
    fs::rename(&database, &aside).unwrap();
    fs::write(&database, "somebody's file").unwrap();
    shop.is_refused(&service);
    shop.is_refused(&service);
    assert_eq!(fs::read_to_string(&database).unwrap(), "somebody's file");
    let rescued = shop.rescued();
    assert_eq!(rescued.len(), 1, "{rescued:?}");
    service.wait_for_log(rescued[0].to_str().unwrap());
    assert_eq!(paid_in(&rescued[0]), shop.paid.cast_signed());

    // The right one comes back.
    fs::rename(&aside, &database).unwrap();
    shop.recovers(&service);
    service.wait_for_log("恢复接收付款");

    // Another one goes away, and nothing stands there any more.
    fs::rename(&database, &aside).unwrap();
    fs::write(&database, "somebody's file").unwrap();
    shop.is_refused(&service);
    fs::remove_file(&database).unwrap();
    shop.recovers(&service);
    shop.settles_the_books(service);
}

#[test]
fn a_copy_in_the_logs_place_is_left_alone_too_and_a_restart_takes_what_is_there() {
    let mut shop = Shop::new(5);
    let mut service = shop.sandbox.serve();
    shop.sell(&service);
    let (log, copy) = (shop.file("-wal"), shop.sandbox.path("copy"));
    fs::copy(&log, &copy).unwrap();
    fs::rename(&copy, &log).unwrap();
    let content = fs::read(&log).unwrap();
    shop.is_refused(&service);
    assert_eq!(paid_in(&shop.rescued()[0]), shop.paid.cast_signed());
    service.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(service.wait().code(), Some(0));
    assert!(fs::read(&log).unwrap() == content, "closing leaves it alone");
    let service = shop.sandbox.serve();
    shop.recovers(&service);
    shop.settles_the_books(service);
}
