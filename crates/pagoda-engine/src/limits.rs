//! What a request must respect to be accepted, and why one is refused. Pure: any thread can ask.

use crate::{EngineConfig, Request};

/// Why a request was not accepted. Nothing of it remains in the engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many sequences wait already. Try again later.
    #[error("the queue is full: {num_queued} of {max_queued_requests} places are taken")]
    QueueFull {
        /// Sequences waiting for their first step.
        num_queued: usize,
        /// The limit.
        max_queued_requests: usize,
    },
    /// The prompt, and one output token if any is wanted, does not fit into the context window.
    #[error("the prompt has {num_prompt_tokens} tokens, the context window is {max_model_len}")]
    PromptTooLong {
        /// Tokens of the prompt.
        num_prompt_tokens: usize,
        /// The limit.
        max_model_len: usize,
    },
    /// The prompt has no token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// `num_sequences` is zero or more than can ever run together.
    #[error("{num_sequences} sequences were asked for, between 1 and {max_num_sequences} are possible")]
    TooManySequences {
        /// What was asked for.
        num_sequences: usize,
        /// The limit.
        max_num_sequences: usize,
    },
    /// The engine finishes what it has accepted and takes nothing more.
    #[error("the engine is draining")]
    Draining,
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
}

/// The limits on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Tokens of the longest sequence.
    pub max_model_len: usize,
    /// Sequences per request.
    pub max_num_sequences: usize,
    /// Sequences that may wait for their first step.
    pub max_queued_requests: usize,
}

impl RequestLimits {
    /// The limits that follow from the engine's configuration.
    pub fn new(config: &EngineConfig) -> Self {
        RequestLimits {
            max_model_len: config.max_model_len,
            max_num_sequences: config.max_num_seqs.min(config.max_queued_requests),
            max_queued_requests: config.max_queued_requests,
        }
    }

    /// Whether the request can ever be served.
    pub fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let num_prompt_tokens = request.prompt.len();
        if num_prompt_tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let room_wanted = usize::from(request.stop.max_tokens > 0);
        if num_prompt_tokens + room_wanted > self.max_model_len {
            return Err(SubmitError::PromptTooLong { num_prompt_tokens, max_model_len: self.max_model_len });
        }
        let num_sequences = request.num_sequences as usize;
        if num_sequences == 0 || num_sequences > self.max_num_sequences {
            let max_num_sequences = self.max_num_sequences;
            return Err(SubmitError::TooManySequences { num_sequences, max_num_sequences });
        }
        Ok(())
    }
}
