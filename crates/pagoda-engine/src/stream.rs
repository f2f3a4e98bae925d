//! A request's way back: the stream of its events. Dropping it aborts what is left of the request.

use std::fmt;
use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, ready};

use futures_channel::mpsc::UnboundedReceiver;
use futures_core::Stream;

use crate::handle::Command;
use crate::{RequestError, RequestEvent, RequestId};

/// What travels from the engine thread to the stream. A channel that closes without `End` means that the engine died.
pub(crate) enum Message<X> {
    /// Something happened.
    Event(RequestEvent<X>),
    /// Every sequence has ended.
    End,
}

/// The events of one request, in order. Ends after every sequence has finished, or after [`RequestEvent::Failed`].
/// Unbounded in itself, bounded by `max_tokens` in practice: the engine never waits for a client.
pub struct RequestStream<X> {
    id: RequestId,
    receiver: UnboundedReceiver<Message<X>>,
    commands: Sender<Command<X>>,
    is_ended: bool,
}

impl<X> RequestStream<X> {
    pub(crate) fn new(
        id: RequestId,
        receiver: UnboundedReceiver<Message<X>>,
        commands: Sender<Command<X>>,
    ) -> Self {
        RequestStream { id, receiver, commands, is_ended: false }
    }

    /// The engine's name for the request.
    pub fn request_id(&self) -> RequestId {
        self.id
    }

    /// Ends one of the request's sequences: the server saw a stop string. Its blocks are freed at the next step; tokens
    /// that are on their way may still arrive. The stream ends when no sequence is left.
    pub fn finish_sequence(&self, sample_index: u32) {
        // A stopped engine has nothing left to finish.
        let _ = self.commands.send(Command::FinishSequence { id: self.id, sample_index });
    }
}

impl<X> fmt::Debug for RequestStream<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream")
            .field("id", &self.id)
            .field("is_ended", &self.is_ended)
            .finish_non_exhaustive()
    }
}

impl<X> Stream for RequestStream<X> {
    type Item = RequestEvent<X>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<RequestEvent<X>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let event = match ready!(Pin::new(&mut self.receiver).poll_next(context)) {
            Some(Message::Event(event)) => Some(event),
            Some(Message::End) => None,
            None => Some(RequestEvent::Failed(RequestError::EngineStopped)),
        };
        self.is_ended = matches!(event, None | Some(RequestEvent::Failed(_)));
        Poll::Ready(event)
    }
}

impl<X> Drop for RequestStream<X> {
    fn drop(&mut self) {
        if !self.is_ended {
            // A stopped engine has nothing left to abort.
            let _ = self.commands.send(Command::Abort { id: self.id });
        }
    }
}
