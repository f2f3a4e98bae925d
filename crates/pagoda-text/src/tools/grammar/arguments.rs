//! The arguments of a tool, one by one, for forms that write each by itself.

use serde_json::{Map, Value, json};

use crate::grammar::{SchemaBounds, SchemaError, bounded, relaxed};
use crate::tools::tool::{ArgumentSchema, Tool};

fn wrong(path: &str, reason: &str) -> SchemaError {
    SchemaError { path: path.into(), reason: reason.into() }
}

/// The schema of a tool's arguments: an object's. What cannot be followed is left out unless the tool is strict.
pub(super) fn parameters(tool: &Tool) -> Result<Value, SchemaError> {
    let empty = || json!({"type": "object", "properties": {}, "additionalProperties": false});
    let mut schema = match &tool.parameters {
        Some(Value::Object(schema)) if !schema.is_empty() => schema.clone(),
        _ => return Ok(empty()),
    };
    if !tool.is_strict
        && let Value::Object(relaxed) = relaxed(&Value::Object(schema.clone())).schema
    {
        schema = relaxed;
    }
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
    /// Of its share of the room.
    pub(super) bounds: SchemaBounds,
}

impl Property<'_> {
    /// Its schema with the definitions that it may refer to.
    fn schema(&self) -> Value {
        let mut schema = self.own.as_object().cloned().unwrap_or_else(Map::new);
        for name in ["$defs", "definitions"] {
            if let Some(definitions) = self.root.get(name) {
                schema.entry(name).or_insert_with(|| definitions.clone());
            }
        }
        Value::Object(schema)
    }

    /// Whether its values are strings, which are written as they are.
    pub(super) fn is_text(&self) -> bool {
        ArgumentSchema { root: self.root, schema: self.own }.types().is_string_only()
    }

    pub(super) fn unusable(&self) -> SchemaError {
        wrong(&format!("$.properties.{}", self.key), "cannot be followed in this model's form of calls")
    }

    pub(super) fn bounded(&self) -> Result<Value, SchemaError> {
        bounded(&self.schema(), &self.bounds).map_err(|error| SchemaError {
            path: format!("$.properties.{}{}", self.key, error.path.strip_prefix('$').unwrap_or_default()),
            ..error
        })
    }
}

/// The arguments of a schema in its order, for formats that write each by itself. Unless it is strict, what holds beside its
/// properties is left out.
pub(super) fn properties(schema: &Value, is_strict: bool) -> Result<Vec<Property<'_>>, SchemaError> {
    let is_enough = !is_strict && schema.get("properties").is_some_and(Value::is_object);
    for name in ["anyOf", "oneOf", "allOf", "not", "if", "$ref", "patternProperties", "dependentSchemas"] {
        if schema.get(name).is_some() && !is_enough {
            return Err(wrong(&format!("$.{name}"), "cannot be followed in this model's form of calls"));
        }
    }
    let required = schema.get("required").and_then(Value::as_array);
    let is_required = |key: &str| required.is_some_and(|keys| keys.iter().any(|other| other == key));
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let properties = properties.map(|(key, own)| {
        let is_plain =
            !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
        let property = Property {
            key,
            own,
            root: schema,
            is_required: is_required(key),
            bounds: SchemaBounds::default(),
        };
        is_plain
            .then_some(property)
            .ok_or_else(|| wrong("$.properties", "has a name that this model's form of calls cannot carry"))
    });
    properties.collect()
}

/// What a string may be.
pub(super) enum TextLeaf<'a> {
    /// This text.
    Fixed(&'a str),
    /// Any text of this schema.
    Free(&'a Value),
}

/// The alternatives of a bounded schema of strings; None if it is none.
pub(super) fn text_leaves(schema: &Value) -> Option<Vec<TextLeaf<'_>>> {
    let mut leaves = Vec::new();
    collect_leaves(schema, schema, 16, &mut leaves)?;
    (!leaves.is_empty()).then_some(leaves)
}

fn collect_leaves<'a>(
    root: &'a Value,
    schema: &'a Value,
    num_steps: usize,
    leaves: &mut Vec<TextLeaf<'a>>,
) -> Option<()> {
    let num_steps = num_steps.checked_sub(1)?;
    if let Some(path) = schema.get("$ref") {
        let target = root.pointer(path.as_str()?.strip_prefix('#')?)?;
        return collect_leaves(root, target, num_steps, leaves);
    }
    if let Some(schemas) = schema.get("anyOf") {
        let mut schemas = schemas.as_array()?.iter();
        return schemas.try_for_each(|schema| collect_leaves(root, schema, num_steps, leaves));
    }
    let fixed = match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => std::slice::from_ref(value),
        (None, Some(values)) => values.as_array()?,
        (None, None) => {
            leaves.push(TextLeaf::Free(schema));
            return (schema["type"] == "string").then_some(());
        }
    };
    for value in fixed {
        leaves.push(TextLeaf::Fixed(value.as_str()?));
    }
    Some(())
}
