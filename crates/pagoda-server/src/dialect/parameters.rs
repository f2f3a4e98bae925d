//! The fields that both OpenAI dialects share: sampling, stopping, delivery.

use pagoda_engine::{RepetitionRule, SamplingParams};
use serde_json::Value;

use super::{ReadContext, structured};
use crate::error::ApiError;
use crate::fields::{Fields, whole};
use crate::generation::{Delivery, Generation, OutputRules, PromptSource, StopRules, Truncation};
use crate::token_rules::TokenRules;

/// What the dialects read for themselves.
pub(super) struct DialectPart {
    pub(super) prompts: Vec<PromptSource>,
    /// The client's wish, else the dialect's default.
    pub(super) max_tokens: u64,
    pub(super) num_logprobs: Option<u32>,
    pub(super) echo: bool,
    pub(super) is_continuation: bool,
    /// Reasoning and tool calls are told apart from content.
    pub(super) is_parsed: bool,
}

/// Reads the shared fields and puts the generation together.
pub(super) fn generation(
    mut fields: Fields,
    context: &ReadContext<'_>,
    part: DialectPart,
) -> Result<Generation, ApiError> {
    refuse_unsupported(&mut fields)?;
    let limits = context.limits;
    let sampling = sampling(&mut fields, context, part.num_logprobs)?;
    let stop = stop_rules(&mut fields, context)?;
    let min_tokens = fields.count("min_tokens")?.unwrap_or(0);
    if min_tokens > part.max_tokens {
        return Err(ApiError::invalid("min_tokens", "must not be larger than the tokens wanted"));
    }
    let delivery = delivery(&mut fields)?;
    let prompt_logprobs = prompt_logprobs(&mut fields, context, delivery)?;
    let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?.unwrap_or(0);
    Ok(Generation {
        model: fields.string("model", 512)?,
        prompts: part.prompts,
        n: fields.integer("n", 1..=i64::from(limits.max_n))?.unwrap_or(1) as u32,
        max_tokens: part.max_tokens,
        min_tokens,
        sampling,
        stop,
        constraint: structured::read(&mut fields)?,
        output: OutputRules {
            echo: part.echo,
            is_continuation: part.is_continuation,
            is_parsed: part.is_parsed,
            include_reasoning: fields.bool("include_reasoning")?.unwrap_or(true),
            has_tools: false,
            logprobs: part.num_logprobs.is_some(),
            prompt_logprobs,
            return_token_ids: fields.bool("return_token_ids")?.unwrap_or(false),
            skip_special_tokens: fields.bool("skip_special_tokens")?.unwrap_or(true),
        },
        delivery,
        priority: priority as i32,
        cache_salt: fields.string("cache_salt", limits.max_cache_salt_bytes)?.unwrap_or_default(),
        token_rules: token_rules(&mut fields, context)?,
        truncation: truncation(&mut fields)?,
        tools: None,
        thinking_budget: None,
    })
}

/// Fields that would change the answer and that this server cannot honour: an error is better than an answer that
/// silently ignores them.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    const REFUSED: [&str; 1] = ["chat_template"];
    for name in REFUSED {
        if fields.take(name).is_some() {
            return Err(ApiError::unsupported(name, "this server does not support it"));
        }
    }
    if fields.bool("use_beam_search")? == Some(true) {
        return Err(ApiError::unsupported("use_beam_search", "this server does not support it"));
    }
    Ok(())
}

fn sampling(
    fields: &mut Fields,
    context: &ReadContext<'_>,
    num_logprobs: Option<u32>,
) -> Result<SamplingParams, ApiError> {
    let defaults = context.defaults;
    let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(defaults.temperature);
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(defaults.top_p);
    if top_p == 0.0 {
        return Err(ApiError::invalid("top_p", "must be larger than 0 and at most 1"));
    }
    let top_k = match fields.integer("top_k", -1..=i64::MAX)? {
        None => defaults.top_k,
        Some(-1) => 0,
        Some(top_k) => u32::try_from(top_k).unwrap_or(u32::MAX),
    };
    Ok(SamplingParams {
        // Below this a division by it may leave the range of an f32, and the likeliest token wins anyway.
        temperature: if temperature < 1e-5 { 0.0 } else { temperature },
        top_p,
        top_k,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(defaults.min_p),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
        repetition_penalty: fields
            .number("repetition_penalty", 0.01..=100.0)?
            .unwrap_or(defaults.repetition_penalty),
        logit_bias: logit_bias(fields, context)?,
        seed: seed(fields)?.unwrap_or(context.random_seed),
        num_logprobs,
    })
}

fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    // Any 64 bits are a seed; a negative one keeps its bits.
    let seed = value.as_u64().or_else(|| whole(&value).map(|seed| seed as u64));
    seed.map(Some).ok_or_else(|| ApiError::invalid("seed", "must be an integer of at most 64 bits"))
}

fn logit_bias(fields: &mut Fields, context: &ReadContext<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.map("logit_bias", context.limits.max_logit_bias)? else { return Ok(Vec::new()) };
    map.into_iter()
        .map(|(key, value)| {
            let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < context.vocab_size);
            let bias = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
            match (id, bias) {
                (Some(id), Some(bias)) => Ok((id, bias as f32)),
                (None, _) => {
                    Err(ApiError::invalid("logit_bias", "must have token ids of the vocabulary as keys"))
                }
                (_, None) => {
                    Err(ApiError::invalid("logit_bias", "must have numbers between -100 and 100 as values"))
                }
            }
        })
        .collect()
}

fn stop_rules(fields: &mut Fields, context: &ReadContext<'_>) -> Result<StopRules, ApiError> {
    Ok(StopRules {
        strings: stop_strings(fields, context)?,
        token_ids: stop_token_ids(fields, context)?,
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
        include_stop_str: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
        repetition: repetition(fields)?,
    })
}

fn stop_strings(fields: &mut Fields, context: &ReadContext<'_>) -> Result<Vec<String>, ApiError> {
    let limits = context.limits;
    let values = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(value) => vec![value],
    };
    if values.len() > limits.max_stop_strings {
        let rule = format_args!("must have at most {} entries", limits.max_stop_strings).to_string();
        return Err(ApiError::invalid("stop", rule));
    }
    values
        .into_iter()
        .map(|value| match value {
            Value::String(text) if !text.is_empty() && text.len() <= limits.max_stop_string_bytes => Ok(text),
            _ => {
                let most = limits.max_stop_string_bytes;
                let rule = format!("must be a string or a list of strings, each of 1 to {most} bytes");
                Err(ApiError::invalid("stop", rule))
            }
        })
        .collect()
}

fn stop_token_ids(fields: &mut Fields, context: &ReadContext<'_>) -> Result<Vec<u32>, ApiError> {
    let values = fields.list("stop_token_ids", context.limits.max_stop_token_ids)?.unwrap_or_default();
    values
        .iter()
        .map(|value| token_id(value, context.vocab_size))
        .collect::<Option<_>>()
        .ok_or_else(|| ApiError::invalid("stop_token_ids", "must be token ids of the vocabulary"))
}

/// What may be said token by token; vLLM's names.
fn token_rules(fields: &mut Fields, context: &ReadContext<'_>) -> Result<TokenRules, ApiError> {
    let limits = context.limits;
    let allowed = match fields.list("allowed_token_ids", limits.max_allowed_token_ids)? {
        None => None,
        Some(values) => {
            let ids: Option<Vec<u32>> =
                values.iter().map(|value| token_id(value, context.vocab_size)).collect();
            let rule = "must be token ids of the vocabulary, at least one";
            let ids = ids.filter(|ids| !ids.is_empty());
            Some(ids.ok_or_else(|| ApiError::invalid("allowed_token_ids", rule))?)
        }
    };
    let words = fields.list("bad_words", limits.max_stop_strings)?.unwrap_or_default();
    let word = |word: Value| match word {
        Value::String(word) if !word.trim().is_empty() && word.len() <= limits.max_stop_string_bytes => {
            Ok(word)
        }
        _ => {
            let most = limits.max_stop_string_bytes;
            let rule = format!("must be words of 1 to {most} bytes, not of spaces alone");
            Err(ApiError::invalid("bad_words", rule))
        }
    };
    let bad_words: Result<_, _> = words.into_iter().map(word).collect();
    Ok(TokenRules { allowed, bad_words: bad_words? })
}

/// A token id of the vocabulary.
pub(super) fn token_id(value: &Value, vocab_size: usize) -> Option<u32> {
    let id = whole(value).and_then(|id| u32::try_from(id).ok())?;
    ((id as usize) < vocab_size).then_some(id)
}

fn delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let (mut include_usage, mut continuous_usage) = (false, false);
    if let Some(mut options) = fields.object("stream_options")? {
        include_usage = options.bool("include_usage")?.unwrap_or(false);
        continuous_usage = options.bool("continuous_usage_stats")?.unwrap_or(false);
    }
    Ok(Delivery { stream, include_usage, continuous_usage })
}

/// Alternatives for every token of the prompt; only whole answers have a place for them.
fn prompt_logprobs(
    fields: &mut Fields,
    context: &ReadContext<'_>,
    delivery: Delivery,
) -> Result<Option<u32>, ApiError> {
    let most = i64::from(context.limits.max_logprobs);
    match fields.integer("prompt_logprobs", 0..=most)? {
        Some(_) if delivery.stream => Err(ApiError::invalid("prompt_logprobs", "cannot be streamed")),
        wanted => Ok(wanted.map(|num| num as u32)),
    }
}

fn truncation(fields: &mut Fields) -> Result<Option<Truncation>, ApiError> {
    if fields.string("truncation_side", 16)?.is_some_and(|side| side != "left") {
        return Err(ApiError::unsupported("truncation_side", "prompts are cut on the left"));
    }
    match fields.integer("truncate_prompt_tokens", -1..=i64::MAX)? {
        None => Ok(None),
        Some(-1) => Ok(Some(Truncation::Window)),
        Some(0) => Err(ApiError::invalid("truncate_prompt_tokens", "must be -1 or at least 1")),
        Some(num) => Ok(Some(Truncation::Last(usize::try_from(num).unwrap_or(usize::MAX)))),
    }
}

/// Longer patterns would be looked for at every token; nobody goes round in larger circles.
const MAX_PATTERN_LEN: i64 = 256;
/// More copies than this are as good as this many.
const MAX_PATTERN_COUNT: i64 = 4096;

/// vLLM's `repetition_detection`. Its zeros mean "not set".
fn repetition(fields: &mut Fields) -> Result<Option<RepetitionRule>, ApiError> {
    let Some(mut rule) = fields.object("repetition_detection")? else { return Ok(None) };
    let max_pattern_len = rule.integer("max_pattern_size", 0..=MAX_PATTERN_LEN)?.unwrap_or(0);
    let min_pattern_len = rule.integer("min_pattern_size", 0..=MAX_PATTERN_LEN)?.unwrap_or(0).max(1);
    let min_count = rule.integer("min_count", 0..=MAX_PATTERN_COUNT)?.unwrap_or(0);
    if max_pattern_len == 0 {
        return Ok(None);
    }
    if min_pattern_len > max_pattern_len {
        let rule = "must not be larger than `max_pattern_size`";
        return Err(ApiError::invalid("repetition_detection.min_pattern_size", rule));
    }
    if min_count < 2 {
        return Err(ApiError::invalid("repetition_detection.min_count", "must be at least 2"));
    }
    Ok(Some(RepetitionRule {
        min_pattern_len: min_pattern_len as u32,
        max_pattern_len: max_pattern_len as u32,
        min_count: min_count as u32,
    }))
}
