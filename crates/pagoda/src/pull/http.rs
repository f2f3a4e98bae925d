//! Fetching one file over HTTP: resumed with `Range` after every cut, a bounded number of times.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use ureq::Agent;
use ureq::http::Response;

use super::part::{Expected, PartFile};
use super::progress::Progress;

/// Attempts in a row that bring no byte before the download is given up.
const MAX_FRUITLESS_ATTEMPTS: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// A server that says nothing for this long counts as gone; the next attempt resumes.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A file on a server.
pub(crate) struct RemoteFile {
    /// Where.
    pub(crate) url: String,
    /// Sent as a bearer token to the first host only, never to a redirect's.
    pub(crate) token: Option<String>,
    /// What it must be.
    pub(crate) expected: Expected,
}

/// What one attempt came to.
enum Attempt {
    Complete,
    Cut(String),
}

/// The client that all requests share.
pub(crate) fn agent() -> Agent {
    Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .http_status_as_error(false)
        .build()
        .into()
}

/// Fetches `remote` to `target`, going on from an earlier `.part`.
pub(crate) fn download(agent: &Agent, remote: &RemoteFile, target: &Path) -> anyhow::Result<()> {
    let mut part = PartFile::open(target)?;
    let label = target.file_name().unwrap_or_default().to_string_lossy();
    let mut progress = Progress::start(&label, remote.expected.size_bytes.unwrap_or(0));
    let mut fruitless = 0;
    loop {
        let len_before = part.len();
        let reason = match attempt(agent, remote, &mut part, &mut progress)? {
            Attempt::Complete => break,
            Attempt::Cut(reason) => reason,
        };
        fruitless = if part.len() > len_before { 0 } else { fruitless + 1 };
        if fruitless == MAX_FRUITLESS_ATTEMPTS {
            bail!("fetching {}: {reason} (what arrived is kept; run it again to go on)", remote.url);
        }
        progress.note(&format!("{label}: {reason}; going on from byte {}", part.len()));
        std::thread::sleep(FIRST_BACKOFF * 2u32.pow(fruitless));
    }
    part.commit(&remote.expected, target)
}

fn attempt(
    agent: &Agent,
    remote: &RemoteFile,
    part: &mut PartFile,
    progress: &mut Progress,
) -> anyhow::Result<Attempt> {
    match remote.expected.size_bytes {
        Some(size) if part.len() == size => return Ok(Attempt::Complete),
        Some(size) if part.len() > size => part.clear()?,
        _ => {}
    }
    let response = match request(agent, remote, part.len()).call() {
        Ok(response) => response,
        Err(error) => return Ok(Attempt::Cut(error.to_string())),
    };
    match response.status().as_u16() {
        206 if range_start(&response) == Some(part.len()) => {}
        // The server ignored the range: it sends everything.
        200 => part.clear()?,
        206 | 416 => {
            part.clear()?;
            return Ok(Attempt::Cut("the server refused to resume".to_owned()));
        }
        status @ (408 | 429 | 500..) => return Ok(Attempt::Cut(format!("the server answered {status}"))),
        401 | 403 => bail!("{} needs an account: set HF_TOKEN to a token that may read it", remote.url),
        status => bail!("{} answered {status}", remote.url),
    }
    receive(response, part, progress)
}

fn request(
    agent: &Agent,
    remote: &RemoteFile,
    from: u64,
) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
    // A compressed answer would make the byte positions meaningless.
    let mut request = agent.get(&remote.url).header("accept-encoding", "identity");
    if let Some(token) = &remote.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if from > 0 {
        request = request.header("range", format!("bytes={from}-"));
    }
    request
}

fn range_start(response: &Response<ureq::Body>) -> Option<u64> {
    let value = response.headers().get("content-range")?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn receive(
    response: Response<ureq::Body>,
    part: &mut PartFile,
    progress: &mut Progress,
) -> anyhow::Result<Attempt> {
    let mut reader = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(Attempt::Complete),
            Ok(len) => part.write(&buffer[..len])?,
            Err(error) => return Ok(Attempt::Cut(format!("the connection was cut ({error})"))),
        }
        progress.set(part.len());
    }
}

/// A small JSON document.
pub(crate) fn get_json(agent: &Agent, remote: &RemoteFile) -> anyhow::Result<serde_json::Value> {
    let mut response = request(agent, remote, 0).call().with_context(|| format!("asking {}", remote.url))?;
    match response.status().as_u16() {
        200 => {}
        401 | 403 => bail!("{} needs an account: set HF_TOKEN to a token that may read it", remote.url),
        404 => bail!("{} does not exist", remote.url),
        status => bail!("{} answered {status}", remote.url),
    }
    let text = response.body_mut().read_to_string().with_context(|| format!("reading {}", remote.url))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", remote.url))
}
