//! The sampling contract, the same on every backend.
//!
//! Order of the rules on one row of logits:
//! 1. `logprob`s are reported from the raw logits (log-softmax, before any rule).
//! 2. repetition, then frequency and presence penalties from `counts`; 3. `bias` is added; 4. `mask` and `banned` remove
//!    tokens; 5. temperature; 6. top-k, 7. top-p (of the softmax over what top-k kept), 8. min-p (relative to the likeliest);
//! 9. the draw: Gumbel-max over what is left with a counter RNG keyed `(seed, sample_index, position, token id)`, so that the
//!    noise of a token does not depend on which others are left. Temperature 0 takes the largest logit after 4; ties go to
//!    the lower token id everywhere.

/// How one row of logits becomes one token. Borrowed from the engine's sampling parameters.
#[derive(Clone, Debug)]
pub struct SampleRow<'a> {
    /// Row of the logits matrix. Several sample rows may share one (n > 1).
    pub row: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off; divides positive and multiplies negative logits of every token in `counts`.
    pub repetition_penalty: f32,
    /// Times the output count is subtracted.
    pub frequency_penalty: f32,
    /// Subtracted where the output count is not 0.
    pub presence_penalty: f32,
    /// Distinct tokens of prompt and output; empty where no penalty is on.
    pub counts: &'a [TokenCount],
    /// Sparse additive bias.
    pub bias: &'a [(u32, f32)],
    /// Tokens that may not be chosen.
    pub banned: &'a [u32],
    /// One bit per token, set if allowed; `None` allows all.
    pub mask: Option<&'a [u32]>,
    /// Report this token instead of choosing one (prompt logprobs).
    pub forced: Option<u32>,
    /// Key of the draw.
    pub seed: u64,
    /// Key of the draw.
    pub sample_index: u32,
    /// Key of the draw: the position that the chosen token will have.
    pub position: u32,
    /// Report the chosen token's logprob and this many of the likeliest; `None` reports nothing.
    pub num_logprobs: Option<u32>,
}

impl SampleRow<'_> {
    /// The likeliest token of a row, every rule off and nothing reported.
    pub fn greedy(row: u32) -> Self {
        SampleRow {
            row,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            counts: &[],
            bias: &[],
            banned: &[],
            mask: None,
            forced: None,
            seed: 0,
            sample_index: 0,
            position: 0,
            num_logprobs: None,
        }
    }
}

/// How often a token occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCount {
    /// The token.
    pub token: u32,
    /// Occurrences in the output; 0 for a token that is in the prompt only.
    pub num_output: u32,
}

/// One chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token id; below the vocabulary size the backend was given.
    pub token: u32,
    /// Log-probability under the raw logits; 0 where no logprobs were asked for.
    pub logprob: f32,
    /// The likeliest tokens, best first, ties by lower id; as many as asked for.
    pub top: Vec<(u32, f32)>,
    /// Rank of the chosen token under the raw logits, from 1; 0 where no logprobs were asked for.
    pub rank: u32,
}

/// A row of logits held NaN or infinity (or the rules left no token): that row fails, its neighbours do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model produced logits from which no token can be chosen")]
pub struct NonFiniteLogits;
