//! Filters, tests and functions that work as in Python's Jinja2 and `transformers` where minijinja's own do not.

use chrono::{DateTime, Local};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::python::{self, JsonStyle};

/// The variable in which `strftime_now` finds the time of a rendering: microseconds since 1970.
pub(crate) const NOW: &str = "__now";

/// `raise_exception` was called with this message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RaisedMessage(pub(crate) String);

/// Adds all of them.
pub(crate) fn add_to(env: &mut Environment) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", string);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    env.add_test("sequence", is_iterable);
    env.add_test("iterable", is_iterable);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", strftime_now);
    env.add_function("dict", dict);
}

fn failed(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(failed(message.clone()).with_source(RaisedMessage(message)))
}

/// `datetime.now().strftime(format)`.
fn strftime_now(state: &State, format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let micros = state.lookup(NOW).and_then(|now| i64::try_from(now).ok());
    let now =
        micros.and_then(DateTime::from_timestamp_micros).ok_or_else(|| failed("the time is out of range"))?;
    let mut text = String::new();
    // chrono answers an unknown directive by a formatting error.
    write!(text, "{}", now.with_timezone(&Local).format(format))
        .map_err(|_| failed("strftime_now: unknown format"))?;
    Ok(text)
}

fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    /// As with `str * n`: nobody indents by more.
    const MAX_INDENT: usize = 64;
    let indent = match kwargs.get::<Option<Value>>("indent")? {
        Some(indent) if !indent.is_none() => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(MAX_INDENT)),
        }),
        _ => None,
    };
    let mut style = JsonStyle::new(indent);
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")? {
        let pair = <[String; 2]>::try_from(separators).map_err(|_| failed("tojson: separators is a pair"))?;
        [style.item_separator, style.key_separator] = pair;
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

/// HTML's special characters as entities, in markupsafe's spelling.
fn escape(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    python::write_str(value, &mut text)?;
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    Ok(escaped)
}

/// `int(value)`, else the default: 0 for what is no number.
fn int(value: &Value, default: Option<Value>) -> Value {
    let default = default.unwrap_or(Value::from(0));
    match value.as_str().map(str::trim) {
        Some(text) => text
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| text.parse::<f64>().map(|number| Value::from(number as i64)))
            .unwrap_or(default),
        None if value.is_integer() => value.clone(),
        None => match (value.kind(), f64::try_from(value.clone())) {
            (ValueKind::Number | ValueKind::Bool, Ok(number)) => Value::from(number as i64),
            _ => default,
        },
    }
}

/// `float(value)`, else the default: 0.0 for what is no number.
fn float(value: &Value, default: Option<Value>) -> Value {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    number.map_or_else(|| default.unwrap_or(Value::from(0.0)), Value::from)
}

/// In Python strings, lists and dicts are sequences and iterable alike; `none` is neither, an undefined value is both.
fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), Seq | Iterable | Map | String | Undefined)
}

/// `dict(mapping or pairs, **kwargs)`.
fn dict(base: Option<&Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut entries: Vec<(Value, Value)> = Vec::new();
    if let Some(base) = base {
        for item in base.try_iter()? {
            if base.kind() == ValueKind::Map {
                entries.push((item.clone(), base.get_item(&item)?));
            } else {
                entries.push((item.get_item_by_index(0)?, item.get_item_by_index(1)?));
            }
        }
    }
    for name in kwargs.args() {
        entries.push((name.into(), kwargs.get(name)?));
    }
    Ok(Value::from_pairs(entries))
}
