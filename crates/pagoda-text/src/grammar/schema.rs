//! Bounds for what a JSON schema leaves open, so that every value of it ends.

use serde_json::{Map, Value, json};

use super::error::SchemaError;
use super::limits::SchemaBounds;

/// Applies `bounds` to `schema`: the result allows a subset of the values, each of which ends.
///
/// The result also carries, under `x-guidance` at its root, how it is written: one optional space behind `,` and `:` and no
/// other whitespace. It can stand behind `%json` in a Lark grammar.
///
/// # Errors
/// [`SchemaError`] names the place of what cannot be followed.
pub fn bounded(schema: &Value, bounds: &SchemaBounds) -> Result<Value, SchemaError> {
    let mut out = match schema {
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Object(_) => bound(schema, bounds),
        _ => {
            return Err(SchemaError { path: "$".into(), reason: "must be an object".into() });
        }
    };
    let root = out.as_object_mut().expect("an object stays one");
    root.insert(
        "x-guidance".into(),
        json!({
            "item_separator": ", ?",
            "key_separator": ": ?",
            "whitespace_flexible": false,
            "coerce_one_of": true,
        }),
    );
    Ok(out)
}

fn bound(schema: &Value, bounds: &SchemaBounds) -> Value {
    match schema {
        Value::Object(map) => {
            let mut out: Map<String, Value> =
                map.iter().map(|(key, value)| (key.clone(), bound(value, bounds))).collect();
            let is = |name: &str| map.get("type").is_some_and(|t| t == name);
            if is("string")
                && !["maxLength", "enum", "const", "pattern", "format"].iter().any(|k| map.contains_key(*k))
            {
                out.insert("maxLength".into(), bounds.max_string_chars.into());
            }
            if is("array") && !map.contains_key("maxItems") {
                out.insert("maxItems".into(), bounds.max_items.into());
            }
            if is("object") && map.contains_key("properties") && !map.contains_key("additionalProperties") {
                out.insert("additionalProperties".into(), Value::Bool(false));
            }
            Value::Object(out)
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| bound(item, bounds)).collect()),
        other => other.clone(),
    }
}
