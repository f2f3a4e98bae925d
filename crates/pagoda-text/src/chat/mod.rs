//! A conversation as the prompt text that a model was trained on, by the model's own Jinja template.
//!
//! The reference is `apply_chat_template` of Python's `transformers`: the same bytes, and an error where it gives one.

mod builtins;
mod content;
mod continuation;
mod environment;
mod error;
mod methods;
mod python;
mod sources;
mod tools_first;

use std::collections::BTreeMap;
use std::io;
use std::time::SystemTime;

use chrono::{DateTime, Local};
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

pub use content::ContentSupport;
pub use error::TemplateError;
pub(crate) use python::{python_json, python_repr};
pub use sources::{SpecialTokens, TemplateSources};
pub use tools_first::{ToolsFirstPrompt, ToolsOrder};

use crate::guard::guarded_with_stack;
use builtins::RaisedMessage;

/// What one rendering may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateLimits {
    /// Largest template text, in bytes.
    pub max_source_bytes: usize,
    /// Largest rendered prompt, in bytes.
    pub max_output_bytes: usize,
    /// Most instructions of one rendering.
    pub max_steps: u64,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self { max_source_bytes: 1 << 19, max_output_bytes: 16 << 20, max_steps: 5_000_000 }
    }
}

/// One conversation to render.
#[derive(Debug, Clone, Copy)]
pub struct ChatTemplateInput<'a> {
    /// The messages, a list of objects.
    pub messages: &'a Value,
    /// The tools, a list of objects.
    pub tools: Option<&'a Value>,
    /// Documents to answer from, a list of objects.
    pub documents: Option<&'a Value>,
    /// End with what introduces the assistant's answer.
    pub add_generation_prompt: bool,
    /// End within the final message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further variables (`enable_thinking`). They win over special tokens, not over the fields above.
    pub kwargs: &'a Map<String, Value>,
    /// The time that `strftime_now` tells, in the local time zone.
    pub now: SystemTime,
}

/// A model's chat template, compiled. Immutable and shared between threads.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    sources: TemplateSources,
    special_tokens: BTreeMap<String, String>,
    limits: TemplateLimits,
    content_support: ContentSupport,
}

impl ChatTemplate {
    /// Compiles a single template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`], or [`TemplateError::LimitExceeded`] for a text beyond the default limits.
    pub fn new(source: &str, special_tokens: SpecialTokens) -> Result<Self, TemplateError> {
        let sources = TemplateSources { default: source.to_owned(), tool_use: None };
        Self::with_sources(sources, special_tokens, TemplateLimits::default())
    }

    /// Compiles a model's templates.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn with_sources(
        sources: TemplateSources,
        special_tokens: SpecialTokens,
        limits: TemplateLimits,
    ) -> Result<Self, TemplateError> {
        if sources.by_name().any(|(_, source)| source.len() > limits.max_source_bytes) {
            let limit = limits.max_source_bytes as u64;
            return Err(TemplateError::LimitExceeded { limit, unit: "bytes of template" });
        }
        let env = guarded_with_stack(compile_stack_bytes(&sources), || compile(&sources, limits))
            .unwrap_or(Err(TemplateError::Panicked))?;
        let special_tokens =
            special_tokens.variables().map(|(name, token)| (name.into(), token.into())).collect();
        let content_support = ContentSupport { strings: true, parts: false };
        let mut template = Self { env, sources, special_tokens, limits, content_support };
        template.content_support = ContentSupport::probe(|messages| template.render_probe(messages));
        Ok(template)
    }

    /// The forms of message content that the template reads.
    pub fn content_support(&self) -> ContentSupport {
        self.content_support
    }

    /// The text of the template that conversations without tools are rendered with.
    pub fn source(&self) -> &str {
        &self.sources.default
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] where the template refuses the conversation, else any variant but `Syntax`.
    pub fn render(&self, input: &ChatTemplateInput) -> Result<String, TemplateError> {
        guarded_with_stack(RENDER_STACK_BYTES, || self.render_unguarded(input))
            .unwrap_or(Err(TemplateError::Panicked))
    }

    fn render_unguarded(&self, input: &ChatTemplateInput) -> Result<String, TemplateError> {
        let mut messages = input.messages.clone();
        alias_reasoning_fields(&mut messages);
        if !input.continue_final_message {
            return self.render_messages(&messages, input);
        }
        let continued = continuation::mark(&mut messages, self.source_for(input))?;
        let text = self.render_messages(&messages, input)?;
        continuation::cut(text, &continued)
    }

    fn source_for(&self, input: &ChatTemplateInput) -> &str {
        match (&self.sources.tool_use, input.tools) {
            (Some(tool_use), Some(_)) => tool_use,
            _ => &self.sources.default,
        }
    }

    fn render_messages(&self, messages: &Value, input: &ChatTemplateInput) -> Result<String, TemplateError> {
        let has_own = self.sources.tool_use.is_some() && input.tools.is_some();
        let name = if has_own { sources::TOOL_USE } else { sources::DEFAULT };
        let template = self.env.get_template(name).map_err(|error| self.told(&error))?;
        let mut output =
            CappedOutput { bytes: Vec::new(), limit_bytes: self.limits.max_output_bytes, is_full: false };
        let rendered = template.render_captured_to(self.variables(messages, input)?, &mut output);
        if output.is_full {
            let limit = self.limits.max_output_bytes as u64;
            return Err(TemplateError::LimitExceeded { limit, unit: "bytes of output" });
        }
        rendered.map_err(|error| self.told(&error))?;
        Ok(String::from_utf8(output.bytes).expect("the engine writes whole strings"))
    }

    /// All that the template sees.
    fn variables(
        &self,
        messages: &Value,
        input: &ChatTemplateInput,
    ) -> Result<minijinja::Value, TemplateError> {
        let mut variables: BTreeMap<&str, minijinja::Value> = BTreeMap::new();
        for (name, token) in &self.special_tokens {
            variables.insert(name, token.as_str().into());
        }
        for (name, value) in input.kwargs {
            variables.insert(name, Serde(value).into());
        }
        let own = [
            ("messages", Serde(messages).into()),
            ("tools", Serde(input.tools).into()),
            ("documents", Serde(input.documents).into()),
            ("add_generation_prompt", input.add_generation_prompt.into()),
            (builtins::NOW, DateTime::<Local>::from(input.now).timestamp_micros().into()),
        ];
        for (name, value) in own {
            if input.kwargs.contains_key(name) {
                return Err(TemplateError::ReservedArgument { name: name.to_owned() });
            }
            variables.insert(name, value);
        }
        Ok(minijinja::Value::from_pairs(variables))
    }

    fn render_probe(&self, messages: &Value) -> Option<String> {
        let input = ChatTemplateInput {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: &Map::new(),
            now: SystemTime::UNIX_EPOCH,
        };
        self.render(&input).ok()
    }

    /// The engine's error in our words.
    fn told(&self, error: &minijinja::Error) -> TemplateError {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(cause) = source {
            if let Some(raised) = cause.downcast_ref::<RaisedMessage>() {
                return TemplateError::Raised { message: raised.0.clone() };
            }
            source = cause.source();
        }
        let line = error.line().unwrap_or(0);
        let reason = error
            .detail()
            .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
        match error.kind() {
            ErrorKind::OutOfFuel => {
                TemplateError::LimitExceeded { limit: self.limits.max_steps, unit: "steps" }
            }
            _ => TemplateError::Render { line, reason },
        }
    }
}

/// Stack for a rendering: values may be nested as deep as `max_steps` instructions can nest them.
const RENDER_STACK_BYTES: usize = 256 << 20;

/// Stack for compiling: the parser takes one level per character in the worst case (`------1`), each about 500 bytes.
fn compile_stack_bytes(sources: &TemplateSources) -> usize {
    let longest = sources.by_name().map(|(_, source)| source.len()).max().unwrap_or(0);
    (16 << 20) + longest.saturating_mul(1024)
}

fn compile(sources: &TemplateSources, limits: TemplateLimits) -> Result<Environment<'static>, TemplateError> {
    let mut env = environment::environment();
    env.set_fuel(Some(limits.max_steps));
    for (name, source) in sources.by_name() {
        env.add_template_owned(name, environment::prepared(source)).map_err(|error| {
            let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
            TemplateError::Syntax { line: error.line().unwrap_or(0), reason }
        })?;
    }
    Ok(env)
}

/// A message's reasoning has three names in the wild. Templates read the first; gpt-oss reads `thinking`.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

fn alias_reasoning_fields(messages: &mut Value) {
    for message in messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        let found =
            REASONING_FIELDS.iter().find_map(|&name| message.get(name).filter(|value| !value.is_null()));
        if let Some(reasoning) = found.cloned() {
            message.entry("thinking").or_insert_with(|| reasoning.clone());
            message.insert("reasoning_content".into(), reasoning);
        }
    }
}

/// Where the prompt goes: refuses to grow beyond its limit.
struct CappedOutput {
    bytes: Vec<u8>,
    limit_bytes: usize,
    is_full: bool,
}

impl io::Write for CappedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit_bytes {
            self.is_full = true;
            return Err(io::Error::other("the prompt exceeds its limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
