//! Values as Python writes them: `str()`, `repr()` and `json.dumps()`.
//!
//! Templates were written against Python and tested by reading its output; a model was trained on exactly those bytes.

use std::fmt::Write;

use minijinja::value::{Serde, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Nesting beyond this is refused.
const MAX_DEPTH: usize = 100;

/// `str(value)`: what `{{ value }}` writes.
pub(crate) fn write_str(value: &Value, out: &mut impl Write) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::String => Ok(out.write_str(value.as_str().unwrap_or_default())?),
        _ => write_repr(value, out, 0),
    }
}

/// `repr` of a JSON value.
pub(crate) fn python_repr(value: &serde_json::Value) -> String {
    let mut out = String::new();
    let written = write_repr(&Value::from(Serde(value)), &mut out, 0);
    written.map_or_else(|_too_deep| value.to_string(), |()| out)
}

/// `json.dumps` of a JSON value, with characters beyond ASCII as they are.
pub(crate) fn python_json(value: &serde_json::Value) -> String {
    let written = dump_json(&Value::from(Serde(value)), &JsonStyle::new(None));
    written.unwrap_or_else(|_too_deep| value.to_string())
}

/// `repr(value)`: what stands within a printed list or dict.
fn write_repr(value: &Value, out: &mut impl Write, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Undefined => Ok(out.write_str("Undefined")?),
        ValueKind::Number => write_number(value, out),
        // A slice or a sum of lists is an iterable here and a list in Python.
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            out.write_str(open)?;
            for (index, item) in value.try_iter()?.enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(&item, out, depth + 1)?;
            }
            out.write_str(if value.is_tuple() && value.len() == Some(1) { "," } else { "" })?;
            Ok(out.write_str(close)?)
        }
        ValueKind::Map => {
            out.write_str("{")?;
            for (index, key) in value.try_iter()?.enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(&key, out, depth + 1)?;
                out.write_str(": ")?;
                write_repr(&value.get_item(&key)?, out, depth + 1)?;
            }
            Ok(out.write_str("}")?)
        }
        // None, True, False and quoted strings are Python's already.
        _ => Ok(write!(out, "{value:?}")?),
    }
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value is nested more than {MAX_DEPTH} deep"))
}

fn write_number(value: &Value, out: &mut impl Write) -> Result<(), Error> {
    if value.is_integer() {
        return Ok(write!(out, "{value}")?);
    }
    match f64::try_from(value.clone()) {
        Ok(number) => Ok(out.write_str(&float_repr(number))?),
        Err(_) => Ok(write!(out, "{value}")?),
    }
}

/// `repr` of a float: the shortest digits that read back, positional from 1e-4 up to 1e16.
fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("`{:e}` always writes an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes a decimal exponent");
    if (-4..16).contains(&exponent) {
        let positional = format!("{number}");
        return if positional.contains('.') { positional } else { positional + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JsonStyle {
    /// Spaces (or any string) per level; `None` writes one line.
    pub(crate) indent: Option<String>,
    /// Between items.
    pub(crate) item_separator: String,
    /// Between key and value.
    pub(crate) key_separator: String,
    /// Escape everything beyond ASCII.
    pub(crate) ensure_ascii: bool,
    /// Order keys.
    pub(crate) sort_keys: bool,
}

impl JsonStyle {
    /// The style of `json.dumps(indent=indent)`.
    pub(crate) fn new(indent: Option<String>) -> Self {
        let item_separator = if indent.is_some() { "," } else { ", " }.to_owned();
        Self { indent, item_separator, key_separator: ": ".into(), ensure_ascii: false, sort_keys: false }
    }
}

/// `json.dumps(value)`.
pub(crate) fn dump_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    JsonWriter { style, out: &mut out }.write(value, 0)?;
    Ok(out)
}

struct JsonWriter<'a> {
    style: &'a JsonStyle,
    out: &'a mut String,
}

impl JsonWriter<'_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.write_number(value)?,
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(('[', ']'), &items, depth, |writer, item| writer.write(item, depth + 1))?;
            }
            ValueKind::Map => self.write_map(value, depth)?,
            kind => {
                let reason = format!("Object of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        }
        Ok(())
    }

    fn write_number(&mut self, value: &Value) -> Result<(), Error> {
        match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() && number.is_nan() => self.out.push_str("NaN"),
            Ok(number) if !value.is_integer() && number.is_infinite() => {
                self.out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
            }
            _ => write_number(value, self.out)?,
        }
        Ok(())
    }

    fn write_map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut entries = Vec::new();
        for key in value.try_iter()? {
            let item = value.get_item(&key)?;
            entries.push((self.key_text(&key)?, item));
        }
        if self.style.sort_keys {
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        self.write_items(('{', '}'), &entries, depth, |writer, (key, item)| {
            writer.write_string(key);
            writer.out.push_str(&writer.style.key_separator);
            writer.write(item, depth + 1)
        })
    }

    /// A key is a string in JSON whatever it was in Python.
    fn key_text(&self, key: &Value) -> Result<String, Error> {
        match key.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => dump_json(key, self.style),
        }
    }

    fn write_items<T>(
        &mut self,
        (open, close): (char, char),
        items: &[T],
        depth: usize,
        mut write_item: impl FnMut(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.style.item_separator);
            }
            self.new_line(depth + 1);
            write_item(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(c),
                '\u{7f}'.. if self.style.ensure_ascii => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    /// `\uXXXX` for each UTF-16 unit.
    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(self.out, "\\u{unit:04x}").expect("writing to a String cannot fail");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::value::Serde;
    use serde_json::json;

    fn shown(value: serde_json::Value) -> String {
        let mut text = String::new();
        write_str(&Value::from(Serde(value)), &mut text).unwrap();
        text
    }

    #[test]
    fn values_print_as_python_prints_them() {
        assert_eq!(
            shown(json!({"a": [1, 2.0, null, true, "it's", "\n\"é"]})),
            r#"{'a': [1, 2.0, None, True, "it's", '\n"é']}"#
        );
        assert_eq!(
            shown(json!([1e16, 1e-5, 123456789012345680.0, 0.1, -1.5e300])),
            "[1e+16, 1e-05, 1.2345678901234568e+17, 0.1, -1.5e+300]"
        );
        assert_eq!(shown(json!(18446744073709551615u64)), "18446744073709551615");
        assert_eq!(shown(json!([[], {}])), "[[], {}]");
    }

    #[test]
    fn json_is_laid_out_as_json_dumps_does() {
        let value = Value::from(Serde(json!({"b": [1, {}], "a": "<é&😀>\u{1}"})));
        assert_eq!(
            dump_json(&value, &JsonStyle::new(None)).unwrap(),
            "{\"b\": [1, {}], \"a\": \"<é&😀>\\u0001\"}"
        );
        assert_eq!(
            dump_json(
                &value,
                &JsonStyle { ensure_ascii: true, sort_keys: true, ..JsonStyle::new(Some("  ".into())) }
            )
            .unwrap(),
            "{\n  \"a\": \"<\\u00e9&\\ud83d\\ude00>\\u0001\",\n  \"b\": [\n    1,\n    {}\n  ]\n}"
        );
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
        assert!(dump_json(&Value::from(Serde(&deep)), &JsonStyle::new(None)).is_err());
        assert!(write_str(&Value::from(Serde(&deep)), &mut String::new()).is_err());
    }
}
