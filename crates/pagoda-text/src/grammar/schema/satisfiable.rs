//! Which definitions allow a value at all. A schema within itself is laid out to a depth, and what would need one more level
//! is `false`: that removes options and optional properties, and may reach further up.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Replaces references to definitions without a value by `false`, and drops those definitions; `None` if the root has none.
pub(super) fn prune(
    mut root: Value,
    mut definitions: Map<String, Value>,
) -> Option<(Value, Map<String, Value>)> {
    let mut empty = HashSet::new();
    loop {
        let found: Vec<String> = definitions
            .iter()
            .filter(|(name, schema)| !empty.contains(*name) && is_empty(schema, &empty))
            .map(|(name, _)| name.clone())
            .collect();
        if found.is_empty() {
            break;
        }
        empty.extend(found);
    }
    if is_empty(&root, &empty) {
        return None;
    }
    if !empty.is_empty() {
        definitions.retain(|name, _| !empty.contains(name));
        cut(&mut root, &empty);
        definitions.values_mut().for_each(|schema| cut(schema, &empty));
    }
    Some((root, definitions))
}

const PREFIX: &str = "#/$defs/";

fn is_empty(schema: &Value, empty: &HashSet<String>) -> bool {
    let Value::Object(map) = schema else { return *schema == Value::Bool(false) };
    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
        return empty.contains(reference.trim_start_matches(PREFIX));
    }
    let schemas = |key: &str| map.get(key).and_then(Value::as_array);
    if let Some(options) = schemas("anyOf") {
        return options.iter().all(|option| is_empty(option, empty));
    }
    let properties = map.get("properties").and_then(Value::as_object);
    let required = schemas("required").into_iter().flatten().filter_map(Value::as_str);
    let mut required = required.filter_map(|name| properties.and_then(|properties| properties.get(name)));
    let min_items = map.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
    let num_prefix = schemas("prefixItems").map_or(0, Vec::len);
    let mut needed = schemas("prefixItems").into_iter().flatten().take(min_items);
    required.any(|schema| is_empty(schema, empty))
        || needed.any(|schema| is_empty(schema, empty))
        || (min_items > num_prefix && map.get("items").is_some_and(|items| is_empty(items, empty)))
}

fn cut(schema: &mut Value, empty: &HashSet<String>) {
    match schema {
        Value::Object(map) => {
            let reference = map.get("$ref").and_then(Value::as_str);
            if reference.is_some_and(|reference| empty.contains(reference.trim_start_matches(PREFIX))) {
                *schema = Value::Bool(false);
                return;
            }
            let schemas = map.iter_mut().filter(|(key, _)| !matches!(key.as_str(), "const" | "enum"));
            schemas.for_each(|(_, value)| cut(value, empty));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| cut(value, empty)),
        _ => {}
    }
}
