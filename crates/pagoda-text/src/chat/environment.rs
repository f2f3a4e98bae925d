//! The Jinja environment that chat templates are written for: the one that Python's `transformers` sets up.
//!
//! What differs from minijinja's own defaults, each because a published template depends on it: blocks are trimmed,
//! values print as in Python, `tojson` is `json.dumps` without ASCII escapes, `raise_exception` and `strftime_now` exist,
//! strings, lists and dicts have Python's methods, and `{% generation %}` marks a scope without effect.

use std::time::SystemTime;

use chrono::{DateTime, Local};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

use super::methods;
use super::python::{self, JsonStyle};

/// The name under which `strftime_now` finds the time of a rendering.
pub(crate) const NOW: &str = "__now";

/// `raise_exception` was called with this message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RaisedMessage(pub(crate) String);

/// An environment without templates.
pub(crate) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the default delimiters are distinct"),
    );
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(|out, _state, value| python::write_str(value, out));
    env.set_unknown_method_callback(methods::call);
    env.set_debug(true);
    env.add_filter("tojson", tojson);
    env.add_filter("string", string);
    env.add_test("sequence", is_sequence);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(RaisedMessage(message)))
}

/// `datetime.now().strftime(format)` of the time passed with the rendering.
fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let micros = state.lookup(NOW).and_then(|now| i64::try_from(now).ok());
    let now = micros.and_then(DateTime::from_timestamp_micros).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, "the time of this rendering is out of range")
    })?;
    let mut text = String::new();
    write!(text, "{}", now.with_timezone(&Local).format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "strftime_now: unknown format"))?;
    Ok(text)
}

/// `now` as templates carry it: microseconds since 1970.
pub(crate) fn micros_since_epoch(now: SystemTime) -> i64 {
    DateTime::<Local>::from(now).timestamp_micros()
}

fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent).unwrap_or(0).min(64)),
        }),
    };
    let mut style = JsonStyle::new(indent);
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: separators is a pair"))?;
        (style.item_separator, style.key_separator) = (item, key);
    }
    style.ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    style.sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    python::dump_json(value, &style).map(Value::from)
}

fn string(value: &Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String {
        return Ok(value.clone());
    }
    let mut text = String::new();
    python::write_str(value, &mut text)?;
    Ok(Value::from(text))
}

/// In Python everything with a length and an index is a sequence: strings and dicts too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
}

/// `source` with `{% generation %}` .. `{% endgeneration %}` turned into a plain scope, which is what they are when
/// nothing tracks them.
pub(crate) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let (before, tag) = rest.split_at(start);
        let (tag, behind) = tag.split_at(len + 2);
        out.push_str(before);
        let word = tag[2..len].trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}
