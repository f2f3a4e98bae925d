//! An answer's text as reasoning, content and tool calls, while it grows.

use crate::reasoning::{ReasoningDelta, ReasoningParser};
use crate::tools::{ToolCallParser, ToolDelta};

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerDelta {
    /// Text for the reader.
    Content(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A tool call begins. Calls are numbered from 0.
    ToolCallStart {
        /// Its number.
        index: usize,
        /// The function's name.
        name: String,
    },
    /// More of a call's arguments; put together they are a JSON object.
    ToolCallArguments {
        /// The call's number.
        index: usize,
        /// The next piece.
        fragment: String,
    },
}

/// The parser of one answer: reasoning first, then content and calls. Without either parser all text is content.
#[derive(Clone, Debug, Default)]
pub struct AnswerParser {
    reasoning: Option<ReasoningParser>,
    tools: Option<ToolCallParser>,
}

impl AnswerParser {
    /// A parser that has seen nothing.
    pub fn new(reasoning: Option<ReasoningParser>, tools: Option<ToolCallParser>) -> Self {
        AnswerParser { reasoning, tools }
    }

    /// Takes the next text; what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<AnswerDelta> {
        let Some(reasoning) = &mut self.reasoning else { return self.push_content(text) };
        let deltas = reasoning.push(text);
        self.split(deltas)
    }

    /// Ends the text. `is_cut` says that the model was not done.
    pub fn finish(&mut self, is_cut: bool) -> Vec<AnswerDelta> {
        let deltas = self.reasoning.as_mut().map(ReasoningParser::finish).unwrap_or_default();
        let mut answer = self.split(deltas);
        let rest = self.tools.as_mut().map(|tools| tools.finish(is_cut)).unwrap_or_default();
        answer.extend(rest.into_iter().map(AnswerDelta::from));
        answer
    }

    /// Bytes of the text so far of which it is not certain yet what they are.
    pub fn num_bytes_held(&self) -> usize {
        let reasoning = self.reasoning.as_ref().map_or(0, ReasoningParser::num_bytes_held);
        reasoning + self.tools.as_ref().map_or(0, ToolCallParser::num_bytes_held)
    }

    /// Bytes of the text so far that belong to the reasoning and its tags: they are its first ones.
    pub fn num_bytes_reasoning(&self) -> usize {
        self.reasoning.as_ref().map_or(0, ReasoningParser::num_bytes_reasoning)
    }

    /// Tool calls so far.
    pub fn num_calls(&self) -> usize {
        self.tools.as_ref().map_or(0, ToolCallParser::num_calls)
    }

    /// Whether the text ended in the middle of the last of them.
    pub fn ends_within_call(&self) -> bool {
        self.tools.as_ref().is_some_and(ToolCallParser::ends_within_call)
    }

    /// Whether calls are announced before they are whole.
    pub fn announces_at_name(&self) -> bool {
        self.tools.as_ref().is_some_and(ToolCallParser::announces_at_name)
    }

    fn split(&mut self, deltas: Vec<ReasoningDelta>) -> Vec<AnswerDelta> {
        let mut answer = Vec::new();
        for delta in deltas {
            match delta {
                ReasoningDelta::Reasoning(text) => answer.push(AnswerDelta::Reasoning(text)),
                ReasoningDelta::Content(text) => answer.extend(self.push_content(&text)),
            }
        }
        answer
    }

    fn push_content(&mut self, text: &str) -> Vec<AnswerDelta> {
        match &mut self.tools {
            Some(tools) => tools.push(text).into_iter().map(AnswerDelta::from).collect(),
            None if text.is_empty() => Vec::new(),
            None => vec![AnswerDelta::Content(text.to_owned())],
        }
    }
}

impl From<ToolDelta> for AnswerDelta {
    fn from(delta: ToolDelta) -> Self {
        match delta {
            ToolDelta::Content(text) => AnswerDelta::Content(text),
            ToolDelta::CallStart { index, name } => AnswerDelta::ToolCallStart { index, name },
            ToolDelta::Arguments { index, fragment } => AnswerDelta::ToolCallArguments { index, fragment },
        }
    }
}
