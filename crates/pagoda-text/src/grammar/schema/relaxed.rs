//! A schema less what cannot be followed token by token: for arguments that need not follow it to the letter.

use serde_json::{Map, Value};

use super::layout::UNSUPPORTED;
use super::leaves::{MAX_PATTERN_BYTES, PATTERN_REPEAT, is_beyond, is_divisor, is_within_digits};
use super::pattern::{bounded_pattern, checked_pattern};
use super::place::{Place, is_too_deep};

/// Keywords whose value is a schema.
const SCHEMAS: [&str; 5] =
    ["items", "additionalItems", "additionalProperties", "propertyNames", "unevaluatedItems"];
/// Keywords whose value is a list of schemas.
const LISTS: [&str; 5] = ["prefixItems", "items", "anyOf", "oneOf", "allOf"];
/// Keywords whose value is schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// A schema that allows all that another one does, and more.
#[derive(Clone, Debug, PartialEq)]
pub struct Relaxed {
    /// What is left.
    pub schema: Value,
    /// Where something was left out: `$.properties.tags.uniqueItems`.
    pub dropped: Vec<String>,
}

/// Leaves out the keywords of `schema` that [`bounded`](super::bounded) refuses because nothing can follow them. What is
/// wrong with a schema in other ways is left for it to refuse.
pub fn relaxed(schema: &Value) -> Relaxed {
    let mut relaxed = Relaxed { schema: schema.clone(), dropped: Vec::new() };
    if !is_too_deep(schema) {
        relax(&mut relaxed.schema, &Place::root(), &mut relaxed.dropped);
    }
    relaxed
}

fn relax(schema: &mut Value, place: &Place, dropped: &mut Vec<String>) {
    let Value::Object(map) = schema else { return };
    let mut widens_keys = false;
    if let Some(Value::Object(patterns)) = map.get_mut("patternProperties") {
        let place = place.key("patternProperties");
        patterns.retain(|pattern, _| {
            let keeps = can_follow(pattern);
            if !keeps {
                dropped.push(place.key(pattern).path);
            }
            widens_keys |= !keeps;
            keeps
        });
    }
    // What the pattern allowed would be refused otherwise.
    if widens_keys && map.get("additionalProperties") == Some(&Value::Bool(false)) {
        map.remove("additionalProperties");
    }
    map.retain(|keyword, value| {
        let keeps = is_followed(keyword, value);
        if !keeps {
            dropped.push(place.key(keyword).path);
        }
        keeps
    });
    for (keyword, value) in map {
        let place = place.key(keyword);
        match value {
            Value::Object(named) if NAMED.contains(&keyword.as_str()) => {
                named.iter_mut().for_each(|(name, schema)| relax(schema, &place.key(name), dropped));
            }
            Value::Array(schemas) if LISTS.contains(&keyword.as_str()) => {
                let schemas = schemas.iter_mut().enumerate();
                schemas.for_each(|(index, schema)| relax(schema, &place.index(index), dropped));
            }
            _ if SCHEMAS.contains(&keyword.as_str()) => relax(value, &place, dropped),
            _ => {}
        }
    }
}

/// Whether the keyword can be followed, or is refused for another reason than that it cannot.
fn is_followed(keyword: &str, value: &Value) -> bool {
    match (keyword, value) {
        _ if UNSUPPORTED.contains(&keyword) => false,
        ("uniqueItems", Value::Bool(is_unique)) => !is_unique,
        ("pattern", Value::String(pattern)) => can_follow(pattern),
        ("propertyNames", Value::Object(names)) => has_only_a_pattern(names),
        ("multipleOf", Value::Number(multiple)) => {
            multiple.as_f64().is_none_or(|multiple| multiple <= 0.0 || is_divisor(multiple))
        }
        ("minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum", Value::Number(bound)) => {
            bound.as_f64().is_some_and(is_within_digits) || is_beyond(keyword, bound.as_f64())
        }
        // Nothing is fetched, and no anchor is looked up.
        ("$ref", Value::String(reference)) => reference == "#" || reference.starts_with("#/"),
        _ => true,
    }
}

fn has_only_a_pattern(names: &Map<String, Value>) -> bool {
    match names.get("pattern") {
        Some(Value::String(pattern)) => can_follow(pattern),
        _ => names.keys().all(|key| key == "type"),
    }
}

fn can_follow(pattern: &str) -> bool {
    pattern.len() <= MAX_PATTERN_BYTES
        && checked_pattern(&bounded_pattern(pattern, PATTERN_REPEAT), &Place::root()).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::grammar::{SchemaBounds, bounded};

    #[test]
    fn what_cannot_be_followed_goes_and_data_and_names_stay() {
        let schema = json!({
            "type": "object",
            "properties": {
                "not": {"type": "string", "pattern": "^(?!x)a+$"},
                "if": {"enum": [{"uniqueItems": true, "not": 1}], "default": {"if": true}},
                "tags": {"type": "array", "uniqueItems": true, "items": {"$ref": "#/$defs/tag"}},
                "fine": {"type": "string", "pattern": "^[a-z]+$"},
                "far": {"$ref": "https://example.com/schema.json"},
                "count": {"type": "integer", "multipleOf": 100_000, "minimum": 9_007_199_254_740_991u64},
                "map": {"type": "object", "patternProperties": {"(?=x)": {}}, "additionalProperties": false},
                "keys": {"type": "object", "propertyNames": {"maxLength": 5}, "additionalProperties": {"not": {}}},
            },
            "required": ["not"],
            "if": {"required": ["tags"]}, "then": {"required": ["if"]}, "else": false,
            "dependentRequired": {"tags": ["if"]},
            "$defs": {"tag": {"type": "string", "contains": {}, "examples": [{"contains": 1}]}},
        });
        let relaxed = relaxed(&schema);
        let expected = json!({
            "type": "object",
            "properties": {
                "not": {"type": "string"},
                "if": {"enum": [{"uniqueItems": true, "not": 1}], "default": {"if": true}},
                "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}},
                "fine": {"type": "string", "pattern": "^[a-z]+$"},
                "far": {},
                "count": {"type": "integer"},
                "map": {"type": "object", "patternProperties": {}},
                "keys": {"type": "object", "additionalProperties": {}},
            },
            "required": ["not"],
            "$defs": {"tag": {"type": "string", "examples": [{"contains": 1}]}},
        });
        assert_eq!(relaxed.schema, expected);
        assert_eq!(relaxed.dropped.len(), 13, "{:?}", relaxed.dropped);
        assert!(relaxed.dropped.contains(&"$.properties.tags.uniqueItems".to_owned()));
        assert!(bounded(&schema, &SchemaBounds::default()).is_err());
        assert!(bounded(&relaxed.schema, &SchemaBounds::default()).is_ok());
    }

    #[test]
    fn what_is_wrong_in_another_way_is_left_to_be_refused() {
        for schema in [
            json!({"type": "strin"}),
            json!({"type": "array", "minItems": -1}),
            json!({"$ref": "#/$defs/missing"}),
            json!({"type": "number", "multipleOf": 0}),
            json!({"type": "string", "pattern": 3}),
        ] {
            let relaxed = relaxed(&schema);
            assert_eq!((relaxed.dropped.len(), &relaxed.schema), (0, &schema));
            assert!(bounded(&schema, &SchemaBounds::default()).is_err());
        }
    }
}
