//! What the engine is told at start: sizes of the pool and the batch, and the limits on requests. Validated once.

use std::fmt;
use std::io::Write;
use std::time::Duration;

/// Everything the engine needs to know. Build it with struct update syntax over [`EngineConfig::default`].
pub struct EngineConfig {
    /// Tokens per KV block.
    pub block_size: usize,
    /// Blocks of the KV pool, block 0 (never handed out) included. At least [`EngineConfig::min_num_blocks`].
    pub num_blocks: usize,
    /// Sequences that may run at the same time.
    pub max_num_seqs: usize,
    /// Tokens computed in one step, prefill chunks and decode rows together. At least `max_num_seqs`, so that every
    /// running sequence can decode in every step.
    pub max_num_batched_tokens: usize,
    /// Tokens of the longest sequence, prompt and output.
    pub max_model_len: usize,
    /// Sequences that may wait for their first step; a request counts as its `num_sequences`.
    pub max_queued_requests: usize,
    /// Blocks that an admission leaves free for the growth of the sequences that already run.
    pub watermark_blocks: usize,
    /// How many steps may be launched before the oldest is waited for.
    pub pipeline_depth: PipelineDepth,
    /// Whether ended sequences leave their blocks for others to match.
    pub prefix_caching: bool,
    /// Steps of waiting that weigh as much as one level of priority. Between 1 and a million.
    pub aging_steps: u64,
    /// Preemptions after which a sequence is no victim any more: it is admitted again only when blocks for its whole
    /// possible length can be set aside. At least 1.
    pub max_preemptions: u32,
    /// Tokens of the vocabulary: the length of a constraint's masks.
    pub vocab_size: usize,
    /// Threads that fill the masks of constrained sequences while the forward pass runs; started by the first of them.
    pub num_mask_threads: usize,
    /// How long a step waits for a mask before it fails that sequence.
    pub mask_time_limit: Duration,
    /// Receives every step plan as a table (`--trace-steps`).
    pub trace: Option<Box<dyn Write + Send>>,
}

/// How many steps may be in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineDepth {
    /// Plan, launch, wait, commit.
    One,
    /// The next step is planned and launched while the previous one runs.
    Two,
}

impl PipelineDepth {
    /// The number of steps.
    pub fn num_steps(self) -> usize {
        match self {
            PipelineDepth::One => 1,
            PipelineDepth::Two => 2,
        }
    }
}

/// A configuration the engine cannot run with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A size is zero or out of its range.
    #[error("{field} is {value}, but must lie between {min} and {max}")]
    OutOfRange {
        /// The field of [`EngineConfig`].
        field: &'static str,
        /// What was given.
        value: u64,
        /// The least that works.
        min: u64,
        /// The most that works.
        max: u64,
    },
    /// One sequence of the longest length would not fit.
    #[error(
        "{num_blocks} KV blocks of {block_size} tokens cannot hold one sequence of {max_model_len} tokens; {min_num_blocks} are needed"
    )]
    PoolTooSmall {
        /// Blocks given.
        num_blocks: usize,
        /// Tokens per block.
        block_size: usize,
        /// The longest sequence.
        max_model_len: usize,
        /// Blocks needed.
        min_num_blocks: usize,
    },
}

impl Default for EngineConfig {
    /// A small pool: 64 sequences, 2048 tokens of context, 16 tokens per block.
    fn default() -> Self {
        EngineConfig {
            block_size: 16,
            num_blocks: 2048,
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_model_len: 2048,
            max_queued_requests: 1024,
            watermark_blocks: 16,
            pipeline_depth: PipelineDepth::One,
            prefix_caching: true,
            aging_steps: 256,
            max_preemptions: 8,
            vocab_size: 65_536,
            num_mask_threads: 2,
            mask_time_limit: Duration::from_secs(1),
            trace: None,
        }
    }
}

impl EngineConfig {
    /// The least pool that serves a sequence of `max_model_len` tokens: block 0, the sequence's own blocks, and one block
    /// that is being copied on write.
    pub fn min_num_blocks(max_model_len: usize, block_size: usize) -> usize {
        2 + max_model_len.div_ceil(block_size)
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let in_range = |field, value: usize, min: u64, max: u64| {
            let value = value as u64;
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::OutOfRange { field, value, min, max })
            }
        };
        let most = u64::from(u32::MAX);
        in_range("block_size", self.block_size, 1, 4096)?;
        // Slots are numbered in 32 bits.
        in_range("num_blocks", self.num_blocks, 2, most / self.block_size as u64)?;
        in_range("max_num_seqs", self.max_num_seqs, 1, most)?;
        in_range("max_num_batched_tokens", self.max_num_batched_tokens, self.max_num_seqs as u64, most)?;
        in_range("max_model_len", self.max_model_len, 1, most)?;
        in_range("max_queued_requests", self.max_queued_requests, 1, most)?;
        in_range("aging_steps", self.aging_steps as usize, 1, 1_000_000)?;
        in_range("max_preemptions", self.max_preemptions as usize, 1, most)?;
        let min_num_blocks = Self::min_num_blocks(self.max_model_len, self.block_size);
        if self.num_blocks < min_num_blocks {
            return Err(ConfigError::PoolTooSmall {
                num_blocks: self.num_blocks,
                block_size: self.block_size,
                max_model_len: self.max_model_len,
                min_num_blocks,
            });
        }
        Ok(())
    }
}

impl fmt::Debug for EngineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineConfig")
            .field("block_size", &self.block_size)
            .field("num_blocks", &self.num_blocks)
            .field("max_num_seqs", &self.max_num_seqs)
            .field("max_num_batched_tokens", &self.max_num_batched_tokens)
            .field("max_model_len", &self.max_model_len)
            .field("max_queued_requests", &self.max_queued_requests)
            .field("watermark_blocks", &self.watermark_blocks)
            .field("pipeline_depth", &self.pipeline_depth)
            .field("prefix_caching", &self.prefix_caching)
            .field("aging_steps", &self.aging_steps)
            .field("max_preemptions", &self.max_preemptions)
            .field("vocab_size", &self.vocab_size)
            .field("num_mask_threads", &self.num_mask_threads)
            .field("mask_time_limit", &self.mask_time_limit)
            .field("trace", &self.trace.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        assert_eq!(EngineConfig::default().validate(), Ok(()));
    }

    #[test]
    fn the_budget_gives_every_running_sequence_a_token() {
        let config = EngineConfig { max_num_seqs: 64, max_num_batched_tokens: 63, ..EngineConfig::default() };
        let error = ConfigError::OutOfRange {
            field: "max_num_batched_tokens",
            value: 63,
            min: 64,
            max: u64::from(u32::MAX),
        };
        assert_eq!(config.validate(), Err(error));
    }

    #[test]
    fn the_pool_holds_one_sequence_of_the_longest_length_and_a_copy() {
        let least = EngineConfig::min_num_blocks(100, 16);
        assert_eq!(least, 9);
        let config = |num_blocks| EngineConfig { max_model_len: 100, num_blocks, ..EngineConfig::default() };
        assert_eq!(config(least).validate(), Ok(()));
        assert!(matches!(
            config(least - 1).validate(),
            Err(ConfigError::PoolTooSmall { min_num_blocks: 9, .. })
        ));
    }
}
