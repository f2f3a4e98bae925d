//! What a model's template shows of tools and reasoning, and how the answers to one generation are read.

use std::sync::Arc;

use pagoda_text::{
    Announce, AnswerParser, ChatTemplate, ReasoningParser, ReasoningTags, Tokenizer, ToolCallParser, ToolSet,
    ToolSupport, ToolsPlace,
};
use serde_json::Value;

use crate::calls::are_constrained;
use crate::generation::{Generation, ToolUse};
use crate::model::ServedModel;

/// Known once the model is loaded.
pub(crate) struct ModelParsing {
    tools: Option<ToolSupport>,
    reasoning: Option<ReasoningTags>,
    /// Special tokens within the markup, which the text must show.
    tool_ids: Arc<[u32]>,
    reasoning_ids: Arc<[u32]>,
}

impl ModelParsing {
    pub(crate) fn new(template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Self {
        let tools = template.map(ToolSupport::probe);
        let reasoning = template.and_then(ReasoningTags::probe);
        let tags = || reasoning.iter().flat_map(|tags| [tags.open.as_str(), tags.close.as_str()]);
        let reasoning_ids = special_ids(tokenizer, &tags().collect::<Vec<_>>());
        let markers = tools.iter().flat_map(|tools| tools.format().markers()).chain(tags());
        let tool_ids = special_ids(tokenizer, &markers.collect::<Vec<_>>());
        ModelParsing { tool_ids, reasoning_ids, tools, reasoning }
    }

    /// How the model writes calls, if it has a template at all.
    pub(crate) fn tools(&self) -> Option<&ToolSupport> {
        self.tools.as_ref()
    }

    /// The tags around the model's reasoning, if it is one that reasons.
    pub(crate) fn reasoning(&self) -> Option<&ReasoningTags> {
        self.reasoning.as_ref()
    }

    /// Brings a conversation into the form that the template reads; the tools to hand it.
    pub(crate) fn prepare(
        &self,
        messages: &mut Value,
        tools: Option<Value>,
        place: ToolsPlace,
    ) -> Option<Value> {
        match &self.tools {
            Some(support) => support.prepare(messages, tools, place),
            None => tools,
        }
    }
}

/// The special tokens that occur in any of `markers`.
fn special_ids(tokenizer: &Tokenizer, markers: &[&str]) -> Arc<[u32]> {
    let occurs = |id: &u32| {
        let text = tokenizer.token_text(*id);
        !text.is_empty() && markers.iter().any(|marker| marker.contains(&*text))
    };
    tokenizer.special_ids().iter().copied().filter(occurs).collect()
}

/// How the answers to one prompt are read.
#[derive(Clone)]
pub(crate) struct ParseRules {
    /// The tags, and whether the prompt ends with the first.
    reasoning: Option<(ReasoningTags, bool)>,
    tools: Option<(ToolSupport, Arc<ToolSet>, Announce)>,
    kept_ids: Arc<[u32]>,
}

impl ParseRules {
    /// `prompt` is the text that the model goes on with.
    pub(crate) fn new(generation: &Generation, model: &ServedModel, prompt: &str) -> Self {
        let parsing = &model.parsing;
        if !generation.output.is_parsed {
            return ParseRules { reasoning: None, tools: None, kept_ids: Arc::new([]) };
        }
        let reasoning = parsing.reasoning.clone().map(|tags| {
            let is_open = tags.are_open_behind(prompt);
            (tags, is_open)
        });
        let announce = |tools: &ToolUse| {
            if are_constrained(generation, tools) { Announce::AtName } else { Announce::WhenWhole }
        };
        let tools = generation.tools.as_ref().zip(parsing.tools.clone());
        let tools = tools.map(|(tools, support)| (support, Arc::clone(&tools.set), announce(tools)));
        let kept_ids = if tools.is_some() { &parsing.tool_ids } else { &parsing.reasoning_ids };
        ParseRules { reasoning, tools, kept_ids: Arc::clone(kept_ids) }
    }

    /// Special tokens that the text shows.
    pub(crate) fn kept_ids(&self) -> &Arc<[u32]> {
        &self.kept_ids
    }

    /// Whether an answer may begin with reasoning.
    pub(crate) fn has_reasoning(&self) -> bool {
        self.reasoning.is_some()
    }

    /// A parser for one answer.
    pub(crate) fn parser(&self) -> AnswerParser {
        let reasoning = self.reasoning.clone().map(|(tags, is_open)| ReasoningParser::new(tags, is_open));
        let tools = self
            .tools
            .as_ref()
            .map(|(support, set, announce)| ToolCallParser::new(support.format(), set, *announce));
        AnswerParser::new(reasoning, tools)
    }
}
