//! The fields of a chat request about tools and reasoning.

use std::sync::Arc;

use pagoda_text::{Tool, ToolSet};
use serde_json::{Map, Value};

use super::ReadContext;
use crate::AutoToolChoice;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::{ToolChoice, ToolUse};

/// The longest name of a function.
const MAX_NAME_BYTES: usize = 64;

/// Tools as the template shows them, and what the client expects of them.
pub(super) struct ToolFields {
    /// The client's list, for the template.
    pub(super) shown: Option<Value>,
    pub(super) usage: Option<ToolUse>,
}

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn read(body: &mut Fields, context: &ReadContext<'_>) -> Result<ToolFields, ApiError> {
    refuse_older_names(body)?;
    let list = body.list("tools", context.limits.max_tools)?.unwrap_or_default();
    let tools: Result<Vec<Tool>, ApiError> =
        list.iter().enumerate().map(|(index, value)| tool(value, &format!("tools[{index}]"))).collect();
    let set = ToolSet::new(tools?);
    // Clients also send it without tools.
    let parallel = body.bool("parallel_tool_calls")?.unwrap_or(true);
    let choice = choice(body.take("tool_choice"), &set, context.auto_tool_choice)?;
    match choice {
        Some(choice) if !set.is_empty() => {
            let usage = ToolUse { set: Arc::new(set), choice, parallel };
            Ok(ToolFields { shown: Some(Value::Array(list)), usage: Some(usage) })
        }
        _ => Ok(ToolFields { shown: None, usage: None }),
    }
}

/// The fields of 2023. An answer in their form would be another dialect.
fn refuse_older_names(body: &mut Fields) -> Result<(), ApiError> {
    let functions =
        body.take("functions").filter(|value| value.as_array().is_none_or(|list| !list.is_empty()));
    if functions.is_some() {
        return Err(ApiError::unsupported("functions", "use `tools`"));
    }
    match body.take("function_call") {
        None => Ok(()),
        Some(Value::String(choice)) if choice == "none" || choice == "auto" => Ok(()),
        Some(_) => Err(ApiError::unsupported("function_call", "use `tool_choice`")),
    }
}

fn tool(value: &Value, param: &str) -> Result<Tool, ApiError> {
    let rule = "must be an object with `type: \"function\"` and a `function` with a `name`";
    let function = value.get("function").and_then(Value::as_object);
    let function =
        function.filter(|_| value["type"] == "function").ok_or_else(|| ApiError::invalid(param, rule))?;
    let name = match function.get("name") {
        Some(Value::String(name)) if is_name(name) => name.clone(),
        Some(Value::String(_)) => {
            let rule = format!("must have 1 to {MAX_NAME_BYTES} letters, digits, `_`, `-` or `.`");
            return Err(ApiError::invalid(format!("{param}.function.name"), rule));
        }
        _ => return Err(ApiError::invalid(param, rule)),
    };
    let parameters = match function.get("parameters") {
        None | Some(Value::Null) => None,
        Some(parameters @ Value::Object(_)) => Some(parameters.clone()),
        Some(_) => {
            return Err(ApiError::invalid(format!("{param}.function.parameters"), "must be an object"));
        }
    };
    let is_strict = match function.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(is_strict)) => *is_strict,
        Some(_) => return Err(ApiError::invalid(format!("{param}.function.strict"), "must be a boolean")),
    };
    Ok(Tool { name, parameters, is_strict })
}

/// What every way of writing calls can carry.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

/// None if no tool is to be called.
fn choice(value: Option<Value>, set: &ToolSet, auto: AutoToolChoice) -> Result<Option<ToolChoice>, ApiError> {
    const PARAM: &str = "tool_choice";
    let auto = match auto {
        AutoToolChoice::Auto => ToolChoice::Auto,
        AutoToolChoice::Required => ToolChoice::Required,
    };
    let needs_tools = || match set.is_empty() {
        true => Err(ApiError::invalid(PARAM, "asks for a call, but there are no `tools`")),
        false => Ok(()),
    };
    match value {
        None => Ok(Some(auto)),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(Some(auto)),
            "none" => Ok(None),
            "required" | "any" => needs_tools().map(|()| Some(ToolChoice::Required)),
            _ => Err(ApiError::invalid(PARAM, "must be `auto`, `none`, `required` or an object")),
        },
        Some(Value::Object(choice)) => {
            let name =
                choice.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
            match name.filter(|_| choice.get("type").is_none_or(|kind| kind == "function")) {
                Some(name) if set.get(name).is_some() => Ok(Some(ToolChoice::Named(name.to_owned()))),
                Some(_) => Err(ApiError::invalid("tool_choice.function.name", "must be one of `tools`")),
                None => Err(ApiError::invalid(PARAM, "must name a function as `{type, function: {name}}`")),
            }
        }
        Some(_) => Err(ApiError::invalid(PARAM, "must be `auto`, `none`, `required` or an object")),
    }
}

/// Reads `reasoning_effort` into the variables of templates. What the client gives the template itself counts more.
pub(super) fn read_effort(body: &mut Fields, kwargs: &mut Map<String, Value>) -> Result<(), ApiError> {
    const PARAM: &str = "reasoning_effort";
    let Some(effort) = body.string(PARAM, 16)? else { return Ok(()) };
    if !matches!(effort.as_str(), "none" | "minimal" | "low" | "medium" | "high" | "xhigh" | "max") {
        let rule = "must be one of none, minimal, low, medium, high, xhigh, max";
        return Err(ApiError::invalid(PARAM, rule));
    }
    let thinks = effort != "none";
    // The switches of Qwen, GLM and SmolLM, and of DeepSeek and Granite.
    for name in ["enable_thinking", "thinking"] {
        kwargs.entry(name).or_insert(thinks.into());
    }
    if thinks {
        kwargs.entry(PARAM).or_insert(effort.into());
    }
    Ok(())
}
