//! One call with each argument between markers of its own: `f>\n<parameter=k>\nv\n</parameter>\n`.
//!
//! The markup does not say what type a value has; the tool's schema does.

use super::call::{BodyStep, Call, quoted};
use super::format::TaggedSyntax;
use super::marker::{Step, Until};
use super::tool::ArgumentSchema;

#[derive(Clone, Debug)]
enum Place {
    Name(Until),
    /// Between arguments: what may be the next one's marker.
    Arguments {
        held: String,
        position: usize,
    },
    Key(Until),
    Value {
        key: String,
        value: Until,
    },
}

/// The call.
#[derive(Clone, Debug)]
pub(super) struct TaggedCall {
    place: Place,
    keys: Vec<String>,
}

impl TaggedCall {
    pub(super) fn new() -> Self {
        TaggedCall { place: Place::Name(Until::default()), keys: Vec::new() }
    }

    /// Whether the call may end here.
    pub(super) fn is_between_arguments(&self) -> bool {
        matches!(self.place, Place::Arguments { .. })
    }

    pub(super) fn push(&mut self, c: char, syntax: &TaggedSyntax, call: &mut Call) -> BodyStep {
        match &mut self.place {
            Place::Name(name) => {
                if syntax.after_name.is_blank() {
                    return self.push_bare_name(c, syntax, call);
                }
                if name.push(&syntax.after_name, c) {
                    let is_name = call.set_name(name.text.trim());
                    self.place = arguments();
                    return if is_name { BodyStep::More } else { BodyStep::Failed };
                }
                // A call without arguments may leave out what follows the name; a line break ends every name.
                if name.text.len() > 512 { BodyStep::Failed } else { BodyStep::More }
            }
            Place::Arguments { held, position } => {
                held.push(c);
                match syntax.key_open.step(position, c) {
                    Step::More => BodyStep::More,
                    Step::Done => {
                        self.place = Place::Key(Until::default());
                        BodyStep::More
                    }
                    Step::Failed => {
                        let rest = std::mem::take(held);
                        self.place = arguments();
                        BodyStep::DoneBefore(rest)
                    }
                }
            }
            Place::Key(key) => {
                if key.push(&syntax.key_close, c) {
                    let key = key.text.trim().to_owned();
                    if key.is_empty() || self.keys.contains(&key) {
                        return BodyStep::Failed;
                    }
                    self.keys.push(key.clone());
                    self.place = Place::Value { key, value: Until::default() };
                } else if key.text.len() > 512 {
                    return BodyStep::Failed;
                }
                BodyStep::More
            }
            Place::Value { key, value } => {
                if value.push(&syntax.value_close, c) {
                    let text = own_text(&value.text, syntax);
                    let name = call.name.clone().unwrap_or_default();
                    let converted = converted(text, call.tools.argument_schema(&name, key));
                    let key = std::mem::take(key);
                    call.add_argument(&key, &converted);
                    self.place = arguments();
                }
                BodyStep::More
            }
        }
    }

    /// A name that ends with white space or where markup begins.
    fn push_bare_name(&mut self, c: char, syntax: &TaggedSyntax, call: &mut Call) -> BodyStep {
        let Place::Name(name) = &mut self.place else { return BodyStep::Failed };
        let is_end = c == '<' || c == '[' || (c.is_whitespace() && !name.text.trim().is_empty());
        if !is_end {
            name.text.push(c);
            return if name.text.len() > 512 { BodyStep::Failed } else { BodyStep::More };
        }
        if !call.set_name(name.text.trim()) {
            return BodyStep::Failed;
        }
        self.place = arguments();
        self.push(c, syntax, call)
    }
}

fn arguments() -> Place {
    Place::Arguments { held: String::new(), position: 0 }
}

/// The value without the line breaks that belong to the markup.
fn own_text<'a>(text: &'a str, syntax: &TaggedSyntax) -> &'a str {
    let text = match text.strip_prefix('\n') {
        Some(rest) if syntax.key_close.text().ends_with('\n') => rest,
        _ => text,
    };
    match text.strip_suffix('\n') {
        Some(rest) if syntax.value_close.text().starts_with('\n') && !syntax.value_close.is_exact() => rest,
        _ => text,
    }
}

/// The value as JSON of a type that its schema allows. Text that is no JSON is a string.
pub(super) fn converted(text: &str, schema: Option<ArgumentSchema<'_>>) -> String {
    let types = schema.map(ArgumentSchema::types);
    if types.is_some_and(super::tool::Types::is_string_only) {
        return quoted(text);
    }
    let trimmed = text.trim();
    if serde_json::from_str::<serde_json::Value>(trimmed).is_ok() {
        return trimmed.to_owned();
    }
    // As Python writes them.
    match trimmed {
        "True" if types.is_none_or(|types| types.boolean) => "true".into(),
        "False" if types.is_none_or(|types| types.boolean) => "false".into(),
        "None" if types.is_none_or(|types| types.null) => "null".into(),
        _ => quoted(text),
    }
}
