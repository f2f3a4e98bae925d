//! The grammar of calls, in llguidance's dialect of Lark: what a model that must call, or that has begun to, may write.
//!
//! ```text
//! start: begin call (between call){0,3} end
//! call: call_0 | call_1 ..                     the names form a trie: the lexer follows all of them at once
//! call_0: "{\"name\": \"f\", \"arguments\": " arguments_0 "}"
//! arguments_0: %json { bounded schema }
//! ```
//!
//! The arguments come in the schema's order. Where the format has markup of its own for each argument, numbers, lists and
//! objects are JSON within it, and strings are written as they are.

mod arguments;

use std::fmt::Write;

use serde_json::Value;

use super::format::{CallSyntax, NamedSyntax, TaggedSyntax, ToolFormat};
use super::marker::Marker;
use super::tool::{Tool, ToolSet};
use crate::Tokenizer;
use crate::grammar::{SchemaBounds, SchemaError, bounded, relaxed};
use arguments::{Property, TextLeaf, parameters, properties, text_leaves};

/// What the model may write besides calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Otherwise {
    /// Nothing: it must call.
    Nothing,
    /// Any text. The grammar binds it once the markup of a call has begun.
    Text,
    /// A value of this schema, already bounded.
    Value(Value),
}

/// What a grammar of calls is made for.
#[derive(Clone, Debug)]
pub struct ToolGrammar<'a> {
    /// How the model writes calls.
    pub format: &'a ToolFormat,
    /// What it may call.
    pub tools: &'a ToolSet,
    /// The only tool that it may call.
    pub only: Option<&'a str>,
    /// Whether an answer may hold several calls.
    pub has_several_calls: bool,
    /// What else it may write.
    pub otherwise: Otherwise,
    /// Line breaks may come first, as behind reasoning.
    pub may_lead_with_space: bool,
    /// Knows which markup is special tokens.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end an answer. Markup from the first of them on is left out: the engine stops there.
    pub stop_ids: &'a [u32],
    /// Bounds for what schemas leave open.
    pub bounds: &'a SchemaBounds,
}

/// A tool whose schema cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tool {tool}: {error}")]
pub struct ToolGrammarError {
    /// The tool's place in the list.
    pub tool: usize,
    /// The place in its schema, and why.
    pub error: SchemaError,
}

impl ToolGrammar<'_> {
    /// Most calls of one answer.
    pub const MAX_CALLS: usize = 4;

    /// The grammar's text.
    ///
    /// # Errors
    /// [`ToolGrammarError`] names the tool and the place in its schema.
    pub fn to_lark(&self) -> Result<String, ToolGrammarError> {
        let mut rules = String::new();
        self.write_start(&mut rules);
        let mut names = Vec::new();
        for (index, tool) in self.tools.tools().iter().enumerate() {
            if self.only.is_some_and(|only| only != tool.name) {
                continue;
            }
            names.push(format!("call_{index}"));
            let written = self.write_call(&mut rules, index, tool);
            written.map_err(|error| ToolGrammarError { tool: index, error })?;
        }
        line(&mut rules, &format!("call: {}", names.join(" | ")));
        Ok(rules)
    }

    /// How many keywords were left out of each tool's schema because nothing can follow them; no strict tool's are.
    pub fn num_dropped(&self) -> Vec<usize> {
        let num_of = |tool: &Tool| match &tool.parameters {
            Some(schema) if !tool.is_strict => relaxed(schema).dropped.len(),
            _ => 0,
        };
        self.tools.tools().iter().map(num_of).collect()
    }

    fn write_start(&self, rules: &mut String) {
        let space = if self.may_lead_with_space { "LEAD? " } else { "" };
        if self.may_lead_with_space {
            line(rules, r"LEAD: /\n{1,2}/");
        }
        let begin = self.pieces(self.format.begin.text());
        let calls = self.calls();
        let alternative = match &self.otherwise {
            Otherwise::Nothing => return line(rules, &format!("start: {space}{} {calls}", begin.join(" "))),
            Otherwise::Value(schema) => {
                line(rules, &format!("value: %json {schema}"));
                line(rules, &format!("start: {space}(value | {} {calls})", begin.join(" ")));
                return;
            }
            Otherwise::Text => &self.format.begin,
        };
        match &self.format.trigger {
            // A special token is never part of a text.
            Some(_) if begin.first().is_some_and(|piece| piece.starts_with('<')) => {
                line(rules, "TEXT: /(?s:.+)/");
                line(rules, &format!("start: TEXT? | TEXT? {} {calls}", begin.join(" ")));
            }
            Some(trigger) if !alternative.is_blank() => {
                line(rules, "TEXT: /(?s:.+)/");
                line(rules, &format!("head[lazy]: /(?s:.*){}/", escaped(trigger.text())));
                let rest = alternative.text().trim_start().strip_prefix(trigger.text()).unwrap_or_default();
                line(rules, &format!("start: TEXT? | head {} {calls}", self.literal(rest)));
            }
            _ => {
                let first = if alternative.is_blank() { '{' } else { '[' };
                line(rules, &format!(r"TEXT: /[^\{first}\s](?s:.*)/"));
                line(rules, &format!("start: TEXT? | {} {calls}", begin.join(" ")));
            }
        }
    }

    /// Everything behind the markup that begins the first call.
    fn calls(&self) -> String {
        let end = self.literal(self.format.end.text());
        if !self.has_several_calls || !self.format.has_several_calls() {
            return format!("call {end}");
        }
        let between = self.literal(self.format.between.text());
        format!("call ({between} call){{0,{}}} {end}", Self::MAX_CALLS - 1)
    }

    fn write_call(&self, rules: &mut String, index: usize, tool: &Tool) -> Result<(), SchemaError> {
        let schema = parameters(tool)?;
        let arguments = format!("arguments_{index}");
        let body = match &self.format.syntax {
            CallSyntax::Json { name_key, arguments_key } => {
                line(rules, &format!("{arguments}: %json {}", bounded(&schema, self.bounds)?));
                let head = format!("{{\"{name_key}\": {}, \"{arguments_key}\": ", quoted(&tool.name));
                format!("{} {arguments} {}", quoted(&head), quoted("}"))
            }
            CallSyntax::NamedJson(named) => {
                line(rules, &format!("{arguments}: %json {}", bounded(&schema, self.bounds)?));
                format!("{} {arguments}", self.named_head(rules, index, &tool.name, named))
            }
            CallSyntax::Tagged(tagged) => {
                let head = self.literal(&format!("{}{}", tool.name, tagged.after_name.text()));
                let arguments = self.properties(&schema, tool.is_strict)?;
                format!("{head} {}", self.write_tagged(rules, index, arguments, tagged)?)
            }
            CallSyntax::Pythonic => {
                let head = quoted(&format!("{}(", tool.name));
                let arguments = self.properties(&schema, tool.is_strict)?;
                format!("{head} {} {}", self.write_keywords(rules, index, arguments)?, quoted(")"))
            }
        };
        line(rules, &format!("call_{index}: {body}"));
        Ok(())
    }

    fn named_head(&self, rules: &mut String, index: usize, name: &str, named: &NamedSyntax) -> String {
        let after = named.after_name.text();
        match &named.id {
            None => self.literal(&format!("{name}{after}")),
            Some((before, pattern)) => {
                line(rules, &format!("ID_{index}: /{pattern}/"));
                format!("{} ID_{index} {}", self.literal(&format!("{name}{before}")), self.literal(after))
            }
        }
    }

    /// The arguments between their own markers, in the schema's order.
    fn write_tagged(
        &self,
        rules: &mut String,
        index: usize,
        arguments: Vec<Property<'_>>,
        tagged: &TaggedSyntax,
    ) -> Result<String, SchemaError> {
        let mut body = String::new();
        for (number, property) in arguments.into_iter().enumerate() {
            let rule = format!("argument_{index}_{number}");
            let open = format!("{}{}{}", tagged.key_open.text(), property.key, tagged.key_close.text());
            let value = self.write_tagged_value(rules, &rule, &property, &tagged.value_close)?;
            line(rules, &format!("{rule}: {} {value}", self.literal(&open)));
            let _ = write!(body, "{rule}{} ", if property.is_required { "" } else { "?" });
        }
        Ok(body)
    }

    /// The arguments of a schema; they share the room.
    fn properties<'a>(&self, schema: &'a Value, is_strict: bool) -> Result<Vec<Property<'a>>, SchemaError> {
        let mut properties = properties(schema, is_strict)?;
        let bounds = self.bounds.within(self.bounds.room_tokens / properties.len().max(1));
        properties.iter_mut().for_each(|property| property.bounds = bounds);
        Ok(properties)
    }

    /// A value with the marker that closes it.
    fn write_tagged_value(
        &self,
        rules: &mut String,
        rule: &str,
        property: &Property<'_>,
        close: &Marker,
    ) -> Result<String, SchemaError> {
        let bounded = property.bounded()?;
        if !property.is_text() {
            line(rules, &format!("{rule}_value: %json {bounded}"));
            return Ok(format!("{rule}_value {}", self.literal(close.text())));
        }
        let leaves = text_leaves(&bounded).ok_or_else(|| property.unusable())?;
        let options = leaves.into_iter().enumerate().map(|(number, leaf)| match leaf {
            TextLeaf::Fixed(text) => format!("{} {}", quoted(text), self.literal(close.text())),
            TextLeaf::Free(schema) => {
                self.write_text(rules, &format!("{rule}_text_{number}"), schema, close.text())
            }
        });
        Ok(format!("({})", options.collect::<Vec<_>>().join(" | ")))
    }

    /// A string as it is, up to the first marker that closes it.
    fn write_text(&self, rules: &mut String, rule: &str, schema: &Value, close: &str) -> String {
        let core = close.trim();
        let lead = &close[..close.len() - close.trim_start().len()];
        let trail = &close[close.trim_end().len()..];
        let terminal = rule.to_uppercase();
        let first = close.chars().next().unwrap_or('<');
        line(rules, &format!("{terminal}: {}", text_pattern(schema, first)));
        if self.first_special(core).is_some() {
            // A special token is never part of a text.
            let end = if lead.is_empty() { String::new() } else { quoted(lead) };
            line(rules, &format!("{terminal}_END: {terminal} {end}"));
            return format!("{terminal}_END {}", self.literal(&format!("{core}{trail}")));
        }
        line(rules, &format!("{rule}[suffix={}]: {terminal}", quoted(&format!("{lead}{core}"))));
        format!("{rule} {}", self.literal(trail))
    }

    /// `key=value, key=value` with the values as JSON.
    fn write_keywords(
        &self,
        rules: &mut String,
        index: usize,
        arguments: Vec<Property<'_>>,
    ) -> Result<String, SchemaError> {
        // From the last to the first: what may follow if an argument came before, and if none did.
        let (mut with_comma, mut without) = (String::new(), String::new());
        for (number, property) in arguments.into_iter().enumerate().rev() {
            let rule = format!("argument_{index}_{number}");
            line(rules, &format!("{rule}_value: %json {}", property.bounded()?));
            line(rules, &format!("{rule}: {} {rule}_value", quoted(&format!("{}=", property.key))));
            let own = format!("{rule} {with_comma}");
            let first = match (property.is_required, without.is_empty()) {
                (true, _) => own,
                (false, true) => format!("({own})?"),
                (false, false) => format!("({own} | {without})"),
            };
            let comma = quoted(", ");
            let next = if property.is_required {
                format!("{comma} {rule} {with_comma}")
            } else {
                format!("({comma} {rule})? {with_comma}")
            };
            line(rules, &format!("{rule}_first: {first}"));
            line(rules, &format!("{rule}_next: {next}"));
            (without, with_comma) = (format!("{rule}_first"), format!("{rule}_next"));
        }
        Ok(without)
    }

    /// Markup as symbols of the grammar: texts, and special tokens by id.
    fn literal(&self, text: &str) -> String {
        self.pieces(text).join(" ")
    }

    fn pieces(&self, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((at, id)) = self.first_special(rest) {
            if at > 0 {
                pieces.push(quoted(&rest[..at]));
            }
            if self.stop_ids.contains(&id) {
                return pieces;
            }
            pieces.push(format!("<[{id}]>"));
            rest = &rest[at + self.tokenizer.token_bytes(id).len()..];
        }
        if !rest.is_empty() {
            pieces.push(quoted(rest));
        }
        pieces
    }

    /// The first special token within `text`, the longest of those that begin there.
    fn first_special(&self, text: &str) -> Option<(usize, u32)> {
        let places = self.tokenizer.special_ids().iter().filter_map(|&id| {
            let token =
                std::str::from_utf8(self.tokenizer.token_bytes(id)).ok().filter(|token| !token.is_empty())?;
            text.find(token).map(|at| (at, std::cmp::Reverse(token.len()), id))
        });
        places.min().map(|(at, _, id)| (at, id))
    }
}

/// A string within its limits. The marker behind it begins with `first`, which therefore is no part of what must be there:
/// so the first marker always ends a text that is long enough.
fn text_pattern(schema: &Value, first: char) -> String {
    let number = |key: &str| schema.get(key).and_then(Value::as_u64);
    let (min, max) = (number("minLength").unwrap_or(0), number("maxLength"));
    let other = format!("[^{}]", escaped(&first.to_string()));
    let Some(wanted) = schema.get("pattern").and_then(Value::as_str) else {
        let rest = max.map(|max| max.saturating_sub(min).to_string()).unwrap_or_default();
        return match min {
            0 => format!("/(?s:.{{0,{rest}}})/"),
            min => format!("/{other}{{{min}}}(?s:.{{0,{rest}}})/"),
        };
    };
    // A pattern of JSON Schema may match anywhere.
    let open = if wanted.starts_with('^') { "" } else { "(?s:.*)" };
    let close = if wanted.ends_with('$') && !wanted.ends_with("\\$") { "" } else { "(?s:.*)" };
    let inner = wanted.strip_prefix('^').unwrap_or(wanted);
    let inner = if close.is_empty() { inner.strip_suffix('$').unwrap_or(inner) } else { inner };
    let mut pattern = format!("/{open}({}){close}/ & /{other}*/", inner.replace('/', "\\/"));
    if min > 0 || max.is_some() {
        let max = max.map(|max| max.to_string()).unwrap_or_default();
        let _ = write!(pattern, " & /(?s:.{{{min},{max}}})/");
    }
    pattern
}

fn line(rules: &mut String, rule: &str) {
    rules.push_str(rule);
    rules.push('\n');
}

/// A string of Lark, which is written as one of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// `text` as a regular expression between slashes.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        match c {
            '\n' => escaped.push_str("\\n"),
            // Behind a backslash, other punctuation would be an assertion.
            c if r"\.+*?()|[]{}^$#&-~/".contains(c) => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}
