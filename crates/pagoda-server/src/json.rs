//! From bytes to a JSON value under a depth limit. Never panics and never answers with the text it was given.

use serde_json::Value;

use crate::error::ApiError;

/// Parses a body. Duplicate keys: the last one counts. Numbers beyond an f64, lone surrogates and invalid UTF-8 are
/// refused by the parser.
pub(crate) fn parse(bytes: &[u8], max_depth: usize) -> Result<Value, ApiError> {
    if depth(bytes) > max_depth {
        return Err(ApiError::MalformedJson(format!("it is nested deeper than {max_depth} levels")));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let class = match error.classify() {
            serde_json::error::Category::Eof => "it ends too early",
            serde_json::error::Category::Syntax => "syntax error",
            serde_json::error::Category::Data | serde_json::error::Category::Io => "unusable value",
        };
        ApiError::MalformedJson(format!("{class} at line {} column {}", error.line(), error.column()))
    })
}

/// The deepest nesting of brackets outside strings. One pass, no recursion, so that the limit holds before anything
/// recursive sees the text.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut is_escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        assert_eq!(depth(br#"{"a":[1,"[[[\"[[",{}]}"#), 3);
        assert_eq!(depth(b"]]]["), 1);
        assert_eq!(depth(&[b'['; 5000]), 5000);
    }

    #[test]
    fn hostile_bodies_are_refused_without_being_quoted() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        for body in
            [deep.as_bytes(), b"{\"a\":\"\\ud800\"}", b"{\"a\":\"\xff\"}", b"1e999", b"NaN", b"", b"{secret}"]
        {
            let error = parse(body, 127).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        assert_eq!(parse(br#"{"a":1,"a":2}"#, 127).unwrap()["a"], 2);
    }
}
