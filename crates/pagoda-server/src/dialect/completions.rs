//! `POST /v1/completions`: wire to generation, events to wire.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::parameters::{self, DialectPart, token_id};
use super::prompt_logprobs::PromptLogprobs;
use super::usage::{StopReason, UsageFields, chunk_usage};
use super::{ReadContext, finite, to_json};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{
    Answer, AnswerHead, Finish, Generation, GenerationEvent, OutputToken, PromptSource, PromptStart,
    TokenDetail, Usage,
};

/// OpenAI's default for this route.
const DEFAULT_MAX_TOKENS: u64 = 16;

/// Wire to generation.
pub(crate) fn read(mut body: Fields, context: &ReadContext<'_>) -> Result<Generation, ApiError> {
    let add_special_tokens = body.bool("add_special_tokens")?.unwrap_or(true);
    let prompts = prompts(body.take("prompt"), add_special_tokens, context)?;
    let num_logprobs = num_logprobs(&mut body, context)?;
    if body.string("suffix", usize::MAX)?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "this server does not support it"));
    }
    if body.integer("best_of", 1..=i64::MAX)?.is_some_and(|best_of| best_of > 1) {
        return Err(ApiError::unsupported("best_of", "only 1 is supported"));
    }
    let part = DialectPart {
        prompts,
        max_tokens: body.count("max_tokens")?.unwrap_or(DEFAULT_MAX_TOKENS),
        num_logprobs,
        echo: body.bool("echo")?.unwrap_or(false),
        is_continuation: true,
        is_parsed: false,
    };
    parameters::generation(body, context, part)
}

/// A string, a list of token ids, or a list of either.
fn prompts(
    prompt: Option<Value>,
    add_special_tokens: bool,
    context: &ReadContext<'_>,
) -> Result<Vec<PromptSource>, ApiError> {
    let text = |text| PromptSource::Text { text, add_special_tokens };
    match prompt {
        None => Err(ApiError::invalid("prompt", "is required")),
        Some(Value::String(prompt)) => Ok(vec![text(prompt)]),
        Some(Value::Array(values)) => match values.first() {
            None => Err(ApiError::invalid("prompt", "must not be empty")),
            Some(Value::Number(_)) => Ok(vec![token_ids(&values, "prompt".into(), context)?]),
            Some(_) if values.len() > context.limits.max_prompts => {
                let rule = format!("must have at most {} entries", context.limits.max_prompts);
                Err(ApiError::invalid("prompt", rule))
            }
            Some(_) => (0..)
                .zip(values)
                .map(|(index, value): (usize, Value)| match value {
                    Value::String(prompt) => Ok(text(prompt)),
                    Value::Array(ids) => token_ids(&ids, format!("prompt[{index}]"), context),
                    _ => Err(ApiError::invalid(
                        format!("prompt[{index}]"),
                        "must be a string or a list of token ids",
                    )),
                })
                .collect(),
        },
        Some(_) => Err(ApiError::invalid("prompt", "must be a string or a list")),
    }
}

fn token_ids(values: &[Value], param: String, context: &ReadContext<'_>) -> Result<PromptSource, ApiError> {
    let ids: Option<Vec<u32>> = values.iter().map(|value| token_id(value, context.vocab_size)).collect();
    match ids {
        Some(ids) if !ids.is_empty() => Ok(PromptSource::TokenIds(ids)),
        Some(_) => Err(ApiError::invalid(param, "must not be empty")),
        None => Err(ApiError::invalid(param, "must hold token ids of the vocabulary")),
    }
}

/// A number on this route; `false` means none, as chat clients send it.
fn num_logprobs(body: &mut Fields, context: &ReadContext<'_>) -> Result<Option<u32>, ApiError> {
    match body.take("logprobs") {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(value) => match crate::fields::whole(&value) {
            Some(num) if (0..=i64::from(context.limits.max_logprobs)).contains(&num) => Ok(Some(num as u32)),
            _ => {
                let rule = format!("must be an integer between 0 and {}", context.limits.max_logprobs);
                Err(ApiError::invalid("logprobs", rule))
            }
        },
    }
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: Vec<Choice<'a>>,
    /// Absent in streams unless asked for; then null until the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageFields>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: StopReason<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs<'a>>,
}

#[derive(Serialize, Default)]
struct Logprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
}

/// Events to wire: one answer.
pub(crate) fn answer(head: &AnswerHead, answer: Answer) -> String {
    let texts: Vec<String> = (0..)
        .zip(&answer.choices)
        .map(|(index, choice)| match prompt_of(&answer, head, index) {
            Some(prompt) => format!("{}{}", prompt.echo_text, choice.text),
            None => choice.text.clone(),
        })
        .collect();
    let choices = (0..).zip(answer.choices.iter().zip(&texts)).map(|(index, (choice, text))| {
        let prompt = prompt_of(&answer, head, index);
        let echoed = prompt.map_or(&[][..], |prompt| &prompt.echo_tokens);
        Choice {
            index,
            text,
            logprobs: logprobs(head, echoed.iter().chain(&choice.tokens)),
            finish_reason: choice.finish.as_ref().map(Finish::reason),
            stop_reason: StopReason(choice.finish.as_ref()),
            token_ids: token_ids_of(head, &choice.tokens),
            prompt_token_ids: prompt
                .map(|prompt| &*prompt.token_ids)
                .filter(|_| head.output.return_token_ids),
            prompt_logprobs: prompt.and_then(PromptLogprobs::of),
        }
    });
    to_json(&completion(head, &completion_id(head), choices.collect(), Some(Some(answer.usage.into()))))
}

fn prompt_of<'a>(answer: &'a Answer, head: &AnswerHead, choice: u32) -> Option<&'a PromptStart> {
    answer.prompts.iter().find(|prompt| prompt.prompt_index == choice / head.n)
}

/// Events to wire: chunks of a stream.
pub(crate) fn chunks(head: &AnswerHead, event: &GenerationEvent, so_far: Usage) -> Vec<String> {
    let id = completion_id(head);
    let usage_to_come = || chunk_usage(head, so_far);
    let chunk = |choice| to_json(&completion(head, &id, vec![choice], usage_to_come()));
    match event {
        GenerationEvent::Prompt(prompt) => prompt_choices(head, prompt).into_iter().map(chunk).collect(),
        GenerationEvent::Delta(delta) => vec![chunk(Choice {
            index: delta.choice,
            text: delta.content(),
            logprobs: logprobs(head, delta.tokens.iter()),
            finish_reason: delta.finish.as_ref().map(Finish::reason),
            stop_reason: StopReason(delta.finish.as_ref()),
            token_ids: token_ids_of(head, &delta.tokens),
            prompt_token_ids: None,
            prompt_logprobs: None,
        })],
        GenerationEvent::Done(usage) if head.include_usage => {
            vec![to_json(&completion(head, &id, Vec::new(), Some(Some((*usage).into()))))]
        }
        GenerationEvent::Done(_) => Vec::new(),
        GenerationEvent::Failed(error) => vec![error.to_json()],
    }
}

/// The chunks that repeat the prompt or its ids; none if nobody asked for either.
fn prompt_choices<'a>(head: &AnswerHead, prompt: &'a PromptStart) -> Vec<Choice<'a>> {
    if !head.output.echo && !head.output.return_token_ids {
        return Vec::new();
    }
    let first = prompt.prompt_index * head.n;
    (first..first + head.n)
        .map(|index| Choice {
            index,
            text: &prompt.echo_text,
            logprobs: logprobs(head, prompt.echo_tokens.iter()).filter(|_| head.output.echo),
            finish_reason: None,
            stop_reason: StopReason(None),
            token_ids: None,
            prompt_token_ids: head.output.return_token_ids.then_some(&*prompt.token_ids),
            prompt_logprobs: None,
        })
        .collect()
}

fn completion<'a>(
    head: &'a AnswerHead,
    id: &'a str,
    choices: Vec<Choice<'a>>,
    usage: Option<Option<UsageFields>>,
) -> Completion<'a> {
    Completion {
        id,
        object: "text_completion",
        created: head.created,
        model: &head.model,
        system_fingerprint: None,
        choices,
        usage,
    }
}

fn completion_id(head: &AnswerHead) -> String {
    format!("cmpl-{}", head.id)
}

fn token_ids_of(head: &AnswerHead, tokens: &[OutputToken]) -> Option<Vec<u32>> {
    head.output.return_token_ids.then(|| tokens.iter().map(|token| token.id).collect())
}

fn logprobs<'a>(head: &AnswerHead, tokens: impl Iterator<Item = &'a OutputToken>) -> Option<Logprobs> {
    if !head.output.logprobs {
        return None;
    }
    let mut logprobs = Logprobs::default();
    for detail in tokens.filter_map(|token| token.detail.as_ref()) {
        let token = String::from_utf8_lossy(&detail.bytes).into_owned();
        logprobs.text_offset.push(detail.text_offset);
        logprobs.token_logprobs.push(detail.logprob.map(finite));
        logprobs.top_logprobs.push(detail.logprob.map(|logprob| top_logprobs(detail, &token, logprob)));
        logprobs.tokens.push(token);
    }
    Some(logprobs)
}

/// The likeliest tokens and the chosen one, by text.
fn top_logprobs(detail: &TokenDetail, token: &str, logprob: f32) -> Map<String, Value> {
    let mut top = Map::new();
    for (bytes, logprob) in &detail.top {
        // Of tokens that read the same (broken characters) the likeliest counts.
        top.entry(String::from_utf8_lossy(bytes).into_owned()).or_insert(json!(finite(*logprob)));
    }
    top.entry(token).or_insert(json!(finite(logprob)));
    top
}
