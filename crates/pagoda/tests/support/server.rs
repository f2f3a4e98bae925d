//! A running `pagoda serve` on a free port, stopped when the test ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Loading takes about a second alone; tests share two cores.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Servers of one test program take turns: several at once would disturb each other's times.
static TURN: Mutex<()> = Mutex::new(());

/// A server process.
pub(crate) struct Server {
    child: Child,
    turn: Option<MutexGuard<'static, ()>>,
    pub(crate) address: SocketAddr,
    /// What was printed until it was ready.
    pub(crate) banner: String,
}

impl Server {
    /// Starts `pagoda serve MODEL FLAGS` and waits until it is ready.
    pub(crate) fn start(model: &Path, flags: &[&str]) -> Self {
        // A test that failed while it held the turn has poisoned nothing.
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut server = Server::start_beside(model, flags);
        server.turn = Some(turn);
        server
    }

    /// The same beside another server of the same test.
    pub(crate) fn start_beside(model: &Path, flags: &[&str]) -> Self {
        let is_sized = flags.contains(&"--kv-cache-memory");
        let memory: &[&str] = if is_sized { &[] } else { &["--kv-cache-memory", "400M"] };
        let mut child = super::pagoda()
            .arg("serve")
            .arg(model)
            .args(["--port", "0"])
            .args(memory)
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = read_lines(child.stdout.take().unwrap());
        let deadline = Instant::now() + START_LIMIT;
        let mut banner = String::new();
        while !banner.contains("\ncurl ") {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => banner.push_str(&format!("{line}\n")),
                Err(error) => {
                    let _ = child.kill();
                    panic!("the server did not get ready ({error}): {banner}");
                }
            }
        }
        let address = address_in(&banner);
        wait_until_ready(address, deadline);
        Server { child, turn: None, address, banner }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The names of the process's threads; empty where the system has no `/proc`.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let tasks =
            std::fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
        tasks.filter_map(name).map(|name| name.trim().to_owned()).collect()
    }

    /// Sends a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process's end.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server did not end within {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already in the tests that stop it themselves.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn address_in(banner: &str) -> SocketAddr {
    let start = banner.find("http://").expect("the first line names the address") + "http://".len();
    let rest = &banner[start..];
    rest[..rest.find([' ', '/']).unwrap()].parse().unwrap()
}

fn wait_until_ready(address: SocketAddr, deadline: Instant) {
    while request(address, "GET", "/health", "").0 != 200 {
        assert!(Instant::now() < deadline, "the server printed its banner but is not ready");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One plain HTTP exchange: status and body.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = open(address, method, path, body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer has a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    (status, if is_chunked { dechunk(body) } else { body.to_owned() })
}

/// Sends a request and returns the connection, from which nothing has been read yet.
pub(crate) fn open(address: SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

/// A JSON request that must succeed.
pub(crate) fn post(address: SocketAddr, path: &str, body: &Value) -> Value {
    let (status, answer) = request(address, "POST", path, &body.to_string());
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

fn dechunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
        if size == 0 {
            break;
        }
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    text
}
