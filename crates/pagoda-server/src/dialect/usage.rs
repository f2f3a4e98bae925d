//! `usage`, and the reason why a choice ended, as both OpenAI dialects write them.

use pagoda_engine::CacheMiss;
use serde::{Serialize, Serializer};

use crate::generation::{AnswerHead, CacheUsage, Finish, Usage};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_miss: Option<CacheMissFields>,
}

/// Why no more of a prompt was cached.
#[derive(Serialize)]
pub(crate) struct CacheMissFields {
    reason: &'static str,
    /// Leading tokens seen before under the same key and salt, evicted ones included.
    known_tokens: u32,
    /// The first position at which the prompt differs from everything known.
    diverged_at: Option<u32>,
    /// Leading tokens that the same key's prompts under another salt would have served.
    #[serde(skip_serializing_if = "Option::is_none")]
    other_salt_tokens: Option<u32>,
    /// Which of several prompts it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_index: Option<u32>,
}

impl From<CacheUsage> for CacheMissFields {
    fn from(usage: CacheUsage) -> Self {
        let prefix = usage.prefix;
        let num_elsewhere = prefix.num_tokens_under_other_salt;
        CacheMissFields {
            reason: if num_elsewhere > 0 { "salt" } else { reason(prefix.miss) },
            known_tokens: prefix.num_known_tokens,
            diverged_at: (prefix.miss == CacheMiss::Diverged).then_some(prefix.num_known_tokens),
            other_salt_tokens: (num_elsewhere > 0).then_some(num_elsewhere),
            prompt_index: usage.prompt_index,
        }
    }
}

/// The word for it.
fn reason(miss: CacheMiss) -> &'static str {
    match miss {
        CacheMiss::Nothing => "none",
        CacheMiss::NotAsked => "not_looked_up",
        CacheMiss::FirstUse => "first_use",
        CacheMiss::Evicted => "evicted",
        CacheMiss::Diverged => "diverged",
    }
}

impl From<Usage> for UsageFields {
    fn from(usage: Usage) -> Self {
        UsageFields {
            prompt_tokens: usage.num_prompt_tokens,
            completion_tokens: usage.num_completion_tokens,
            total_tokens: usage.num_prompt_tokens + usage.num_completion_tokens,
            prompt_tokens_details: PromptTokensDetails {
                cached_tokens: usage.num_cached_tokens,
                cache_miss: usage.cache.map(CacheMissFields::from),
            },
            completion_tokens_details: CompletionTokensDetails {
                reasoning_tokens: usage.num_reasoning_tokens,
            },
        }
    }
}

/// `usage` of a chunk before the last: absent, null, or what has been used so far.
pub(super) fn chunk_usage(head: &AnswerHead, so_far: Usage) -> Option<Option<UsageFields>> {
    head.include_usage.then(|| head.continuous_usage.then(|| so_far.into()))
}

/// `stop_reason`: what ended the choice if it was the client's stop string or stop token, or repetitions; else null.
pub(super) struct StopReason<'a>(pub(super) Option<&'a Finish>);

impl Serialize for StopReason<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(Finish::StopToken(id)) => serializer.serialize_u32(*id),
            Some(Finish::StopString(text)) => serializer.serialize_str(text),
            Some(Finish::Repetition) => serializer.serialize_str("repetition_detected"),
            _ => serializer.serialize_none(),
        }
    }
}
