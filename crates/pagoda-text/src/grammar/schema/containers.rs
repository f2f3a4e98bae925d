//! Arrays and objects.

use serde_json::{Map, Value, json};

use super::super::error::SchemaError;
use super::layout::{KEY, Layout};
use super::leaves::count;
use super::pattern::{bounded_pattern, checked_pattern};
use super::place::Place;

/// Largest `minItems`; a larger `maxItems` counts as this.
const MAX_COUNT: usize = 4096;
/// Most optional properties of one object: each may come next, so that a step looks at all of them (4,000 took longer than
/// 50 ms), and [`GrammarLimits::max_alternatives`](crate::GrammarLimits::max_alternatives) allows a few more.
const MAX_OPTIONAL: usize = 128;
/// How many items of an open array the room is shared out for.
const ITEMS_WEIGHT: usize = 4;
/// Longest repetition in the pattern of a key that sets no limit.
const KEY_REPEAT: usize = 32;

impl Layout<'_> {
    pub(super) fn array(&mut self, map: &Map<String, Value>, place: &Place) -> Result<Value, SchemaError> {
        let min = count(map, "minItems", place, MAX_COUNT)?.unwrap_or(0);
        let max = count(map, "maxItems", place, usize::MAX)?.map(|max| max.min(MAX_COUNT));
        if max.is_some_and(|max| max < min) {
            return Err(place.key("minItems").wrong("is larger than 'maxItems'"));
        }
        let (prefix_key, rest_key) = match map.get("items") {
            Some(Value::Array(_)) => ("items", "additionalItems"),
            _ => ("prefixItems", "items"),
        };
        let prefix = self.prefix(map.get(prefix_key), &place.key(prefix_key))?;
        let inner = place.key(rest_key).with_weight(ITEMS_WEIGHT);
        let items = match map.get(rest_key) {
            Some(items) => self.walk(items, &inner)?,
            // What follows a tuple is left out unless it must be there.
            None if !prefix.is_empty() && min <= prefix.len() => Value::Bool(false),
            None => self.any(&inner),
        };
        let most = if items == Value::Bool(false) { prefix.len() } else { usize::MAX };
        let bound = (self.bounds.max_items >> (2 * place.level).min(16)).max(1) + prefix.len();
        let max = max.unwrap_or(bound.max(min)).min(most);
        let is_unique = map.get("uniqueItems") == Some(&Value::Bool(true));
        if is_unique && max > 1 {
            return Err(place
                .key("uniqueItems")
                .wrong("is not supported in a schema that an answer must follow"));
        }
        if max < min {
            return Ok(Value::Bool(false));
        }
        let mut out = json!({"type": "array", "minItems": min, "maxItems": max, "items": items});
        if !prefix.is_empty() {
            out["prefixItems"] = Value::Array(prefix);
        }
        Ok(out)
    }

    fn prefix(&mut self, value: Option<&Value>, place: &Place) -> Result<Vec<Value>, SchemaError> {
        match value {
            None => Ok(Vec::new()),
            Some(Value::Array(schemas)) => {
                let schemas = schemas.iter().enumerate();
                schemas.map(|(index, schema)| self.walk(schema, &place.index(index))).collect()
            }
            Some(_) => Err(place.wrong("must be a list of schemas")),
        }
    }

    pub(super) fn object(&mut self, map: &Map<String, Value>, place: &Place) -> Result<Value, SchemaError> {
        let mut properties = Map::new();
        for (name, schema) in object_of(map, "properties", place)? {
            let written = self.walk(schema, &place.key("properties").key(name))?;
            properties.insert(name.clone(), written);
        }
        let mut required = required(map, place)?;
        for name in &required {
            if !properties.contains_key(name) {
                let written = self.additional(map, place)?;
                properties.insert(name.clone(), written);
            }
        }
        let min = count(map, "minProperties", place, MAX_COUNT)?.unwrap_or(0);
        let max = count(map, "maxProperties", place, usize::MAX)?;
        let patterns = self.patterns(map, place)?;
        let is_closed = map.get("additionalProperties") == Some(&Value::Bool(false));
        if !patterns.is_empty() || (properties.is_empty() && !is_closed && max != Some(0)) {
            return self.open_object((properties, required, patterns), (min, max), map, place);
        }
        fit(&mut properties, &mut required, (min, max), place)?;
        if properties.len() - required.len() > MAX_OPTIONAL {
            return Err(place.key("properties").wrong(format!("has more than {MAX_OPTIONAL} optional ones")));
        }
        Ok(json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false
        }))
    }

    /// An object with keys that the schema does not name. Properties that it does name are all required then: the compiler
    /// counts no other.
    fn open_object(
        &mut self,
        (properties, mut required, mut patterns): (Map<String, Value>, Vec<String>, Map<String, Value>),
        (min, max): (usize, Option<usize>),
        map: &Map<String, Value>,
        place: &Place,
    ) -> Result<Value, SchemaError> {
        if patterns.is_empty() {
            let values = self.additional(map, place)?;
            patterns.insert(key_pattern(map, place)?, values);
        }
        required
            .extend(properties.keys().filter(|name| !required.contains(name)).cloned().collect::<Vec<_>>());
        let bound = required.len() + self.bounds.max_extra_properties;
        let max = max.map_or(bound.max(min), |max| max.min(MAX_COUNT));
        if max < min || max < required.len() {
            return Err(place
                .key("maxProperties")
                .wrong("is smaller than the number of properties that must be there"));
        }
        Ok(json!({
            "type": "object", "properties": properties, "required": required, "patternProperties": patterns,
            "additionalProperties": false, "minProperties": min, "maxProperties": max,
        }))
    }

    fn additional(&mut self, map: &Map<String, Value>, place: &Place) -> Result<Value, SchemaError> {
        let inner = place.key("additionalProperties").with_weight(ITEMS_WEIGHT);
        match map.get("additionalProperties") {
            Some(schema) => self.walk(schema, &inner),
            None => Ok(self.any(&inner)),
        }
    }

    fn patterns(
        &mut self,
        map: &Map<String, Value>,
        place: &Place,
    ) -> Result<Map<String, Value>, SchemaError> {
        let mut patterns = Map::new();
        for (pattern, schema) in object_of(map, "patternProperties", place)? {
            let inner = place.key("patternProperties").key(pattern);
            let pattern = bounded_pattern(pattern, KEY_REPEAT);
            checked_pattern(&pattern, &inner)?;
            patterns.insert(pattern, self.walk(schema, &inner.with_weight(ITEMS_WEIGHT))?);
        }
        Ok(patterns)
    }
}

/// `propertyNames` with a pattern, else anything short.
fn key_pattern(map: &Map<String, Value>, place: &Place) -> Result<String, SchemaError> {
    let place = place.key("propertyNames");
    match map.get("propertyNames") {
        None | Some(Value::Bool(true)) => Ok(KEY.to_owned()),
        Some(Value::Object(names)) => match names.get("pattern") {
            Some(Value::String(pattern)) => {
                let pattern = bounded_pattern(pattern, KEY_REPEAT);
                checked_pattern(&pattern, &place.key("pattern"))?;
                Ok(pattern)
            }
            None if names.keys().all(|key| key == "type") => Ok(KEY.to_owned()),
            _ => Err(place.wrong("is supported with a `pattern` only")),
        },
        Some(_) => Err(place.wrong("is supported with a `pattern` only")),
    }
}

/// Satisfies `minProperties` and `maxProperties` by requiring and leaving out: the first optional ones stay.
fn fit(
    properties: &mut Map<String, Value>,
    required: &mut Vec<String>,
    (min, max): (usize, Option<usize>),
    place: &Place,
) -> Result<(), SchemaError> {
    if min > properties.len() {
        return Err(place
            .key("minProperties")
            .wrong("is larger than the number of properties that are named"));
    }
    let max = max.unwrap_or(usize::MAX);
    if max < required.len().max(min) {
        return Err(place
            .key("maxProperties")
            .wrong("is smaller than the number of properties that must be there"));
    }
    let optional: Vec<String> = properties.keys().filter(|name| !required.contains(name)).cloned().collect();
    for (index, name) in optional.into_iter().enumerate() {
        if required.len() < min {
            required.push(name);
        } else if index + required.len() >= max {
            properties.shift_remove(&name);
        }
    }
    Ok(())
}

fn object_of<'v>(
    map: &'v Map<String, Value>,
    keyword: &str,
    place: &Place,
) -> Result<impl Iterator<Item = (&'v String, &'v Value)>, SchemaError> {
    let found = match map.get(keyword) {
        None => None,
        Some(Value::Object(found)) => Some(found),
        Some(_) => return Err(place.key(keyword).wrong("must be an object")),
    };
    Ok(found.into_iter().flatten())
}

fn required(map: &Map<String, Value>, place: &Place) -> Result<Vec<String>, SchemaError> {
    let wrong = || place.key("required").wrong("must be a list of names");
    let mut names: Vec<String> = match map.get("required") {
        None | Some(Value::Bool(_)) => Vec::new(),
        Some(Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Ok(names)
}
