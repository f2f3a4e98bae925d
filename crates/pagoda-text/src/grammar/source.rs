//! What a grammar is made from.

use std::fmt;

use serde_json::Value;

/// A description of the texts that a model may write.
#[derive(Clone, PartialEq)]
pub enum GrammarSource {
    /// Any JSON object.
    JsonObject,
    /// A value of this JSON schema.
    JsonSchema(Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's dialect of Lark. `%json { .. }` within it is taken as it stands: see
    /// [`bounded`](super::bounded).
    Lark(String),
}

/// Names the kind alone: the contents come from a request.
impl fmt::Debug for GrammarSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JsonObject => "JsonObject",
            Self::JsonSchema(_) => "JsonSchema(..)",
            Self::Regex(_) => "Regex(..)",
            Self::Choice(_) => "Choice(..)",
            Self::Lark(_) => "Lark(..)",
        })
    }
}
