//! The call that is being read.

use std::sync::Arc;

use super::tool::ToolSet;

/// The longest name of a function.
const MAX_NAME_LEN: usize = 256;

/// What one more character makes of a call's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BodyStep {
    /// The call goes on.
    More,
    /// The character was its last.
    Done,
    /// The call ended before this text, which is still to be read.
    DoneBefore(String),
    /// It is no call.
    Failed,
}

/// One call, as far as it has been read.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) tools: Arc<ToolSet>,
    /// Only names of the request's tools make a call, for formats without markup.
    needs_known_name: bool,
    pub(super) name: Option<String>,
    /// JSON, as far as it is there.
    pub(super) arguments: String,
}

impl Call {
    pub(super) fn new(tools: &Arc<ToolSet>, needs_known_name: bool) -> Self {
        Call { tools: Arc::clone(tools), needs_known_name, name: None, arguments: String::new() }
    }

    /// Takes the name; whether it can be one.
    pub(super) fn set_name(&mut self, name: &str) -> bool {
        let is_new = self.name.is_none();
        let is_plain = !name.is_empty() && name.len() <= MAX_NAME_LEN && !name.chars().any(char::is_control);
        let is_known = !self.needs_known_name || self.tools.get(name).is_some();
        if is_new && is_plain && is_known {
            self.name = Some(name.to_owned());
            return true;
        }
        false
    }

    /// Adds an argument whose value is ready.
    pub(super) fn add_argument(&mut self, key: &str, value: &str) {
        self.arguments.push_str(if self.arguments.is_empty() { "{" } else { ", " });
        self.arguments.push_str(&quoted(key));
        self.arguments.push_str(": ");
        self.arguments.push_str(value);
    }

    /// Ends arguments that were added one by one.
    pub(super) fn close_arguments(&mut self) {
        self.arguments.push_str(if self.arguments.is_empty() { "{}" } else { "}" });
    }

    /// Whether the arguments are a JSON object that every reader takes.
    pub(super) fn is_valid(&self) -> bool {
        let parsed = serde_json::from_str::<serde_json::Value>(&self.arguments);
        self.name.is_some() && parsed.is_ok_and(|arguments| arguments.is_object())
    }
}

/// `text` as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
