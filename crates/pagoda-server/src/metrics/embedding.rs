//! The embedding model's figures, under its own name and apart from the chat model's: neither hides in the other's sums.

use std::borrow::Cow;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds from a request's text to its vectors.
const REQUEST_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Counted while embedding requests run.
pub(crate) struct EmbeddingMetrics {
    pub(super) registry: Registry,
    pub(crate) requests: Counter,
    pub(crate) inputs: Counter,
    pub(crate) tokens: Counter,
    pub(crate) passes: Counter,
    pub(crate) rejections: Counter,
    pub(crate) request_seconds: Histogram,
    queued_inputs: Gauge,
}

/// Texts that are counted as waiting until this is dropped.
pub(crate) struct QueuedInputs {
    gauge: Gauge,
    num_inputs: i64,
}

impl EmbeddingMetrics {
    pub(crate) fn new(model_name: &str) -> Self {
        let labels = [(Cow::Borrowed("model_name"), Cow::Owned(model_name.to_owned()))];
        let mut metrics = EmbeddingMetrics {
            registry: Registry::with_labels(labels.into_iter()),
            requests: Counter::default(),
            inputs: Counter::default(),
            tokens: Counter::default(),
            passes: Counter::default(),
            rejections: Counter::default(),
            request_seconds: Histogram::new(REQUEST_BUCKETS),
            queued_inputs: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let counters = [
            ("pagoda:embedding_requests", "Embedding requests answered", &self.requests),
            ("pagoda:embedding_inputs", "Texts embedded", &self.inputs),
            ("pagoda:embedding_tokens", "Tokens embedded, without padding", &self.tokens),
            ("pagoda:embedding_passes", "Batches run", &self.passes),
            ("pagoda:embedding_rejections", "Requests refused by a full queue", &self.rejections),
        ];
        for (name, help, counter) in counters {
            self.registry.register(name, help, counter.clone());
        }
        self.registry.register(
            "pagoda:embedding_queued_inputs",
            "Texts that wait or run",
            self.queued_inputs.clone(),
        );
        self.registry.register(
            "pagoda:embedding_request_seconds",
            "From a request's text to its vectors",
            self.request_seconds.clone(),
        );
    }

    /// `num_inputs` texts wait from now on.
    pub(crate) fn queued(&self, num_inputs: usize) -> QueuedInputs {
        let num_inputs = i64::try_from(num_inputs).unwrap_or(i64::MAX);
        self.queued_inputs.inc_by(num_inputs);
        QueuedInputs { gauge: self.queued_inputs.clone(), num_inputs }
    }
}

impl Drop for QueuedInputs {
    fn drop(&mut self) {
        self.gauge.dec_by(self.num_inputs);
    }
}
