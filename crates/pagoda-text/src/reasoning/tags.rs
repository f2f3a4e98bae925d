//! The tags around a model's reasoning, as its chat template shows them.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::chat::{ChatTemplate, ChatTemplateInput};

/// The pairs in use, the most common first. A template that shows one of them, in what it renders or in its text (many
/// only cut the reasoning of earlier turns off), is a model's that reasons between them.
const KNOWN: [(&str, &str); 9] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<reasoning>", "</reasoning>"),
];

const REASONING: &str = "Zq reasoning probe 3b8d";

/// The tags around reasoning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasoningTags {
    /// Before it. A template may end the prompt with it.
    pub open: String,
    /// Behind it.
    pub close: String,
}

impl ReasoningTags {
    /// The tags of `template`; None if it shows none.
    pub fn probe(template: &ChatTemplate) -> Option<Self> {
        let rendered = rendered(template);
        let is_shown = |(open, close): &&(&str, &str)| {
            let around = |text: &String| {
                text.find(REASONING).is_some_and(|at| text[..at].contains(open) && text[at..].contains(close))
            };
            rendered.iter().any(around) || rendered.iter().any(|text| text.trim_end().ends_with(open))
        };
        let is_read = |(open, close): &&(&str, &str)| {
            let source = template.source();
            source.contains(open) && source.contains(close)
        };
        let tags = KNOWN.iter().find(is_shown).or_else(|| KNOWN.iter().find(is_read))?;
        Some(ReasoningTags { open: tags.0.into(), close: tags.1.into() })
    }

    /// Whether the model, given this prompt, is within its reasoning.
    pub fn are_open_behind(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(&self.open)
    }
}

/// A turn with reasoning, and the ways in which a prompt may end.
fn rendered(template: &ChatTemplate) -> Vec<String> {
    let user = json!({"role": "user", "content": "Zq user probe 77a2"});
    let thinking = json!({"role": "assistant", "content": "Zq answer", "reasoning_content": REASONING});
    let render = |messages: Value, add_generation_prompt: bool, kwargs: Value| {
        let mut messages = messages;
        template.content_support().normalize(&mut messages);
        let Value::Object(kwargs) = kwargs else { return None };
        let input = ChatTemplateInput {
            messages: &messages,
            tools: None,
            documents: None,
            add_generation_prompt,
            continue_final_message: false,
            kwargs: &kwargs,
            now: SystemTime::UNIX_EPOCH,
        };
        template.render(&input).ok()
    };
    let all = [
        render(json!([user, thinking]), false, json!({})),
        render(json!([user]), true, json!({})),
        render(json!([user]), true, json!({"enable_thinking": true, "thinking": true})),
    ];
    all.into_iter().flatten().collect()
}
