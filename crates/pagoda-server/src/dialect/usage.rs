//! `usage`, and the reason why a choice ended, as both OpenAI dialects write them.

use serde::{Serialize, Serializer};

use crate::generation::{Finish, Usage};

#[derive(Serialize)]
pub(super) struct UsageFields {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Serialize)]
struct CompletionTokensDetails {
    reasoning_tokens: u64,
}

#[derive(Serialize)]
struct PromptTokensDetails {
    cached_tokens: u64,
}

impl From<Usage> for UsageFields {
    fn from(usage: Usage) -> Self {
        UsageFields {
            prompt_tokens: usage.num_prompt_tokens,
            completion_tokens: usage.num_completion_tokens,
            total_tokens: usage.num_prompt_tokens + usage.num_completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.num_cached_tokens },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens: usage.num_reasoning_tokens,
            },
        }
    }
}

/// `stop_reason`: the client's stop string or stop token that ended the choice, else null.
pub(super) struct StopReason<'a>(pub(super) Option<&'a Finish>);

impl Serialize for StopReason<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(Finish::StopToken(id)) => serializer.serialize_u32(*id),
            Some(Finish::StopString(text)) => serializer.serialize_str(text),
            _ => serializer.serialize_none(),
        }
    }
}
