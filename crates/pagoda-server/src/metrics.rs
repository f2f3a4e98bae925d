//! `/metrics`, under the `vllm:` names that dashboards, routers and autoscalers read. Request figures are counted here as
//! they happen; engine figures are copied from the engine's own counters when somebody asks.

mod clock;
mod device;
mod embedding;
mod step_sizes;
mod text;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use pagoda_engine::EngineStats;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::state::unix_seconds;

pub(crate) use clock::RequestClock;
use device::DeviceMetrics;
pub use device::{DeviceReport, FreeBytes};
pub(crate) use embedding::EmbeddingMetrics;
use step_sizes::StepSizes;
pub(crate) use text::Exposition;

/// Seconds a whole request takes.
const REQUEST_BUCKETS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Seconds to the first token.
const FIRST_TOKEN_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens.
const TOKEN_BUCKETS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Sequences per request.
const N_BUCKETS: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// 1, 2, 5, 10, … up to the context window.
fn token_count_buckets(max_model_len: usize) -> Vec<f64> {
    let decades = (0..).map(|exponent| 10u64.pow(exponent));
    let series = decades.flat_map(|decade| [decade, 2 * decade, 5 * decade]);
    series.take_while(|&count| count <= max_model_len as u64).map(|count| count as f64).collect()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishedReason {
    finished_reason: &'static str,
}

/// Why a request waits, was refused, or found no more of its prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WaitingReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheConfig {
    block_size: String,
    num_gpu_blocks: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoraConfig {
    max_lora: &'static str,
    running_lora_adapters: &'static str,
    waiting_lora_adapters: &'static str,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// All metrics of one model.
pub(crate) struct Metrics {
    registry: Registry,
    engine: EngineMetrics,
    device: DeviceMetrics,
    requests: RequestMetrics,
}

/// Copied from the engine's statistics.
#[derive(Default)]
struct EngineMetrics {
    num_requests_running: Gauge,
    num_requests_waiting: Gauge,
    num_requests_waiting_by_reason: Family<WaitingReason, Gauge>,
    kv_cache_usage: FloatGauge,
    prefix_cache_queries: Counter,
    prefix_cache_hits: Counter,
    prefix_cache_misses: Family<WaitingReason, Counter>,
    prefix_cache_evicted_tokens: Counter,
    step_sizes: StepSizes,
    num_preemptions: Counter,
    num_block_copies: Counter,
    num_steps: Counter,
    num_scheduled_tokens: Counter,
    kv_waste: FloatGauge,
    lora_requests_info: Family<LoraConfig, FloatGauge>,
}

/// Counted while requests run.
pub(crate) struct RequestMetrics {
    prompt_tokens: Counter,
    prompt_tokens_cached: Counter,
    generation_tokens: Counter,
    request_success: Family<FinishedReason, Counter>,
    admission_rejections: Family<WaitingReason, Counter>,
    e2e_request_latency: Histogram,
    request_inference_time: Histogram,
    request_queue_time: Histogram,
    request_prefill_time: Histogram,
    request_decode_time: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    request_max_num_generation_tokens: Histogram,
    request_params_max_tokens: Histogram,
    request_params_n: Histogram,
}

impl Metrics {
    /// `(block_size, num_blocks)` is the KV cache's layout.
    pub(crate) fn new(
        model_name: &str,
        max_model_len: usize,
        (block_size, num_blocks): (usize, usize),
        device: DeviceReport,
    ) -> Self {
        let labels = [("model_name", model_name.to_owned()), ("engine", "0".to_owned())];
        let labels = labels.map(|(name, value)| (Cow::Borrowed(name), Cow::Owned(value)));
        let mut registry = Registry::with_labels(labels.into_iter());
        let engine = EngineMetrics::default();
        engine.register(&mut registry);
        let requests = RequestMetrics::new(max_model_len);
        requests.register(&mut registry);
        let cache_config: Family<CacheConfig, Gauge> = Family::default();
        let config =
            CacheConfig { block_size: block_size.to_string(), num_gpu_blocks: num_blocks.to_string() };
        cache_config.get_or_create(&config).set(1);
        registry.register("vllm:cache_config_info", "The layout of the KV cache", cache_config);
        let device = DeviceMetrics::register(device, &mut registry);
        Metrics { registry, engine, device, requests }
    }

    pub(crate) fn requests(&self) -> &RequestMetrics {
        &self.requests
    }

    /// All metrics as text, with the engine's figures of this moment.
    pub(crate) fn encode(
        &self,
        stats: &EngineStats,
        embeddings: Option<&EmbeddingMetrics>,
        exposition: Exposition,
    ) -> String {
        self.engine.update(stats);
        self.device.update();
        let registries = [Some(&self.registry), embeddings.map(|embeddings| &embeddings.registry)];
        exposition.encode(registries.into_iter().flatten())
    }
}

impl EngineMetrics {
    fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register("vllm:num_requests_running", "Requests that run", self.num_requests_running.clone());
        r.register("vllm:num_requests_waiting", "Requests that wait", self.num_requests_waiting.clone());
        r.register(
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait, by reason",
            self.num_requests_waiting_by_reason.clone(),
        );
        r.register(
            "vllm:kv_cache_usage_perc",
            "Share of the KV blocks in use, 0 to 1",
            self.kv_cache_usage.clone(),
        );
        r.register("vllm:prefix_cache_queries", "Prompt tokens looked up", self.prefix_cache_queries.clone());
        r.register("vllm:prefix_cache_hits", "Prompt tokens found", self.prefix_cache_hits.clone());
        r.register(
            "pagoda:prefix_cache_requests",
            "Requests by the reason why no more of their prompt was cached",
            self.prefix_cache_misses.clone(),
        );
        r.register(
            "pagoda:prefix_cache_evicted_tokens",
            "Prompt tokens that would have been found, had nothing been evicted",
            self.prefix_cache_evicted_tokens.clone(),
        );
        self.step_sizes.register(r);
        r.register(
            "vllm:num_preemptions",
            "Sequences whose blocks were taken away",
            self.num_preemptions.clone(),
        );
        r.register("vllm:lora_requests_info", "Adapters in use", self.lora_requests_info.clone());
        r.register("pagoda:kv_block_copies", "Blocks copied on write", self.num_block_copies.clone());
        r.register("pagoda:engine_steps", "Steps launched", self.num_steps.clone());
        r.register("pagoda:scheduled_tokens", "Tokens computed", self.num_scheduled_tokens.clone());
        r.register(
            "pagoda:kv_waste_ratio",
            "Share of held KV slots without a token, time-weighted, 0 to 1",
            self.kv_waste.clone(),
        );
    }

    fn update(&self, stats: &EngineStats) {
        let waiting =
            |reason| self.num_requests_waiting_by_reason.get_or_create_owned(&WaitingReason { reason });
        self.num_requests_running.set(stats.num_requests_running as i64);
        self.num_requests_waiting.set(stats.num_requests_waiting as i64);
        waiting("capacity").set(stats.num_requests_waiting as i64);
        waiting("deferred").set(0);
        self.kv_cache_usage.set(stats.kv_cache_usage());
        self.kv_waste.set(stats.kv_waste());
        let no_lora = LoraConfig { max_lora: "0", running_lora_adapters: "", waiting_lora_adapters: "" };
        self.lora_requests_info.get_or_create(&no_lora).set(unix_seconds() as f64);
        copy(&self.prefix_cache_queries, stats.prefix_cache_queries);
        copy(&self.prefix_cache_hits, stats.prefix_cache_hits);
        let reasons = [
            ("none", stats.prefix_cache_complete),
            ("first_use", stats.prefix_cache_first_use),
            ("evicted", stats.prefix_cache_evicted),
            ("diverged", stats.prefix_cache_diverged),
            ("salt", stats.prefix_cache_other_salt),
            ("not_looked_up", stats.prefix_cache_not_asked),
        ];
        for (reason, count) in reasons {
            copy(&self.prefix_cache_misses.get_or_create_owned(&WaitingReason { reason }), count);
        }
        copy(&self.prefix_cache_evicted_tokens, stats.prefix_cache_evicted_tokens);
        self.step_sizes.update(stats);
        copy(&self.num_preemptions, stats.num_preemptions);
        copy(&self.num_block_copies, stats.num_copies);
        copy(&self.num_steps, stats.num_steps);
        copy(&self.num_scheduled_tokens, stats.num_scheduled_tokens);
    }
}

/// The engine counts; two scrapes at the same time must not make a counter go back.
fn copy(counter: &Counter, value: u64) {
    counter.inner().fetch_max(value, Ordering::Relaxed);
}

impl RequestMetrics {
    fn new(max_model_len: usize) -> Self {
        let request_time = || Histogram::new(REQUEST_BUCKETS);
        let token_count = || Histogram::new(token_count_buckets(max_model_len));
        RequestMetrics {
            prompt_tokens: Counter::default(),
            prompt_tokens_cached: Counter::default(),
            generation_tokens: Counter::default(),
            request_success: Family::default(),
            admission_rejections: Family::default(),
            e2e_request_latency: request_time(),
            request_inference_time: request_time(),
            request_queue_time: request_time(),
            request_prefill_time: request_time(),
            request_decode_time: request_time(),
            time_to_first_token: Histogram::new(FIRST_TOKEN_BUCKETS),
            inter_token_latency: Histogram::new(TOKEN_BUCKETS),
            time_per_output_token: Histogram::new(TOKEN_BUCKETS),
            request_prompt_tokens: token_count(),
            request_generation_tokens: token_count(),
            request_max_num_generation_tokens: token_count(),
            request_params_max_tokens: token_count(),
            request_params_n: Histogram::new(N_BUCKETS),
        }
    }

    fn register(&self, r: &mut Registry) {
        r.register("vllm:prompt_tokens", "Prompt tokens taken in", self.prompt_tokens.clone());
        r.register(
            "vllm:prompt_tokens_cached",
            "Prompt tokens not computed",
            self.prompt_tokens_cached.clone(),
        );
        r.register("vllm:generation_tokens", "Tokens generated", self.generation_tokens.clone());
        r.register("vllm:request_success", "Sequences ended, by reason", self.request_success.clone());
        r.register(
            "vllm:admission_rejections",
            "Requests refused, by limit",
            self.admission_rejections.clone(),
        );
        self.register_times(r);
        let counts = [
            ("vllm:request_prompt_tokens", "Tokens of a prompt", &self.request_prompt_tokens),
            ("vllm:request_generation_tokens", "Tokens of an answer", &self.request_generation_tokens),
            (
                "vllm:request_max_num_generation_tokens",
                "Tokens of a request's longest answer",
                &self.request_max_num_generation_tokens,
            ),
            ("vllm:request_params_max_tokens", "Tokens asked for", &self.request_params_max_tokens),
            ("vllm:request_params_n", "Answers asked for", &self.request_params_n),
        ];
        for (name, help, histogram) in counts {
            r.register(name, help, histogram.clone());
        }
    }

    fn register_times(&self, r: &mut Registry) {
        let times = [
            ("vllm:e2e_request_latency_seconds", "From arrival to the last token", &self.e2e_request_latency),
            (
                "vllm:request_inference_time_seconds",
                "From the first step to the end",
                &self.request_inference_time,
            ),
            ("vllm:request_queue_time_seconds", "From arrival to the first step", &self.request_queue_time),
            (
                "vllm:request_prefill_time_seconds",
                "From the first step to a token",
                &self.request_prefill_time,
            ),
            (
                "vllm:request_decode_time_seconds",
                "From the first token to the last",
                &self.request_decode_time,
            ),
            (
                "vllm:time_to_first_token_seconds",
                "From arrival to the first token",
                &self.time_to_first_token,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between two tokens of an answer",
                &self.inter_token_latency,
            ),
            (
                "vllm:request_time_per_output_token_seconds",
                "Mean time per token behind the first",
                &self.time_per_output_token,
            ),
        ];
        for (name, help, histogram) in times {
            r.register(name, help, histogram.clone());
        }
    }

    /// A request was refused because the queue was full.
    pub(crate) fn count_queue_full(&self) {
        let reason = WaitingReason { reason: "max_num_queued_reqs" };
        self.admission_rejections.get_or_create(&reason).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_counts_run_to_the_window() {
        assert_eq!(token_count_buckets(60), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]);
    }
}
