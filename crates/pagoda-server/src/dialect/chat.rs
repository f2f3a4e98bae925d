//! `POST /v1/chat/completions`: wire to generation, events to wire.

mod wire;

use serde_json::{Map, Value};

use super::parameters::{self, DialectPart};
use super::{ReadContext, messages, tools};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{ChatPrompt, Generation, PromptSource, ToolsFirst};

pub(crate) use wire::{answer, chunks};

/// Wire to generation.
pub(crate) fn read(mut body: Fields, context: &ReadContext<'_>) -> Result<Generation, ApiError> {
    let tools = tools::read(&mut body, context)?;
    let thinking_budget = body.count("thinking_token_budget")?;
    let prompt = prompt(&mut body, tools.shown, context)?;
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
        is_parsed: true,
    };
    let mut generation = parameters::generation(body, context, part)?;
    generation.output.has_tools = tools.usage.is_some();
    generation.tools = tools.usage;
    generation.thinking_budget = thinking_budget;
    Ok(generation)
}

fn prompt(
    body: &mut Fields,
    tools: Option<Value>,
    context: &ReadContext<'_>,
) -> Result<ChatPrompt, ApiError> {
    let messages = messages::read(body.take("messages"))?;
    let continue_final_message = body.bool("continue_final_message")?.unwrap_or(false);
    let add_generation_prompt = body.bool("add_generation_prompt")?.unwrap_or(!continue_final_message);
    if continue_final_message && add_generation_prompt {
        let rule = "cannot be true together with 'add_generation_prompt'";
        return Err(ApiError::invalid("continue_final_message", rule));
    }
    let mut template_kwargs = template_kwargs(body)?;
    tools::read_effort(body, &mut template_kwargs)?;
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
