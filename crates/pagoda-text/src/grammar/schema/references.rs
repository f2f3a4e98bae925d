//! `$ref`: finding what is referred to, and whether it contains itself.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

/// The schema's own places by pointer.
pub(super) struct References<'a> {
    root: &'a Value,
    is_recursive: HashMap<String, bool>,
}

impl<'a> References<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        References { root, is_recursive: HashMap::new() }
    }

    /// The schema behind `reference`; the error is what is wrong with it.
    pub(super) fn find(&self, reference: &str) -> Result<&'a Value, &'static str> {
        let pointer = reference
            .strip_prefix('#')
            .ok_or("must refer to a place within the schema (`#/..`); nothing is fetched")?;
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return Err("must be a JSON pointer (`#/..`); anchors are not supported");
        }
        self.root.pointer(&decoded(pointer)).ok_or("refers to a place that is not there")
    }

    /// Whether what `reference` finds refers back to it, directly or not.
    pub(super) fn is_recursive(&mut self, reference: &str) -> bool {
        if let Some(&known) = self.is_recursive.get(reference) {
            return known;
        }
        let mut seen = HashSet::new();
        let mut open = vec![reference.to_owned()];
        let mut is_recursive = false;
        while let Some(next) = open.pop() {
            let Ok(schema) = self.find(&next) else { continue };
            for inner in references_in(schema) {
                is_recursive |= inner == reference;
                if seen.insert(inner.to_owned()) {
                    open.push(inner.to_owned());
                }
            }
        }
        self.is_recursive.insert(reference.to_owned(), is_recursive);
        is_recursive
    }
}

/// Every `$ref` in a schema. Its definitions stand beside it and are reached by reference only.
fn references_in(schema: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    let mut open = vec![schema];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                open.extend(nested(map));
            }
            Value::Array(values) => open.extend(values),
            _ => {}
        }
    }
    found
}

fn nested(map: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let is_apart =
        |key: &str| matches!(key, "$defs" | "definitions" | "enum" | "const" | "default" | "examples");
    map.iter().filter(move |(key, _)| !is_apart(key)).map(|(_, value)| value)
}

/// Pointers in URIs may write any character as `%XX`.
fn decoded(pointer: &str) -> String {
    let mut bytes = Vec::with_capacity(pointer.len());
    let mut rest = pointer.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| byte == b'%') {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
