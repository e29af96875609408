//! What an operator deploys with: the files in `scripts/`, each given to the real program that reads it.
//!
//! They are used as they are, but for addresses, paths and users. A test whose program is missing says so and passes, except
//! under `WEBHOOKCTL_TEST_ALL=1`, which `scripts/test` sets.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use tokio::net::TcpSocket;

use crate::support::*;

const PROGRAM: &str = env!("CARGO_BIN_EXE_webhookctl");

/// A file of `scripts/`.
fn shipped(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)).unwrap()
}

/// The text with everything replaced that only fits a deployed machine; all of it must be there.
#[track_caller]
fn fitted(text: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// A request that posts a form, with another header line.
fn post_with(header: &str, form: &str) -> String {
    post(form).replacen("\r\n", &format!("\r\n{header}\r\n"), 1)
}

/// nginx with the shipped site, in the sandbox's directory.
struct Nginx {
    process: Process,
    address: SocketAddr,
    complaints: PathBuf,
}

impl Nginx {
    /// `None` where there is no nginx.
    fn start(sandbox: &Sandbox, upstream: SocketAddr) -> Option<Self> {
        let program = find_program("nginx", "nginx-light")?;
        // nginx takes over an open listener, as it does when it is updated: no port can be lost to another test, and clients
        // may connect before it is up.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let site = fitted(
            &shipped("webhookctl.nginx"),
            &[
                ("listen 80;", &format!("listen {address};")),
                ("    listen [::]:80;\n", ""),
                ("server 127.0.0.1:5002;", &format!("server {upstream};")),
                ("/var/log/nginx/", &format!("{}/", sandbox.directory().display())),
            ],
        );
        fs::write(sandbox.path("site"), site).unwrap();
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path {of};"));
        let main = format!(
            "daemon off;\npid nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{ {} include site; }}\n",
            paths.concat()
        );
        fs::write(sandbox.path("nginx.conf"), main).unwrap();
        let mut command = sandbox.command_of(program.to_str().unwrap());
        command.arg("-p").arg(sandbox.directory()).args(["-c", "nginx.conf"]);
        command.env("NGINX", "0;").stdin(Stdio::from(OwnedFd::from(listener)));
        let complaints = sandbox.path("nginx.stderr");
        command.stderr(fs::File::create(&complaints).unwrap());
        Some(Self { process: Process::spawn(&mut command), address, complaints })
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// A client at another of the machine's own addresses.
    fn client_from(&self, address: Ipv4Addr) -> Client {
        Client::over(connect_from(address, self.address).unwrap())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Not killed: its worker would stay.
        self.process.signal(Signal::SIGTERM);
        self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.complaints).unwrap_or_default());
        }
    }
}

#[test]
fn callbacks_settle_through_nginx_and_the_client_is_who_it_is() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let Some(nginx) = Nginx::start(&sandbox, service.address) else { return };
    let (posted, got) = (sandbox.order(1001), sandbox.order(1002));
    assert_eq!(nginx.client().send(post(&Notification::of(&posted).form())).body, "success");
    assert_eq!(nginx.client().notify(&Notification::of(&got).form()), (200, "success".into()));
    assert_eq!((sandbox.credits(1001), sandbox.credits(1002)), (70, 70));

    let forged = Notification::of(&posted).signed_with("wrong").form();
    assert_eq!(nginx.client_from([127, 0, 0, 2].into()).send(post(&forged)).body, "fail");
    service.wait_for_log("127.0.0.2");
    // From an address that the service trusts: had nginx only appended to it, the service would believe the client's own list.
    let lie = post_with("X-Forwarded-For: 203.0.113.9", &forged);
    assert_eq!(nginx.client().send(lie).body, "fail");
    service.wait_for_logs("bad_signature", 2);
    assert!(!service.log().iter().any(|line| line.contains("203.0.113.9")), "{:#?}", service.log());

    assert_eq!(nginx.client().get("/payment/health").status, 200);
    service.stop();
}

#[test]
fn nginx_keeps_its_connection_to_the_service() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let Some(nginx) = Nginx::start(&sandbox, service.address) else { return };
    // A closed connection stays in this list for a minute, so it shows all that there were; the service's own look at its
    // health was one.
    let connections = || -> Vec<String> {
        let list = fs::read_to_string("/proc/net/tcp").unwrap();
        let to_service = format!(":{:04X}", service.address.port());
        let ends = list.lines().filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields[2].ends_with(&to_service).then(|| fields[1].to_owned())
        });
        ends.collect()
    };
    let before = connections();
    for _ in 0..10 {
        assert_eq!(nginx.client().send(post("x=1")).body, "fail");
    }
    let new = connections().into_iter().filter(|end| !before.contains(end));
    assert_eq!(new.count(), 1);
}

#[test]
fn nginx_refuses_what_is_too_much_with_a_plain_fail() {
    let sandbox = Sandbox::new();
    let service = sandbox.serve();
    let Some(nginx) = Nginx::start(&sandbox, service.address) else { return };
    let just_fits = nginx.client().send(post(&"x".repeat(16 * 1024)));
    assert_eq!((just_fits.status, just_fits.body.as_str()), (200, "fail"));
    let get = |target: &str, header: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n{header}\r\n");
    let long = "x".repeat(9000);
    for (request, status) in [
        (post(&"x".repeat(16 * 1024 + 1)), 413),
        (get(&format!("/payment/notify?{long}"), ""), 414),
        (get("/payment/notify", &format!("Cookie: {long}\r\n")), 400),
        (get("/payment/notify", &format!("X: {}\r\n", &long[..3000]).repeat(9)), 400),
        ("nonsense\r\n\r\n".into(), 400),
        (get("/", ""), 404),
        (get("/payment", ""), 404),
        (get("/webhookctl_fail", ""), 404),
    ] {
        let refused = nginx.client().send(&request);
        assert_eq!((refused.status, refused.body.as_str()), (status, "fail"), "{}", &request[..request.len().min(40)]);
        assert!(refused.headers["content-type"].starts_with("text/plain"));
    }
    let settled = post(&Notification::of(&sandbox.order(1001)).form());
    let mut flood = nginx.client();
    let statuses: Vec<_> = (0..900)
        .map(|_| flood.send(&settled))
        .inspect(|answer| assert_eq!(answer.body, if answer.status == 200 { "success" } else { "fail" }))
        .map(|answer| answer.status)
        .collect();
    let served = statuses.iter().take_while(|status| **status == 200).count();
    assert!(served >= 150, "a sale fits in, and not {served} requests only");
    assert!(statuses.contains(&429), "a flood does not");
}

#[test]
fn a_stopped_service_is_a_plain_fail_and_no_log_holds_a_signature() {
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    let Some(nginx) = Nginx::start(&sandbox, service.address) else { return };
    let notification = Notification::of(&sandbox.order(1001));
    assert_eq!(nginx.client().notify(&notification.form()).1, "success");
    service.signal(Signal::SIGKILL);
    service.wait();
    // Holds the port without listening, lest another test's service gets it.
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind(service.address).unwrap();
    assert_eq!(nginx.client().notify(&notification.form()), (502, "fail".into()));
    let refused = nginx.client().send(post(&notification.form()));
    assert_eq!((refused.status, refused.body.as_str()), (502, "fail"));
    drop(nginx);
    let access = fs::read_to_string(sandbox.path("webhookctl.access.log")).unwrap();
    assert_eq!(access.matches("\"GET /payment/notify\" ").count(), 2, "{access}");
    assert_eq!(access.matches("\"POST /payment/notify\" 502 ").count(), 1, "{access}");
    let error = fs::read_to_string(sandbox.path("webhookctl.error.log")).unwrap();
    for log in [access, error] {
        assert!(!log.contains('?') && !log.contains("sign"), "{log}");
    }
}

/// Reads from a stream until `end` has come.
fn read_through(stream: &mut TcpStream, end: &str) {
    let mut received = Vec::new();
    while !received.ends_with(end.as_bytes()) {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).unwrap() {
            0 => panic!("closed before the end"),
            count => received.extend_from_slice(&buffer[..count]),
        }
    }
}

#[test]
fn nginx_sends_a_callback_once() {
    let sandbox = Sandbox::new();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let Some(nginx) = Nginx::start(&sandbox, upstream.local_addr().unwrap()) else { return };
    let upstream = std::thread::spawn(move || {
        // Dies of the first connection's second request, and of the second connection's first.
        let (mut kept, _) = upstream.accept().unwrap();
        read_through(&mut kept, "x=1");
        kept.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfail").unwrap();
        read_through(&mut kept, "x=2");
        drop(kept);
        read_through(&mut upstream.accept().unwrap().0, "x=3");
        upstream
    });
    let mut client = nginx.client();
    let answers = ["x=1", "x=2", "x=3"].map(|form| client.send(post(form)));
    assert_eq!(answers.each_ref().map(|answer| answer.status), [200, 502, 502]);
    assert!(answers.iter().all(|answer| answer.body == "fail"));
    let upstream = upstream.join().unwrap();
    upstream.set_nonblocking(true).unwrap();
    assert_eq!(upstream.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nothing came again");
}

/// Rotates the sandbox's log as the shipped file says; what logrotate printed.
fn rotate(sandbox: &Sandbox, logrotate: &Path) -> String {
    let own = |flag: &str| {
        let output = Command::new("id").arg(flag).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let owner = format!("{} {}", own("-un"), own("-gn"));
    let directory = sandbox.directory().display();
    let rules = fitted(
        &shipped("webhookctl.logrotate"),
        &[
            ("/var/log/webhookctl/", &format!("{directory}/logs/")),
            ("su webhookctl webhookctl", &format!("su {owner}")),
            ("0640 webhookctl webhookctl", &format!("0640 {owner}")),
            ("/usr/local/bin/webhookctl --config /etc/webhookctl/", &format!("{PROGRAM} --config {directory}/")),
        ],
    );
    let file = sandbox.path("rotate");
    fs::write(&file, rules).unwrap();
    // logrotate reads no rules that others could have written.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = sandbox.command_of(logrotate.to_str().unwrap());
    command.arg("--force").arg("--state").arg(sandbox.path("rotate.state")).arg(file);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    printed(&output)
}

#[test]
fn rotation_loses_no_record_and_is_quiet() {
    let Some(logrotate) = find_program("logrotate", "logrotate") else { return };
    if !Command::new("id").arg("-un").output().unwrap().status.success() {
        eprintln!("skipped: logrotate wants a name for this user, who has none");
        return;
    }
    let sandbox = Sandbox::new();
    let mut service = sandbox.serve();
    let forged = Notification::of("NOSUCHORDER").signed_with("wrong").form();
    std::thread::scope(|scope| {
        let callbacks = scope.spawn(|| (0..200).for_each(|_| assert_eq!(service.notify(&forged).1, "fail")));
        assert_eq!(rotate(&sandbox, &logrotate), "");
        callbacks.join().unwrap();
    });
    assert_eq!(rotate(&sandbox, &logrotate), "");
    service.signal(Signal::SIGTERM);
    assert!(service.wait().success());
    service.wait_for_log("服务已停止");

    let current = sandbox.path("logs/payment_webhook_v1.log");
    assert_eq!(fs::metadata(&current).unwrap().permissions().mode() & 0o777, 0o640);
    let rotated = |number: &str| sandbox.path(&format!("logs/payment_webhook_v1.log.{number}"));
    let oldest = Command::new("gzip").arg("-dc").arg(rotated("2.gz")).output().unwrap();
    let oldest = String::from_utf8(oldest.stdout).unwrap();
    let newest = fs::read_to_string(&current).unwrap();
    assert!(oldest.contains("数据库初始化完成") && newest.contains("服务已停止"), "{oldest}\n{newest}");
    // The console has the same records, in one piece. Two records of the same moment may stand the other way round.
    let files = oldest + &fs::read_to_string(rotated("1")).unwrap() + &newest;
    let mut in_files: Vec<_> = files.lines().map(str::to_owned).collect();
    let mut on_console = service.log();
    in_files.sort();
    on_console.sort();
    assert_eq!(in_files, on_console);

    assert_eq!(rotate(&sandbox, &logrotate), "", "nothing to tell where nothing runs");
}

/// The shipped units in the sandbox, with the program where it is.
fn units(sandbox: &Sandbox) -> [PathBuf; 2] {
    let service = sandbox.path("webhookctl.service");
    fs::write(&service, fitted(&shipped("webhookctl.service"), &[("/usr/local/bin/webhookctl", PROGRAM)])).unwrap();
    let socket = sandbox.path("webhookctl.socket");
    fs::write(&socket, shipped("webhookctl.socket")).unwrap();
    [service, socket]
}

#[test]
fn systemd_understands_the_units() {
    let Some(analyze) = find_program("systemd-analyze", "systemd") else { return };
    let sandbox = Sandbox::empty();
    let output = Command::new(analyze).args(["verify", "--man=no"]).args(units(&sandbox)).output().unwrap();
    assert!(output.status.success() && printed(&output).is_empty(), "{}", printed(&output));
}

#[test]
fn the_service_unit_exposes_little() {
    let Some(analyze) = find_program("systemd-analyze", "systemd") else { return };
    let sandbox = Sandbox::empty();
    let [service, _] = units(&sandbox);
    // In tenths.
    let arguments = ["security", "--offline=true", "--threshold=15", "--no-pager"];
    let output = Command::new(analyze).args(arguments).arg(service).output().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
}

/// The lines of `webhookctl.toml` that the unit's comment asks for.
fn unit_settings() -> String {
    let unit = shipped("webhookctl.service");
    let lines = unit.lines().filter_map(|line| line.strip_prefix("#   "));
    lines
        .skip_while(|line| !line.starts_with("listen = "))
        .take_while(|line| !line.starts_with("sudo"))
        .fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn the_settings_that_the_unit_asks_for_are_configuration() {
    let sandbox = Sandbox::with_config(&unit_settings());
    let shown = sandbox.json(&["config", "show", "--json"]);
    assert_eq!(shown["database"]["url"], "sqlite:/var/lib/webhookctl/telegram_bot_v2.db");
    assert_eq!(shown["log"]["file"], "/var/log/webhookctl/payment_webhook_v1.log");
    assert_eq!(shown["service"]["pid_file"], "/var/lib/webhookctl/webhookctl.pid");
    // The other files name the same places.
    let listen = shown["listen"].as_str().unwrap();
    assert!(shipped("webhookctl.socket").contains(&format!("\nListenStream={listen}\n")));
    assert!(shipped("webhookctl.nginx").contains(&format!("\n    server {listen};\n")));
    assert_eq!(shown["trusted_proxies"][0], format!("{}/32", Ipv4Addr::LOCALHOST));
    assert_eq!(listen.parse::<SocketAddr>().unwrap().ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
}

#[test]
fn the_older_script_hands_its_words_over() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("scripts")).unwrap();
    let script = sandbox.path("scripts/manage_webhook.sh");
    // Not a copy: that might still be open for writing in a process that another test is about to start.
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/manage_webhook.sh");
    std::os::unix::fs::symlink(original, &script).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = [Path::new(PROGRAM).parent().unwrap().to_owned()].into_iter().chain(std::env::split_paths(&path));
    let path = std::env::join_paths(directories).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = sandbox.command_of(script.to_str().unwrap());
        command.args(arguments).env("PATH", &path).current_dir("/").output().unwrap()
    };
    // The project's own configuration, wherever the script was called from.
    let shown = run(&["config", "show", "--json"]);
    assert!(shown.status.success() && printed(&shown).contains(OTHER_PID), "{}", printed(&shown));
    assert_eq!(run(&["no such command"]).status.code(), Some(2));
    fs::write(sandbox.path("webhookctl.toml"), "listen = 1").unwrap();
    let refused = run(&["config", "check"]);
    assert_eq!(refused.status.code(), Some(6), "{}", printed(&refused));
}
