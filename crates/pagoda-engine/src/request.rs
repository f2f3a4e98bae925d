//! What a client asks of the engine, in token ids. Owns no state: the server builds it, the engine consumes it.

use std::sync::Arc;

use crate::{RepetitionRule, SamplingParams, TokenConstraint, TokenId};

/// One generation request: a prompt, how to continue it, and how often.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompt's token ids; at least one.
    pub prompt: Vec<TokenId>,
    /// How the executor chooses tokens. Carried unopened.
    pub sampling: Arc<SamplingParams>,
    /// When a sequence of this request ends.
    pub stop: StopCriteria,
    /// How many sequences continue the prompt (`n`); at least one. They share the prompt's blocks.
    pub num_sequences: u32,
    /// Lower is served first. Waiting raises it (aging), so that no request starves.
    pub priority: i32,
    /// Only requests with equal salts share cached blocks: one tenant cannot probe another's prompts by timing.
    pub cache_salt: CacheSalt,
    /// Logprobs of this many alternatives for every prompt token; `Some(0)` gives the prompt token's own. Such a
    /// request matches nothing in the prefix cache, because every position must be computed.
    pub prompt_logprobs: Option<u32>,
    /// Restricts the tokens of each sequence, from its first output token on; each sequence gets a fork.
    pub constraint: Option<Box<dyn TokenConstraint>>,
}

/// When a sequence ends. Stop *strings* are the server's business: it closes the stream.
#[derive(Clone, Debug, Default)]
pub struct StopCriteria {
    /// Output tokens after which the sequence ends with [`crate::FinishReason::Length`]. 0 computes the prompt only.
    pub max_tokens: u32,
    /// Output tokens before which no stop token may be chosen.
    pub min_tokens: u32,
    /// Tokens that end the sequence (end of text, end of turn, the client's `stop_token_ids`). Empty for `ignore_eos`.
    pub stop_token_ids: Arc<[TokenId]>,
    /// Ends a sequence that goes round in circles; `None` lets it.
    pub repetition: Option<RepetitionRule>,
}

/// The domain within which prefixes are shared. Domains differ if either part does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CacheSalt {
    /// Whose request it is. A miss may be explained by the same tenant's other salts, never by another tenant's.
    pub tenant: u64,
    /// Divides the tenant's domain further.
    pub salt: Vec<u8>,
}
