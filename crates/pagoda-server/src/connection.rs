//! One TCP connection: HTTP/1.1 under time limits for the first byte, the head, the pause between requests and a reader
//! that does not read. hyper has one of these limits and counts it otherwise, so they are kept here.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;

use crate::ConnectionLimits;

/// What hyper may buffer of an answer before it waits for the reader.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// What the connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first byte of the first request.
    FirstByte,
    /// The rest of a request's head.
    Head,
    /// A request is being answered; its own limits count.
    Exchange,
    /// The next request.
    Idle,
}

/// What is known of the connection's progress; shared by the socket, the service and the timer, which all run in the
/// connection's task.
#[derive(Debug)]
struct Activity {
    phase: Phase,
    since: Instant,
    /// Since when the peer has taken nothing although there is something to take.
    write_blocked_since: Option<Instant>,
    /// The reader is being cut off: what it has not read is of no use to it.
    is_cut: bool,
}

#[derive(Clone)]
struct SharedActivity(Arc<Mutex<Activity>>);

impl SharedActivity {
    fn new() -> Self {
        SharedActivity(Arc::new(Mutex::new(Activity {
            phase: Phase::FirstByte,
            since: Instant::now(),
            write_blocked_since: None,
            is_cut: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        // Held for a few assignments, which cannot panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut activity = self.lock();
        activity.phase = phase;
        activity.since = Instant::now();
    }

    /// When the connection will have waited too long.
    fn deadline(&self, limits: &ConnectionLimits) -> Option<Instant> {
        let activity = self.lock();
        let waiting = match activity.phase {
            Phase::FirstByte => Some(activity.since + limits.first_byte_timeout),
            Phase::Head => Some(activity.since + limits.header_timeout),
            Phase::Idle => Some(activity.since + limits.idle_timeout),
            Phase::Exchange => None,
        };
        let writing = activity.write_blocked_since.map(|since| since + limits.write_timeout);
        match (waiting, writing) {
            (Some(waiting), Some(writing)) => Some(waiting.min(writing)),
            (waiting, writing) => waiting.or(writing),
        }
    }

    /// Whether an answer is being made or sent.
    fn is_answering(&self) -> bool {
        let activity = self.lock();
        activity.phase == Phase::Exchange || activity.write_blocked_since.is_some()
    }
}

/// Serves one connection until either side ends it, a time limit does, or `closing` turns true.
pub(crate) async fn serve(
    stream: TcpStream,
    router: Router,
    limits: ConnectionLimits,
    mut closing: watch::Receiver<bool>,
) {
    prepare(&stream, limits.peer_timeout);
    let activity = SharedActivity::new();
    let io = TokioIo::new(TimedSocket { inner: stream, activity: activity.clone() });
    let for_service = activity.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let activity = for_service.clone();
        activity.enter(Phase::Exchange);
        let answer = router.clone().oneshot(request.map(Body::new));
        async move {
            let response = answer.await.unwrap_or_else(|never: Infallible| match never {});
            Ok::<_, Infallible>(response.map(|inner| ExchangeBody { inner, activity }))
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.max_header_fields)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(MAX_BUFFER_BYTES.max(limits.max_header_bytes));
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut timer = pin!(sleep_until(Instant::now() + limits.first_byte_timeout));
    let mut close = pin!(async move {
        // A sender that is gone means the same.
        let _ = closing.wait_for(|is_closing| *is_closing).await;
    });
    let mut is_closing = false;
    poll_fn(|context| {
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        if !is_closing && close.as_mut().poll(context).is_ready() {
            is_closing = true;
            if !activity.is_answering() {
                return Poll::Ready(());
            }
            connection.as_mut().graceful_shutdown();
            // hyper looks at the change when it is polled next.
            context.waker().wake_by_ref();
        }
        // Only polling the connection changes its activity, so that the timer is never late.
        if let Some(deadline) = activity.deadline(&limits) {
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(context));
            let is_cut = activity.is_answering();
            activity.lock().is_cut = is_cut;
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}

/// Socket options. A socket that refuses one is served all the same.
fn prepare(stream: &TcpStream, peer_timeout: Duration) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(peer_timeout).with_interval(Duration::from_secs(10));
    let results = [
        ("TCP_NODELAY", stream.set_nodelay(true)),
        ("SO_KEEPALIVE", socket.set_tcp_keepalive(&keepalive)),
        #[cfg(target_os = "linux")]
        ("TCP_USER_TIMEOUT", socket.set_tcp_user_timeout(Some(peer_timeout))),
    ];
    for (option, result) in results {
        if let Err(error) = result {
            tracing::debug!(option, %error, "a socket option was refused");
        }
    }
}

/// A socket that notes what moves.
struct TimedSocket {
    inner: TcpStream,
    activity: SharedActivity,
}

impl TimedSocket {
    fn noted<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let mut activity = self.activity.lock();
        match &written {
            Poll::Ready(_) => activity.write_blocked_since = None,
            Poll::Pending => {
                activity.write_blocked_since.get_or_insert_with(Instant::now);
            }
        }
        written
    }
}

impl AsyncRead for TimedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, buffer);
        if buffer.filled().len() > before {
            let phase = self.activity.lock().phase;
            if matches!(phase, Phase::FirstByte | Phase::Idle) {
                self.activity.enter(Phase::Head);
            }
        }
        result
    }
}

impl AsyncWrite for TimedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.noted(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.noted(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl Drop for TimedSocket {
    fn drop(&mut self) {
        if self.activity.lock().is_cut {
            // A reset: an answer that was cut must not look like one that ended.
            let _ = SockRef::from(&self.inner).set_linger(Some(Duration::ZERO));
        }
    }
}

/// An answer's body; the connection is idle when it is gone.
struct ExchangeBody {
    inner: Body,
    activity: SharedActivity,
}

impl HttpBody for ExchangeBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for ExchangeBody {
    fn drop(&mut self) {
        self.activity.enter(Phase::Idle);
    }
}
