//! The tokens of the engine's steps as a histogram. The engine counts its steps by size; they are written in the form of a
//! histogram when somebody asks.

use std::sync::{Arc, Mutex, PoisonError};

use pagoda_engine::{EngineStats, STEP_SIZES};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// The engine's figures of the last scrape.
#[derive(Clone, Debug, Default)]
pub(super) struct StepSizes(Arc<Mutex<EngineStats>>);

impl StepSizes {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("vllm:iteration_tokens_total", "Tokens computed in a step", self.clone());
    }

    pub(super) fn update(&self, stats: &EngineStats) {
        // The lock is held for an assignment, which cannot panic.
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Two scrapes at the same time must not make it go back.
        if stats.num_steps >= latest.num_steps {
            *latest = *stats;
        }
    }
}

impl EncodeMetric for StepSizes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stats = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The encoder adds the counts up.
        let bounds = STEP_SIZES.iter().map(|&bound| bound as f64).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(stats.num_steps_by_size).collect();
        let sum = stats.num_scheduled_tokens as f64;
        encoder.encode_histogram::<NoLabelSet>(sum, stats.num_steps, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn steps_are_written_as_a_cumulative_histogram() {
        let mut registry = Registry::default();
        let sizes = StepSizes::default();
        sizes.register(&mut registry);
        let mut stats = EngineStats { num_steps: 3, num_scheduled_tokens: 10_010, ..EngineStats::default() };
        stats.num_steps_by_size[0] = 1;
        stats.num_steps_by_size[2] = 1;
        *stats.num_steps_by_size.last_mut().unwrap() = 1;
        sizes.update(&stats);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE vllm:iteration_tokens_total histogram",
            "vllm:iteration_tokens_total_sum 10010.0",
            "vllm:iteration_tokens_total_count 3",
            "vllm:iteration_tokens_total_bucket{le=\"1.0\"} 1",
            "vllm:iteration_tokens_total_bucket{le=\"8.0\"} 1",
            "vllm:iteration_tokens_total_bucket{le=\"16.0\"} 2",
            "vllm:iteration_tokens_total_bucket{le=\"+Inf\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in {text}");
        }
    }
}
