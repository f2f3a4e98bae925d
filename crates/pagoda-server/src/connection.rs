//! One TCP connection: HTTP/1.1 under time limits for the first byte, the head, the pause between requests and a reader
//! that does not read. hyper has one of these limits and counts it otherwise, so they are kept here.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tower::ServiceExt;

use crate::ConnectionLimits;
use crate::activity::{Phase, SharedActivity};
use crate::socket::{TimedSocket, has_left};

/// What hyper may buffer of an answer before it waits for the reader.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// Serves one connection until either side ends it, a time limit does, or `closing` turns true.
pub(crate) async fn serve(
    stream: TcpStream,
    router: Router,
    limits: ConnectionLimits,
    mut closing: watch::Receiver<bool>,
) {
    prepare(&stream, limits.peer_timeout);
    let activity = SharedActivity::new();
    let stream = Arc::new(stream);
    let io = TokioIo::new(TimedSocket::new(Arc::clone(&stream), activity.clone()));
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
        activity.begin_turn();
        if connection.as_mut().poll(context).is_ready() || has_left(&stream, &activity, context) {
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
            if activity.is_answering() {
                activity.cut();
            }
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
