//! A model hub on loopback with one repository, which can cut connections, ignore ranges and lie about content.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// Files of `org/repo`, and how the server misbehaves.
#[derive(Clone, Default)]
pub(crate) struct HubFiles {
    /// Path to content.
    pub(crate) files: HashMap<String, Vec<u8>>,
    /// Every answer to a file is cut after this many bytes.
    pub(crate) cut_after: Option<usize>,
    /// Answers 200 with everything to a range request.
    pub(crate) ignores_ranges: bool,
    /// The sha256 in the listing is not the content's.
    pub(crate) lies_about_sha256: bool,
    /// Answers this many file requests with 503 first.
    pub(crate) num_unavailable: usize,
}

/// A running hub. Its thread ends with the process.
pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<HubState>>,
}

struct HubState {
    files: HubFiles,
    requests: Vec<String>,
}

impl Hub {
    /// Starts to serve `files` on a free port.
    pub(crate) fn start(files: HubFiles) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(HubState { files, requests: Vec::new() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                // A client that goes away in the middle is what some tests want.
                let _ = answer(connection.unwrap(), &shared);
            }
        });
        Hub { address, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what is served from now on.
    pub(crate) fn set(&self, files: HubFiles) {
        self.state.lock().unwrap().files = files;
    }

    /// Request lines of file downloads so far, with ` from N` where a range was asked for.
    pub(crate) fn downloads(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|line| line.contains("/resolve/")).cloned().collect()
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<HubState>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request_line = String::new();
    reader.read_line(&mut request_line)?;
    let path = request_line.split(' ').nth(1).unwrap_or("").to_owned();
    let mut from = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header == "\r\n" {
            break;
        }
        if let Some(range) = header.to_lowercase().strip_prefix("range: bytes=") {
            from = range.trim().trim_end_matches('-').parse().unwrap();
        }
    }
    let files = record(state, &path, from);
    if path.starts_with("/api/models/org/repo/revision/main") {
        let body = listing(&files).to_string();
        return write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }
    let content = path.strip_prefix("/org/repo/resolve/c0ffee/").and_then(|name| files.files.get(name));
    match content {
        None => write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        Some(_) if files.num_unavailable > 0 => {
            state.lock().unwrap().files.num_unavailable -= 1;
            write!(stream, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        }
        Some(content) => send_file(&mut stream, content, from, &files),
    }
}

fn record(state: &Mutex<HubState>, path: &str, from: usize) -> HubFiles {
    let mut state = state.lock().unwrap();
    state.requests.push(if from > 0 { format!("{path} from {from}") } else { path.to_owned() });
    state.files.clone()
}

fn listing(files: &HubFiles) -> serde_json::Value {
    let siblings = files.files.iter().map(|(path, content)| {
        let claimed: &[u8] = if files.lies_about_sha256 { b"something else" } else { content };
        serde_json::json!({
            "rfilename": path,
            "size": content.len(),
            "lfs": { "sha256": sha256(claimed), "size": content.len() },
        })
    });
    serde_json::json!({ "sha": "c0ffee", "siblings": siblings.collect::<Vec<_>>() })
}

fn send_file(stream: &mut TcpStream, content: &[u8], from: usize, files: &HubFiles) -> std::io::Result<()> {
    let from = if files.ignores_ranges { 0 } else { from };
    let rest = &content[from.min(content.len())..];
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let last = content.len() - 1;
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n", rest.len())?;
    if from > 0 {
        write!(stream, "content-range: bytes {from}-{last}/{}\r\n", content.len())?;
    }
    write!(stream, "\r\n")?;
    stream.write_all(&rest[..files.cut_after.unwrap_or(rest.len()).min(rest.len())])
}

/// In hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
