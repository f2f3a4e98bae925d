//! A running generation as the body of a `text/event-stream` answer. Pulled by the connection as fast as the client
//! reads; what the client does not read waits in the request's own channel and never in the engine's way.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use futures_util::Stream;
use hyper::body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::dialect::Dialect;
use crate::generation::{AnswerHead, GenerationEvent};
use crate::handlers::generations::NotedRun;

/// How much is put together before it is handed on, if that much is ready.
const MAX_FRAME_BYTES: usize = 16 * 1024;

/// The body.
pub(crate) struct SseBody {
    noted: Option<NotedRun>,
    dialect: Dialect,
    head: AnswerHead,
    keep_alive: Duration,
    last_sent: Instant,
    /// Goes off at the earliest moment at which a comment may be due.
    timer: Pin<Box<Sleep>>,
}

impl SseBody {
    pub(crate) fn new(noted: NotedRun, dialect: Dialect, head: AnswerHead, keep_alive: Duration) -> Self {
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + keep_alive));
        SseBody { noted: Some(noted), dialect, head, keep_alive, last_sent: now, timer }
    }

    /// Appends whatever is ready.
    fn take_ready(&mut self, context: &mut Context<'_>, frame: &mut String) {
        while frame.len() < MAX_FRAME_BYTES {
            let Some(noted) = &mut self.noted else { return };
            let Poll::Ready(event) = Pin::new(&mut noted.run).poll_next(context) else { return };
            let is_last = matches!(event, None | Some(GenerationEvent::Done(_) | GenerationEvent::Failed(_)));
            let so_far = noted.run.usage();
            for chunk in event.iter().flat_map(|event| self.dialect.chunks(&self.head, event, so_far)) {
                frame.push_str("data: ");
                frame.push_str(&chunk);
                frame.push_str("\n\n");
            }
            if is_last {
                frame.push_str("data: [DONE]\n\n");
                self.noted = None;
            }
        }
    }

    /// Whether nothing has been sent for so long that a comment is due. Registers for the next look.
    fn is_silent(&mut self, context: &mut Context<'_>) -> bool {
        while self.timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let is_due = now >= self.last_sent + self.keep_alive;
            let next = if is_due { now } else { self.last_sent } + self.keep_alive;
            self.timer.as_mut().reset(next);
            if is_due {
                return true;
            }
        }
        false
    }
}

impl HttpBody for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let mut frame = String::new();
        self.take_ready(context, &mut frame);
        if frame.is_empty() {
            if self.noted.is_none() {
                return Poll::Ready(None);
            }
            if !self.is_silent(context) {
                return Poll::Pending;
            }
            frame.push_str(": keep-alive\n\n");
        }
        self.last_sent = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(frame.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.noted.is_none()
    }
}
