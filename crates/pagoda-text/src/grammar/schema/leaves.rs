//! What has no schema within: strings, numbers, lists of values, and the small readers that all share.

use serde_json::{Map, Value, json};

use super::super::error::SchemaError;
use super::super::limits::SchemaBounds;
use super::formats;
use super::pattern::{bounded_pattern, checked_pattern};
use super::place::Place;

/// Largest `minLength`; a larger `maxLength` counts as this.
const MAX_CHARS: usize = 65_536;
/// Longest repetition in a pattern that sets no limit.
pub(super) const PATTERN_REPEAT: usize = 512;
/// Largest pattern.
pub(super) const MAX_PATTERN_BYTES: usize = 4096;
/// Most values of one `enum`.
const MAX_VALUES: usize = 4096;

/// Largest `multipleOf`, counted in units of its last digit: the lexer keeps every remainder apart (600 ran out of the fuel of
/// a step, 10^9 never ended). A power of ten costs less, so that 1000 goes too.
const MAX_DIVISOR: f64 = 512.0;
/// Most digits behind the point of a `multipleOf`.
const MAX_DIVISOR_DIGITS: u32 = 9;

const OBJECT: [&str; 7] = [
    "properties",
    "required",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
];
const ARRAY: [&str; 6] = ["items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"];
const STRING: [&str; 4] = ["minLength", "maxLength", "pattern", "format"];
const NUMBER: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// Whether a schema says more than which others hold.
pub(super) fn constrains(map: &Map<String, Value>) -> bool {
    let groups: [&[&str]; 4] = [&OBJECT, &ARRAY, &STRING, &NUMBER];
    map.keys().any(|key| key == "type" || groups.iter().any(|group| group.contains(&key.as_str())))
}

/// The types that a schema allows: those that it names, else those that its keywords are about. None for any.
pub(super) fn types(map: &Map<String, Value>, place: &Place) -> Result<Vec<String>, SchemaError> {
    let wrong = || place.key("type").wrong("must be a type of JSON or a list of types");
    let mut types: Vec<String> = match map.get("type") {
        Some(Value::String(name)) => vec![name.clone()],
        Some(Value::Array(names)) if !names.is_empty() => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
        None => {
            let groups: [(&str, &[&str]); 4] =
                [("object", &OBJECT), ("array", &ARRAY), ("string", &STRING), ("number", &NUMBER)];
            let is_about = |keywords: &[&str]| keywords.iter().any(|keyword| map.contains_key(*keyword));
            groups
                .iter()
                .filter(|(_, keywords)| is_about(keywords))
                .map(|(name, _)| (*name).to_owned())
                .collect()
        }
    };
    // An integer is a number; the same type twice is one option.
    let has_number = types.iter().any(|name| name == "number");
    let mut seen: Vec<String> = Vec::new();
    types.retain(|name| {
        let is_new = !(seen.contains(name) || has_number && name == "integer");
        seen.push(name.clone());
        is_new
    });
    Ok(types)
}

/// A list of values, less those of another type than the schema names.
pub(super) fn enumeration(
    map: &Map<String, Value>,
    values: &Value,
    place: &Place,
) -> Result<Value, SchemaError> {
    let place_of_list = place.key("enum");
    let Value::Array(values) = values else { return Err(place_of_list.wrong("must be a list of values")) };
    if values.len() > MAX_VALUES {
        return Err(place_of_list.wrong(format!("must have at most {MAX_VALUES} values")));
    }
    let types = if map.contains_key("type") { types(map, place)? } else { Vec::new() };
    let fits = |value: &&Value| types.is_empty() || types.iter().any(|name| is_of_type(value, name));
    let values: Vec<&Value> = values.iter().filter(fits).collect();
    if values.is_empty() {
        return Err(place_of_list.wrong("must have at least one value of the schema's type"));
    }
    Ok(json!({ "enum": values }))
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => {
            let is_whole = || number.as_f64().is_some_and(|number| number.fract() == 0.0);
            name == "number" || (name == "integer" && is_whole())
        }
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}

/// A string. Its `maxLength` is null if its share of the room is to decide.
pub(super) fn string(map: &Map<String, Value>, place: &Place) -> Result<Value, SchemaError> {
    let min = count(map, "minLength", place, MAX_CHARS)?;
    let max = count(map, "maxLength", place, usize::MAX)?.map(|max| max.min(MAX_CHARS));
    if max.is_some_and(|max| max < min.unwrap_or(0)) {
        return Err(place.key("minLength").wrong("is larger than 'maxLength'"));
    }
    let pattern = match (map.get("pattern"), map.get("format")) {
        (Some(Value::String(pattern)), _) => {
            if pattern.len() > MAX_PATTERN_BYTES {
                return Err(place
                    .key("pattern")
                    .wrong(format!("must have at most {MAX_PATTERN_BYTES} bytes")));
            }
            let pattern = bounded_pattern(pattern, PATTERN_REPEAT);
            checked_pattern(&pattern, &place.key("pattern"))?;
            Some(pattern)
        }
        (Some(_), _) => return Err(place.key("pattern").wrong("must be a string")),
        (None, Some(Value::String(format))) => {
            formats::pattern(format).map(|pattern| format!("^({pattern})$"))
        }
        (None, Some(_)) => return Err(place.key("format").wrong("must be a string")),
        (None, None) => None,
    };
    let mut out = json!({"type": "string"});
    match (&pattern, min, max) {
        (None, None | Some(0), None) => out["maxLength"] = Value::Null,
        (None, Some(min), None) => out["maxLength"] = (2 * min + 256).into(),
        _ => {}
    }
    for (keyword, value) in [("minLength", min), ("maxLength", max)] {
        if let Some(value) = value {
            out[keyword] = value.into();
        }
    }
    if let Some(pattern) = pattern {
        out["pattern"] = pattern.into();
    }
    Ok(out)
}

/// A number within bounds, of a limited number of digits.
pub(super) fn number(
    map: &Map<String, Value>,
    place: &Place,
    is_integer: bool,
    bounds: &SchemaBounds,
) -> Result<Value, SchemaError> {
    let mut out = json!({"type": if is_integer { "integer" } else { "number" }});
    for keyword in NUMBER {
        match map.get(keyword) {
            None => {}
            // The form of the fourth draft.
            Some(Value::Bool(_)) if keyword.starts_with("exclusive") => out[keyword] = map[keyword].clone(),
            Some(value) if value.as_f64().is_some_and(is_within_digits) => out[keyword] = value.clone(),
            // Clients write the largest integer of their language. The number of digits says less than it anyway.
            Some(Value::Number(bound)) if is_beyond(keyword, bound.as_f64()) => {}
            Some(Value::Number(_)) => {
                return Err(place.key(keyword).wrong("must lie between -1e15 and 1e15"));
            }
            Some(_) => return Err(place.key(keyword).wrong("must be a number")),
        }
    }
    let multiple = out.get("multipleOf").and_then(Value::as_f64);
    if multiple.is_some_and(|multiple| multiple <= 0.0) {
        return Err(place.key("multipleOf").wrong("must be larger than 0"));
    }
    if multiple.is_some_and(|multiple| !is_divisor(multiple)) {
        return Err(place.key("multipleOf").wrong(format!(
            "must be 1000 or at most {MAX_DIVISOR} without its point, with at most {MAX_DIVISOR_DIGITS} digits behind it"
        )));
    }
    if multiple.is_none() && !is_integer {
        out["multipleOf"] = json!(10f64.powi(-(bounds.max_fraction_digits.clamp(1, 9) as i32)));
    }
    let most = 10i64.pow(bounds.max_integer_digits.clamp(1, 15)) - 1;
    let limit =
        |keywords: [&str; 2]| keywords.iter().filter_map(|keyword| out.get(*keyword)?.as_f64()).next();
    let (least, largest) = (limit(["minimum", "exclusiveMinimum"]), limit(["maximum", "exclusiveMaximum"]));
    // A bound beyond the digits moves them along.
    let reach = |bound: Option<f64>| bound.map_or(most, |bound| most.max((bound.abs() * 2.0) as i64));
    if least.is_none() {
        out["minimum"] = (-reach(largest)).into();
    }
    if largest.is_none() {
        out["maximum"] = reach(least).into();
    }
    Ok(out)
}

/// Whether a bound of numbers has few enough digits.
pub(super) fn is_within_digits(bound: f64) -> bool {
    bound.abs() < 1e15
}

/// Whether a bound lies where no number of few enough digits meets it.
pub(super) fn is_beyond(keyword: &str, bound: Option<f64>) -> bool {
    match keyword {
        "minimum" | "exclusiveMinimum" => bound.is_some_and(|bound| bound <= -1e15),
        "maximum" | "exclusiveMaximum" => bound.is_some_and(|bound| bound >= 1e15),
        _ => false,
    }
}

/// Whether the compiler can count in steps of `multiple`.
pub(super) fn is_divisor(mut multiple: f64) -> bool {
    for _ in 0..=MAX_DIVISOR_DIGITS {
        if multiple.fract() == 0.0 {
            return multiple <= MAX_DIVISOR || multiple == 1000.0;
        }
        multiple *= 10.0;
    }
    false
}

/// A number of things, at most `limit`.
pub(super) fn count(
    map: &Map<String, Value>,
    keyword: &str,
    place: &Place,
    limit: usize,
) -> Result<Option<usize>, SchemaError> {
    let Some(value) = map.get(keyword) else { return Ok(None) };
    let whole = value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 0.0);
    match whole {
        // `as` saturates.
        Some(number) if number as usize <= limit => Ok(Some(number as usize)),
        Some(_) => Err(place.key(keyword).wrong(format!("must be at most {limit}"))),
        None => Err(place.key(keyword).wrong("must be a whole number and at least 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_beyond_the_digits_say_nothing_and_others_say_what_they_say() {
        let bounds = |schema: Value| {
            let schema = schema.as_object().expect("an object is given").clone();
            number(&schema, &Place::root(), true, &SchemaBounds::default())
        };
        let largest = 9_007_199_254_740_991i64;
        let open = bounds(json!({})).expect("it is well-formed");
        assert_eq!(bounds(json!({"minimum": -largest, "maximum": largest})), Ok(open));
        assert_eq!(bounds(json!({"maximum": 5, "minimum": 2})).expect("it is well-formed")["maximum"], 5);
        assert!(bounds(json!({"minimum": largest})).is_err());
    }

    #[test]
    fn a_step_of_numbers_has_few_digits() {
        for good in [1.0, 7.0, 512.0, 1000.0, 0.5, 0.25, 0.01, 2.5, 1e-9, 51.2] {
            assert!(is_divisor(good), "{good}");
        }
        for bad in [513.0, 999.0, 10_000.0, 1e9, 1e300, 0.123_457, 12.25, 1e-10, 1e-300] {
            assert!(!is_divisor(bad), "{bad}");
        }
    }
}
