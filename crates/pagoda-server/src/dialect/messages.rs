//! The messages of a conversation as the wire gives them, checked and reduced to what a chat template may see: known
//! roles, text, tool calls with their arguments as objects.

use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// Fields of a message that reach the template besides `role` and `content`.
const PASSED_ON: [&str; 4] = ["name", "tool_call_id", "reasoning_content", "reasoning"];

/// Checks and normalises `messages`. Content stays a string, or becomes a list of text parts if the client sent one.
pub(crate) fn read(messages: Option<Value>) -> Result<Value, ApiError> {
    let messages = match messages {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(Value::Array(_)) => return Err(ApiError::invalid("messages", "must have at least one entry")),
        Some(_) => return Err(ApiError::invalid("messages", "must be a list")),
        None => return Err(ApiError::invalid("messages", "is required")),
    };
    let messages = messages.into_iter().enumerate();
    messages.map(|(index, value)| message(value, &format!("messages[{index}]"))).collect()
}

fn message(value: Value, param: &str) -> Result<Value, ApiError> {
    let Value::Object(mut fields) = value else {
        return Err(ApiError::invalid(param, "must be an object"));
    };
    let role = role(&fields, param)?;
    let tool_calls = tool_calls(fields.remove("tool_calls"), param)?;
    let content = content(fields.remove("content").unwrap_or(Value::Null), role, param)?;
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), content);
    if let Some(tool_calls) = tool_calls {
        message.insert("tool_calls".into(), tool_calls);
    }
    for name in PASSED_ON {
        match fields.remove(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => {
                message.insert(name.into(), text.into());
            }
            Some(_) => return Err(ApiError::invalid(format!("{param}.{name}"), "must be a string")),
        }
    }
    Ok(Value::Object(message))
}

/// The role under which the template knows the speaker.
fn role(fields: &Map<String, Value>, param: &str) -> Result<&'static str, ApiError> {
    match fields.get("role").and_then(Value::as_str) {
        // The newer word for the same thing; templates know the older one.
        Some("system" | "developer") => Ok("system"),
        Some("user") => Ok("user"),
        Some("assistant") => Ok("assistant"),
        Some("tool" | "function") => Ok("tool"),
        _ => {
            let rule = "must be one of system, developer, user, assistant, tool";
            Err(ApiError::invalid(format!("{param}.role"), rule))
        }
    }
}

fn content(value: Value, role: &str, param: &str) -> Result<Value, ApiError> {
    let param = format!("{param}.content");
    match value {
        Value::String(_) => Ok(value),
        // A turn that only calls tools has no text. Templates add strings, so it is an empty one.
        Value::Null if role == "assistant" => Ok("".into()),
        Value::Null => Err(ApiError::invalid(param, "is required")),
        Value::Array(parts) => {
            let parts = parts.into_iter().enumerate();
            parts.map(|(index, part)| text_part(part, &format!("{param}[{index}]"))).collect()
        }
        _ => Err(ApiError::invalid(param, "must be a string or a list of parts")),
    }
}

fn text_part(part: Value, param: &str) -> Result<Value, ApiError> {
    let text = match &part {
        Value::String(text) => Some(text.as_str()),
        Value::Object(fields) => match fields.get("type").and_then(Value::as_str) {
            Some("text" | "input_text" | "output_text") => fields.get("text").and_then(Value::as_str),
            Some("refusal") => fields.get("refusal").and_then(Value::as_str),
            Some(_) => return Err(ApiError::unsupported(param, "only text parts are supported")),
            None => return Err(ApiError::invalid(format!("{param}.type"), "is required")),
        },
        _ => None,
    };
    match text {
        Some(text) => Ok(json!({"type": "text", "text": text})),
        None => Err(ApiError::invalid(param, "must be a text part with a string")),
    }
}

/// Tool calls of an assistant's turn, their arguments parsed: templates iterate over them.
fn tool_calls(value: Option<Value>, param: &str) -> Result<Option<Value>, ApiError> {
    let param = format!("{param}.tool_calls");
    let calls = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(calls)) if calls.is_empty() => return Ok(None),
        Some(Value::Array(calls)) => calls,
        Some(_) => return Err(ApiError::invalid(param, "must be a list")),
    };
    let calls = calls.into_iter().enumerate();
    let calls: Result<Value, _> =
        calls.map(|(index, call)| tool_call(call, &format!("{param}[{index}]"))).collect();
    calls.map(Some)
}

fn tool_call(mut call: Value, param: &str) -> Result<Value, ApiError> {
    let wrong =
        || ApiError::invalid(param, "must be an object with `function.name` and `function.arguments`");
    let function = call.get_mut("function").and_then(Value::as_object_mut).ok_or_else(wrong)?;
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(wrong());
    }
    let arguments = match function.remove("arguments") {
        None | Some(Value::Null) => json!({}),
        Some(Value::Object(arguments)) => Value::Object(arguments),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        // What a weak model wrote may be no JSON; the template then shows it as it was.
        Some(Value::String(text)) => match serde_json::from_str::<Value>(&text) {
            Ok(arguments @ Value::Object(_)) => arguments,
            _ => Value::String(text),
        },
        Some(_) => return Err(wrong()),
    };
    function.insert("arguments".into(), arguments);
    Ok(call)
}

/// Joins the text parts of every message into one string, for templates that expect strings.
pub(crate) fn join_parts(messages: &mut Value) {
    for_each_content(messages, |content| {
        if let Value::Array(parts) = content {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            *content = Value::String(texts.join("\n"));
        }
    });
}

/// Makes every message's content a list of text parts, for templates that iterate over them.
pub(crate) fn split_strings(messages: &mut Value) {
    for_each_content(messages, |content| {
        if let Value::String(text) = content {
            *content = json!([{"type": "text", "text": std::mem::take(text)}]);
        }
    });
}

fn for_each_content(messages: &mut Value, change: impl Fn(&mut Value)) {
    for message in messages.as_array_mut().into_iter().flatten() {
        if let Some(content) = message.get_mut("content") {
            change(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn param_of(messages: Value) -> String {
        match read(Some(messages)).unwrap_err() {
            ApiError::Invalid { param, .. } | ApiError::Unsupported { param, .. } => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn agent_histories_are_accepted() {
        let history = json!([
            {"role": "developer", "content": "be brief", "unknown": 1},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "ok", "name": null},
            {"role": "assistant", "content": null},
        ]);
        let mut messages = read(Some(history)).unwrap();
        assert_eq!(messages[0], json!({"role": "system", "content": "be brief"}));
        assert_eq!(messages[2]["content"], "");
        assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        join_parts(&mut messages);
        assert_eq!(messages[1]["content"], "a\nb");
        split_strings(&mut messages);
        assert_eq!(messages[1]["content"], json!([{"type": "text", "text": "a\nb"}]));
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(param_of(json!([])), "messages");
        assert_eq!(param_of(json!([{"role": "user", "content": "a"}, 3])), "messages[1]");
        assert_eq!(param_of(json!([{"role": "wizard", "content": "a"}])), "messages[0].role");
        assert_eq!(param_of(json!([{"role": "user"}])), "messages[0].content");
        let image = json!([{"role": "user", "content": [{"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}]);
        assert_eq!(param_of(image), "messages[0].content[1]");
        let call = json!([{"role": "assistant", "tool_calls": [{"function": 3}]}]);
        assert_eq!(param_of(call), "messages[0].tool_calls[0]");
    }
}
