//! The embedding model beside the chat model: loaded at the first request, then fed through a queue of its own. Knows
//! neither files nor the model's insides: the binary hands in how it is loaded, and what was loaded brings its function.

mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagoda_text::Tokenizer;
use tokio::sync::watch;

use crate::error::ApiError;
use crate::metrics::EmbeddingMetrics;

pub(crate) use queue::EmbeddingQueue;

/// Why something that the binary handed in did not work; for the log.
pub type EmbeddingError = Box<dyn std::error::Error + Send + Sync>;

/// Token ids of several texts to one vector of length 1 for each, in order.
pub type EmbedFunction = Box<dyn FnMut(&[Vec<u32>]) -> Result<Vec<Vec<f32>>, EmbeddingError> + Send>;

/// Fetches and loads the embedding model.
pub type LoadFunction = Box<dyn Fn() -> Result<LoadedEncoder, EmbeddingError> + Send + Sync>;

/// An embedding model that nobody has asked for yet.
pub struct EmbeddingSource {
    /// The names under which it is listed; the first one is reported. Must not be empty.
    pub names: Vec<String>,
    /// Tokens of the longest text, told by `GET /v1/models` before the model is there.
    pub max_len: usize,
    /// Called at the first request, on a thread of its own, and again after a failure.
    pub load: LoadFunction,
}

/// A loaded embedding model.
pub struct LoadedEncoder {
    /// Its own tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens of the longest text, special tokens included; longer ones are cut.
    pub max_len: usize,
    /// Numbers in a vector.
    pub width: usize,
    /// Ids from here on are unknown to the model.
    pub vocab_size: usize,
    /// The model itself. Called on one thread.
    pub embed: EmbedFunction,
}

/// The embedding model as the server holds it.
pub(crate) struct Embeddings {
    pub(crate) names: Vec<String>,
    pub(crate) max_len: usize,
    pub(crate) metrics: Arc<EmbeddingMetrics>,
    load: LoadFunction,
    state: watch::Sender<LoadState>,
    /// The drain's time is over: nobody waits any longer.
    is_cut: watch::Sender<bool>,
    max_queued_inputs: usize,
    retry_after: Duration,
}

#[derive(Clone)]
enum LoadState {
    NotAskedFor,
    Loading,
    /// Tried again by the first request after `retry_after`.
    Failed(Instant),
    Ready(Arc<Encoder>),
}

/// What a request needs of the loaded model.
pub(crate) struct Encoder {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) max_len: usize,
    pub(crate) width: usize,
    pub(crate) vocab_size: usize,
    pub(crate) queue: EmbeddingQueue,
}

impl Embeddings {
    pub(crate) fn new(source: EmbeddingSource, max_queued_inputs: usize, retry_after: Duration) -> Self {
        let metrics = Arc::new(EmbeddingMetrics::new(&source.names[0]));
        Embeddings {
            names: source.names,
            max_len: source.max_len,
            metrics,
            load: source.load,
            state: watch::Sender::new(LoadState::NotAskedFor),
            is_cut: watch::Sender::new(false),
            max_queued_inputs,
            retry_after,
        }
    }

    /// Whether the model is in memory.
    pub(crate) fn is_loaded(&self) -> bool {
        matches!(*self.state.borrow(), LoadState::Ready(_))
    }

    /// The loaded model. The first caller begins the load, and everyone waits for its end: the load goes on although a
    /// caller goes away.
    pub(crate) async fn encoder(self: &Arc<Self>) -> Result<Arc<Encoder>, ApiError> {
        let mut state = self.state.subscribe();
        if self.state.send_if_modified(|state| state.begin(self.retry_after)) {
            let embeddings = Arc::clone(self);
            let spawned = std::thread::Builder::new()
                .name("embedding-load".into())
                .spawn(move || embeddings.state.send_replace(embeddings.loaded()));
            if let Err(error) = spawned {
                tracing::error!(%error, "the embedding model's load cannot be started");
                self.state.send_replace(LoadState::Failed(Instant::now()));
            }
        }
        let ended = state.wait_for(|state| matches!(state, LoadState::Ready(_) | LoadState::Failed(_))).await;
        match ended.as_deref() {
            Ok(LoadState::Ready(encoder)) => Ok(Arc::clone(encoder)),
            _ => Err(self.unavailable("the embedding model cannot be loaded")),
        }
    }

    fn loaded(&self) -> LoadState {
        let started = Instant::now();
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.load)()));
        let encoder = match loaded {
            Ok(Ok(loaded)) => self.served(loaded),
            Ok(Err(error)) => Err(error),
            Err(_panic) => Err("it panicked".into()),
        };
        match encoder {
            Ok(encoder) => {
                tracing::info!(name = self.names[0], elapsed = ?started.elapsed(), "loaded the embedding model");
                LoadState::Ready(Arc::new(encoder))
            }
            Err(error) => {
                tracing::error!(%error, name = self.names[0], "the embedding model cannot be loaded");
                LoadState::Failed(Instant::now())
            }
        }
    }

    fn served(&self, loaded: LoadedEncoder) -> Result<Encoder, EmbeddingError> {
        let queue = EmbeddingQueue::spawn(loaded.embed, self.max_queued_inputs, Arc::clone(&self.metrics))?;
        Ok(Encoder {
            tokenizer: loaded.tokenizer,
            max_len: loaded.max_len,
            width: loaded.width,
            vocab_size: loaded.vocab_size,
            queue,
        })
    }

    /// Answers everyone who still waits with 503.
    pub(crate) fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// `work`, or the 503 of the end.
    pub(crate) async fn unless_cut<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let mut is_cut = self.is_cut.subscribe();
        tokio::select! {
            result = work => result,
            // The sender lives as long as `self`.
            _ = is_cut.wait_for(|is_cut| *is_cut) => Err(self.unavailable("the server is draining")),
        }
    }

    fn unavailable(&self, reason: &'static str) -> ApiError {
        ApiError::Unavailable { reason, retry_after: self.retry_after }
    }
}

impl LoadState {
    /// Whether a load must begin now; if so it has.
    fn begin(&mut self, retry_after: Duration) -> bool {
        let begins = match self {
            LoadState::NotAskedFor => true,
            LoadState::Failed(at) => at.elapsed() >= retry_after,
            LoadState::Loading | LoadState::Ready(_) => false,
        };
        if begins {
            *self = LoadState::Loading;
        }
        begins
    }
}

impl std::fmt::Debug for EmbeddingSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddingSource")
            .field("names", &self.names)
            .field("max_len", &self.max_len)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LoadedEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadedEncoder")
            .field("max_len", &self.max_len)
            .field("width", &self.width)
            .field("vocab_size", &self.vocab_size)
            .finish_non_exhaustive()
    }
}
