//! Message content as a string or as a list of parts: which of the two a template reads.
//!
//! The API takes both. Some templates only read strings (and print a list as Python would, or fail), some only loop over
//! parts, most newer ones do both. Instead of reading the template's syntax it is rendered with a marker in either form.

use serde_json::{Value, json};

/// The forms of message content that a template renders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentSupport {
    /// `"content": "text"`.
    pub strings: bool,
    /// `"content": [{"type": "text", "text": "text"}]`.
    pub parts: bool,
}

/// The text that probes look for.
const MARKER: &str = "Pagoda content probe 7f3a";

impl ContentSupport {
    /// Finds out by rendering a message of the user with `render`.
    pub(crate) fn probe(render: impl Fn(&Value) -> Option<String>) -> Self {
        let shows = |content: Value| {
            let messages = json!([{"role": "user", "content": content}]);
            // A list printed as such shows its keys.
            render(&messages).is_some_and(|text| {
                text.contains(MARKER) && !text.contains("'type'") && !text.contains("\"type\"")
            })
        };
        let parts = shows(json!([{"type": "text", "text": MARKER}]));
        let strings = shows(json!(MARKER));
        // A template that refuses both probes gets what clients send most.
        Self { strings: strings || !parts, parts }
    }

    /// Brings every message's content into a form that the template reads: text parts become one string, joined by
    /// newlines, where it reads no parts; a string becomes one part where it reads nothing else. Content that holds
    /// anything but text is left as it is.
    pub fn normalize(self, messages: &mut Value) {
        for message in messages.as_array_mut().into_iter().flatten() {
            let Some(content) = message.get_mut("content") else { continue };
            match content {
                Value::Array(parts) if !self.parts => {
                    if let Some(text) = joined_text(parts) {
                        *content = Value::String(text);
                    }
                }
                Value::String(text) if !self.strings => {
                    *content = json!([{"type": "text", "text": std::mem::take(text)}]);
                }
                _ => {}
            }
        }
    }
}

/// The text of parts that are all text.
fn joined_text(parts: &[Value]) -> Option<String> {
    let texts = parts.iter().map(|part| match part["type"].as_str() {
        Some("text" | "input_text" | "output_text") | None => part["text"].as_str(),
        Some("refusal") => part["refusal"].as_str(),
        Some(_) => None,
    });
    texts.collect::<Option<Vec<&str>>>().map(|texts| texts.join("\n"))
}
