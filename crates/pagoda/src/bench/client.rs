//! One streamed request to an OpenAI-compatible server, and when each of its chunks arrived.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Longest line of an event stream that is accepted.
const MAX_LINE_BYTES: usize = 16 << 20;

/// A server to call.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    authority: String,
    prefix: String,
    api_key: Option<String>,
}

/// What one request brought. Times count from sending it.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Arrival of every chunk that carries output, in order.
    pub(crate) chunk_times: Vec<Duration>,
    /// From the server's usage.
    pub(crate) num_prompt_tokens: u64,
    /// From the server's usage.
    pub(crate) num_cached_tokens: u64,
    /// From the server's usage: several tokens in one chunk count as several.
    pub(crate) num_output_tokens: u64,
}

impl Target {
    /// Reads `[http://]host:port[/prefix]`; a `/v1` at the end may be written or left out.
    pub(crate) fn parse(url: &str, api_key: Option<String>) -> anyhow::Result<Self> {
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: http::Uri = with_scheme.parse().with_context(|| format!("{url:?} is not a URL"))?;
        match uri.scheme_str() {
            Some("http") => {}
            // The times would be those of another library's records, not of the server's chunks.
            Some("https") => bail!(
                "{url:?}: the load generator speaks plain HTTP only: name the server's own port behind what ends TLS, or a \
                 local tunnel to it"
            ),
            _ => bail!("{url:?}: it must begin with http://, or with the host"),
        }
        let host = uri.host().with_context(|| format!("{url:?} names no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let prefix = uri.path().trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Target { authority, prefix, api_key })
    }

    /// The first model that the server lists.
    pub(crate) async fn first_model(&self) -> anyhow::Result<String> {
        let response = self.send("GET", "/v1/models", Bytes::new()).await?;
        let body = response.into_body().collect().await?.to_bytes();
        let models: Value = serde_json::from_slice(&body).context("the model list is not JSON")?;
        let id = models["data"][0]["id"].as_str().context("the server lists no model")?;
        Ok(id.to_owned())
    }

    /// Sends a streaming request and reads it to its end.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> anyhow::Result<Record> {
        let body = Bytes::from(body.to_string());
        let start = Instant::now();
        let response = self.send("POST", path, body).await?;
        read_events(response.into_body(), start).await
    }

    async fn send(&self, method: &str, path: &str, body: Bytes) -> anyhow::Result<http::Response<Incoming>> {
        let socket = TcpStream::connect(&self.authority)
            .await
            .with_context(|| format!("connecting to {}", self.authority))?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(300)]));
        }
        Ok(response)
    }
}

async fn read_events(mut body: Incoming, start: Instant) -> anyhow::Result<Record> {
    let mut chunk_times = Vec::new();
    let mut usage = Value::Null;
    let mut is_done = false;
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the stream was cut")?.into_data() else { continue };
        let arrival = start.elapsed();
        pending.extend_from_slice(&data);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Some(payload) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { continue };
            if payload == b"[DONE]" {
                is_done = true;
                continue;
            }
            let event: Value = serde_json::from_slice(payload).context("an event is not JSON")?;
            if let Some(error) = event.get("error") {
                bail!("error in the stream: {error}");
            }
            if carries_output(&event) {
                chunk_times.push(arrival);
            }
            if event["usage"].is_object() {
                usage = event["usage"].clone();
            }
        }
        if pending.len() > MAX_LINE_BYTES {
            bail!("an event is longer than {MAX_LINE_BYTES} bytes");
        }
    }
    if !is_done {
        bail!("the stream ended without [DONE]");
    }
    let num_output_tokens = usage["completion_tokens"].as_u64().context("the server reports no usage")?;
    Ok(Record {
        chunk_times,
        num_prompt_tokens: usage["prompt_tokens"].as_u64().unwrap_or(0),
        num_cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0),
        num_output_tokens,
    })
}

/// A chunk with text or token ids, not one that only announces the role, the end or the usage.
fn carries_output(event: &Value) -> bool {
    let has_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let has_ids = |value: &Value| value.as_array().is_some_and(|ids| !ids.is_empty());
    event["choices"].as_array().into_iter().flatten().any(|choice| {
        has_text(&choice["text"])
            || has_text(&choice["delta"]["content"])
            || has_text(&choice["delta"]["reasoning_content"])
            || has_ids(&choice["token_ids"])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_and_without_their_v1() {
        for url in ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/"] {
            let target = Target::parse(url, None).unwrap();
            assert_eq!((target.authority.as_str(), target.prefix.as_str()), ("127.0.0.1:8000", ""));
        }
        for (url, authority, prefix) in [
            ("localhost:8331", "localhost:8331", ""),
            ("127.0.0.1:8000/v1", "127.0.0.1:8000", ""),
            ("[::1]:8000/behind/v1", "[::1]:8000", "/behind"),
            ("host", "host:80", ""),
        ] {
            let target = Target::parse(url, None).unwrap();
            assert_eq!((target.authority.as_str(), target.prefix.as_str()), (authority, prefix));
        }
        let refusal = |url| Target::parse(url, None).unwrap_err().to_string();
        assert!(refusal("https://127.0.0.1").contains("plain HTTP"), "{}", refusal("https://127.0.0.1"));
        assert!(refusal("ftp://127.0.0.1").contains("http://"), "{}", refusal("ftp://127.0.0.1"));
        assert!(Target::parse("", None).is_err());
    }

    #[test]
    fn role_and_usage_chunks_are_not_output() {
        let text = |json: &str| carries_output(&serde_json::from_str(json).unwrap());
        assert!(text(r#"{"choices":[{"delta":{"content":"a"}}]}"#));
        assert!(text(r#"{"choices":[{"text":"","token_ids":[5]}]}"#));
        assert!(!text(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#));
        assert!(!text(r#"{"choices":[],"usage":{"completion_tokens":3}}"#));
    }
}
