//! What a model's template shows of tools and reasoning, and how the answers to one generation are read.

use std::sync::Arc;

use pagoda_text::{
    Announce, AnswerParser, ChatTemplate, ReasoningParser, ReasoningTags, Tokenizer, ToolCallParser, ToolSet,
    ToolSupport, ToolsPlace,
};
use serde_json::Value;

use crate::calls::are_constrained;
use crate::generation::{Generation, ToolChoice, ToolUse};
use crate::model::ServedModel;

/// Known once the model is loaded.
pub(crate) struct ModelParsing {
    tools: Option<ToolSupport>,
    reasoning: Option<ReasoningTags>,
    /// Special tokens within the markup, which the text must show.
    tool_ids: Arc<[u32]>,
    reasoning_ids: Arc<[u32]>,
    overshoots: Arc<[Vec<u32>]>,
}

impl ModelParsing {
    pub(crate) fn new(template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Self {
        let tools = template.map(ToolSupport::probe);
        let reasoning = template.and_then(ReasoningTags::probe);
        let tags = || reasoning.iter().flat_map(|tags| [tags.open.as_str(), tags.close.as_str()]);
        let reasoning_ids = special_ids(tokenizer, &tags().collect::<Vec<_>>());
        let markers = tools.iter().flat_map(|tools| tools.format().markers()).chain(tags());
        let tool_ids = special_ids(tokenizer, &markers.collect::<Vec<_>>());
        let tokens = || (0..tokenizer.vocab_size() as u32).map(|id| (id, tokenizer.token_bytes(id)));
        let overshoots = reasoning.as_ref().map(|tags| overshoots(tokens(), tags.close.as_bytes()));
        let overshoots = overshoots.unwrap_or_default().into();
        ModelParsing { tool_ids, reasoning_ids, tools, reasoning, overshoots }
    }

    /// For each number of bytes that may lack of the closing tag, one more than the index, the tokens that hold those bytes
    /// and more behind them.
    pub(crate) fn overshoots(&self) -> &Arc<[Vec<u32>]> {
        &self.overshoots
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

/// See [`ModelParsing::overshoots`].
fn overshoots<'a>(tokens: impl Iterator<Item = (u32, &'a [u8])>, close: &[u8]) -> Vec<Vec<u32>> {
    let mut found = vec![Vec::new(); close.len()];
    for (id, bytes) in tokens {
        for lacking in 1..=close.len() {
            let end = &close[close.len() - lacking..];
            if bytes.len() > lacking && bytes.starts_with(end) {
                found[lacking - 1].push(id);
            }
        }
        let is_within = bytes.windows(close.len().max(1)).any(|window| window == close);
        if is_within && !bytes.starts_with(close) && !bytes.ends_with(close) {
            found.last_mut().expect("a tag has bytes").push(id);
        }
    }
    found
}

/// The special tokens that occur in any of `markers`.
fn special_ids(tokenizer: &Tokenizer, markers: &[&str]) -> Arc<[u32]> {
    let occurs = |id: &u32| {
        let text = tokenizer.token_text(*id);
        !text.is_empty() && markers.iter().any(|marker| marker.contains(&*text))
    };
    tokenizer.special_ids().iter().copied().filter(occurs).collect()
}

/// How calls are found in an answer.
#[derive(Clone)]
struct CallRules {
    support: ToolSupport,
    set: Arc<ToolSet>,
    announce: Announce,
    /// A call must come, so that there is nothing else.
    is_forced: bool,
}

/// How the answers to one prompt are read.
#[derive(Clone)]
pub(crate) struct ParseRules {
    /// The tags, and whether the prompt ends with the first.
    reasoning: Option<(ReasoningTags, bool)>,
    tools: Option<CallRules>,
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
        let tools = tools.map(|(tools, support)| CallRules {
            support,
            set: Arc::clone(&tools.set),
            announce: announce(tools),
            is_forced: tools.choice != ToolChoice::Auto,
        });
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
        let tools = self.tools.as_ref().map(|rules| {
            let parser = ToolCallParser::new(rules.support.format(), &rules.set, rules.announce);
            if rules.is_forced { parser.of_calls_only() } else { parser }
        });
        AnswerParser::new(reasoning, tools)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_overshoots_where_it_holds_the_rest_of_the_tag_and_more() {
        let tokens = ["</t>", "</t>x", "a</t>b", "a</t>", ">", ">>", "t>.", "/t", "/t>\n", "x"];
        let found = overshoots((0..).zip(tokens.map(str::as_bytes)), b"</t>");
        // By how many bytes lack: `>`, `t>`, `/t>`, the whole tag.
        assert_eq!(found, [vec![5], vec![6], vec![8], vec![1, 2]]);
    }
}
