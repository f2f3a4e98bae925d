//! Ending a prompt within its final message, so that the model goes on with it.
//!
//! A tag behind the final message's text is rendered with it; everything from the tag on is then cut off. The template may
//! have trimmed the text, in which case its trailing white space goes too.

use serde_json::Value;

use super::TemplateError;

/// No message contains this by accident. The space at the end shows whether the template trims.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

fn error(reason: &'static str) -> TemplateError {
    TemplateError::ContinueFinalMessage { reason }
}

/// Appends the tag to the last text of the final message and returns that text.
pub(crate) fn mark(messages: &mut Value, template: &str) -> Result<String, TemplateError> {
    let last = messages.as_array_mut().and_then(|messages| messages.last_mut());
    let content = last.and_then(|message| message.get_mut("content")).ok_or(error("it has no content"))?;
    if !template.contains("content") {
        return Err(error("the template reads no content"));
    }
    let text = match content {
        Value::String(text) => text,
        Value::Array(parts) => match parts.iter_mut().rev().find_map(|part| part.get_mut("text")) {
            Some(Value::String(text)) => text,
            _ => return Err(error("it has no text")),
        },
        _ => return Err(error("it has no text")),
    };
    let continued = text.clone();
    text.push_str(TAG);
    Ok(continued)
}

/// Cuts the rendered prompt where the message ends.
pub(crate) fn cut(mut rendered: String, continued: &str) -> Result<String, TemplateError> {
    let tag_at = rendered.rfind(TAG.trim_end()).filter(|_| rendered.contains(continued.trim()));
    let tag_at = tag_at.ok_or(error("the template does not show it"))?;
    let is_untrimmed = rendered[tag_at..].starts_with(TAG);
    rendered.truncate(tag_at);
    if !is_untrimmed {
        rendered.truncate(rendered.trim_end().len());
    }
    Ok(rendered)
}
