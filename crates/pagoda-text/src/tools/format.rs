//! How a model writes tool calls: plain data, derived from its chat template.
//!
//! ```text
//! begin  call  between  call  end
//!
//! Hermes, Qwen    <tool_call>\n                {"name": "f", "arguments": {..}}     \n</tool_call>\n<tool_call>\n   \n</tool_call>
//! Llama 3                                      {"name": "f", "parameters": {..}}
//! Mistral         [TOOL_CALLS][                {"name": "f", "arguments": {..}}     ,      ]
//! Mistral, later  [TOOL_CALLS]                 f[ARGS]{..}                          [TOOL_CALLS]
//! Qwen3-Coder     <tool_call>\n<function=      f>\n<parameter=k>\nv\n</parameter>\n  </function>\n</tool_call> ..
//! pythonic        [                            f(k='v')                             ,      ]
//! ```

use std::fmt;

use super::marker::Marker;

/// The way in which one model writes tool calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolFormat {
    /// Before the first call. Without one a call is the whole answer, and is looked for only at its start.
    pub(super) begin: Marker,
    /// Between two calls; blank where the template knows one call a turn.
    pub(super) between: Marker,
    /// After the last call; may be blank.
    pub(super) end: Marker,
    pub(super) syntax: CallSyntax,
    /// What announces calls anywhere in a text; None where a call is known only by standing at the answer's start.
    pub(super) trigger: Option<Marker>,
}

/// The markup around calls.
#[derive(Clone, Debug)]
pub(super) struct Markup {
    pub(super) begin: String,
    pub(super) between: String,
    pub(super) end: String,
}

/// How one call is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallSyntax {
    /// `{"name": "f", "arguments": {..}}`
    Json { name_key: String, arguments_key: String },
    /// `f[ARGS]{..}`
    NamedJson(NamedSyntax),
    /// `f>\n<parameter=k>\nv\n</parameter>\n`
    Tagged(TaggedSyntax),
    /// `f(k='v')`
    Pythonic,
}

/// The name stands before the arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedSyntax {
    /// What stands between the name and an id of the call, and the pattern of such ids, where the format has them.
    pub(super) id: Option<(String, String)>,
    pub(super) after_name: Marker,
}

/// Each argument between markers of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaggedSyntax {
    pub(super) after_name: Marker,
    pub(super) key_open: Marker,
    /// Between an argument's name and its value.
    pub(super) key_close: Marker,
    pub(super) value_close: Marker,
}

impl ToolFormat {
    pub(super) fn new(markup: Markup, syntax: CallSyntax) -> Self {
        let trigger = match markup.begin.trim() {
            // Llama 3 may put this special token before its calls.
            "" => Some(Marker::new("<|python_tag|>")),
            "[" => None,
            _ => Some(Marker::new(markup.begin.trim())),
        };
        let [begin, between, end] = [markup.begin, markup.between, markup.end].map(Marker::new);
        ToolFormat { begin, between, end, syntax, trigger }
    }

    /// The format of Hermes and Qwen, used wherever a template shows none of its own.
    pub fn hermes() -> Self {
        let markup = Markup {
            begin: "<tool_call>\n".into(),
            between: "\n</tool_call>\n<tool_call>\n".into(),
            end: "\n</tool_call>".into(),
        };
        Self::new(markup, CallSyntax::Json { name_key: "name".into(), arguments_key: "arguments".into() })
    }

    /// Calls as a Python list, `[f(a='x', b=1)]`, alone in the answer.
    pub fn pythonic() -> Self {
        let markup = Markup { begin: "[".into(), between: ", ".into(), end: "]".into() };
        Self::new(markup, CallSyntax::Pythonic)
    }

    /// The same for text that follows a grammar: what begins a call, and what ends a value, is found only as it is written,
    /// which is where the grammar sees it too.
    pub(super) fn exact(&self) -> Self {
        let mut exact = self.clone();
        exact.trigger = self.trigger.as_ref().map(|trigger| Marker::exact(trigger.text()));
        if let CallSyntax::Tagged(tagged) = &mut exact.syntax {
            tagged.value_close = Marker::exact(tagged.value_close.text().trim_end());
        }
        exact
    }

    /// Whether one answer may hold several calls.
    pub fn has_several_calls(&self) -> bool {
        !self.between.is_blank()
    }

    /// The markup around calls, whose special tokens must reach the parser.
    pub fn markers(&self) -> impl Iterator<Item = &str> {
        let inner = match &self.syntax {
            CallSyntax::Json { .. } | CallSyntax::Pythonic => vec![],
            CallSyntax::NamedJson(named) => vec![&named.after_name],
            CallSyntax::Tagged(tagged) => {
                vec![&tagged.after_name, &tagged.key_open, &tagged.key_close, &tagged.value_close]
            }
        };
        let outer = [&self.begin, &self.between, &self.end].into_iter().chain(&self.trigger);
        outer.chain(inner).map(Marker::text)
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin = self.begin.text();
        match &self.syntax {
            CallSyntax::Json { name_key, arguments_key } => {
                write!(f, "{begin:?} {{{name_key}, {arguments_key}}}")?;
            }
            CallSyntax::NamedJson(named) => {
                let id = if named.id.is_some() { " id" } else { "" };
                write!(f, "{begin:?} name{id} {:?} {{..}}", named.after_name.text())?;
            }
            CallSyntax::Tagged(tagged) => {
                write!(
                    f,
                    "{begin:?} name {:?} key {:?} value",
                    tagged.key_open.text(),
                    tagged.key_close.text()
                )?;
            }
            CallSyntax::Pythonic => write!(f, "{begin:?} name(key=value)")?,
        }
        write!(f, " {:?}", self.end.text())
    }
}
