//! What is known of a connection's progress: which phase it is in and since when, whether its reader takes anything, and
//! what was read ahead. Shared by the socket, the service and the timer, which all run in the connection's task.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use tokio::io::ReadBuf;
use tokio::time::Instant;

use crate::ConnectionLimits;

/// What the connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The first byte of the first request.
    FirstByte,
    /// The rest of a request's head.
    Head,
    /// A request is being answered; its own limits count.
    Exchange,
    /// The next request.
    Idle,
}

#[derive(Debug)]
struct Activity {
    phase: Phase,
    since: Instant,
    /// Since when the peer has taken nothing although there is something to take.
    write_blocked_since: Option<Instant>,
    /// The reader is being cut off: what it has not read is of no use to it.
    is_cut: bool,
    /// Whether the machinery waits for bytes itself, as of the current turn.
    is_reading: bool,
    /// Bytes behind the request that is being answered.
    ahead: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct SharedActivity(Arc<Mutex<Activity>>);

impl SharedActivity {
    pub(crate) fn new() -> Self {
        SharedActivity(Arc::new(Mutex::new(Activity {
            phase: Phase::FirstByte,
            since: Instant::now(),
            write_blocked_since: None,
            is_cut: false,
            is_reading: false,
            ahead: Vec::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        // Held for a few assignments, which cannot panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self, phase: Phase) {
        let mut activity = self.lock();
        activity.phase = phase;
        activity.since = Instant::now();
    }

    /// When the connection will have waited too long.
    pub(crate) fn deadline(&self, limits: &ConnectionLimits) -> Option<Instant> {
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
    pub(crate) fn is_answering(&self) -> bool {
        let activity = self.lock();
        activity.phase == Phase::Exchange || activity.write_blocked_since.is_some()
    }

    /// Whether the head of a request is on its way.
    pub(crate) fn awaits_head(&self) -> bool {
        self.lock().phase == Phase::Head
    }

    /// The reader is being cut off.
    pub(crate) fn cut(&self) {
        self.lock().is_cut = true;
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.lock().is_cut
    }

    /// Bytes have come in for the machinery.
    pub(crate) fn note_arrival(&self) {
        let phase = self.lock().phase;
        if matches!(phase, Phase::FirstByte | Phase::Idle) {
            self.enter(Phase::Head);
        }
    }

    /// Passes on the result of a write, and notes whether the peer takes anything.
    pub(crate) fn noted_write<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let mut activity = self.lock();
        match &written {
            Poll::Ready(_) => activity.write_blocked_since = None,
            Poll::Pending => {
                activity.write_blocked_since.get_or_insert_with(Instant::now);
            }
        }
        written
    }

    /// The machinery is about to take its turn.
    pub(crate) fn begin_turn(&self) {
        self.lock().is_reading = false;
    }

    /// The machinery waits for bytes itself.
    pub(crate) fn note_reading(&self) {
        self.lock().is_reading = true;
    }

    /// Whether a request is being answered while nobody would see its client leave.
    pub(crate) fn wants_look_ahead(&self, max_bytes: usize) -> bool {
        let activity = self.lock();
        activity.phase == Phase::Exchange && !activity.is_reading && activity.ahead.len() < max_bytes
    }

    /// Keeps what was read ahead.
    pub(crate) fn keep_ahead(&self, bytes: &[u8]) {
        self.lock().ahead.extend_from_slice(bytes);
    }

    /// Hands over what was read ahead; false if there is nothing.
    pub(crate) fn take_ahead(&self, buffer: &mut ReadBuf<'_>) -> bool {
        let mut activity = self.lock();
        let num = activity.ahead.len().min(buffer.remaining());
        buffer.put_slice(&activity.ahead[..num]);
        activity.ahead.drain(..num);
        num > 0
    }
}
