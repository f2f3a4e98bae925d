//! A client that speaks HTTP by hand, so that it can also speak it badly.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::PATIENCE;

pub const JSON: (&str, &str) = ("content-type", "application/json");

/// A request's bytes.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        bytes.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One connection.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    pub fn from_stream(stream: TcpStream) -> Self {
        Client { stream: BufReader::new(stream) }
    }

    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Writes what the server takes; a server that closes meanwhile is no error here.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.get_mut().write_all(bytes).await;
    }

    pub async fn close_sending(&mut self) {
        let _ = self.stream.get_mut().shutdown().await;
    }

    /// The next answer, or None if the server closed without one.
    pub async fn read_answer(&mut self) -> Option<Answer> {
        let answer = async {
            let head = self.read_head().await?;
            let body = self.read_body(&head).await;
            Some(Answer { body, ..head })
        };
        tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time")
    }

    /// The status line and the headers.
    pub async fn read_head(&mut self) -> Option<Answer> {
        let status_line = self.read_line().await?;
        let status = status_line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = self.read_line().await?;
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        Some(Answer { status, headers, body: Vec::new() })
    }

    /// One line without its end; None at the end of the stream.
    pub async fn read_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    }

    async fn read_body(&mut self, head: &Answer) -> Vec<u8> {
        let mut body = Vec::new();
        if head.header("transfer-encoding") == Some("chunked") {
            while let Some(size) = self.read_line().await {
                let size = usize::from_str_radix(&size, 16).expect("a chunk's size");
                let mut chunk = vec![0; size + 2];
                if self.stream.read_exact(&mut chunk).await.is_err() || size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        } else if let Some(length) = head.header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.stream.read_exact(&mut body).await.expect("the whole body");
        }
        body
    }

    /// Reads until the server closes, or resets; what came, and whether it was a clean end.
    pub async fn read_to_end(&mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let read = self.stream.read_to_end(&mut bytes);
        let result = tokio::time::timeout(PATIENCE, read).await.expect("the server closes in time");
        (bytes, result.is_ok())
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("answers are UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The JSON of an answer that must be fine.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The code and the field of an error.
    #[track_caller]
    pub fn error(&self) -> (u16, String, String) {
        let error = &self.json()["error"];
        let word = |name: &str| error[name].as_str().unwrap_or("").to_owned();
        assert!(!word("message").is_empty() && !word("type").is_empty(), "{}", self.text());
        (self.status, word("code"), word("param"))
    }

    /// The events of a stream; asserts its framing and that it ends as it must.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let text = self.text();
        assert!(text.ends_with("data: [DONE]\n\n"), "the end of the stream is missing: {text}");
        let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
        let data: Vec<&str> =
            events.map(|event| event.strip_prefix("data: ").expect("an event is data")).collect();
        data[..data.len() - 1].iter().map(|data| serde_json::from_str(data).expect("data is JSON")).collect()
    }
}
