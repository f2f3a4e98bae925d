//! Conversations with tools, rewritten for templates that cannot render them as they come.
//!
//! # The generic rendering
//!
//! For a template that knows no tools. The system message gets a description of the tools and of the form of calls
//! ([`ToolFormat::hermes`]); a call of an earlier turn stands in that form behind the turn's content; results stand in
//! `<tool_response>` tags in a message of the user, those of one turn together. The description comes behind the system's
//! text or, by [`ToolsPlace`], before it. Where the template refuses a system message, the description comes before the first message of the user; where it insists on turns that alternate, messages
//! of one role that follow each other become one.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde_json::{Map, Value, json};

use super::format::{CallSyntax, ToolFormat};
use super::support::ToolsPlace;
use crate::chat::python_json;

/// What the template takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generic {
    pub(super) has_system: bool,
    /// No two messages of one role in a row.
    pub(super) alternates: bool,
}

fn each_message(messages: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut)
}

fn each_function(messages: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let calls = each_message(messages).filter_map(|message| message.get_mut("tool_calls")?.as_array_mut());
    calls.flatten().filter_map(|call| call.get_mut("function")?.as_object_mut())
}

/// For templates that put arguments into the prompt as they are.
pub(super) fn write_arguments_as_text(messages: &mut Value) {
    for function in each_function(messages) {
        if let Some(arguments) = function.get_mut("arguments").filter(|arguments| !arguments.is_string()) {
            *arguments = Value::String(python_json(arguments));
        }
    }
}

/// For templates that insist on ids of nine letters and digits. Equal ids stay equal.
pub(super) fn shorten_ids(messages: &mut Value) {
    let shorten = |id: &mut Value| {
        if let Value::String(id) = id {
            let is_short = id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
            if !is_short {
                *id = short_id(id);
            }
        }
    };
    for message in each_message(messages) {
        message.get_mut("tool_call_id").into_iter().for_each(shorten);
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        calls.into_iter().flatten().filter_map(|call| call.get_mut("id")).for_each(shorten);
    }
}

/// Nine hexadecimal digits that depend on `id` alone, in this process and the next.
fn short_id(id: &str) -> String {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    format!("{:09x}", hasher.finish() & 0xF_FFFF_FFFF)
}

/// Puts the calls of every turn behind its content.
pub(super) fn move_calls_to_content(messages: &mut Value, format: &ToolFormat) {
    for message in each_message(messages) {
        let Some(Value::Array(calls)) = message.shift_remove("tool_calls") else { continue };
        let written = write_calls(&calls, format);
        match message.get_mut("content") {
            Some(Value::Array(parts)) => parts.push(json!({"type": "text", "text": written})),
            Some(Value::String(content)) if !content.is_empty() => {
                content.push('\n');
                content.push_str(&written);
            }
            _ => {
                message.insert("content".into(), written.into());
            }
        }
    }
}

/// Calls as the model is to write them.
fn write_calls(calls: &[Value], format: &ToolFormat) -> String {
    let calls = calls.iter().filter_map(|call| call["function"].as_object()).map(|function| {
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        let arguments = function.get("arguments").unwrap_or(&Value::Null);
        match &format.syntax {
            CallSyntax::Pythonic => format!("{name}({})", keyword_arguments(arguments)),
            _ => format!(
                "{{\"name\": {}, \"arguments\": {}}}",
                python_json(&name.into()),
                python_json(arguments)
            ),
        }
    });
    let calls: Vec<String> = calls.collect();
    format!("{}{}{}", format.begin.text(), calls.join(format.between.text()), format.end.text())
}

fn keyword_arguments(arguments: &Value) -> String {
    let arguments = arguments.as_object().into_iter().flatten();
    let written: Vec<String> =
        arguments.map(|(key, value)| format!("{key}={}", crate::chat::python_repr(value))).collect();
    written.join(", ")
}

/// The generic rendering.
pub(super) fn write_generic(
    messages: &mut Value,
    tools: Option<&Value>,
    format: &ToolFormat,
    generic: Generic,
    place: ToolsPlace,
) {
    move_calls_to_content(messages, format);
    move_results_to_user(messages);
    if let Some(tools) = tools.and_then(Value::as_array) {
        describe_tools(messages, &description(tools), generic, place);
    }
    if generic.alternates {
        merge(messages, |_| true);
    }
}

fn move_results_to_user(messages: &mut Value) {
    const WAS_RESULT: &str = "was_result";
    for message in each_message(messages).filter(|message| message["role"] == "tool") {
        let result = text_of(message.get("content"));
        *message = Map::new();
        message.insert("role".into(), "user".into());
        message.insert("content".into(), format!("<tool_response>\n{result}\n</tool_response>").into());
        message.insert(WAS_RESULT.into(), true.into());
    }
    merge(messages, |message| message.get(WAS_RESULT).is_some());
    for message in each_message(messages) {
        message.shift_remove(WAS_RESULT);
    }
}

/// Joins neighbours of one role where both are `mergeable`.
fn merge(messages: &mut Value, is_mergeable: impl Fn(&Value) -> bool) {
    let Value::Array(list) = messages else { return };
    let mut merged: Vec<Value> = Vec::with_capacity(list.len());
    for message in list.drain(..) {
        match merged.last_mut() {
            Some(last) if last["role"] == message["role"] && is_mergeable(last) && is_mergeable(&message) => {
                let text = format!("{}\n{}", text_of(last.get("content")), text_of(message.get("content")));
                last["content"] = text.into();
            }
            _ => merged.push(message),
        }
    }
    *list = merged;
}

fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// Puts the description where the model will look for it.
fn describe_tools(messages: &mut Value, description: &str, generic: Generic, place: ToolsPlace) {
    let Value::Array(list) = messages else { return };
    let role = if generic.has_system { "system" } else { "user" };
    let first = list.first_mut().filter(|first| first["role"] == role);
    match first {
        Some(first) if generic.has_system && place == ToolsPlace::BehindSystem => {
            let text = format!("{}\n\n{description}", text_of(first.get("content")));
            first["content"] = text.into();
        }
        Some(first) => {
            let text = format!("{description}\n\n{}", text_of(first.get("content")));
            first["content"] = text.into();
        }
        None => list.insert(0, json!({"role": role, "content": description})),
    }
}

fn description(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(python_json).collect();
    format!(
        "# Tools\n\nYou can call functions. Their signatures are listed within <tools></tools>, one JSON object per \
         line:\n<tools>\n{}\n</tools>\n\nTo call a function, write a JSON object with its name and its arguments within \
         <tool_call></tool_call>:\n<tool_call>\n{{\"name\": <function-name>, \"arguments\": \
         <arguments-object>}}\n</tool_call>\nThe result comes back within <tool_response></tool_response>.",
        tools.join("\n")
    )
}
