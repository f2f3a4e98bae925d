//! `prompt_logprobs`, as both dialects write them: a list with one entry per prompt token, null for the first, else
//! `{"<token id>": {"logprob", "rank", "decoded_token"}}` with the prompt's own token first.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use super::finite;
use crate::generation::{PromptStart, RankedToken};

/// The logprobs of one prompt.
pub(super) struct PromptLogprobs<'a>(&'a [Option<Vec<RankedToken>>]);

impl<'a> PromptLogprobs<'a> {
    /// Those of a prompt, if they were asked for.
    pub(super) fn of(prompt: &'a PromptStart) -> Option<Self> {
        prompt.logprobs.as_deref().map(PromptLogprobs)
    }
}

impl Serialize for PromptLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for position in self.0 {
            list.serialize_element(&position.as_deref().map(Position))?;
        }
        list.end()
    }
}

/// The candidates of one position; no id occurs twice.
struct Position<'a>(&'a [RankedToken]);

#[derive(Serialize)]
struct Candidate<'a> {
    logprob: f32,
    rank: u32,
    decoded_token: &'a str,
}

impl Serialize for Position<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for token in self.0 {
            let candidate =
                Candidate { logprob: finite(token.logprob), rank: token.rank, decoded_token: &token.text };
            map.serialize_entry(&token.id.to_string(), &candidate)?;
        }
        map.end()
    }
}
