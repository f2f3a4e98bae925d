//! One growing token stream: its tokens, its blocks, and how far both have come.

use super::rank::Rank;
use crate::Request;
use crate::kv::{BlockTable, HashedTokens};

/// A sequence. What it shares with its siblings (limits, sampling) is the request's.
///
/// ```text
///  tokens   p p p p p o o ?          p prompt, o output, ? in flight (sampled, not yet known)
///           ├──────────┤             num_committed_tokens: their KV is there
///           ├────────────┤           num_computed_tokens: launched
///           ├──────────────┤         num_tokens
/// ```
pub(super) struct Sequence {
    pub(super) rank: Rank,
    /// Which of the request's sequences it is; the first unborn one until the prompt is computed.
    pub(super) sample_index: u32,
    /// The known tokens.
    pub(super) tokens: HashedTokens,
    pub(super) num_prompt_tokens: usize,
    /// Tokens after which it ends, whatever they are.
    pub(super) max_num_tokens: usize,
    /// Its next token depends on the last one through a constraint: nothing is planned for it while a token is in flight.
    pub(super) is_constrained: bool,
    /// 0 or 1 when a step is planned; 2 between a launch and the commit of the step before it.
    pub(super) num_tokens_in_flight: usize,
    /// The entry of the newest launched step's samples that chooses the newest token in flight.
    pub(super) last_sample: u32,
    pub(super) num_computed_tokens: usize,
    pub(super) num_committed_tokens: usize,
    pub(super) table: BlockTable,
    pub(super) num_preemptions: u32,
    /// Counts admissions of all sequences: earlier ones get the budget first.
    pub(super) admission: u64,
}

impl Sequence {
    pub(super) fn new(rank: Rank, tokens: HashedTokens, request: &Request, max_model_len: usize) -> Self {
        let num_prompt_tokens = tokens.len();
        Sequence {
            rank,
            sample_index: 0,
            max_num_tokens: (num_prompt_tokens + request.stop.max_tokens as usize).min(max_model_len),
            tokens,
            num_prompt_tokens,
            is_constrained: request.constraint.is_some(),
            num_tokens_in_flight: 0,
            last_sample: 0,
            num_computed_tokens: 0,
            num_committed_tokens: 0,
            table: BlockTable::default(),
            num_preemptions: 0,
            admission: 0,
        }
    }

    /// All tokens, the one in flight included.
    pub(super) fn num_tokens(&self) -> usize {
        self.tokens.len() + self.num_tokens_in_flight
    }

    /// Output tokens, the one in flight included.
    pub(super) fn num_output_tokens(&self) -> usize {
        self.num_tokens() - self.num_prompt_tokens
    }

    /// Tokens to compute. A sequence whose last token is in flight has none: it ends with the commit. Nor has a constrained
    /// one with any token in flight: what may follow is not known before that token is.
    pub(super) fn num_wanted_tokens(&self) -> usize {
        let is_last = self.num_tokens() >= self.max_num_tokens;
        let must_wait = self.num_tokens_in_flight > 0 && (is_last || self.is_constrained);
        if must_wait { 0 } else { self.num_tokens() - self.num_computed_tokens }
    }

    /// Whether a token follows the last computed one: not if only the prompt is asked for.
    pub(super) fn wants_output(&self) -> bool {
        self.max_num_tokens > self.num_prompt_tokens
    }
}
