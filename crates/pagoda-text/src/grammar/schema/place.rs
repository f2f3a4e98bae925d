//! Where in a schema the rewriting is, for messages and limits.

use serde_json::Value;

use super::super::error::SchemaError;

/// Deepest nesting, with what has been laid out of references.
pub(super) const MAX_DEPTH: usize = 64;

/// A place.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// `$.properties.age`
    pub(super) path: String,
    pub(super) depth: usize,
    /// How many schemas that contain themselves it is within.
    pub(super) level: usize,
    /// How many times the value may occur, roughly: the strings share the room by it.
    pub(super) weight: usize,
}

impl Place {
    pub(super) fn root() -> Self {
        Place { path: "$".into(), depth: 0, level: 0, weight: 1 }
    }

    /// The place of a keyword's value.
    pub(super) fn key(&self, key: &str) -> Self {
        let is_plain =
            !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_$-".contains(&byte));
        let path = if is_plain {
            format!("{}.{key}", self.path)
        } else {
            format!("{}[{}]", self.path, Value::from(key))
        };
        self.at(path)
    }

    /// The place of a list's entry.
    pub(super) fn index(&self, index: usize) -> Self {
        self.at(format!("{}[{index}]", self.path))
    }

    fn at(&self, path: String) -> Self {
        Place { path, depth: self.depth + 1, ..*self }
    }

    pub(super) fn with_weight(self, factor: usize) -> Self {
        Place { weight: self.weight.saturating_mul(factor).min(1 << 20), ..self }
    }

    /// The error that names this place.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> SchemaError {
        SchemaError { path: self.path.clone(), reason: reason.into() }
    }
}

/// Whether `schema` nests deeper than [`MAX_DEPTH`] schemas can (a level of schema is up to two of JSON). Without recursion:
/// what follows recurses.
pub(super) fn is_too_deep(schema: &Value) -> bool {
    let mut open = vec![(schema, 0)];
    while let Some((value, depth)) = open.pop() {
        if depth > 2 * MAX_DEPTH {
            return true;
        }
        match value {
            Value::Object(map) => open.extend(map.values().map(|value| (value, depth + 1))),
            Value::Array(values) => open.extend(values.iter().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    false
}
