//! One call as a JSON object, `{"name": "f", "arguments": {..}}`, or its arguments alone, one character at a time.

use super::call::{BodyStep, Call};

/// The deepest nesting of arguments; deeper ones are no call.
const MAX_DEPTH: usize = 100;

/// Follows one JSON value to its end. Knows brackets and strings only: what lies between is checked as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ValueScan {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl ValueScan {
    /// Takes a character of a value that began with a bracket or a quote; whether it was the last, or None if it is
    /// nested too deep.
    pub(super) fn push(&mut self, c: char) -> Option<bool> {
        match c {
            _ if self.is_escaped => self.is_escaped = false,
            '\\' if self.in_string => self.is_escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.checked_sub(1)?,
            _ => {}
        }
        (self.depth <= MAX_DEPTH).then_some(self.depth == 0 && !self.in_string)
    }
}

/// Appends a character of a JSON value. A control character within a string, which JSON forbids and models write, is
/// escaped.
fn append(text: &mut String, scan: ValueScan, c: char) {
    match c {
        '\n' if scan.in_string => text.push_str("\\n"),
        '\t' if scan.in_string => text.push_str("\\t"),
        c if scan.in_string && c < ' ' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
        c => text.push(c),
    }
}

/// Arguments alone: an object.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonArguments {
    scan: ValueScan,
}

impl JsonArguments {
    pub(super) fn push(&mut self, c: char, call: &mut Call) -> BodyStep {
        if call.arguments.is_empty() && c != '{' {
            return if c.is_whitespace() { BodyStep::More } else { BodyStep::Failed };
        }
        append(&mut call.arguments, self.scan, c);
        match self.scan.push(c) {
            None => BodyStep::Failed,
            Some(true) => BodyStep::Done,
            Some(false) => BodyStep::More,
        }
    }
}

/// Where in the object the text stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Open,
    KeyOrEnd,
    Key,
    Colon,
    ValueStart,
    Arguments,
    /// Any other value, with brackets or quotes.
    Value,
    /// A number or a word.
    Scalar,
    CommaOrEnd,
}

/// The object of one call.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonCall {
    place: Place,
    /// The calls stand in a list of the model's own making.
    pub(super) in_list: bool,
    key: String,
    value: String,
    scan: ValueScan,
}

/// The keys of the format.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonKeys<'a> {
    pub(super) name: &'a str,
    pub(super) arguments: &'a str,
}

impl JsonKeys<'_> {
    /// Models mix up the two spellings of the second key.
    fn is_arguments(self, key: &str) -> bool {
        key == self.arguments || matches!(key, "arguments" | "parameters")
    }
}

impl JsonCall {
    pub(super) fn push(&mut self, c: char, keys: JsonKeys<'_>, call: &mut Call) -> BodyStep {
        match self.place {
            Place::Key => self.push_key(c),
            Place::Arguments | Place::Value => self.push_value(c, keys, call),
            Place::Scalar if matches!(c, ',' | '}') || c.is_whitespace() => {
                if !self.end_value(keys, call) {
                    return BodyStep::Failed;
                }
                self.push_between(c, keys, call)
            }
            Place::Scalar => {
                self.value.push(c);
                BodyStep::More
            }
            _ if c.is_whitespace() => BodyStep::More,
            _ => self.push_between(c, keys, call),
        }
    }

    /// A character outside keys and values.
    fn push_between(&mut self, c: char, keys: JsonKeys<'_>, call: &mut Call) -> BodyStep {
        self.place = match (self.place, c) {
            (place, c) if c.is_whitespace() => place,
            (Place::Open, '[') if !self.in_list => {
                self.in_list = true;
                Place::Open
            }
            (Place::Open, '{') => Place::KeyOrEnd,
            (Place::KeyOrEnd, '"') => {
                self.key.clear();
                Place::Key
            }
            (Place::Colon, ':') => Place::ValueStart,
            (Place::ValueStart, c) => return self.start_value(c, keys, call),
            (Place::CommaOrEnd, ',') => Place::KeyOrEnd,
            (Place::KeyOrEnd | Place::CommaOrEnd, '}') => return Self::end(call),
            _ => return BodyStep::Failed,
        };
        BodyStep::More
    }

    fn push_key(&mut self, c: char) -> BodyStep {
        match c {
            '"' => self.place = Place::Colon,
            // No key of a call needs an escape or is long.
            '\\' => return BodyStep::Failed,
            _ if self.key.len() >= 64 => return BodyStep::Failed,
            c => self.key.push(c),
        }
        BodyStep::More
    }

    fn start_value(&mut self, c: char, keys: JsonKeys<'_>, call: &mut Call) -> BodyStep {
        self.value.clear();
        self.scan = ValueScan::default();
        let is_arguments = keys.is_arguments(&self.key);
        if is_arguments && !call.arguments.is_empty() {
            return BodyStep::Failed;
        }
        self.place = match c {
            '{' if is_arguments => Place::Arguments,
            '{' | '[' | '"' => Place::Value,
            ',' | '}' | ']' => return BodyStep::Failed,
            c => {
                self.value.push(c);
                self.place = Place::Scalar;
                return BodyStep::More;
            }
        };
        self.push_value(c, keys, call)
    }

    fn push_value(&mut self, c: char, keys: JsonKeys<'_>, call: &mut Call) -> BodyStep {
        let target = if self.place == Place::Arguments { &mut call.arguments } else { &mut self.value };
        append(target, self.scan, c);
        match self.scan.push(c) {
            None => BodyStep::Failed,
            Some(false) => BodyStep::More,
            Some(true) if self.end_value(keys, call) => BodyStep::More,
            Some(true) => BodyStep::Failed,
        }
    }

    /// Makes what the value's key says of it; whether it can be that.
    fn end_value(&mut self, keys: JsonKeys<'_>, call: &mut Call) -> bool {
        let was_arguments = self.place == Place::Arguments;
        self.place = Place::CommaOrEnd;
        if was_arguments {
            return true;
        }
        let Ok(value) = serde_json::from_str::<serde_json::Value>(&self.value) else { return false };
        if self.key == keys.name {
            return value.as_str().is_some_and(|name| call.set_name(name));
        }
        if !keys.is_arguments(&self.key) {
            return true;
        }
        match value {
            serde_json::Value::Null => {}
            // Arguments written as the API writes them: an object in a string.
            serde_json::Value::String(text) => match serde_json::from_str(&text) {
                Ok(serde_json::Value::Object(_)) => call.arguments = text.trim().to_owned(),
                _ => return false,
            },
            _ => return false,
        }
        true
    }

    fn end(call: &mut Call) -> BodyStep {
        if call.name.is_none() {
            return BodyStep::Failed;
        }
        if call.arguments.is_empty() {
            call.arguments.push_str("{}");
        }
        BodyStep::Done
    }
}
