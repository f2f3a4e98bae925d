//! What all routes share: the configuration, the model once it is there, and whether the server is on its way out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use pagoda_engine::EngineState;
use tokio::sync::watch;

use crate::ServerConfig;
use crate::embedding::Embeddings;
use crate::error::ApiError;
use crate::model::ServedModel;
use crate::prompt::PromptPool;

/// The state of one server.
pub(crate) struct ServerState {
    pub(crate) config: ServerConfig,
    /// Set once, when the model has been loaded.
    pub(crate) model: OnceLock<Arc<ServedModel>>,
    /// Set once, at start, if there is an embedding model.
    pub(crate) embeddings: OnceLock<Arc<Embeddings>>,
    is_draining: AtomicBool,
    /// Exchanges whose answer has not left completely.
    pub(crate) num_in_flight: watch::Sender<usize>,
    pub(crate) prompts: PromptPool,
    progress: Mutex<Progress>,
    /// Seconds since 1970 at start, for `created` of the model card.
    pub(crate) started_at: u64,
}

/// What the health routes saw of the engine when they last looked.
struct Progress {
    num_steps: u64,
    has_work: bool,
    /// The first look in a row that saw the same work at the same step.
    since: Instant,
}

impl Progress {
    /// Takes the next look; for how long there has been work without a step. The time before the first look that saw
    /// work does not count: the engine was idle as far as anyone knows.
    fn look(&mut self, num_steps: u64, has_work: bool, now: Instant) -> Duration {
        if !has_work || !self.has_work || num_steps != self.num_steps {
            *self = Progress { num_steps, has_work, since: now };
        }
        now.duration_since(self.since)
    }
}

/// Whether requests can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    Loading,
    Draining,
    Stopped,
    /// There is work, and no step has ended for longer than `stall_timeout`.
    Stalled,
}

impl Readiness {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Readiness::Ready => "ready",
            Readiness::Loading => "the model is loading",
            Readiness::Draining => "the server is draining",
            Readiness::Stopped => "the engine has stopped",
            Readiness::Stalled => "the engine makes no progress",
        }
    }
}

impl ServerState {
    pub(crate) fn new(config: ServerConfig) -> Self {
        ServerState {
            model: OnceLock::new(),
            embeddings: OnceLock::new(),
            is_draining: AtomicBool::new(false),
            num_in_flight: watch::Sender::new(0),
            prompts: PromptPool::new(
                config.requests.max_concurrent_prompts,
                config.requests.max_waiting_prompts,
                config.drain.retry_after,
            ),
            progress: Mutex::new(Progress { num_steps: 0, has_work: false, since: Instant::now() }),
            started_at: unix_seconds(),
            config,
        }
    }

    /// The model, or the 503 that says why there is none to use.
    pub(crate) fn serving_model(&self) -> Result<Arc<ServedModel>, ApiError> {
        match (self.model.get(), self.availability()) {
            (Some(model), Readiness::Ready) => Ok(Arc::clone(model)),
            (_, readiness) => Err(self.unavailable(readiness)),
        }
    }

    pub(crate) fn unavailable(&self, readiness: Readiness) -> ApiError {
        ApiError::Unavailable { reason: readiness.reason(), retry_after: self.config.drain.retry_after }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::SeqCst)
    }

    /// Refuses everything new from now on.
    pub(crate) fn start_draining(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
        if let Some(model) = self.model.get() {
            model.engine.drain();
        }
    }

    /// Whether a request would be taken now.
    fn availability(&self) -> Readiness {
        if self.is_draining() {
            return Readiness::Draining;
        }
        match self.model.get().map(|model| model.engine.state()) {
            None => Readiness::Loading,
            Some(EngineState::Running) => Readiness::Ready,
            Some(EngineState::Draining) => Readiness::Draining,
            Some(EngineState::Stopped) => Readiness::Stopped,
        }
    }

    /// For the health routes: also looks at whether steps go on while there is work.
    pub(crate) fn readiness(&self, now: Instant) -> Readiness {
        let (readiness, Some(model)) = (self.availability(), self.model.get()) else {
            return self.availability();
        };
        let stats = model.engine.stats();
        let has_work = stats.num_requests_running + stats.num_requests_waiting > 0;
        // The lock is held for a few assignments; nothing in them can panic.
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let standstill = progress.look(stats.num_steps, has_work, now);
        let is_stalled = standstill > self.config.requests.stall_timeout;
        if readiness == Readiness::Ready && is_stalled { Readiness::Stalled } else { readiness }
    }

    /// Whether the client's name for the model is one of ours. No name means the model that there is, and so does any
    /// name where the configuration says so.
    pub(crate) fn check_model_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        let names = &self.config.served_model_names;
        match name {
            Some(name) if !self.config.accept_any_model && !names.iter().any(|known| known == name) => {
                Err(ApiError::UnknownModel)
            }
            _ => Ok(()),
        }
    }

    /// The name that answers report when the client gave none.
    pub(crate) fn model_name(&self) -> &str {
        &self.config.served_model_names[0]
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_was_seen_to_stand_still_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut progress = Progress { num_steps: 0, has_work: false, since: start };
        // A long idle time is no standstill, nor is work that has just arrived.
        assert_eq!(progress.look(0, false, at(100)), Duration::ZERO);
        assert_eq!(progress.look(0, true, at(1_000)), Duration::ZERO);
        assert_eq!(progress.look(0, true, at(1_031)), Duration::from_secs(31));
        assert_eq!(progress.look(1, true, at(1_040)), Duration::ZERO);
        assert_eq!(progress.look(1, false, at(1_050)), Duration::ZERO);
        assert_eq!(progress.look(1, true, at(2_000)), Duration::ZERO);
    }
}
