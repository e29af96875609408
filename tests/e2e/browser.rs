//! A real browser: Chromium without a screen, driven through its `WebDriver`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdout, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::*;

/// A browser may take long to start on a machine that has much else to do.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);

/// The port of the first IPv4 socket on which a process listens.
fn port_of(process: Pid) -> Option<u16> {
    const LISTEN: &str = "0A";
    let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?.flatten();
    let own: Vec<_> = files.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    let sockets = fs::read_to_string(format!("/proc/{process}/net/tcp")).ok()?;
    sockets.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let is_own = *state == LISTEN && own.contains(&format!("socket:[{inode}]").into());
        u16::from_str_radix(local.split_once(':')?.1, 16).ok().filter(|_| is_own)
    })
}

/// What starts browsers; it and all of them are killed when it goes out of scope.
pub struct Driver<'a> {
    sandbox: &'a Sandbox,
    process: Process,
    address: SocketAddr,
    browser: PathBuf,
    // Whoever writes into a closed pipe is killed.
    _stdout: BufReader<ChildStdout>,
}

impl<'a> Driver<'a> {
    /// `None` where there is no browser.
    pub fn start(sandbox: &'a Sandbox) -> Option<Self> {
        let program = find_program("chromedriver", "chromium-driver")?;
        let browser = find_program("chromium", "chromium")?;
        let mut command = sandbox.command_of(program.to_str().unwrap());
        // A group of its own, which the browsers are in as well; and nothing is left in anybody's home.
        command.arg("--port=0").process_group(0).env("HOME", sandbox.directory()).env("TMPDIR", sandbox.directory());
        for variable in ["XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"] {
            command.env_remove(variable);
        }
        let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        let mut stdout = BufReader::new(process.stdout());
        let mut line = String::new();
        while !line.contains("started successfully on port ") {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the driver does not start");
        }
        let port: String = line.chars().filter(char::is_ascii_digit).collect();
        // The driver tells its port by IPv6, which is 0 where there is no IPv6.
        let port = port.parse().ok().filter(|port| *port != 0).or_else(|| port_of(process.pid()));
        let address = ([127, 0, 0, 1], port.expect("a port")).into();
        Some(Self { sandbox, process, address, browser, _stdout: stdout })
    }

    /// Opens a browser the size of a phone.
    pub fn open(&self, setting: Setting) -> Browser<'_> {
        let profile = tempfile::tempdir_in(self.sandbox.directory()).unwrap().keep();
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-breakpad".into(),
            "--disable-crash-reporter".into(),
            "--no-first-run".into(),
            "--no-proxy-server".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            format!("--user-data-dir={}", profile.display()),
        ];
        if !setting.javascript {
            arguments.push("--blink-settings=scriptEnabled=false".into());
        }
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {
                "binary": self.browser,
                "args": arguments,
                "prefs": {"intl.accept_languages": setting.languages},
            },
        }}});
        let session = self.command("POST", "/session", &capabilities);
        let session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        let browser = Browser { driver: self, session };
        browser.resize(360, 740);
        let scheme = if setting.dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", &features);
        browser
    }

    #[track_caller]
    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut client = Client::connect(self.address);
        client.stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let answer = client.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        ));
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        serde_json::from_str::<Value>(&answer.body).unwrap()["value"].take()
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        let _ = killpg(self.process.pid(), Signal::SIGKILL);
    }
}

/// What a buyer has set in their browser.
#[derive(Clone, Copy)]
pub struct Setting {
    pub languages: &'static str,
    pub dark: bool,
    pub javascript: bool,
}

/// An open browser with one page.
pub struct Browser<'a> {
    driver: &'a Driver<'a>,
    session: String,
}

impl Browser<'_> {
    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        self.driver.command("POST", &format!("{}{path}", self.session), body)
    }

    /// Sends a command of the `DevTools` protocol, which needs no script in the page.
    #[track_caller]
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 2, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    pub fn go(&self, url: &str) {
        self.post("/url", &json!({"url": url}));
    }

    /// What an expression is in the page; of a promise, what it brings.
    #[track_caller]
    pub fn evaluate(&self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.devtools("Runtime.evaluate", &parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// What the page's heading says; nothing where there is none yet. In one question, since the next may meet another page.
    pub fn heading(&self) -> String {
        let document = self.devtools("DOM.getDocument", &json!({"depth": -1}));
        let heading = element(&document["root"], "H1");
        heading.and_then(|heading| heading["children"][0]["nodeValue"].as_str()).unwrap_or_default().to_owned()
    }

    /// What the browser has complained about since it was last asked.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", &json!({"type": "browser"}));
        let messages = log.as_array().unwrap().iter().map(|record| record["message"].as_str().unwrap().to_owned());
        // The browser's own first page complains of a slow network, too.
        messages.filter(|message| !message.starts_with("chrome://")).collect()
    }

    /// Keeps a picture of the page in the test's directory, and in the one that `WEBHOOKCTL_SCREENSHOTS` names.
    pub fn picture(&self, name: &str) {
        let picture = self.driver.command("GET", &format!("{}/screenshot", self.session), &Value::Null);
        let file = self.driver.sandbox.path(&format!("{name}.png"));
        fs::write(&file, BASE64.decode(picture.as_str().unwrap()).unwrap()).unwrap();
        if let Some(directory) = std::env::var_os("WEBHOOKCTL_SCREENSHOTS") {
            let directory = PathBuf::from(directory);
            fs::create_dir_all(&directory).unwrap();
            fs::copy(&file, directory.join(file.file_name().unwrap())).unwrap();
        }
    }
}

/// The first element of this name in a tree of nodes.
fn element<'a>(node: &'a Value, name: &str) -> Option<&'a Value> {
    if node["nodeName"] == name {
        return Some(node);
    }
    node["children"].as_array()?.iter().find_map(|child| element(child, name))
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        // A test that has failed may have a browser that does not answer: that one is killed with its driver.
        if !std::thread::panicking() {
            self.driver.command("DELETE", &self.session, &Value::Null);
        }
    }
}
