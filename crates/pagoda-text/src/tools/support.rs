//! What a chat template knows of tools, found out by rendering it.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::conversation::{self, Generic};
use super::derive::{self, IDS, KEYS, NAMES};
use super::format::{CallSyntax, Markup, ToolFormat};
use crate::chat::{ChatTemplate, ChatTemplateInput};

const USER_TEXT: &str = "Zq user probe 5d1e";
const ANSWER_TEXT: &str = "Zq answer probe 9c27q";
const RESULT_TEXTS: [&str; 2] = ["zq result 11", "zq result 22"];

/// How a model is shown tools and how it calls them.
#[derive(Clone, Debug)]
pub struct ToolSupport {
    format: Arc<ToolFormat>,
    rendering: Rendering,
}

/// Where the generic rendering describes the tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolsPlace {
    /// Behind the system's text, as most templates do.
    #[default]
    BehindSystem,
    /// Before it, so that the tools stay cached when the text is edited.
    BeforeSystem,
}

/// Who writes tools, calls and results into the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rendering {
    /// The template.
    Template(CallStyle),
    /// The template, but the calls of earlier turns stand in their content.
    CallsInContent,
    /// We do: the template knows no tools, or writes calls in a way that cannot be read.
    Generic(Generic),
}

/// What a template wants to find in a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CallStyle {
    /// Arguments as JSON text instead of an object.
    has_text_arguments: bool,
    /// Ids of nine letters and digits.
    has_short_ids: bool,
}

impl ToolSupport {
    /// Finds out by rendering probe conversations.
    pub fn probe(template: &ChatTemplate) -> Self {
        let probe = Probe { template };
        let native =
            probe.shows_tools().then(|| probe.native().or_else(|| probe.calls_in_content())).flatten();
        native.unwrap_or_else(|| ToolSupport {
            format: Arc::new(ToolFormat::hermes()),
            rendering: Rendering::Generic(probe.generic()),
        })
    }

    /// How the model writes calls.
    pub fn format(&self) -> &Arc<ToolFormat> {
        &self.format
    }

    /// Whether the template itself shows tools to the model.
    pub fn is_native(&self) -> bool {
        !matches!(self.rendering, Rendering::Generic(_))
    }

    /// Brings a conversation into the form that the template reads; the tools to hand it. `messages` hold arguments of
    /// calls as objects where they are JSON. `place` is for the generic rendering; a template has its own.
    pub fn prepare(&self, messages: &mut Value, tools: Option<Value>, place: ToolsPlace) -> Option<Value> {
        match self.rendering {
            Rendering::Template(style) => {
                if style.has_text_arguments {
                    conversation::write_arguments_as_text(messages);
                }
                if style.has_short_ids {
                    conversation::shorten_ids(messages);
                }
                tools
            }
            Rendering::CallsInContent => {
                conversation::move_calls_to_content(messages, &self.format);
                tools
            }
            Rendering::Generic(generic) => {
                conversation::write_generic(messages, tools.as_ref(), &self.format, generic, place);
                None
            }
        }
    }
}

struct Probe<'a> {
    template: &'a ChatTemplate,
}

impl Probe<'_> {
    fn render(&self, messages: &Value, tools: Option<&Value>) -> Option<String> {
        let mut messages = messages.clone();
        self.template.content_support().normalize(&mut messages);
        let input = ChatTemplateInput {
            messages: &messages,
            tools,
            documents: None,
            add_generation_prompt: false,
            continue_final_message: false,
            kwargs: &Map::new(),
            now: SystemTime::UNIX_EPOCH,
        };
        self.template.render(&input).ok()
    }

    fn shows_tools(&self) -> bool {
        let rendered = self.render(&json!([{"role": "user", "content": USER_TEXT}]), Some(&tools()));
        rendered.is_some_and(|text| text.contains(NAMES[0]))
    }

    /// The first way of handing over calls that the template renders readably, with their results. A template that
    /// renders objects in a form of its own is not asked what it makes of text.
    fn native(&self) -> Option<ToolSupport> {
        for num_calls in [2, 1] {
            for has_short_ids in [false, true] {
                for has_text_arguments in [false, true] {
                    let style = CallStyle { has_text_arguments, has_short_ids };
                    let Some(block) = self.block(num_calls, style) else { continue };
                    if let Some(format) =
                        derive::format(&block).filter(|_| self.shows_results(num_calls, style))
                    {
                        let rendering = Rendering::Template(style);
                        return Some(ToolSupport { format: Arc::new(format), rendering });
                    }
                    if KEYS.iter().all(|key| block.contains(key)) && !block.contains('{') {
                        break;
                    }
                }
            }
        }
        None
    }

    /// What the template writes for a turn of calls.
    fn block(&self, num_calls: usize, style: CallStyle) -> Option<String> {
        let rendered = self.render(&json!([user(), calling(num_calls, style)]), Some(&tools()))?;
        let answering = json!({"role": "assistant", "content": ANSWER_TEXT});
        let plain = self.render(&json!([user(), answering]), Some(&tools()))?;
        let behind = |text: &str| text.rfind(USER_TEXT).map(|at| text[at..].to_owned());
        let (rendered, plain) = (behind(&rendered)?, behind(&plain)?);
        let block = derive::block(&rendered, &plain)?;
        NAMES[..num_calls].iter().all(|name| block.contains(name)).then(|| block.to_owned())
    }

    fn shows_results(&self, num_calls: usize, style: CallStyle) -> bool {
        let calling = calling(num_calls, style);
        let calls = calling["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
        let results = calls.iter().zip(RESULT_TEXTS).map(|(call, text)| {
            json!({"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": text})
        });
        let mut messages = vec![user(), calling.clone()];
        messages.extend(results);
        let rendered = self.render(&Value::Array(messages), Some(&tools()));
        rendered.is_some_and(|text| RESULT_TEXTS[..calls.len()].iter().all(|result| text.contains(result)))
    }

    /// Models of Liquid AI: the template shows tools and results, calls stand in the content.
    fn calls_in_content(&self) -> Option<ToolSupport> {
        const TAGS: [&str; 2] = ["<|tool_call_start|>", "<|tool_list_start|>"];
        let source = self.template.source();
        let is_known = TAGS.iter().any(|tag| source.contains(tag));
        let markup = Markup {
            begin: "<|tool_call_start|>[".into(),
            between: ", ".into(),
            end: "]<|tool_call_end|>".into(),
        };
        is_known.then(|| ToolSupport {
            format: Arc::new(ToolFormat::new(markup, CallSyntax::Pythonic)),
            rendering: Rendering::CallsInContent,
        })
    }

    fn generic(&self) -> Generic {
        let system =
            json!([{"role": "system", "content": ANSWER_TEXT}, {"role": "user", "content": USER_TEXT}]);
        Generic {
            has_system: self.render(&system, None).is_some_and(|text| text.contains(ANSWER_TEXT)),
            alternates: self.render(&json!([user(), user()]), None).is_none(),
        }
    }
}

fn user() -> Value {
    json!({"role": "user", "content": USER_TEXT})
}

fn calling(num_calls: usize, style: CallStyle) -> Value {
    json!({"role": "assistant", "content": "", "tool_calls": calls(num_calls, style)})
}

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"type": "function", "function": {
            "name": name,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {
                    KEYS[0]: {"type": "string", "description": "A text."},
                    KEYS[1]: {"type": "integer", "description": "A number."},
                },
                "required": KEYS,
            },
        }})
    };
    NAMES.map(tool).into_iter().collect()
}

fn calls(num_calls: usize, style: CallStyle) -> Value {
    let ids = IDS[usize::from(style.has_short_ids)];
    let call = |index: usize| {
        let arguments = derive::arguments(index);
        let arguments = if style.has_text_arguments { arguments.to_string().into() } else { arguments };
        json!({"id": ids[index], "type": "function",
            "function": {"name": NAMES[index], "arguments": arguments}})
    };
    (0..num_calls).map(call).collect()
}
