//! Schemas of tools as agents send them: the shapes of twenty real ones.

use serde_json::{Map, Value};

/// Name and schema of each.
pub(crate) fn schemas() -> Vec<(String, Value)> {
    let schemas: Map<String, Value> =
        serde_json::from_str(include_str!("schemas.json")).expect("the file is a JSON object");
    schemas.into_iter().collect()
}
