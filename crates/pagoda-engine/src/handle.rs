//! The door to the engine thread for everyone else: submit, look at numbers, drain. Never blocks; owns no engine state.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use futures_channel::mpsc::{UnboundedSender, unbounded};
use futures_channel::oneshot;

use crate::stats::StatsCell;
use crate::stream::Message;
use crate::thread::EngineThread;
use crate::{
    ConfigError, Engine, EngineConfig, EngineStats, Executor, IntegrityError, IntegrityReport, Request,
    RequestId, RequestLimits, RequestStream, SubmitError,
};

/// Whether the engine takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineState {
    /// It does.
    Running,
    /// It finishes what it has accepted.
    Draining,
    /// It never will again: a broken invariant, a lost device, or every handle was dropped.
    Stopped,
}

/// What other threads ask of the engine thread.
pub(crate) enum Command<X> {
    Submit {
        id: RequestId,
        request: Request,
        events: UnboundedSender<Message<X>>,
    },
    FinishSequence {
        id: RequestId,
        sample_index: u32,
    },
    Abort {
        id: RequestId,
    },
    AbortAll,
    CheckIntegrity {
        answer: oneshot::Sender<Result<IntegrityReport, IntegrityError>>,
    },
    /// The sender is dropped when the thread ends.
    WatchEnd {
        end: oneshot::Sender<Infallible>,
    },
}

/// What the engine thread and the handles share.
pub(crate) struct Shared {
    limits: RequestLimits,
    state: AtomicU8,
    next_request_id: AtomicU64,
    /// Sequences that wait for their first step, those on their way through the command channel included. Reserved
    /// before a request is sent, so that the limit holds at every moment.
    num_queued: AtomicUsize,
    /// Requests accepted and not yet ended.
    num_unfinished: AtomicUsize,
    pub(crate) stats: StatsCell,
}

impl Shared {
    pub(crate) fn state(&self) -> EngineState {
        match self.state.load(Ordering::SeqCst) {
            0 => EngineState::Running,
            1 => EngineState::Draining,
            _ => EngineState::Stopped,
        }
    }

    /// States only go forward.
    fn advance_state(&self, state: EngineState) {
        self.state.fetch_max(state as u8, Ordering::SeqCst);
    }

    pub(crate) fn stop(&self) {
        self.advance_state(EngineState::Stopped);
    }

    fn reserve_queue(&self, num_sequences: usize) -> Result<(), SubmitError> {
        let max_queued_requests = self.limits.max_queued_requests;
        let reserve =
            |queued: usize| (queued + num_sequences <= max_queued_requests).then_some(queued + num_sequences);
        match self.num_queued.fetch_update(Ordering::SeqCst, Ordering::SeqCst, reserve) {
            Ok(_) => Ok(()),
            Err(num_queued) => Err(SubmitError::QueueFull { num_queued, max_queued_requests }),
        }
    }

    pub(crate) fn release_queue(&self, num_sequences: usize) {
        self.num_queued.fetch_sub(num_sequences, Ordering::SeqCst);
    }

    pub(crate) fn release_request(&self) {
        self.num_unfinished.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A handle to a running engine. The engine stops when the last handle and the last stream are gone.
pub struct EngineHandle<X> {
    shared: Arc<Shared>,
    commands: Sender<Command<X>>,
}

impl<X> Clone for EngineHandle<X> {
    fn clone(&self) -> Self {
        EngineHandle { shared: Arc::clone(&self.shared), commands: self.commands.clone() }
    }
}

impl<X> fmt::Debug for EngineHandle<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle").field("state", &self.shared.state()).finish_non_exhaustive()
    }
}

impl<X: Send + 'static> EngineHandle<X> {
    /// Starts the thread `pagoda-engine`, which owns the engine from then on. It parks while there is nothing to do.
    pub fn spawn<E>(config: EngineConfig, executor: E) -> Result<Self, ConfigError>
    where
        E: Executor<Extra = X> + 'static,
    {
        let shared = Arc::new(Shared {
            limits: RequestLimits::new(&config),
            state: AtomicU8::new(EngineState::Running as u8),
            next_request_id: AtomicU64::new(0),
            num_queued: AtomicUsize::new(0),
            num_unfinished: AtomicUsize::new(0),
            stats: StatsCell::new(),
        });
        let engine = Engine::new(config, executor)?;
        shared.stats.publish(engine.stats());
        let (commands, receiver) = channel();
        let thread = EngineThread::new(engine, receiver, Arc::clone(&shared));
        std::thread::Builder::new()
            .name("pagoda-engine".into())
            .spawn(move || thread.run())
            .expect("the process may start one thread at start-up");
        Ok(EngineHandle { shared, commands })
    }

    /// Hands a request to the engine, or says at once why not. Never blocks.
    pub fn submit(&self, request: Request) -> Result<RequestStream<X>, SubmitError> {
        self.shared.limits.check(&request)?;
        let num_sequences = request.num_sequences as usize;
        // Counted before the state is looked at: whoever drains and then sees no unfinished request can be sure that
        // none slips in.
        self.shared.num_unfinished.fetch_add(1, Ordering::SeqCst);
        let accepted = self.accepting().and_then(|()| self.shared.reserve_queue(num_sequences));
        if let Err(error) = accepted {
            self.shared.release_request();
            return Err(error);
        }
        let id = RequestId(self.shared.next_request_id.fetch_add(1, Ordering::SeqCst));
        let (events, receiver) = unbounded();
        let stream = RequestStream::new(id, receiver, self.commands.clone());
        if self.commands.send(Command::Submit { id, request, events }).is_err() {
            self.shared.release_queue(num_sequences);
            self.shared.release_request();
            return Err(SubmitError::Stopped);
        }
        Ok(stream)
    }

    fn accepting(&self) -> Result<(), SubmitError> {
        match self.shared.state() {
            EngineState::Running => Ok(()),
            EngineState::Draining => Err(SubmitError::Draining),
            EngineState::Stopped => Err(SubmitError::Stopped),
        }
    }

    /// What a request must respect; [`EngineHandle::submit`] checks it too.
    pub fn limits(&self) -> RequestLimits {
        self.shared.limits
    }

    /// The numbers after the last step. Reads a few atomics.
    pub fn stats(&self) -> EngineStats {
        let mut stats = self.shared.stats.read();
        if self.state() == EngineState::Stopped {
            // Whatever ran when the engine died runs no more.
            stats.num_requests_running = 0;
        }
        // Requests on their way through the channel wait too.
        stats.num_requests_waiting =
            (self.num_unfinished() as u64).saturating_sub(stats.num_requests_running);
        stats
    }

    /// Whether the engine takes requests.
    pub fn state(&self) -> EngineState {
        self.shared.state()
    }

    /// Refuses new requests from now on and finishes the accepted ones; [`EngineHandle::num_unfinished`] tells when.
    pub fn drain(&self) {
        self.shared.advance_state(EngineState::Draining);
    }

    /// Ends everything in flight with [`crate::RequestError::EngineStopped`].
    pub fn abort_all(&self) {
        // A stopped engine has nothing in flight.
        let _ = self.commands.send(Command::AbortAll);
    }

    /// Requests accepted and not yet ended, waiting or running. 0 once the engine has stopped.
    pub fn num_unfinished(&self) -> usize {
        match self.state() {
            EngineState::Stopped => 0,
            EngineState::Running | EngineState::Draining => self.shared.num_unfinished.load(Ordering::SeqCst),
        }
    }

    /// Sequences that wait for their first step; never above `max_queued_requests`.
    pub fn num_queued(&self) -> usize {
        self.shared.num_queued.load(Ordering::SeqCst)
    }

    /// Ready when the engine thread has ended: the device is lost, an invariant is broken, or nobody holds a handle any more.
    /// Every stream has had its last event by then. Does not keep the engine running.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static + use<X> {
        let (end, receiver) = oneshot::channel();
        // An engine that has ended drops the command, and with it the sender.
        let _ = self.commands.send(Command::WatchEnd { end });
        async move {
            // Only ever an error, since nothing can be sent.
            let _ = receiver.await;
        }
    }

    /// Checks every law on the engine thread, between two steps.
    pub fn check_integrity(
        &self,
    ) -> impl Future<Output = Result<IntegrityReport, IntegrityError>> + Send + 'static + use<X> {
        let (answer, receiver) = oneshot::channel();
        // If the engine has stopped, the command and with it the answer's sender is dropped, which the future sees.
        let _ = self.commands.send(Command::CheckIntegrity { answer });
        async move { receiver.await.unwrap_or(Err(IntegrityError::EngineStopped)) }
    }
}
