//! Typed reading of a request's fields. An absent field and an explicit null are the same; an unknown field is never
//! looked at; a wrong type or range becomes a 400 that names the field.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of one JSON object.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// What stands before a field's name in messages: empty, or `stream_options.`.
    prefix: String,
}

impl Fields {
    /// The fields of a request body.
    pub(crate) fn of_body(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields { map, prefix: String::new() }),
            _ => Err(ApiError::MalformedRequest("the body must be a JSON object")),
        }
    }

    /// The name of a field as messages give it.
    pub(crate) fn param(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn wrong(&self, name: &str, rule: impl std::fmt::Display) -> ApiError {
        ApiError::invalid(self.param(name), rule)
    }

    /// Whether any field, known or not, is more than null.
    pub(crate) fn has_values(&self) -> bool {
        self.map.values().any(|value| !value.is_null())
    }

    /// The value of a field, null counting as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        // The map keeps the client's order; `swap_remove` does not shift the rest.
        self.map.swap_remove(name).filter(|value| !value.is_null())
    }

    /// true or false.
    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(name, "must be a boolean")),
        }
    }

    /// A number in a range, as the f32 that the sampler computes with.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| self.wrong(name, "must be a number"))? as f32;
        if range.contains(&number) {
            Ok(Some(number))
        } else {
            let (start, end) = (range.start(), range.end());
            Err(self.wrong(name, format_args!("must lie between {start} and {end}")))
        }
    }

    /// A whole number in a range; `3.0` counts as whole.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match whole(&value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            Some(_) => {
                let (start, end) = (range.start(), range.end());
                Err(self.wrong(name, format_args!("must lie between {start} and {end}")))
            }
            None => Err(self.wrong(name, "must be an integer")),
        }
    }

    /// A whole number from 0 that may be as large as the client likes: what is beyond `u64` counts as its largest value.
    pub(crate) fn count(&mut self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match (value.as_u64(), value.as_f64()) {
            (Some(number), _) => Ok(Some(number)),
            // `as` saturates.
            (None, Some(number)) if number >= 0.0 && number.fract() == 0.0 => Ok(Some(number as u64)),
            _ => Err(self.wrong(name, "must be an integer and at least 0")),
        }
    }

    /// A string of at most `max_bytes` bytes.
    pub(crate) fn string(&mut self, name: &str, max_bytes: usize) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= max_bytes => Ok(Some(text)),
            Some(Value::String(_)) => {
                Err(self.wrong(name, format_args!("must have at most {max_bytes} bytes")))
            }
            Some(_) => Err(self.wrong(name, "must be a string")),
        }
    }

    /// A list of at most `max_len` values.
    pub(crate) fn list(&mut self, name: &str, max_len: usize) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) if values.len() <= max_len => Ok(Some(values)),
            Some(Value::Array(_)) => {
                Err(self.wrong(name, format_args!("must have at most {max_len} entries")))
            }
            Some(_) => Err(self.wrong(name, "must be a list")),
        }
    }

    /// An object.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map, prefix: format!("{}.", self.param(name)) })),
            Some(_) => Err(self.wrong(name, "must be an object")),
        }
    }

    /// An object whose keys are data.
    pub(crate) fn map(&mut self, name: &str, max_len: usize) -> Result<Option<Map<String, Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) if map.len() <= max_len => Ok(Some(map)),
            Some(Value::Object(_)) => {
                Err(self.wrong(name, format_args!("must have at most {max_len} entries")))
            }
            Some(_) => Err(self.wrong(name, "must be an object")),
        }
    }
}

/// The value as a whole number, if it is one that an i64 holds.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    let from_float = |number: f64| {
        // 2^53: beyond it a float no longer names one integer.
        (number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0).then_some(number as i64)
    };
    value.as_i64().or_else(|| value.as_f64().filter(|_| !value.is_u64()).and_then(from_float))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of_body(value).unwrap()
    }

    #[test]
    fn null_is_absent() {
        let mut fields = fields(json!({"stream": null, "n": null}));
        assert_eq!(fields.bool("stream").unwrap(), None);
        assert_eq!(fields.integer("n", 1..=8).unwrap(), None);
    }

    #[test]
    fn huge_counts_saturate_and_negative_ones_are_refused() {
        for (value, expected) in
            [(json!(7), 7), (json!(7.0), 7), (json!(1e30), u64::MAX), (json!(u64::MAX), u64::MAX)]
        {
            assert_eq!(fields(json!({ "max_tokens": value })).count("max_tokens").unwrap(), Some(expected));
        }
        for value in [json!(-1), json!(0.5), json!("7"), json!([]), json!(true)] {
            let error = fields(json!({ "max_tokens": value })).count("max_tokens").unwrap_err();
            assert!(error.to_string().contains("'max_tokens'"));
        }
    }

    #[test]
    fn ranges_hold_after_the_conversion_to_f32() {
        assert!(fields(json!({"t": 1e308})).number("t", 0.0..=2.0).is_err());
        assert!(fields(json!({"t": -1e-300})).number("t", 0.0..=2.0).is_ok());
        assert!(fields(json!({"t": 2.1})).number("t", 0.0..=2.0).is_err());
    }

    #[test]
    fn nested_fields_are_named_in_full() {
        let mut options = fields(json!({"stream_options": {"include_usage": 1}}))
            .object("stream_options")
            .unwrap()
            .unwrap();
        let error = options.bool("include_usage").unwrap_err();
        assert_eq!(error, ApiError::invalid("stream_options.include_usage", "must be a boolean"));
    }
}
