//! A generation's prompt as the engine's request, and the engine's refusals as the API's.

use std::sync::Arc;
use std::time::Duration;

use pagoda_engine::{CacheSalt, Request, StopCriteria, SubmitError};

use crate::error::ApiError;
use crate::generation::Generation;
use crate::keys::Caller;
use crate::model::ServedModel;

/// Who asks, and what to say when there is no room.
#[derive(Clone, Copy)]
pub(crate) struct SubmitContext {
    pub(crate) caller: Caller,
    pub(crate) retry_after: Duration,
    pub(crate) prompt_param: &'static str,
}

/// The engine's request for one prompt, its lengths clamped to the room left.
pub(crate) fn engine_request(
    model: &ServedModel,
    generation: &Generation,
    token_ids: &Arc<[u32]>,
    caller: Caller,
) -> Request {
    let room = model.max_model_len.saturating_sub(token_ids.len());
    let max_tokens = u32::try_from(generation.max_tokens.min(room as u64)).unwrap_or(u32::MAX);
    let min_tokens = u32::try_from(generation.min_tokens).unwrap_or(u32::MAX).min(max_tokens);
    let own_stops = if generation.stop.ignore_eos { &[][..] } else { &model.stop_token_ids };
    let stop_token_ids = own_stops.iter().chain(&generation.stop.token_ids).copied().collect();
    // The prompt's logprobs serve two wishes: the more alternatives, the better for both.
    let for_echo = generation.sampling.num_logprobs.filter(|_| generation.output.echo);
    Request {
        prompt: token_ids.to_vec(),
        sampling: Arc::new(generation.sampling.clone()),
        stop: StopCriteria { max_tokens, min_tokens, stop_token_ids, repetition: generation.stop.repetition },
        num_sequences: generation.n,
        priority: generation.priority,
        cache_salt: cache_salt(caller, &generation.cache_salt),
        prompt_logprobs: for_echo.max(generation.output.prompt_logprobs),
        constraint: None,
    }
}

/// The domain within which prefixes are shared: one per key, and within it one per salt of the client.
fn cache_salt(caller: Caller, salt: &str) -> CacheSalt {
    let tenant = match caller {
        Caller::Open => 0,
        Caller::Key { index, .. } => index as u64 + 1,
    };
    CacheSalt { tenant, salt: salt.as_bytes().to_vec() }
}

/// All prompts of a request find room in the queue, or none is submitted. More than the whole queue holds is the
/// client's error: trying again would never help.
pub(crate) fn check_room(
    model: &ServedModel,
    generation: &Generation,
    num_prompts: usize,
    context: SubmitContext,
) -> Result<(), ApiError> {
    let max_queued = model.engine.limits().max_queued_requests;
    let num_sequences = num_prompts * generation.n as usize;
    if num_sequences > max_queued {
        return Err(ApiError::invalid(
            context.prompt_param,
            format_args!(
                "asks for {num_sequences} sequences with n, but this server queues at most {max_queued}"
            ),
        ));
    }
    // Another request may still come in between; the engine's own check then refuses and what was submitted ends.
    if model.engine.num_queued() + num_sequences > max_queued {
        model.metrics.requests().count_queue_full();
        return Err(ApiError::QueueFull { retry_after: context.retry_after });
    }
    Ok(())
}

/// The engine's refusal in the API's words.
pub(crate) fn refused(error: &SubmitError, model: &ServedModel, context: SubmitContext) -> ApiError {
    let retry_after = context.retry_after;
    match error {
        SubmitError::QueueFull { .. } => {
            model.metrics.requests().count_queue_full();
            ApiError::QueueFull { retry_after }
        }
        SubmitError::PromptTooLong { num_prompt_tokens, max_model_len } => ApiError::ContextLength {
            max_model_len: *max_model_len,
            found: format!("Your {} resulted in {num_prompt_tokens} tokens", context.prompt_param),
            param: context.prompt_param,
        },
        SubmitError::EmptyPrompt => ApiError::invalid(context.prompt_param, "must have at least one token"),
        SubmitError::TooManySequences { max_num_sequences, .. } => {
            ApiError::invalid("n", format_args!("must be at most {max_num_sequences}"))
        }
        SubmitError::Draining => ApiError::Unavailable { reason: "the server is draining", retry_after },
        SubmitError::Stopped => ApiError::Unavailable { reason: "the engine has stopped", retry_after },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyRole;

    #[test]
    fn no_salt_leads_into_the_domain_of_another_key() {
        let key = |index| Caller::Key { index, role: KeyRole::User };
        let domains = [
            cache_salt(Caller::Open, ""),
            cache_salt(Caller::Open, "1"),
            cache_salt(key(0), ""),
            cache_salt(key(0), "a"),
            cache_salt(key(1), ""),
            cache_salt(key(1), "a"),
            cache_salt(key(10), ""),
            cache_salt(key(1), "0"),
        ];
        for (index, domain) in domains.iter().enumerate() {
            assert!(!domains[..index].contains(domain), "{domain:?}");
        }
    }
}
