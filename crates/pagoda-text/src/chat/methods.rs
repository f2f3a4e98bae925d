//! Python's methods on strings, lists and dicts, as far as templates call them. Those that change a value do not exist:
//! Python's sandbox refuses them too.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Calls `value.method(args)`.
pub(crate) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => string_method(text, method, args)?,
        (ValueKind::Seq | ValueKind::Iterable, _) => list_method(value, method, args)?,
        (ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).map_or((text, None), |(a, b)| (a, Some(b)));
            triple(before, after.map_or("", |_| separator), after.unwrap_or(""))
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.rsplit_once(separator).map_or((None, text), |(a, b)| (Some(a), b));
            triple(before.unwrap_or(""), before.map_or("", |_| separator), after)
        }
        "rsplit" => {
            let (separator, max_splits): (Option<&str>, Option<i64>) = from_args(args)?;
            split_from_right(text, separator, max_splits)
        }
        "index" | "rindex" => {
            let (needle,): (&str,) = from_args(args)?;
            let found = if method == "index" { text.find(needle) } else { text.rfind(needle) };
            let at = found.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            text[..at].chars().count().into()
        }
        "ljust" | "rjust" | "center" | "zfill" => padded(text, method, args)?.into(),
        "swapcase" => {
            let () = from_args(args)?;
            text.chars().map(swapped_case).collect::<String>().into()
        }
        "casefold" => {
            let () = from_args(args)?;
            text.to_lowercase().into()
        }
        "title" => {
            let () = from_args(args)?;
            title_case(text).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn triple(a: &str, b: &str, c: &str) -> Value {
    Value::from(Tuple::from([Value::from(a), Value::from(b), Value::from(c)]))
}

fn split_from_right(text: &str, separator: Option<&str>, max_splits: Option<i64>) -> Value {
    // A negative maximum is none, as in Python.
    let max_parts = max_splits.and_then(|max| usize::try_from(max).ok()).map_or(usize::MAX, |max| max + 1);
    let mut parts: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(max_parts, separator).collect(),
        None => text
            .trim()
            .rsplitn(max_parts, char::is_whitespace)
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect(),
    };
    parts.reverse();
    parts.into_iter().map(Value::from).collect()
}

fn padded(text: &str, method: &str, args: &[Value]) -> Result<String, Error> {
    /// A wider field than any template asks for is refused instead of allocated.
    const MAX_WIDTH: usize = 1 << 16;
    let (width, fill): (usize, Option<char>) = from_args(args)?;
    if width > MAX_WIDTH {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a field of {width} characters")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let fill = fill.unwrap_or(if method == "zfill" { '0' } else { ' ' });
    let fills = |count: usize| fill.to_string().repeat(count);
    Ok(match method {
        "ljust" => text.to_owned() + &fills(missing),
        "rjust" => fills(missing) + text,
        "zfill" => {
            let sign = text.chars().next().filter(|c| matches!(c, '+' | '-'));
            let digits = &text[sign.map_or(0, char::len_utf8)..];
            format!("{}{}{digits}", sign.map(String::from).unwrap_or_default(), fills(missing))
        }
        // CPython puts the odd one left when the width is odd.
        _ => {
            let left = missing / 2 + (missing & width & 1);
            fills(left) + text + &fills(missing - left)
        }
    })
}

fn swapped_case(c: char) -> String {
    if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
}

/// Every run of letters starts with a capital, whatever stands before it.
fn title_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        in_word = c.is_alphabetic();
    }
    out
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match method {
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let position = value.try_iter()?.position(|item| item == *wanted);
            let position = position
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the value is not in the list"))?;
            Ok(Some(position.into()))
        }
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        _ => Ok(None),
    }
}
