//! One generation as every dialect asks for it, and its events as every dialect answers with them. Knows neither wire
//! format nor engine.

use std::sync::Arc;

use pagoda_engine::{PrefixReport, RepetitionRule};
use pagoda_text::ToolSet;
use serde_json::{Map, Value};

use crate::constraint::ConstraintSpec;
use crate::error::ApiError;
use crate::token_rules::TokenRules;

/// What a client asked for.
#[derive(Clone, Debug)]
pub(crate) struct Generation {
    /// The model's name, if the client gave one.
    pub(crate) model: Option<String>,
    /// What to continue; one entry except for completions with several prompts.
    pub(crate) prompts: Vec<PromptSource>,
    /// How often each prompt is continued.
    pub(crate) n: u32,
    /// Tokens wanted; clamped to the room left.
    pub(crate) max_tokens: u64,
    pub(crate) min_tokens: u64,
    /// Every number except the seed has been chosen by the client or by the model's defaults.
    pub(crate) sampling: pagoda_engine::SamplingParams,
    pub(crate) stop: StopRules,
    /// What the answer must be.
    pub(crate) constraint: Option<ConstraintSpec>,
    pub(crate) output: OutputRules,
    pub(crate) delivery: Delivery,
    /// Lower is served first.
    pub(crate) priority: i32,
    /// Narrows the domain within which prefixes are shared.
    pub(crate) cache_salt: String,
    /// Beside a grammar: the tokens that may be chosen, and the words that may not be said.
    pub(crate) token_rules: TokenRules,
    /// Of a longer prompt only the end is used.
    pub(crate) truncation: Option<Truncation>,
    /// The tools that the model may call.
    pub(crate) tools: Option<ToolUse>,
    /// Tokens that the model may think for; then its reasoning is ended for it.
    pub(crate) thinking_budget: Option<u64>,
}

/// Tools, and what the client expects of them.
#[derive(Clone, Debug)]
pub(crate) struct ToolUse {
    pub(crate) set: Arc<ToolSet>,
    pub(crate) choice: ToolChoice,
    /// Whether one answer may hold several calls.
    pub(crate) parallel: bool,
}

/// Whether the model calls a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// As it likes.
    Auto,
    /// At least once.
    Required,
    /// This one.
    Named(String),
}

/// Where a prompt's tokens come from.
#[derive(Clone, Debug)]
pub(crate) enum PromptSource {
    /// Messages, rendered by the model's chat template.
    Chat(ChatPrompt),
    /// Text.
    Text { text: String, add_special_tokens: bool },
    /// Tokens.
    TokenIds(Vec<u32>),
}

/// A conversation.
#[derive(Clone, Debug)]
pub(crate) struct ChatPrompt {
    /// A list of objects with a `role`, their text normalised to strings.
    pub(crate) messages: Value,
    pub(crate) tools: Option<Value>,
    pub(crate) add_generation_prompt: bool,
    pub(crate) continue_final_message: bool,
    /// Scalars for the template.
    pub(crate) template_kwargs: Map<String, Value>,
    pub(crate) tools_first: ToolsFirst,
}

/// Whether the tools are to stand before the system's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolsFirst {
    /// Where the template writes them.
    No,
    /// Before it, if the template permits.
    IfPossible,
    /// Before it, or the request is refused.
    Required,
}

/// How much of a prompt's end is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truncation {
    /// This many tokens; at least one.
    Last(usize),
    /// As many as the window has room for beside the tokens wanted.
    Window,
}

/// What ends a sequence besides its length.
#[derive(Clone, Debug)]
pub(crate) struct StopRules {
    pub(crate) strings: Vec<String>,
    pub(crate) token_ids: Vec<u32>,
    /// The model's own stop tokens do not count.
    pub(crate) ignore_eos: bool,
    pub(crate) include_stop_str: bool,
    pub(crate) repetition: Option<RepetitionRule>,
}

/// What the answer holds besides text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputRules {
    /// The prompt's text comes first.
    pub(crate) echo: bool,
    /// The text goes on behind the prompt rather than starting anew.
    pub(crate) is_continuation: bool,
    pub(crate) logprobs: bool,
    /// Alternatives to report for every token of the prompt.
    pub(crate) prompt_logprobs: Option<u32>,
    pub(crate) return_token_ids: bool,
    pub(crate) skip_special_tokens: bool,
    /// Reasoning and tool calls are told apart from content.
    pub(crate) is_parsed: bool,
    /// Reasoning is part of the answer.
    pub(crate) include_reasoning: bool,
    /// The answer may call tools.
    pub(crate) has_tools: bool,
}

/// How the answer travels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// The usage so far in every chunk.
    pub(crate) continuous_usage: bool,
}

/// What an answer's head says, the same in every chunk.
#[derive(Clone, Debug)]
pub(crate) struct AnswerHead {
    /// Random, 32 hexadecimal digits; the dialect puts its prefix before it.
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// The name the model was asked by.
    pub(crate) model: String,
    pub(crate) n: u32,
    pub(crate) output: OutputRules,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
}

/// What happens while a generation runs, in order.
#[derive(Clone, Debug)]
pub(crate) enum GenerationEvent {
    /// A prompt was taken up; comes before its choices' deltas.
    Prompt(PromptStart),
    /// A choice grew.
    Delta(ChoiceDelta),
    /// Every choice has finished. Nothing follows.
    Done(Usage),
    /// It ended early. Nothing follows.
    Failed(ApiError),
}

/// The beginning of one prompt's choices.
#[derive(Clone, Debug)]
pub(crate) struct PromptStart {
    /// Its choices are `prompt_index * n ..`, n of them.
    pub(crate) prompt_index: u32,
    pub(crate) token_ids: Arc<[u32]>,
    /// The prompt as the answer repeats it; empty without echo.
    pub(crate) echo_text: String,
    /// With echo and logprobs, one entry per prompt token.
    pub(crate) echo_tokens: Vec<OutputToken>,
    /// If asked for: for every prompt token but the first itself and the likeliest in its place.
    pub(crate) logprobs: Option<Vec<Option<Vec<RankedToken>>>>,
}

/// A token that could stand at a place of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RankedToken {
    pub(crate) id: u32,
    pub(crate) logprob: f32,
    /// From 1.
    pub(crate) rank: u32,
    pub(crate) text: String,
}

/// What is new of one choice, with the tokens it was made of.
#[derive(Clone, Debug)]
pub(crate) struct ChoiceDelta {
    pub(crate) choice: u32,
    pub(crate) parts: Vec<OutputPart>,
    pub(crate) tokens: Vec<OutputToken>,
    /// Present on the choice's last delta.
    pub(crate) finish: Option<Finish>,
    /// Whether the choice has called a tool by now, and the last call is not known to be cut.
    pub(crate) ends_with_call: bool,
}

/// A piece of an answer. Pieces of one kind that follow each other are one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OutputPart {
    Content(String),
    Reasoning(String),
    ToolCallStart { index: usize, id: String, name: String },
    ToolCallArguments { index: usize, fragment: String },
}

impl ChoiceDelta {
    /// The new content. What is not parsed is all content.
    pub(crate) fn content(&self) -> &str {
        let content = self.parts.iter().find_map(|part| match part {
            OutputPart::Content(text) => Some(text.as_str()),
            _ => None,
        });
        content.unwrap_or_default()
    }
}

/// One token of the answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutputToken {
    pub(crate) id: u32,
    /// Present if logprobs were asked for.
    pub(crate) detail: Option<TokenDetail>,
}

/// A token with its logprobs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenDetail {
    /// Where the token's text begins, in characters from the answer's start.
    pub(crate) text_offset: usize,
    pub(crate) bytes: Vec<u8>,
    /// None for a prompt's first token.
    pub(crate) logprob: Option<f32>,
    /// The likeliest tokens, best first.
    pub(crate) top: Vec<(Vec<u8>, f32)>,
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finish {
    /// The model's own end token.
    EndOfText,
    /// One of the client's `stop_token_ids`.
    StopToken(u32),
    /// One of the client's stop strings.
    StopString(String),
    /// `max_tokens` or the context window.
    Length,
    /// It went round in circles.
    Repetition,
}

impl Finish {
    /// OpenAI's word for it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Finish::EndOfText | Finish::StopToken(_) | Finish::StopString(_) => "stop",
            Finish::Length => "length",
            Finish::Repetition => "repetition",
        }
    }
}

/// The tokens of a generation, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) num_prompt_tokens: u64,
    pub(crate) num_cached_tokens: u64,
    pub(crate) num_completion_tokens: u64,
    /// Of the completion's tokens those up to the end of the reasoning.
    pub(crate) num_reasoning_tokens: u64,
    /// Of the prompt of which the most was not cached; `None` before any has been looked up.
    pub(crate) cache: Option<CacheUsage>,
}

/// What the prefix cache knew of one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheUsage {
    /// Which of several prompts it is about.
    pub(crate) prompt_index: Option<u32>,
    pub(crate) num_prompt_tokens: u64,
    pub(crate) prefix: PrefixReport,
}

/// A whole answer: its events, folded. The streamed and the unstreamed answer are the same by construction.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) prompts: Vec<PromptStart>,
    pub(crate) choices: Vec<AnswerChoice>,
    pub(crate) usage: Usage,
}

/// One finished choice.
#[derive(Debug, Default)]
pub(crate) struct AnswerChoice {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) tokens: Vec<OutputToken>,
    pub(crate) finish: Option<Finish>,
    /// Whether it called tools, and the last call is whole.
    pub(crate) ends_with_call: bool,
}

/// One call of a finished choice.
#[derive(Debug)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) arguments: String,
}

impl AnswerChoice {
    fn push(&mut self, part: OutputPart) {
        match part {
            OutputPart::Content(text) => self.text.push_str(&text),
            OutputPart::Reasoning(text) => self.reasoning.push_str(&text),
            OutputPart::ToolCallStart { id, name, .. } => {
                self.tool_calls.push(ToolCall { id, name, arguments: String::new() });
            }
            OutputPart::ToolCallArguments { index, fragment } => {
                if let Some(call) = self.tool_calls.get_mut(index) {
                    call.arguments.push_str(&fragment);
                }
            }
        }
    }
}

impl Answer {
    /// Adds the next event; an error ends the answer.
    pub(crate) fn push(&mut self, event: GenerationEvent) -> Result<(), ApiError> {
        match event {
            GenerationEvent::Prompt(prompt) => self.prompts.push(prompt),
            GenerationEvent::Delta(delta) => {
                let index = delta.choice as usize;
                if self.choices.len() <= index {
                    self.choices.resize_with(index + 1, AnswerChoice::default);
                }
                let choice = &mut self.choices[index];
                delta.parts.into_iter().for_each(|part| choice.push(part));
                choice.tokens.extend(delta.tokens);
                choice.finish = delta.finish.or(choice.finish.take());
                choice.ends_with_call = delta.ends_with_call;
            }
            GenerationEvent::Done(usage) => self.usage = usage,
            GenerationEvent::Failed(error) => return Err(error),
        }
        Ok(())
    }
}
