//! The times of one request, from its submission to its last token, and where they are counted.

use std::sync::Arc;
use std::time::Instant;

use super::FinishedReason;
use crate::generation::Finish;
use crate::model::ServedModel;

/// Follows one request. Dropping it counts what has not finished as aborted.
pub(crate) struct RequestClock {
    model: Arc<ServedModel>,
    arrival: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    num_prompt_tokens: usize,
    sequences: Vec<SequenceClock>,
}

struct SequenceClock {
    last_token: Option<Instant>,
    num_tokens: u64,
    is_finished: bool,
}

impl RequestClock {
    pub(crate) fn start(model: &Arc<ServedModel>, num_prompt_tokens: usize, n: u32, max_tokens: u32) -> Self {
        let metrics = model.metrics.requests();
        metrics.request_params_n.observe(f64::from(n));
        metrics.request_params_max_tokens.observe(f64::from(max_tokens));
        RequestClock {
            model: Arc::clone(model),
            arrival: Instant::now(),
            scheduled: None,
            first_token: None,
            num_prompt_tokens,
            sequences: (0..n)
                .map(|_| SequenceClock { last_token: None, num_tokens: 0, is_finished: false })
                .collect(),
        }
    }

    pub(crate) fn scheduled(&mut self, num_cached_tokens: u32) {
        let now = Instant::now();
        self.scheduled = Some(now);
        let metrics = self.model.metrics.requests();
        metrics.request_queue_time.observe((now - self.arrival).as_secs_f64());
        metrics.prompt_tokens.inc_by(self.num_prompt_tokens as u64);
        metrics.prompt_tokens_cached.inc_by(u64::from(num_cached_tokens));
        metrics.request_prompt_tokens.observe(self.num_prompt_tokens as f64);
    }

    pub(crate) fn token(&mut self, sample_index: u32) {
        let now = Instant::now();
        let metrics = self.model.metrics.requests();
        metrics.generation_tokens.inc();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            metrics.time_to_first_token.observe((now - self.arrival).as_secs_f64());
            let prefill = now - self.scheduled.unwrap_or(self.arrival);
            metrics.request_prefill_time.observe(prefill.as_secs_f64());
        }
        let sequence = &mut self.sequences[sample_index as usize];
        if let Some(last) = sequence.last_token.replace(now) {
            metrics.inter_token_latency.observe((now - last).as_secs_f64());
        }
        sequence.num_tokens += 1;
    }

    pub(crate) fn finished(&mut self, sample_index: u32, finish: &Finish) {
        self.sequences[sample_index as usize].is_finished = true;
        self.count_finished(finish.reason());
        let num_tokens = self.sequences[sample_index as usize].num_tokens;
        self.model.metrics.requests().request_generation_tokens.observe(num_tokens as f64);
        if self.sequences.iter().all(|sequence| sequence.is_finished) {
            self.complete();
        }
    }

    fn count_finished(&self, finished_reason: &'static str) {
        let reason = FinishedReason { finished_reason };
        self.model.metrics.requests().request_success.get_or_create(&reason).inc();
    }

    /// The whole request has been answered.
    fn complete(&self) {
        let now = Instant::now();
        let metrics = self.model.metrics.requests();
        let longest = self.sequences.iter().map(|sequence| sequence.num_tokens).max().unwrap_or(0);
        metrics.request_max_num_generation_tokens.observe(longest as f64);
        metrics.e2e_request_latency.observe((now - self.arrival).as_secs_f64());
        if let Some(scheduled) = self.scheduled {
            metrics.request_inference_time.observe((now - scheduled).as_secs_f64());
        }
        if let Some(first) = self.first_token {
            let decode = (now - first).as_secs_f64();
            metrics.request_decode_time.observe(decode);
            if longest > 1 {
                metrics.time_per_output_token.observe(decode / (longest - 1) as f64);
            }
        }
    }
}

impl Drop for RequestClock {
    fn drop(&mut self) {
        for _ in self.sequences.iter().filter(|sequence| !sequence.is_finished) {
            self.count_finished("abort");
        }
    }
}
