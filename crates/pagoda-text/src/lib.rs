//! What turns text into tokens and tokens back into text.
//!
//! ```text
//! messages ──ChatTemplate──► prompt text ──Tokenizer──► token ids ──► (the engine)
//!                                                                          │
//! text to send ◄──StopMatcher── text delta ◄──Detokenizer── token id ◄─────┘
//! ```
//!
//! * [`Tokenizer`] is built from a Hugging Face `tokenizer.json` or from the vocabulary of a GGUF file. It knows the exact
//!   bytes of every token, and `decode` is by definition the lossy UTF-8 reading of those bytes.
//! * [`Detokenizer`] gives the same text one token at a time, complete characters only, in constant time per token.
//! * [`StopMatcher`] cuts that text at the stop string that completes first, whatever the split into deltas.
//! * [`ReasoningParser`] and [`ToolCallParser`] tell reasoning, content and tool calls of that text apart; what each looks
//!   for is found out by rendering the model's template ([`ReasoningTags`], [`ToolSupport`]).
//! * [`ChatTemplate`] renders a conversation with the model's own Jinja template, byte for byte as Python's `transformers`
//!   does.
//!
//! # What it does not know
//!
//! HTTP, the engine, files, the environment and the clock (the time is passed in with each rendering).
//!
//! # Hostile input
//!
//! Tokenizer files and templates come with a model, prompts and template arguments from the network. Every entry has a
//! cap in bytes, templates a cap on steps, and whatever the libraries underneath panic on becomes a typed error. No tokenizer error quotes a prompt. A process that prints panics should leave
//! out those for which [`is_within_panic_boundary`] holds: they are handled, and may quote a prompt.

mod answer;
mod chat;
mod detokenizer;
mod grammar;
mod guard;
mod reasoning;
mod stop;
mod tokenizer;
mod tools;

pub use answer::{AnswerDelta, AnswerParser};
pub use chat::{
    ChatTemplate, ChatTemplateInput, ContentSupport, SpecialTokens, TemplateError, TemplateLimits,
    TemplateSources, ToolsFirstPrompt, ToolsOrder,
};
pub use detokenizer::{DetokenizeOptions, Detokenizer, TextPosition};
pub use grammar::{
    Grammar, GrammarCompiler, GrammarError, GrammarLimits, GrammarOptions, GrammarSource, MatchError,
    Matcher, Relaxed, SchemaBounds, SchemaError, bounded, relaxed,
};
pub use guard::is_within_panic_boundary;
pub use reasoning::{ReasoningDelta, ReasoningParser, ReasoningTags};
pub use stop::{StopMatcher, StopOutput};
pub use tokenizer::{EncodeOptions, GgufVocab, Tokenizer, TokenizerError, TokenizerLimits, TokenizerSource};
pub use tools::{
    Announce, Otherwise, Tool, ToolCallParser, ToolDelta, ToolFormat, ToolGrammar, ToolGrammarError, ToolSet,
    ToolSupport, ToolsPlace,
};
