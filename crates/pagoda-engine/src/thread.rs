//! The engine thread: takes commands between steps, steps while there is work, parks while there is none, and hands every
//! event to its stream. If the engine panics, every stream ends with an error and the handle says `Stopped`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use futures_channel::mpsc::UnboundedSender;
use futures_channel::oneshot;

use crate::handle::{Command, Shared};
use crate::stream::Message;
use crate::{Engine, EngineEvent, Executor, Request, RequestError, RequestEvent, RequestId, StepOutcome};

/// How long nothing must come in before an idle engine checks all laws: a check reads every block (a millisecond on a large
/// pool), which a client that asks again at once should not wait for. Debug builds check at once.
const PATIENCE: Duration = if cfg!(debug_assertions) { Duration::ZERO } else { Duration::from_millis(20) };

/// The way to one request's stream.
struct Client<X> {
    events: UnboundedSender<Message<X>>,
    /// Places in the queue that the request takes until its first step.
    num_queued: usize,
}

/// Owns the engine for the life of the thread.
pub(crate) struct EngineThread<E: Executor> {
    engine: Engine<E>,
    commands: Receiver<Command<E::Extra>>,
    clients: HashMap<RequestId, Client<E::Extra>>,
    shared: Arc<Shared>,
    /// Told of the thread's end by being dropped.
    watchers: Vec<oneshot::Sender<Infallible>>,
}

impl<E: Executor> EngineThread<E> {
    pub(crate) fn new(engine: Engine<E>, commands: Receiver<Command<E::Extra>>, shared: Arc<Shared>) -> Self {
        EngineThread { engine, commands, clients: HashMap::new(), shared, watchers: Vec::new() }
    }

    /// Serves until every handle is gone or the engine cannot go on.
    pub(crate) fn run(mut self) {
        // The engine's state is not used after a panic, only the channels are, hence AssertUnwindSafe.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.serve()));
        if outcome.is_err() {
            tracing::error!("the engine panicked; every request ends with an error and no new one is taken");
        }
        self.shared.stop();
        for (_, client) in self.clients.drain() {
            // A client that is gone needs no answer.
            let _ = client
                .events
                .unbounded_send(Message::Event(RequestEvent::Failed(RequestError::EngineStopped)));
        }
        // The executor's state may be broken as well; its destructor must not take the process down.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(self)));
    }

    fn serve(&mut self) {
        loop {
            if self.engine.is_idle() {
                match self.next_command() {
                    Some(command) => self.obey(command),
                    None => return,
                }
            }
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
            let plan = self.engine.plan_step();
            // Before the step is computed: its requests wait no longer, and the blocks for it are held.
            self.publish();
            let outcome = self.engine.run_step(plan);
            self.publish();
            if outcome == StepOutcome::Stopped {
                return;
            }
        }
    }

    /// Parks until there is something to do; `None` if every handle and every stream is gone. Checks all laws when the
    /// engine has come to rest.
    fn next_command(&self) -> Option<Command<E::Extra>> {
        match self.commands.recv_timeout(PATIENCE) {
            Ok(command) => return Some(command),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => self.engine.assert_integrity(),
        }
        self.commands.recv().ok()
    }

    fn obey(&mut self, command: Command<E::Extra>) {
        match command {
            Command::Submit { id, request, events } => self.accept(id, request, events),
            Command::FinishSequence { id, sample_index } => self.engine.finish_sequence(id, sample_index),
            Command::Abort { id } => self.engine.abort(id),
            Command::AbortAll => self.engine.fail_all(RequestError::EngineStopped),
            Command::WatchEnd { end } => self.watchers.push(end),
            Command::CheckIntegrity { answer } => {
                // Whoever asked may be gone.
                let _ = answer.send(self.engine.check_integrity());
            }
        }
        self.publish();
    }

    /// The numbers first, so that a client who has seen its end finds them up to date.
    fn publish(&mut self) {
        self.shared.stats.publish(self.engine.stats());
        self.forward_events();
    }

    fn accept(&mut self, id: RequestId, request: Request, events: UnboundedSender<Message<E::Extra>>) {
        self.clients.insert(id, Client { events, num_queued: request.num_sequences as usize });
        self.engine.add_request(id, request).expect("submit has checked the request against the limits");
    }

    fn forward_events(&mut self) {
        for event in self.engine.take_events() {
            match event {
                EngineEvent::Request(id, event) => {
                    let client =
                        self.clients.get_mut(&id).expect("a request has a client until it has ended");
                    if matches!(event, RequestEvent::Scheduled { .. }) {
                        self.shared.release_queue(std::mem::take(&mut client.num_queued));
                    }
                    // A client that is gone has sent an abort.
                    let _ = client.events.unbounded_send(Message::Event(event));
                }
                EngineEvent::Ended(id) => {
                    let client = self.clients.remove(&id).expect("a request ends once");
                    self.shared.release_queue(client.num_queued);
                    // Released first, so that a client that has seen the end finds itself no longer counted.
                    self.shared.release_request();
                    let _ = client.events.unbounded_send(Message::End);
                }
            }
        }
    }
}
