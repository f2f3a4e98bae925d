//! The step loop.

use crate::*;

/// What one call of [`Engine::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// A step was launched or committed.
    Progressed,
    /// There is nothing to do.
    Idle,
    /// The executor failed for good.
    Stopped,
}

/// What the engine has to say about a request.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent<X> {
    /// For the request's stream.
    Request(RequestId, RequestEvent<X>),
    /// The request is over; nothing follows.
    Ended(RequestId),
}

/// The engine.
pub struct Engine<E: Executor> {
    events: Vec<EngineEvent<E::Extra>>,
    limits: RequestLimits,
    _executor: E,
}

impl<E: Executor> Engine<E> {
    /// An idle engine.
    pub fn new(config: EngineConfig, executor: E) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Engine { events: Vec::new(), limits: RequestLimits::new(&config), _executor: executor })
    }
    /// Accepts a request.
    pub fn add_request(&mut self, id: RequestId, request: Request) -> Result<(), SubmitError> {
        self.limits.check(&request)?;
        self.events.push(EngineEvent::Request(id, RequestEvent::Failed(RequestError::EngineStopped)));
        self.events.push(EngineEvent::Ended(id));
        Ok(())
    }
    /// One step.
    pub fn step(&mut self) -> StepOutcome {
        StepOutcome::Idle
    }
    /// Ends one sequence.
    pub fn finish_sequence(&mut self, _id: RequestId, _sample_index: u32) {}
    /// Ends a request.
    pub fn abort(&mut self, _id: RequestId) {}
    /// Fails every request.
    pub fn fail_all(&mut self, _error: RequestError) {}
    /// Nothing to do.
    pub fn is_idle(&self) -> bool {
        true
    }
    /// Events since the last call.
    pub fn take_events(&mut self) -> Vec<EngineEvent<E::Extra>> {
        std::mem::take(&mut self.events)
    }
    /// Panics if a law is broken.
    pub fn assert_integrity(&self) {}
    /// Checks every law.
    pub fn check_integrity(&self) -> Result<IntegrityReport, IntegrityError> {
        Err(IntegrityError::EngineStopped)
    }
    /// Counters.
    pub fn stats(&self) -> EngineStats {
        EngineStats::default()
    }
}
