//! Several schemas that hold at once as one with the keywords of all. No intersection is left to the grammar compiler, which
//! cannot close objects that way.

use serde_json::{Map, Value, json};

use super::super::error::SchemaError;
use super::place::Place;

/// Keywords that say how to combine schemas.
pub(super) const APPLICATORS: [&str; 4] = ["$ref", "allOf", "anyOf", "oneOf"];

/// Adds the keywords of `part` to `merged`.
pub(super) fn merge(
    merged: &mut Map<String, Value>,
    part: Map<String, Value>,
    place: &Place,
) -> Result<(), SchemaError> {
    let closed_names = [names_if_closed(merged), names_if_closed(&part)];
    for (key, new) in part {
        let Some(old) = merged.get_mut(&key) else {
            merged.insert(key, new);
            continue;
        };
        if *old == new {
            continue;
        }
        let combined = match key.as_str() {
            "properties" | "patternProperties" => unite_properties(old.take(), new),
            "required" => unite(old.take(), new),
            "type" => common_types(old, &new).ok_or_else(|| {
                place.key("type").wrong("has no type in common with the schemas that hold beside it")
            })?,
            "enum" => common_values(old, &new),
            "minimum" | "minLength" | "minItems" | "minProperties" => larger(old, &new, true),
            "maximum" | "maxLength" | "maxItems" | "maxProperties" => larger(old, &new, false),
            "additionalProperties" | "items" => match (&*old, &new) {
                (Value::Bool(false), _) | (_, Value::Bool(false)) => Value::Bool(false),
                (Value::Bool(true), other) | (other, Value::Bool(true)) => other.clone(),
                (old, new) => json!({ "allOf": [old, new] }),
            },
            "anyOf" | "oneOf" | "allOf" | "const" | "pattern" | "format" | "multipleOf"
            | "exclusiveMinimum" | "exclusiveMaximum" | "prefixItems" | "$ref" => {
                return Err(place
                    .key(&key)
                    .wrong("stands in two schemas that hold at once, with different values"));
            }
            // Annotations.
            _ => new,
        };
        merged.insert(key, combined);
    }
    for names in closed_names.into_iter().flatten() {
        if let Some(Value::Object(properties)) = merged.get_mut("properties") {
            properties.retain(|name, _| names.contains(name));
        }
    }
    Ok(())
}

/// The properties of an object that allows no others.
fn names_if_closed(schema: &Map<String, Value>) -> Option<Vec<String>> {
    let is_closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    let is_plain = !schema.contains_key("patternProperties");
    (is_closed && is_plain).then(|| {
        let properties = schema.get("properties").and_then(Value::as_object);
        properties.map(|properties| properties.keys().cloned().collect()).unwrap_or_default()
    })
}

fn unite_properties(old: Value, new: Value) -> Value {
    let (Value::Object(mut old), Value::Object(new)) = (old, new.clone()) else { return new };
    for (name, schema) in new {
        match old.get_mut(&name) {
            Some(known) if *known == schema => {}
            Some(known) => *known = json!({ "allOf": [known.take(), schema] }),
            None => {
                old.insert(name, schema);
            }
        }
    }
    Value::Object(old)
}

fn unite(old: Value, new: Value) -> Value {
    let (Value::Array(mut old), Value::Array(new)) = (old, new.clone()) else { return new };
    for value in new {
        if !old.contains(&value) {
            old.push(value);
        }
    }
    Value::Array(old)
}

fn common_values(old: &Value, new: &Value) -> Value {
    let (Value::Array(old), Value::Array(new)) = (old, new) else { return new.clone() };
    old.iter().filter(|value| new.contains(value)).cloned().collect()
}

fn common_types(old: &Value, new: &Value) -> Option<Value> {
    let list = |value: &Value| match value {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let new = list(new);
    // Every integer is a number.
    let narrowed = list(old).into_iter().filter_map(|old| {
        let is_number = |value: &Value| value == "number";
        if new.contains(&old) || (old == "integer" && new.iter().any(is_number)) {
            Some(old)
        } else {
            (is_number(&old) && new.iter().any(|new| new == "integer")).then(|| json!("integer"))
        }
    });
    let types: Vec<Value> = narrowed.collect();
    (!types.is_empty()).then_some(Value::Array(types))
}

fn larger(old: &Value, new: &Value, wants_larger: bool) -> Value {
    let is_larger = old.as_f64().unwrap_or(0.0) >= new.as_f64().unwrap_or(0.0);
    if is_larger == wants_larger { old.clone() } else { new.clone() }
}
