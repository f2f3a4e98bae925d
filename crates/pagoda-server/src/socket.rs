//! The socket of one connection, between the operating system and the HTTP machinery: notes what moves, looks ahead while an
//! answer is being made, and gives the machinery's own refusals the form of the API's errors.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::activity::SharedActivity;
use crate::refusal;

/// Bytes behind a request that are read before it has been answered. Whoever sends more is not watched any further; the
/// next write notices that he has gone.
const MAX_BYTES_AHEAD: usize = 64 * 1024;

/// A socket that notes what moves.
pub(crate) struct TimedSocket {
    inner: Arc<TcpStream>,
    activity: SharedActivity,
    /// A refusal that is being written in the place of the machinery's bare one: its bytes, how many are gone, and how
    /// many bytes the machinery believes to write.
    refusal: Option<(Vec<u8>, usize, usize)>,
}

impl TimedSocket {
    pub(crate) fn new(inner: Arc<TcpStream>, activity: SharedActivity) -> Self {
        TimedSocket { inner, activity, refusal: None }
    }

    fn poll_write_inner(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.inner.poll_write_ready(context))?;
            match self.inner.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// Writes the refusal that takes the place of `bytes`, if they are one.
    fn poll_refusal(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.refusal.is_none() && self.activity.awaits_head() {
            self.refusal = refusal::in_our_words(bytes).map(|ours| (ours, 0, bytes.len()));
        }
        let (ours, mut num_gone, num_claimed) = self.refusal.take()?;
        while num_gone < ours.len() {
            match self.poll_write_inner(context, &ours[num_gone..]) {
                Poll::Ready(Ok(num)) => num_gone += num,
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => {
                    self.refusal = Some((ours, num_gone, num_claimed));
                    return Some(Poll::Pending);
                }
            }
        }
        Some(Poll::Ready(Ok(num_claimed)))
    }
}

/// While an answer is being made and the machinery does not read, reads on in its place: the only way to see that a
/// client has gone that had sent more than its request. True if it has.
pub(crate) fn has_left(stream: &TcpStream, activity: &SharedActivity, context: &mut Context<'_>) -> bool {
    let mut bytes = [0; 4096];
    while activity.wants_look_ahead(MAX_BYTES_AHEAD) {
        match stream.poll_read_ready(context) {
            Poll::Pending => return false,
            Poll::Ready(Err(_)) => return true,
            Poll::Ready(Ok(())) => {}
        }
        match stream.try_read(&mut bytes) {
            Ok(0) => return true,
            Ok(num) => activity.keep_ahead(&bytes[..num]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
    }
    false
}

impl AsyncRead for TimedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.activity.take_ahead(buffer) {
            loop {
                if self.inner.poll_read_ready(context)?.is_pending() {
                    self.activity.note_reading();
                    return Poll::Pending;
                }
                match self.inner.try_read(buffer.initialize_unfilled()) {
                    Ok(num) => {
                        buffer.advance(num);
                        if num == 0 {
                            return Poll::Ready(Ok(()));
                        }
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        }
        self.activity.note_arrival();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TimedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let refused = self.poll_refusal(context, bytes);
        let written = refused.unwrap_or_else(|| self.poll_write_inner(context, bytes));
        self.activity.noted_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [head] = slices
            && let Some(written) = self.poll_refusal(context, head)
        {
            return self.activity.noted_write(written);
        }
        let written = loop {
            match self.inner.poll_write_ready(context)? {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(()) => {}
            }
            match self.inner.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => break Poll::Ready(written),
            }
        };
        self.activity.noted_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket keeps nothing back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.inner).shutdown(std::net::Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Drop for TimedSocket {
    fn drop(&mut self) {
        if self.activity.is_cut() {
            // A reset: an answer that was cut must not look like one that ended.
            let _ = SockRef::from(&*self.inner).set_linger(Some(Duration::ZERO));
        }
    }
}
