//! One HTTP exchange: its request id, its place in the count of exchanges in flight, its log line. Begins before any
//! route is looked at and ends when the answer's last byte has been taken or its client has gone.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use tracing::{Instrument, Span};

use crate::generation::Usage;
use crate::keys::Caller;
use crate::state::ServerState;

/// The header that carries the request id, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a handler may know of its exchange, and note in its log line.
#[derive(Clone)]
pub(crate) struct Exchange(Arc<Record>);

struct Record {
    state: Arc<ServerState>,
    /// Ours: 32 hexadecimal digits.
    id: String,
    /// The client's if it gave a usable one, else ours.
    shown_id: String,
    method: Method,
    /// The route's pattern: the path itself is the client's text.
    route: String,
    started: Instant,
    notes: Mutex<Notes>,
}

/// What becomes known on the way.
#[derive(Clone, Copy, Default)]
struct Notes {
    status: Option<StatusCode>,
    caller: Option<Caller>,
    usage: Usage,
    num_bytes_sent: u64,
    is_complete: bool,
}

impl Exchange {
    fn begin(state: &Arc<ServerState>, request: &Request) -> Self {
        let id = random_id();
        let shown_id = client_id(request.headers()).unwrap_or_else(|| id.clone());
        let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
        state.num_in_flight.send_modify(|num| *num += 1);
        Exchange(Arc::new(Record {
            state: Arc::clone(state),
            id,
            shown_id,
            method: request.method().clone(),
            route,
            started: Instant::now(),
            notes: Mutex::default(),
        }))
    }

    /// The random part of an answer's `id`.
    pub(crate) fn id(&self) -> &str {
        &self.0.id
    }

    pub(crate) fn note_caller(&self, caller: Caller) {
        self.note(|notes| notes.caller = Some(caller));
    }

    pub(crate) fn note_usage(&self, usage: Usage) {
        self.note(|notes| notes.usage = usage);
    }

    fn note(&self, change: impl FnOnce(&mut Notes)) {
        // The lock is held for an assignment, which cannot panic.
        change(&mut self.0.notes.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.state.num_in_flight.send_modify(|num| *num -= 1);
        let notes = *self.notes.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A client that went away before the end.
        let status = if notes.is_complete { notes.status.map_or(499, |status| status.as_u16()) } else { 499 };
        let key = match notes.caller {
            Some(Caller::Key { index, .. }) => Some(index),
            Some(Caller::Open) | None => None,
        };
        tracing::info!(
            request_id = self.shown_id,
            answer_id = self.id,
            method = %self.method,
            route = self.route,
            status,
            key,
            num_prompt_tokens = notes.usage.num_prompt_tokens,
            num_cached_tokens = notes.usage.num_cached_tokens,
            num_completion_tokens = notes.usage.num_completion_tokens,
            num_bytes_sent = notes.num_bytes_sent,
            duration_ms = self.started.elapsed().as_millis() as u64,
            "answered"
        );
    }
}

/// The outermost layer of every route.
pub(crate) async fn track(
    State(state): State<Arc<ServerState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let exchange = Exchange::begin(&state, &request);
    request.extensions_mut().insert(exchange.clone());
    // At the level of what it is for, so that no filter that lets a line pass takes its request's id away.
    let span = tracing::error_span!("request", request_id = exchange.0.shown_id);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    exchange.note(|notes| notes.status = Some(status));
    let headers = response.headers_mut();
    let id = HeaderValue::from_str(&exchange.0.shown_id).expect("ids are visible ASCII");
    headers.insert(REQUEST_ID, id);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if state.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(TrackedBody { inner: body, exchange, span, has_ended: false }))
}

/// A body that keeps its exchange alive until it has been taken.
struct TrackedBody {
    inner: Body,
    exchange: Exchange,
    /// What is logged while the body is made is about its request.
    span: Span,
    has_ended: bool,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let span = self.span.clone();
        let frame = span.in_scope(|| Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                let num_bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.exchange.note(|notes| notes.num_bytes_sent += num_bytes);
            }
            Poll::Ready(None) => self.has_ended = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        // A body of known length is not asked again after its last byte.
        let is_complete = self.has_ended || self.inner.is_end_stream();
        self.exchange.note(|notes| notes.is_complete = is_complete);
    }
}

/// 128 random bits in hexadecimal.
pub(crate) fn random_id() -> String {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the operating system gives random bytes");
    format!("{:032x}", u128::from_be_bytes(bits))
}

/// The client's id, if it is harmless in headers and logs.
fn client_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    ((1..=64).contains(&id.len()) && id.bytes().all(is_plain)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_client_ids_are_echoed() {
        let with = |id: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            client_id(&headers)
        };
        assert_eq!(with(b"Abc-1_2"), Some("Abc-1_2".into()));
        assert_eq!(with(b""), None);
        assert_eq!(with(b"a b"), None);
        assert_eq!(with(b"\xe9"), None);
        assert_eq!(with(&[b'a'; 65]), None);
        assert_eq!(random_id().len(), 32);
    }
}
