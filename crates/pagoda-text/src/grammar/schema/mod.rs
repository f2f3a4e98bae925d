//! A JSON schema rewritten so that every value of it ends and nothing is left to interpretation.
//!
//! The result allows a subset of the values. It is built from few forms: `const`, `enum`, `anyOf`, `$ref` to its own
//! definitions, and objects, arrays, strings and numbers that have their bounds.
//!
//! | what the schema leaves open | what it becomes |
//! |---|---|
//! | a string | `maxLength`: its share of the room that the answer has, at most [`SchemaBounds::max_string_chars`] |
//! | an array | `maxItems`, less within schemas that contain themselves |
//! | an object that names properties | no others |
//! | an object that names none | keys of 1 to 64 characters, at most [`SchemaBounds::max_extra_properties`] |
//! | a number | up to 15 digits before the point and 6 behind it, no exponent |
//! | any value | any value up to a depth |
//! | a schema within itself | laid out level by level; what needs one more level is left out |
//! | `oneOf` | `anyOf` |
//! | `allOf`, and keywords beside `$ref`, `anyOf`, `oneOf` | one schema with the keywords of all |

mod containers;
mod formats;
mod layout;
mod leaves;
mod merge;
mod pattern;
mod place;
mod references;
mod relaxed;
mod satisfiable;

use serde_json::{Value, json};

use super::error::SchemaError;
use super::limits::SchemaBounds;
use layout::Layout;
use place::Place;

pub use relaxed::{Relaxed, relaxed};

/// Shortest `maxLength` that a string gets by its share of the room.
const MIN_STRING_CHARS: usize = 64;

/// Applies `bounds` to `schema`.
///
/// The result also carries, under `x-guidance` at its root, how values are written: one optional space behind `,` and `:`,
/// no other whitespace. It can stand behind `%json` in a Lark grammar.
///
/// # Errors
/// [`SchemaError`] names the place of what cannot be followed.
pub fn bounded(schema: &Value, bounds: &SchemaBounds) -> Result<Value, SchemaError> {
    if place::is_too_deep(schema) {
        return Err(
            Place::root().wrong(format!("must not be nested deeper than {} levels", place::MAX_DEPTH))
        );
    }
    let mut layout = Layout::new(schema, bounds);
    let root = layout.walk(schema, &Place::root())?;
    let (definitions, string_weight) = layout.finish()?;
    let (mut root, mut definitions) = satisfiable::prune(root, definitions)
        .ok_or_else(|| Place::root().wrong("allows no value that ends".to_owned()))?;
    // Four characters per token, shared out among the strings: a strong model never meets its bound before the room ends,
    // a weak one does.
    let share = bounds.room_tokens.saturating_mul(2) / string_weight.max(1);
    let max_chars = share.max(MIN_STRING_CHARS).min(bounds.max_string_chars);
    set_lengths(&mut root, max_chars);
    definitions.values_mut().for_each(|definition| set_lengths(definition, max_chars));
    let mut out = match root {
        Value::Object(map) => map,
        _ => json!({ "anyOf": [root] }).as_object().cloned().expect("an object was written"),
    };
    if !definitions.is_empty() {
        out.insert("$defs".into(), Value::Object(definitions));
    }
    let writing = json!({
        "item_separator": ", ?",
        "key_separator": ": ?",
        "whitespace_flexible": false,
        "coerce_one_of": true,
    });
    out.insert("x-guidance".into(), writing);
    Ok(Value::Object(out))
}

/// Fills in the lengths that were left open: `maxLength` is null there.
fn set_lengths(schema: &mut Value, max_chars: usize) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    "maxLength" if value.is_null() => *value = max_chars.into(),
                    // Data, not schemas.
                    "const" | "enum" => {}
                    _ => set_lengths(value, max_chars),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| set_lengths(value, max_chars)),
        _ => {}
    }
}
