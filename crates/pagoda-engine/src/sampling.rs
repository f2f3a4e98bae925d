//! The sampling parameters of a request. The engine carries them from the server to the executor and reads none of
//! their numbers; only [`SamplingParams::needs_history`] decides what the plan must carry along.

use crate::TokenId;

/// How the next token is chosen. The neutral value of every field switches its rule off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by it; 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches it; 1 is off.
    pub top_p: f32,
    /// Keep this many tokens; 0 is off.
    pub top_k: u32,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Subtracted per occurrence in the output; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in the output; 0 is off.
    pub presence_penalty: f32,
    /// Divides (multiplies, if negative) the logit of tokens in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Seed of the draw. The same seed gives the same tokens whatever else is in the batch.
    pub seed: u64,
    /// Report the chosen token's logprob and this many alternatives; `None` reports nothing.
    pub num_logprobs: Option<u32>,
}

impl SamplingParams {
    /// Greedy decoding, everything else off.
    pub fn greedy() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            num_logprobs: None,
        }
    }

    /// Whether choosing a token needs the tokens before it.
    pub fn needs_history(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}

/// Logprobs of one token, from the raw logits. The server's executors use `Option<TokenLogprobs>` as their payload; the
/// engine passes it on unopened.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Natural log-probability of the token.
    pub logprob: f32,
    /// Its rank, from 1.
    pub rank: u32,
    /// The likeliest tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}
