//! The three workloads, each over an engine of its own on this thread: no server, no channel, nothing but what a server's
//! engine thread does.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use pagoda_engine::{
    CacheSalt, Engine, EngineEvent, PipelineDepth, Request, RequestEvent, RequestId, SamplingParams,
    StepOutcome, StopCriteria,
};

use super::lent::{Lent, Prompts};
use super::spans::{is_of_one_kind, pause_percent};
use crate::bench::python_random::PythonRandom;
use crate::config::Config;
use crate::device::DeviceRunner;

/// Steps of a decode measurement that are not counted: graphs are captured, caches warmed.
const WARM_UP_STEPS: usize = 4;
/// Times that a decode measurement is tried at most until no counted step is captured: a shape of step that first comes in the last
/// counted step of the first try is captured in the second.
const MAX_TRIES: usize = 3;
/// Ids of random prompts are below this, as in the published script.
const MAX_PROMPT_ID: u32 = 10_000;

/// A loaded model, and the limits that every engine over it has.
pub(crate) struct Bed {
    pub(crate) executor: Arc<Mutex<DeviceRunner>>,
    pub(crate) config: Config,
    pub(crate) pipeline_depth: PipelineDepth,
    /// When no further measurement begins.
    pub(crate) deadline: Instant,
}

/// Prompt and output lengths of requests that all begin at once.
pub(crate) struct NanoWorkload {
    prompts: Vec<Vec<u32>>,
    output_lens: Vec<usize>,
}

impl NanoWorkload {
    /// As the script that this workload comes from draws them: all prompts (length, then ids), then all output lengths.
    pub(crate) fn new(num_requests: usize, (low, high): (usize, usize), seed: u32) -> Self {
        let mut random = PythonRandom::new(seed);
        let (low, high) = (low as u32, high as u32);
        let mut prompts = Vec::with_capacity(num_requests);
        for _ in 0..num_requests {
            let prompt_len = random.randint(low, high);
            prompts.push((0..prompt_len).map(|_| random.randint(0, MAX_PROMPT_ID)).collect());
        }
        let output_lens = (0..num_requests).map(|_| random.randint(low, high) as usize).collect();
        NanoWorkload { prompts, output_lens }
    }

    /// Prompt and output length of every request.
    pub(crate) fn lengths(&self) -> Vec<(usize, usize)> {
        let lens = self.prompts.iter().map(Vec::len).zip(self.output_lens.iter().copied());
        lens.collect()
    }
}

/// What a run of the nano workload gave.
pub(crate) struct Nano {
    pub(crate) total_s: f64,
    /// See [`pause_percent`].
    pub(crate) pause_percent: Option<f64>,
}

/// What a decode measurement gave.
pub(crate) struct Decode {
    /// Seconds of each counted step, ascending.
    pub(crate) step_s: Vec<f64>,
    /// From the first counted step to the last.
    pub(crate) total_s: f64,
    /// See [`pause_percent`]; of the counted steps.
    pub(crate) pause_percent: Option<f64>,
    /// Whether all counted steps reached the GPU by the same way: as graphs, or kernel by kernel.
    pub(crate) is_of_one_kind: bool,
    /// Tries that it took.
    pub(crate) num_tries: usize,
}

impl Bed {
    fn lock(&self) -> MutexGuard<'_, DeviceRunner> {
        self.executor.lock().expect("a step that panicked ends the program")
    }

    fn engine(&self, prompts: Prompts, max_step_tokens: usize) -> anyhow::Result<Engine<Lent<DeviceRunner>>> {
        let mut config = self.config.engine();
        config.pipeline_depth = self.pipeline_depth;
        config.max_num_batched_tokens = config.max_num_batched_tokens.max(max_step_tokens);
        // Random prompts share nothing; what a repeat would find in the cache is not to be measured.
        config.prefix_caching = false;
        Ok(Engine::new(config, Lent::new(&self.executor, prompts))?)
    }

    fn request(&self, mut prompt: Vec<u32>, max_tokens: usize) -> Request {
        prompt.iter_mut().for_each(|id| *id %= self.config.vocab_size as u32);
        Request {
            prompt,
            sampling: Arc::new(SamplingParams::greedy()),
            stop: StopCriteria { max_tokens: max_tokens as u32, ..StopCriteria::default() },
            num_sequences: 1,
            priority: 0,
            cache_salt: CacheSalt::default(),
            prompt_logprobs: None,
            constraint: None,
        }
    }

    /// All requests at once, until the last token.
    pub(crate) fn nano(&self, workload: &NanoWorkload) -> anyhow::Result<Nano> {
        let mut engine = self.engine(Prompts::Computed, 0)?;
        self.lock().start_clock();
        let start = Instant::now();
        for (id, (prompt, output_len)) in workload.prompts.iter().zip(&workload.output_lens).enumerate() {
            engine.add_request(RequestId(id as u64), self.request(prompt.clone(), *output_len))?;
        }
        let mut num_tokens = 0;
        while engine.step() == StepOutcome::Progressed {
            num_tokens += count_tokens(&mut engine)?;
            ensure!(Instant::now() < self.deadline, "the time limit was reached after {num_tokens} tokens");
        }
        num_tokens += count_tokens(&mut engine)?;
        let expected: usize = workload.output_lens.iter().sum();
        ensure!(num_tokens == expected, "{num_tokens} tokens came instead of {expected}");
        let total_s = start.elapsed().as_secs_f64();
        let spans = self.lock().stop_clock()?;
        Ok(Nano { total_s, pause_percent: pause_percent(&spans) })
    }

    /// `batch_size` sequences whose contexts have `context_len` tokens in the middle of `num_steps` counted steps.
    ///
    /// Where contexts grow past a multiple of the attention's split, decode steps become another graph, and the steps in which it is
    /// made are not what is to be measured. Graphs stay, so the measurement is made again.
    pub(crate) fn decode(
        &self,
        batch_size: usize,
        context_len: usize,
        num_steps: usize,
    ) -> anyhow::Result<Decode> {
        let mut decode = self.decode_once(batch_size, context_len, num_steps)?;
        while !decode.is_of_one_kind && decode.num_tries < MAX_TRIES {
            let num_tries = decode.num_tries + 1;
            decode = Decode { num_tries, ..self.decode_once(batch_size, context_len, num_steps)? };
        }
        Ok(decode)
    }

    fn decode_once(&self, batch_size: usize, context_len: usize, num_steps: usize) -> anyhow::Result<Decode> {
        let prompt_len = context_len.saturating_sub(WARM_UP_STEPS + num_steps / 2).max(1);
        let num_tokens = 1 + WARM_UP_STEPS + num_steps;
        // The cut prompts are a row each: all of them are one step, so that all sequences begin together.
        let mut engine = self.engine(Prompts::Filled, batch_size * prompt_len)?;
        for id in 0..batch_size {
            let prompt = (0..prompt_len).map(|place| (id + place * 31) as u32).collect();
            engine.add_request(RequestId(id as u64), self.request(prompt, num_tokens))?;
        }
        self.lock().start_clock();
        let mut ends = Vec::with_capacity(num_tokens);
        let mut num_seen = 0;
        while engine.step() == StepOutcome::Progressed {
            num_seen += count_tokens(&mut engine)?;
            if num_seen >= batch_size * (ends.len() + 1) {
                ends.push(Instant::now());
            }
            ensure!(Instant::now() < self.deadline, "the time limit was reached after {num_seen} tokens");
        }
        ensure!(ends.len() == num_tokens, "{} steps came instead of {num_tokens}", ends.len());
        let counted = &ends[WARM_UP_STEPS..];
        let mut step_s: Vec<f64> = counted.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        step_s.sort_unstable_by(f64::total_cmp);
        let spans = self.lock().stop_clock()?;
        let counted_spans = &spans[spans.len().saturating_sub(num_steps)..];
        Ok(Decode {
            total_s: (counted[num_steps] - counted[0]).as_secs_f64(),
            step_s,
            pause_percent: pause_percent(counted_spans),
            is_of_one_kind: is_of_one_kind(counted_spans),
            num_tries: 1,
        })
    }

    /// Seconds from a prompt's arrival to its first token.
    pub(crate) fn prefill(&self, prompt_len: usize) -> anyhow::Result<f64> {
        let mut engine = self.engine(Prompts::Computed, 0)?;
        let mut random = PythonRandom::new(prompt_len as u32);
        let prompt = (0..prompt_len).map(|_| random.randint(0, MAX_PROMPT_ID)).collect();
        let start = Instant::now();
        engine.add_request(RequestId(0), self.request(prompt, 1))?;
        let mut first_token = Duration::ZERO;
        while engine.step() == StepOutcome::Progressed {
            if count_tokens(&mut engine)? > 0 {
                first_token = start.elapsed();
            }
            ensure!(Instant::now() < self.deadline, "the time limit was reached within a prompt");
        }
        ensure!(first_token > Duration::ZERO, "no token came");
        Ok(first_token.as_secs_f64())
    }
}

/// Tokens among the engine's events. A failure of any kind ends the measurement: a figure of failed requests is none.
fn count_tokens(engine: &mut Engine<Lent<DeviceRunner>>) -> anyhow::Result<usize> {
    let mut num_tokens = 0;
    for event in engine.take_events() {
        match event {
            EngineEvent::Request(_, RequestEvent::Token(_)) => num_tokens += 1,
            EngineEvent::Request(id, RequestEvent::Failed(error)) => bail!("request {id} failed: {error}"),
            EngineEvent::Request(id, RequestEvent::SequenceFailed { error, .. }) => {
                bail!("request {id} failed: {error}")
            }
            _ => {}
        }
    }
    Ok(num_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nano_workload_has_the_lengths_of_the_published_script() {
        let lengths = NanoWorkload::new(256, (100, 1024), 0).lengths();
        assert_eq!(lengths.iter().map(|(prompt_len, _)| prompt_len).sum::<usize>(), 142_827);
        assert_eq!(lengths.iter().map(|(_, output_len)| output_len).sum::<usize>(), 133_966);
        assert_eq!(lengths[0], (964, 845));
    }
}
