//! `POST /v1/chat/completions`: wire to generation, events to wire.

use serde::Serialize;
use serde_json::{Map, Value};

use super::parameters::{self, DialectPart};
use super::prompt_logprobs::PromptLogprobs;
use super::usage::{StopReason, UsageFields, chunk_usage};
use super::{ReadContext, finite, messages, to_json};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{
    Answer, AnswerChoice, AnswerHead, ChatPrompt, ChoiceDelta, Finish, Generation, GenerationEvent,
    OutputToken, PromptSource, TokenDetail, ToolsFirst, Usage,
};

/// Wire to generation.
pub(crate) fn read(mut body: Fields, context: &ReadContext<'_>) -> Result<Generation, ApiError> {
    let prompt = prompt(&mut body, context)?;
    // Both names are in use; the newer one counts. Without either, the answer may fill the window.
    let old_max_tokens = body.count("max_tokens")?;
    let max_tokens = body.count("max_completion_tokens")?.or(old_max_tokens).unwrap_or(u64::MAX);
    let num_logprobs = num_logprobs(&mut body, context)?;
    let part = DialectPart {
        prompts: vec![PromptSource::Chat(prompt)],
        max_tokens,
        num_logprobs,
        echo: false,
        is_continuation: false,
    };
    parameters::generation(body, context, part)
}

fn prompt(body: &mut Fields, context: &ReadContext<'_>) -> Result<ChatPrompt, ApiError> {
    let messages = messages::read(body.take("messages"))?;
    let tools = tools(body, context)?;
    let continue_final_message = body.bool("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = body.bool("add_generation_prompt")?.unwrap_or(!continue_final_message);
    if continue_final_message && add_generation_prompt {
        let rule = "cannot be true together with 'add_generation_prompt'";
        return Err(ApiError::invalid("continue_final_message", rule));
    }
    let template_kwargs = template_kwargs(body)?;
    let tools_first = tools_first(body, context.tools_first)?;
    Ok(ChatPrompt {
        messages,
        tools,
        add_generation_prompt,
        continue_final_message,
        template_kwargs,
        tools_first,
    })
}

/// The tools that the template shows to the model.
fn tools(body: &mut Fields, context: &ReadContext<'_>) -> Result<Option<Value>, ApiError> {
    let tools = body.list("tools", context.limits.max_tools)?.unwrap_or_default();
    let is_tool = |tool: &Value| tool["type"] == "function" && tool["function"]["name"].is_string();
    if let Some(index) = tools.iter().position(|tool| !is_tool(tool)) {
        let rule = "must be an object with `type: \"function\"` and a `function` with a `name`";
        return Err(ApiError::invalid(format!("tools[{index}]"), rule));
    }
    match body.take("tool_choice") {
        None => {}
        Some(Value::String(choice)) if choice == "auto" => {}
        Some(Value::String(choice)) if choice == "none" => return Ok(None),
        Some(Value::String(choice)) if choice == "required" => {
            return Err(ApiError::unsupported("tool_choice", "a call cannot be forced"));
        }
        Some(Value::Object(_)) => {
            return Err(ApiError::unsupported("tool_choice", "a call cannot be forced"));
        }
        Some(_) => {
            return Err(ApiError::invalid("tool_choice", "must be `auto`, `none`, `required` or an object"));
        }
    }
    Ok((!tools.is_empty()).then_some(Value::Array(tools)))
}

/// Whether the tools stand before the system's text: the client's wish counts, else the server's default where it can.
pub(crate) fn tools_first(body: &mut Fields, is_default: bool) -> Result<ToolsFirst, ApiError> {
    Ok(match body.bool("tools_first")? {
        Some(true) => ToolsFirst::Required,
        None if is_default => ToolsFirst::IfPossible,
        Some(false) | None => ToolsFirst::No,
    })
}

/// Arguments for the template: scalars under plain names. What the server itself passes cannot be replaced.
fn template_kwargs(body: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    const PARAM: &str = "chat_template_kwargs";
    const RESERVED: [&str; 6] =
        ["messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"];
    let kwargs = body.map(PARAM, 16)?.unwrap_or_default();
    for (name, value) in &kwargs {
        let is_plain =
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let is_small = match value {
            Value::Array(_) | Value::Object(_) => false,
            Value::String(text) => text.len() <= 256,
            Value::Null | Value::Bool(_) | Value::Number(_) => true,
        };
        if !is_plain || name.is_empty() || name.len() > 64 || RESERVED.contains(&name.as_str()) || !is_small {
            return Err(ApiError::invalid(PARAM, "must hold scalars under names that are not reserved"));
        }
    }
    Ok(kwargs)
}

fn num_logprobs(body: &mut Fields, context: &ReadContext<'_>) -> Result<Option<u32>, ApiError> {
    let logprobs = body.bool("logprobs")?.unwrap_or(false);
    let top_logprobs = body.integer("top_logprobs", 0..=i64::from(context.limits.max_logprobs))?;
    match top_logprobs {
        Some(1..) if !logprobs => Err(ApiError::invalid("top_logprobs", "needs `logprobs: true`")),
        _ => Ok(logprobs.then_some(top_logprobs.unwrap_or(0) as u32)),
    }
}

#[derive(Serialize)]
struct Completion<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: Vec<Choice<'a>>,
    usage: UsageFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
    stop_reason: StopReason<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<&'a str>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: Vec<ChunkChoice<'a>>,
    /// Absent unless asked for; then null until the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageFields>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: Vec<TokenLogprob<'a>>,
    refusal: Option<&'a str>,
}

#[derive(Serialize)]
struct TokenLogprob<'a> {
    token: String,
    logprob: f32,
    bytes: &'a [u8],
    top_logprobs: Vec<TopLogprob<'a>>,
}

#[derive(Serialize)]
struct TopLogprob<'a> {
    token: String,
    logprob: f32,
    bytes: &'a [u8],
}

/// Events to wire: one answer.
pub(crate) fn answer(head: &AnswerHead, answer: Answer) -> String {
    let prompt_token_ids = answer.prompts.first().map(|prompt| &*prompt.token_ids);
    to_json(&Completion {
        id: chat_id(head),
        object: "chat.completion",
        created: head.created,
        model: &head.model,
        system_fingerprint: None,
        choices: (0..)
            .zip(&answer.choices)
            .map(|(index, choice)| whole_choice(head, index, choice))
            .collect(),
        usage: answer.usage.into(),
        prompt_logprobs: answer.prompts.first().and_then(PromptLogprobs::of),
        prompt_token_ids: prompt_token_ids.filter(|_| head.output.return_token_ids),
    })
}

fn whole_choice<'a>(head: &AnswerHead, index: u32, choice: &'a AnswerChoice) -> Choice<'a> {
    Choice {
        index,
        message: Message { role: "assistant", content: &choice.text, refusal: None },
        logprobs: logprobs(head, &choice.tokens),
        finish_reason: choice.finish.as_ref().map(Finish::reason),
        stop_reason: StopReason(choice.finish.as_ref()),
        token_ids: token_ids(head, &choice.tokens),
    }
}

/// Events to wire: chunks of a stream.
pub(crate) fn chunks(head: &AnswerHead, event: &GenerationEvent, so_far: Usage) -> Vec<String> {
    let id = chat_id(head);
    let chunk = |choices, usage, prompt_token_ids| {
        to_json(&Chunk {
            id: &id,
            object: "chat.completion.chunk",
            created: head.created,
            model: &head.model,
            system_fingerprint: None,
            choices,
            usage,
            prompt_token_ids,
        })
    };
    let usage_to_come = || chunk_usage(head, so_far);
    match event {
        GenerationEvent::Prompt(prompt) => {
            let token_ids = head.output.return_token_ids.then_some(&*prompt.token_ids);
            (0..head.n).map(|index| chunk(vec![role_choice(index)], usage_to_come(), token_ids)).collect()
        }
        GenerationEvent::Delta(delta) => vec![chunk(vec![delta_choice(head, delta)], usage_to_come(), None)],
        GenerationEvent::Done(usage) if head.include_usage => {
            vec![chunk(Vec::new(), Some(Some((*usage).into())), None)]
        }
        GenerationEvent::Done(_) => Vec::new(),
        GenerationEvent::Failed(error) => vec![error.to_json()],
    }
}

fn role_choice<'a>(index: u32) -> ChunkChoice<'a> {
    ChunkChoice {
        index,
        delta: Delta { role: Some("assistant"), content: Some("") },
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    }
}

fn delta_choice<'a>(head: &AnswerHead, delta: &'a ChoiceDelta) -> ChunkChoice<'a> {
    ChunkChoice {
        index: delta.choice,
        delta: Delta {
            role: None,
            content: Some(&delta.text).filter(|text| !text.is_empty()).map(|text| &**text),
        },
        logprobs: logprobs(head, &delta.tokens),
        finish_reason: delta.finish.as_ref().map(Finish::reason),
        stop_reason: delta.finish.as_ref().map(|finish| StopReason(Some(finish))),
        token_ids: token_ids(head, &delta.tokens),
    }
}

fn chat_id(head: &AnswerHead) -> String {
    format!("chatcmpl-{}", head.id)
}

fn token_ids(head: &AnswerHead, tokens: &[OutputToken]) -> Option<Vec<u32>> {
    head.output.return_token_ids.then(|| tokens.iter().map(|token| token.id).collect())
}

fn logprobs<'a>(head: &AnswerHead, tokens: &'a [OutputToken]) -> Option<Logprobs<'a>> {
    let content = || tokens.iter().filter_map(|token| token.detail.as_ref()).map(token_logprob).collect();
    head.output.logprobs.then(|| Logprobs { content: content(), refusal: None })
}

fn token_logprob(detail: &TokenDetail) -> TokenLogprob<'_> {
    let top = detail.top.iter().map(|(bytes, logprob)| TopLogprob {
        token: String::from_utf8_lossy(bytes).into_owned(),
        logprob: finite(*logprob),
        bytes,
    });
    TokenLogprob {
        token: String::from_utf8_lossy(&detail.bytes).into_owned(),
        logprob: finite(detail.logprob.unwrap_or(0.0)),
        bytes: &detail.bytes,
        top_logprobs: top.collect(),
    }
}
