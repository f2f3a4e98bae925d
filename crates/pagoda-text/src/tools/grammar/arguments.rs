//! The arguments of a tool, one by one, for forms that write each by itself.

use serde_json::{Map, Value, json};

use crate::grammar::{SchemaBounds, SchemaError, bounded};
use crate::tools::tool::Tool;

fn wrong(path: &str, reason: &str) -> SchemaError {
    SchemaError { path: path.into(), reason: reason.into() }
}

/// The schema of a tool's arguments: an object's.
pub(super) fn parameters(tool: &Tool) -> Result<Value, SchemaError> {
    let empty = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let mut schema = match &tool.parameters {
        Some(Value::Object(schema)) if !schema.is_empty() => schema.clone(),
        _ => return Ok(empty()),
    };
    match schema.get("type") {
        Some(Value::String(kind)) if kind == "object" => {}
        Some(Value::Array(kinds)) if kinds.iter().any(|kind| kind == "object") => {
            schema.insert("type".into(), "object".into());
        }
        None => {
            schema.insert("type".into(), "object".into());
        }
        Some(_) => return Err(wrong("$.type", "must be object")),
    }
    Ok(Value::Object(schema))
}

/// One argument of a schema.
pub(super) struct Property<'a> {
    pub(super) key: &'a str,
    own: &'a Value,
    root: &'a Value,
    pub(super) is_required: bool,
}

impl Property<'_> {
    /// Its schema with the definitions that it may refer to.
    pub(super) fn schema(&self) -> Value {
        let mut schema = self.own.as_object().cloned().unwrap_or_else(Map::new);
        for name in ["$defs", "definitions"] {
            if let Some(definitions) = self.root.get(name) {
                schema.entry(name).or_insert_with(|| definitions.clone());
            }
        }
        Value::Object(schema)
    }

    pub(super) fn bounded(&self, bounds: &SchemaBounds) -> Result<Value, SchemaError> {
        bounded(&self.schema(), bounds).map_err(|error| SchemaError {
            path: format!("$.properties.{}{}", self.key, error.path.strip_prefix('$').unwrap_or_default()),
            ..error
        })
    }
}

/// The arguments of a schema in its order, for formats that write each by itself.
pub(super) fn properties(schema: &Value) -> Result<Vec<Property<'_>>, SchemaError> {
    for name in ["anyOf", "oneOf", "allOf", "not", "if", "$ref", "patternProperties", "dependentSchemas"] {
        if schema.get(name).is_some() {
            return Err(wrong(&format!("$.{name}"), "cannot be followed in this model's form of calls"));
        }
    }
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |key: &str| required.is_some_and(|keys| keys.iter().any(|other| other == key));
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let properties = properties.map(|(key, own)| {
        let is_plain =
            !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
        let property = Property { key, own, root: schema, is_required: is_required(key) };
        is_plain
            .then_some(property)
            .ok_or_else(|| wrong("$.properties", "has a name that this model's form of calls cannot carry"))
    });
    properties.collect()
}

/// The only texts that a schema allows, if it lists them.
pub(super) fn fixed_texts(schema: &Value) -> Option<Vec<&str>> {
    if let Some(text) = schema.get("const").and_then(Value::as_str) {
        return Some(vec![text]);
    }
    schema.get("enum")?.as_array()?.iter().map(Value::as_str).collect()
}
