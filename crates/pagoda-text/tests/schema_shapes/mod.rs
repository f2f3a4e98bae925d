//! Twenty shapes of schemas as agents and data models send them.

use serde_json::{Map, Value, json};

/// The shapes by name.
pub(crate) fn shapes() -> Vec<(&'static str, Value)> {
    let mut shapes = vec![
        (
            "flat object of an agent's message",
            json!({
                "type": "object",
                "properties": {"message": {"type": "string", "description": "what to say"}, "request_heartbeat": {"type": "boolean"}},
                "required": ["message", "request_heartbeat"]
            }),
        ),
        (
            "nested objects",
            json!({
                "type": "object", "additionalProperties": false,
                "properties": {"user": {"type": "object", "properties": {
                    "name": {"type": "object", "properties": {"first": {"type": "string"}, "last": {"type": "string"}}, "required": ["first", "last"]},
                    "age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"]}},
                "required": ["user"]
            }),
        ),
        (
            "enum, const and null",
            json!({
                "type": "object",
                "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}, "version": {"const": 2},
                    "level": {"enum": [1, 2.5, "high", null, true, ["a", {"b": "c \" d"}]]}, "nothing": {"type": "null"}},
                "required": ["unit", "version", "level", "nothing"]
            }),
        ),
        (
            "optional fields as a data model writes them",
            json!({
                "type": "object", "title": "Person",
                "properties": {
                    "email": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null, "title": "Email"},
                    "age": {"type": ["integer", "null"]}, "nick": {"type": "string"}},
                "required": []
            }),
        ),
        (
            "definitions and references",
            json!({
                "$defs": {"Address": {"type": "object", "properties": {"street": {"type": "string", "maxLength": 20}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}, "required": ["street", "zip"]}},
                "type": "object",
                "properties": {"home": {"$ref": "#/$defs/Address"}, "work": {"$ref": "#/$defs/Address", "description": "may be the same"}},
                "required": ["home", "work"]
            }),
        ),
        (
            "a tree",
            json!({
                "$ref": "#/definitions/Node",
                "definitions": {"Node": {"type": "object", "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/definitions/Node"}, "maxItems": 2}}, "required": ["value", "children"]}}
            }),
        ),
        (
            "a linked list that ends in null",
            json!({
                "type": "object", "properties": {"head": {"type": "integer"}, "tail": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["head", "tail"]
            }),
        ),
        (
            "mutually recursive expressions",
            json!({
                "$defs": {
                    "Expr": {"anyOf": [{"$ref": "#/$defs/Number"}, {"$ref": "#/$defs/Sum"}]},
                    "Number": {"type": "object", "properties": {"kind": {"const": "number"}, "value": {"type": "number"}}, "required": ["kind", "value"]},
                    "Sum": {"type": "object", "properties": {"kind": {"const": "sum"}, "left": {"$ref": "#/$defs/Expr"}, "right": {"$ref": "#/$defs/Expr"}}, "required": ["kind", "left", "right"]}},
                "$ref": "#/$defs/Expr"
            }),
        ),
        (
            "a union told apart by a field",
            json!({
                "oneOf": [
                    {"type": "object", "properties": {"type": {"const": "circle"}, "radius": {"type": "number", "exclusiveMinimum": 0}}, "required": ["type", "radius"]},
                    {"type": "object", "properties": {"type": {"const": "square"}, "side": {"type": "number", "minimum": 0.5, "maximum": 10}}, "required": ["type", "side"]}]
            }),
        ),
        (
            "inheritance by allOf",
            json!({
                "$defs": {"Base": {"type": "object", "properties": {"id": {"type": "integer", "minimum": 1}}, "required": ["id"]}},
                "allOf": [{"$ref": "#/$defs/Base"}, {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}]
            }),
        ),
        (
            "either of two fields",
            json!({
                "type": "object", "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
                "anyOf": [{"required": ["id"]}, {"required": ["name"]}]
            }),
        ),
        (
            "bounded arrays and a tuple",
            json!({
                "type": "object",
                "properties": {"tags": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 8}, "minItems": 1, "maxItems": 4},
                    "point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "minItems": 2, "items": false}},
                "required": ["tags", "point"]
            }),
        ),
        (
            "formats",
            json!({
                "type": "object",
                "properties": {"at": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"}, "mail": {"type": "string", "format": "email"},
                    "id": {"type": "string", "format": "uuid"}, "ip": {"type": "string", "format": "ipv4"}, "site": {"type": "string", "format": "uri"}, "file": {"type": "string", "format": "binary"}},
                "required": ["at", "day", "mail", "id", "ip", "site", "file"]
            }),
        ),
        (
            "patterns",
            json!({
                "type": "object",
                "properties": {"phone": {"type": "string", "pattern": "^\\+?[0-9]{7,14}$"}, "slug": {"type": "string", "pattern": "^[a-z]+(-[a-z0-9]+)*$"},
                    "loose": {"type": "string", "pattern": "[0-9]"}, "sku": {"type": "string", "pattern": "^(AB|CD)-\\d{4}$"}},
                "required": ["phone", "slug", "loose", "sku"]
            }),
        ),
        (
            "numbers",
            json!({
                "type": "object",
                "properties": {"n": {"type": "number"}, "i": {"type": "integer"}, "p": {"type": "number", "minimum": 0, "maximum": 1}, "neg": {"type": "integer", "maximum": -5},
                    "step": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100}, "open": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6}},
                "required": ["n", "i", "p", "neg", "step", "open"]
            }),
        ),
        (
            "a map",
            json!({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 5}),
        ),
        (
            "keys by pattern",
            json!({"type": "object", "patternProperties": {"^x-[a-z]+$": {"type": "boolean"}}, "additionalProperties": false}),
        ),
        (
            "anything",
            json!({"type": "object", "properties": {"payload": {}, "list": {"type": "array"}, "bag": {"type": "object"}}, "required": ["payload", "list", "bag"]}),
        ),
        (
            "a list of records at the root",
            json!({
                "type": "array", "minItems": 1, "maxItems": 3,
                "items": {"type": "object", "properties": {"ok": {"type": "boolean"}, "note": {"type": "string", "maxLength": 16}}, "required": ["ok"], "additionalProperties": false}
            }),
        ),
    ];
    shapes.push(("25,000 characters", large()));
    shapes
}

/// An object of many documented fields.
fn large() -> Value {
    let mut properties = Map::new();
    while serde_json::to_string(&properties).expect("a map serialises").len() < 25_000 {
        let index = properties.len();
        let about = format!(
            "Field number {index}. {}",
            "It says what it says and is needed by whom it is needed. ".repeat(2)
        );
        let field = match index % 4 {
            0 => json!({"type": "string", "maxLength": 12, "description": about}),
            1 => json!({"type": "integer", "minimum": 0, "maximum": index, "description": about}),
            2 => {
                json!({"type": "object", "description": about, "properties": {"on": {"type": "boolean"}, "mode": {"enum": ["fast", "safe"]}}, "required": ["on", "mode"]})
            }
            _ => json!({"type": "array", "description": about, "items": {"enum": ["a", "b"]}, "maxItems": 2}),
        };
        properties.insert(format!("field_{index}"), field);
    }
    let required: Vec<&String> = properties.keys().filter(|name| !name.ends_with('7')).collect();
    json!({"type": "object", "properties": properties, "required": required})
}
