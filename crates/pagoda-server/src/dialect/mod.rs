//! The wire formats. Each is one file of pure functions: a body becomes a [`crate::generation::Generation`], and its
//! events become chunks or one answer. No dialect touches the engine or the clock.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod messages;
mod parameters;
mod prompt_logprobs;
mod structured;
mod tools;
pub(crate) mod usage;

use serde::Serialize;

use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{Answer, AnswerHead, Generation, GenerationEvent, Usage};
use crate::model::SamplingDefaults;
use crate::{AutoToolChoice, RequestLimits};

/// What a dialect must know to read a body.
pub(crate) struct ReadContext<'a> {
    pub(crate) limits: &'a RequestLimits,
    pub(crate) defaults: &'a SamplingDefaults,
    pub(crate) vocab_size: usize,
    /// Whether tools come first unless the client says otherwise.
    pub(crate) tools_first: bool,
    /// Used when the client gives no seed.
    pub(crate) random_seed: u64,
    /// What a `tool_choice` of `auto`, or none, means.
    pub(crate) auto_tool_choice: AutoToolChoice,
}

/// The wire formats of generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completions,
}

impl Dialect {
    /// The field that holds the prompt.
    pub(crate) fn prompt_param(self) -> &'static str {
        match self {
            Dialect::Chat => "messages",
            Dialect::Completions => "prompt",
        }
    }

    /// Wire to generation.
    pub(crate) fn read(self, body: Fields, context: &ReadContext<'_>) -> Result<Generation, ApiError> {
        match self {
            Dialect::Chat => chat::read(body, context),
            Dialect::Completions => completions::read(body, context),
        }
    }

    /// An event to the JSON of its chunks. `so_far` is the usage up to it, of which some clients want to be told.
    pub(crate) fn chunks(self, head: &AnswerHead, event: &GenerationEvent, so_far: Usage) -> Vec<String> {
        match self {
            Dialect::Chat => chat::chunks(head, event, so_far),
            Dialect::Completions => completions::chunks(head, event, so_far),
        }
    }

    /// All events to the JSON of one answer.
    pub(crate) fn answer(self, head: &AnswerHead, answer: Answer) -> String {
        match self {
            Dialect::Chat => chat::answer(head, answer),
            Dialect::Completions => completions::answer(head, answer),
        }
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the wire types hold strings and finite numbers only")
}

/// A logprob as JSON can carry it: minus infinity becomes a large negative number.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(-9999.0) } else { -9999.0 }
}
