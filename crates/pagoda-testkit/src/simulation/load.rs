//! How much a simulation asks of its engine, and of which size both are.

use std::sync::Arc;
use std::time::Duration;

use pagoda_engine::{
    CacheSalt, EngineConfig, PipelineDepth, Request, SamplingParams, StopCriteria, TokenConstraint, TokenId,
};

use crate::{ConstraintFault, Random, WalkConstraint};

/// What a simulation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A little of everything, aborts in every state included.
    Mixed,
    /// Far more than the least possible pool can hold, and nobody goes away.
    Overload,
}

impl Load {
    /// Sizes in which everything happens often.
    pub(super) fn draw(self, random: &mut Random) -> (Sizes, EngineConfig) {
        let block_size = [1, 2, 2, 3, 4][random.below(5)];
        let max_num_seqs = if self == Load::Mixed { random.between(1, 6) } else { random.between(4, 24) };
        let sizes = Sizes {
            vocab_size: random.between(2, 4) as u32,
            max_model_len: random.between(4, 32),
            max_num_seqs,
            budget: max_num_seqs + random.below(12),
            num_requests: random.between(10, 40) as u64,
            may_fail: self == Load::Mixed,
        };
        let least = EngineConfig::min_num_blocks(sizes.max_model_len, block_size);
        let config = EngineConfig {
            block_size,
            num_blocks: least + random.below(if self == Load::Mixed { least } else { 2 }),
            max_num_seqs,
            max_num_batched_tokens: sizes.budget,
            max_model_len: sizes.max_model_len,
            max_queued_requests: 1000,
            watermark_blocks: if self == Load::Mixed { random.below(3) } else { 0 },
            pipeline_depth: if random.one_in(2) { PipelineDepth::One } else { PipelineDepth::Two },
            prefix_caching: !random.one_in(8),
            aging_steps: random.between(1, 40) as u64,
            max_preemptions: self.max_preemptions(random),
            vocab_size: sizes.vocab_size as usize,
            num_mask_threads: random.below(3),
            mask_time_limit: Duration::from_secs(60),
            trace: None,
        };
        (sizes, config)
    }

    fn max_preemptions(self, random: &mut Random) -> u32 {
        match self {
            // Few, so that sequences become protected often.
            Load::Mixed => random.between(1, 8) as u32,
            Load::Overload => 8,
        }
    }
}

/// The sizes that requests are drawn by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) vocab_size: u32,
    pub(super) max_model_len: usize,
    pub(super) max_num_seqs: usize,
    pub(super) budget: usize,
    pub(super) num_requests: u64,
    /// Whether constraints may fail.
    pub(super) may_fail: bool,
}

impl Sizes {
    /// A request within the limits; its prompt often begins like a sequence of the past.
    pub(super) fn draw_request(self, random: &mut Random, past: &[Vec<TokenId>]) -> Request {
        let Sizes { vocab_size, max_model_len, max_num_seqs, .. } = self;
        let mut prompt = match past.len() {
            0 => Vec::new(),
            _ if random.one_in(3) => Vec::new(),
            num_past => past[random.below(num_past)].clone(),
        };
        prompt.truncate(random.between(0, max_model_len - 1));
        let len = random.between(1, max_model_len - 1).max(prompt.len());
        let num_new = (len - prompt.len()).min(random.between(1, max_model_len));
        prompt.extend(
            (0..num_new.max(usize::from(prompt.is_empty())))
                .map(|_| random.below(vocab_size as usize) as TokenId),
        );
        let mut sampling = SamplingParams::greedy();
        sampling.seed = random.below(4) as u64;
        if random.one_in(4) {
            sampling.presence_penalty = 1.0; // asks for the history, which the executor compares
        }
        let most_sequences = if random.one_in(3) { max_num_seqs } else { 1 };
        let stop_token_ids =
            if random.one_in(3) { vec![random.below(vocab_size as usize) as TokenId] } else { Vec::new() };
        Request {
            prompt,
            sampling: Arc::new(sampling),
            stop: StopCriteria {
                max_tokens: if random.one_in(10) { 0 } else { random.between(1, 16) as u32 },
                min_tokens: random.below(4) as u32,
                stop_token_ids: stop_token_ids.into(),
                repetition: None,
            },
            num_sequences: random.between(1, most_sequences) as u32,
            priority: random.below(5) as i32 - 2,
            cache_salt: CacheSalt { tenant: 0, salt: vec![0; random.below(2)] },
            prompt_logprobs: random.one_in(8).then_some(1),
            constraint: random.one_in(3).then(|| self.draw_constraint(random)),
        }
    }

    /// Short values end before `max_tokens`, long ones do not. Some fail, which only a client that expects it may see.
    fn draw_constraint(self, random: &mut Random) -> Box<dyn TokenConstraint> {
        let seed = random.below(4) as u64;
        let constraint = WalkConstraint::new(seed, self.vocab_size, random.between(1, 12) as u32);
        let fails = self.may_fail && random.one_in(8);
        let fault = if random.one_in(2) { ConstraintFault::Fill } else { ConstraintFault::Advance };
        Box::new(if fails { constraint.with_fault(fault) } else { constraint })
    }
}
