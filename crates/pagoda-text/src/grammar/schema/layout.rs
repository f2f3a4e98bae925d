//! The rewriting itself: one subschema at a time, references by name, unions and intersections resolved.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::super::error::SchemaError;
use super::super::limits::SchemaBounds;
use super::leaves;
use super::merge::{APPLICATORS, merge};
use super::place::{MAX_DEPTH, Place};
use super::references::References;

/// Most subschemas of the result. A tool list of 25,000 characters has some 500.
const MAX_SCHEMAS: usize = 8192;
/// How many strings a value about which nothing is known counts as.
const ANY_WEIGHT: usize = 8;
/// Keywords that restrict a value in a way that cannot be followed token by token.
pub(super) const UNSUPPORTED: [&str; 10] = [
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "contains",
    "$dynamicRef",
    "$recursiveRef",
];

/// The rewriting of one schema.
pub(super) struct Layout<'a> {
    pub(super) bounds: &'a SchemaBounds,
    references: References<'a>,
    /// What is referred to, at which level, under which name.
    names: HashMap<(String, usize), String>,
    /// Definitions that are named but not written, with a place within the root.
    pending: Vec<(String, Place)>,
    definitions: Map<String, Value>,
    num_schemas: usize,
    string_weight: usize,
    has_any: bool,
}

impl<'a> Layout<'a> {
    pub(super) fn new(root: &'a Value, bounds: &'a SchemaBounds) -> Self {
        Layout {
            bounds,
            references: References::new(root),
            names: HashMap::new(),
            pending: Vec::new(),
            definitions: Map::new(),
            num_schemas: 0,
            string_weight: 0,
            has_any: false,
        }
    }

    /// Writes what was referred to; the definitions, and how many strings share the room.
    pub(super) fn finish(mut self) -> Result<(Map<String, Value>, usize), SchemaError> {
        while let Some((reference, place)) = self.pending.pop() {
            let schema = self.references.find(&reference).map_err(|reason| place.wrong(reason))?;
            let name = self.names[&(reference, place.level)].clone();
            let written = self.walk(schema, &place)?;
            self.definitions.insert(name, written);
        }
        if self.has_any {
            self.write_any();
        }
        Ok((self.definitions, self.string_weight))
    }

    /// Rewrites the schema at `place`.
    pub(super) fn walk(&mut self, schema: &Value, place: &Place) -> Result<Value, SchemaError> {
        self.count(place)?;
        match schema {
            Value::Bool(true) => Ok(self.any(place)),
            Value::Bool(false) => Ok(Value::Bool(false)),
            Value::Object(map) => self.walk_map(map, place),
            _ => Err(place.wrong("must be a schema: an object or a boolean")),
        }
    }

    fn count(&mut self, place: &Place) -> Result<(), SchemaError> {
        self.num_schemas += 1;
        if self.num_schemas > MAX_SCHEMAS {
            return Err(
                place.wrong(format!("has more than {MAX_SCHEMAS} subschemas with all references laid out"))
            );
        }
        if place.depth > MAX_DEPTH {
            return Err(place.wrong(format!("must not be nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    fn walk_map(&mut self, map: &Map<String, Value>, place: &Place) -> Result<Value, SchemaError> {
        if let Some(keyword) = UNSUPPORTED.iter().find(|keyword| map.contains_key(**keyword)) {
            return Err(place.key(keyword).wrong("is not supported in a schema that an answer must follow"));
        }
        if let Some(value) = map.get("const") {
            return Ok(json!({ "const": value }));
        }
        if let Some(values) = map.get("enum") {
            return leaves::enumeration(map, values, place);
        }
        let applicators: Vec<&str> =
            APPLICATORS.into_iter().filter(|keyword| map.contains_key(*keyword)).collect();
        match applicators[..] {
            [] => self.by_type(map, place),
            [keyword] if !leaves::constrains(map) => self.applicator(keyword, &map[keyword], place),
            _ => self.combined(Map::new(), map, place),
        }
    }

    fn applicator(&mut self, keyword: &str, value: &Value, place: &Place) -> Result<Value, SchemaError> {
        let inner = place.key(keyword);
        if keyword == "$ref" {
            return self.reference(value, &inner);
        }
        let schemas = schemas(value, &inner)?;
        match (keyword, schemas) {
            (_, [only]) => self.walk(only, &inner.index(0)),
            ("allOf", _) => {
                let together = Map::from_iter([("allOf".to_owned(), value.clone())]);
                self.combined(Map::new(), &together, place)
            }
            _ => {
                let options = schemas.iter().enumerate();
                let options: Result<Vec<Value>, _> =
                    options.map(|(index, option)| self.walk(option, &inner.index(index))).collect();
                Ok(json!({ "anyOf": options? }))
            }
        }
    }

    /// A reference by name. A schema that contains itself is another one at each level.
    fn reference(&mut self, value: &Value, place: &Place) -> Result<Value, SchemaError> {
        let reference = value.as_str().ok_or_else(|| place.wrong("must be a string"))?;
        self.references.find(reference).map_err(|reason| place.wrong(reason))?;
        let level = place.level + usize::from(self.references.is_recursive(reference));
        if level > 2 * self.bounds.max_depth {
            return Ok(Value::Bool(false));
        }
        let key = (reference.to_owned(), level);
        let next_name = format!("d{}", self.names.len());
        let is_new = !self.names.contains_key(&key);
        let name = self.names.entry(key).or_insert(next_name).clone();
        if is_new {
            let pointer = reference.trim_start_matches('#').split('/').filter(|step| !step.is_empty());
            let place_there = pointer.fold(Place::root(), |place, step| place.key(step));
            let weight = place.weight;
            self.pending.push((reference.to_owned(), Place { depth: 0, level, weight, ..place_there }));
        }
        Ok(json!({ "$ref": format!("#/$defs/{name}") }))
    }

    /// The keywords of `map` and of everything that holds beside it, on top of `base`. A union stands outside.
    fn combined(
        &mut self,
        base: Map<String, Value>,
        map: &Map<String, Value>,
        place: &Place,
    ) -> Result<Value, SchemaError> {
        let mut merged = base;
        let mut union = None;
        self.gather(map, place, &mut merged, &mut union)?;
        let Some((options, inner)) = union else { return self.walk_map(&merged, place) };
        let options = options.iter().enumerate().map(|(index, option)| {
            let inner = inner.index(index);
            match option {
                Value::Object(option) => self.combined(merged.clone(), option, &inner),
                Value::Bool(true) => self.walk_map(&merged, place),
                Value::Bool(false) => Ok(Value::Bool(false)),
                _ => Err(inner.wrong("must be a schema: an object or a boolean")),
            }
        });
        let options: Result<Vec<Value>, _> = options.collect();
        Ok(json!({ "anyOf": options? }))
    }

    fn gather(
        &mut self,
        map: &Map<String, Value>,
        place: &Place,
        merged: &mut Map<String, Value>,
        union: &mut Option<(Vec<Value>, Place)>,
    ) -> Result<(), SchemaError> {
        self.count(place)?;
        let is_own = |keyword: &str| !APPLICATORS.contains(&keyword);
        let own = map.iter().filter(|(keyword, _)| is_own(keyword));
        merge(merged, own.map(|(keyword, value)| (keyword.clone(), value.clone())).collect(), place)?;
        for keyword in ["$ref", "allOf"] {
            let Some(value) = map.get(keyword) else { continue };
            let inner = place.key(keyword);
            let found = value.as_str().map(|reference| self.references.find(reference));
            let parts = match found {
                Some(target) => std::slice::from_ref(target.map_err(|reason| inner.wrong(reason))?),
                None => schemas(value, &inner)?,
            };
            for (index, part) in parts.iter().enumerate() {
                match part {
                    Value::Object(part) => self.gather(part, &inner.index(index), merged, union)?,
                    Value::Bool(true) => {}
                    _ => return Err(inner.index(index).wrong("allows no value")),
                }
            }
        }
        for keyword in ["anyOf", "oneOf"] {
            let Some(value) = map.get(keyword) else { continue };
            let inner = place.key(keyword);
            let options = schemas(value, &inner)?.to_vec();
            if union.is_some() {
                return Err(inner.wrong("holds at once with another union; write one union of all cases"));
            }
            *union = Some((options, inner));
        }
        Ok(())
    }

    fn by_type(&mut self, map: &Map<String, Value>, place: &Place) -> Result<Value, SchemaError> {
        let types = leaves::types(map, place)?;
        let mut options = Vec::new();
        for name in &types {
            options.push(self.of_type(name, map, place)?);
        }
        Ok(match options.len() {
            0 => self.any(place),
            1 => options.remove(0),
            _ => json!({ "anyOf": options }),
        })
    }

    fn of_type(&mut self, name: &str, map: &Map<String, Value>, place: &Place) -> Result<Value, SchemaError> {
        match name {
            "null" | "boolean" => Ok(json!({ "type": name })),
            "integer" | "number" => leaves::number(map, place, name == "integer", self.bounds),
            "string" => {
                let string = leaves::string(map, place)?;
                if string.get("maxLength").is_some_and(Value::is_null) {
                    self.string_weight = self.string_weight.saturating_add(place.weight);
                }
                Ok(string)
            }
            "array" => self.array(map, place),
            "object" => self.object(map, place),
            _ => Err(place.key("type").wrong("must name types of JSON")),
        }
    }

    /// Any value, up to a depth.
    pub(super) fn any(&mut self, place: &Place) -> Value {
        self.has_any = true;
        self.string_weight = self.string_weight.saturating_add(ANY_WEIGHT.saturating_mul(place.weight));
        json!({ "$ref": format!("#/$defs/any{}", self.bounds.max_depth) })
    }

    fn write_any(&mut self) {
        let number = leaves::number(&Map::new(), &Place::root(), false, self.bounds);
        let number = number.expect("a number without bounds is well-formed");
        let scalars = [
            json!({"type": "null"}),
            json!({"type": "boolean"}),
            number,
            json!({"type": "string", "maxLength": null}),
        ];
        for depth in 0..=self.bounds.max_depth {
            let mut options = scalars.to_vec();
            if let Some(below) = depth.checked_sub(1) {
                let inner = json!({ "$ref": format!("#/$defs/any{below}") });
                let max_items = (self.bounds.max_items >> (2 * (self.bounds.max_depth - depth))).max(1);
                options.push(json!({"type": "array", "maxItems": max_items, "items": inner}));
                options.push(json!({
                    "type": "object",
                    "patternProperties": {KEY: inner},
                    "additionalProperties": false,
                    "maxProperties": self.bounds.max_extra_properties.min(max_items),
                }));
            }
            self.definitions.insert(format!("any{depth}"), json!({ "anyOf": options }));
        }
    }
}

/// The keys of an object that names none.
pub(super) const KEY: &str = "^.{1,64}$";

/// The list of schemas of an applicator.
fn schemas<'v>(value: &'v Value, place: &Place) -> Result<&'v [Value], SchemaError> {
    match value {
        Value::Array(schemas) if !schemas.is_empty() => Ok(schemas),
        _ => Err(place.wrong("must be a list of schemas with at least one entry")),
    }
}
