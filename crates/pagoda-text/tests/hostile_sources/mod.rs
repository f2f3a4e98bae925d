//! Random schemas, regexes, Lark grammars and lists of tools, many of them hostile.

use pagoda_text::Tool;
use serde_json::{Map, Value, json};

use crate::rng::Rng;

/// A random value of JSON that is often nearly a schema.
pub(crate) fn schema(rng: &mut Rng, depth: usize) -> Value {
    if depth == 0 || rng.below(12) == 0 {
        return random_value(rng);
    }
    let mut map = Map::new();
    for _ in 0..1 + rng.below(4) {
        let (keyword, value) = keyword(rng, depth - 1);
        map.insert(keyword.to_owned(), value);
    }
    Value::Object(map)
}

fn keyword(rng: &mut Rng, depth: usize) -> (&'static str, Value) {
    const TYPES: [&str; 8] = ["string", "integer", "number", "object", "array", "null", "boolean", "strin"];
    const REFS: [&str; 7] =
        ["#", "#/$defs/a", "#/$defs/b", "#/properties/a", "#/nope", "http://x/y", "#/%61~1~0%zz"];
    const FORMATS: [&str; 8] = ["date", "date-time", "email", "uri", "uuid", "ipv6", "duration", "nonsense"];
    let names = ["a", "b", "", "a b", "\"", "\u{1F600}"];
    let schemas = |rng: &mut Rng| (0..rng.below(4)).map(|_| schema(rng, depth)).collect::<Value>();
    match rng.below(26) {
        0..=4 => ("type", json!(rng.pick(&TYPES))),
        5 => ("type", (0..rng.below(4)).map(|_| json!(rng.pick(&TYPES))).collect()),
        6..=8 => {
            let named = (0..rng.below(5)).map(|_| ((*rng.pick(&names)).to_owned(), schema(rng, depth)));
            ("properties", Value::Object(named.collect()))
        }
        9 => ("required", (0..rng.below(4)).map(|_| json!(rng.pick(&names))).collect()),
        10 => ("additionalProperties", schema(rng, depth)),
        11 => ("patternProperties", json!({ regex(rng, 2): schema(rng, depth) })),
        12 | 13 => ("items", schema(rng, depth)),
        14 => ("prefixItems", schemas(rng)),
        15 => (
            *rng.pick(&["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"]),
            number(rng),
        ),
        16 => (
            *rng.pick(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]),
            number(rng),
        ),
        17 => ("pattern", json!(regex(rng, 4))),
        18 => ("format", json!(rng.pick(&FORMATS))),
        19 => ("enum", (0..rng.below(5)).map(|_| random_value(rng)).collect()),
        20 => ("const", random_value(rng)),
        21 => (*rng.pick(&["anyOf", "oneOf", "allOf"]), schemas(rng)),
        22 => ("$ref", json!(rng.pick(&REFS))),
        23 => ("$defs", json!({"a": schema(rng, depth), "b": schema(rng, depth)})),
        24 => (
            *rng.pick(&["not", "if", "contains", "uniqueItems", "nullable", "x-guidance", "$id", "$schema"]),
            schema(rng, depth),
        ),
        _ => ("description", random_value(rng)),
    }
}

fn number(rng: &mut Rng) -> Value {
    match rng.below(8) {
        0 => json!(-1),
        1 => json!(1e300),
        2 => json!(1_000_000_000u64),
        3 => json!(u64::MAX),
        4 => json!(0.1),
        5 => json!(1e-300),
        _ => json!(rng.below(50)),
    }
}

fn random_value(rng: &mut Rng) -> Value {
    match rng.below(8) {
        0 => Value::Null,
        1 => json!(rng.below(2) == 0),
        2 => number(rng),
        3 => json!("x".repeat(rng.below(300))),
        4 => json!(["a", 1, null]),
        5 => json!({"a": {"b": ["c"]}}),
        6 => json!({}),
        _ => json!("\u{0}\n\"\\é\u{1F600}"),
    }
}

/// A random regex, often one that blows up.
pub(crate) fn regex(rng: &mut Rng, depth: usize) -> String {
    let atoms = [
        "a", "b", ".", "[a-z]", "[^a]", "\\d", "\\w", "\\S", "é", "\\", "[", "^", "$", "\\b", "(?=a)", "\\1",
        "(?i)", "\\p{L}",
    ];
    if depth == 0 {
        return (*rng.pick(&atoms)).to_owned();
    }
    let inner = regex(rng, depth - 1);
    match rng.below(12) {
        0 => format!("({inner})*"),
        1 => format!("({inner})+"),
        2 => format!("({inner}){{{},{}}}", rng.below(40), rng.below(3000)),
        3 => format!("({inner}){{1000}}"),
        4 => format!("({inner}|{})", regex(rng, depth - 1)),
        5 => format!("({inner}*)*"),
        6 => format!(".*{inner}.{{20}}"),
        7 => format!("({inner}?){{30}}({inner}){{30}}"),
        8 => format!("{}{inner}{}", "(".repeat(rng.below(400)), ")".repeat(rng.below(400))),
        _ => format!("{inner}{}", regex(rng, depth - 1)),
    }
}

pub(crate) fn lark(rng: &mut Rng) -> String {
    let names = ["start", "a", "b", "c", "T", "U"];
    let mut text = String::new();
    for _ in 0..1 + rng.below(6) {
        let mut body = String::new();
        for _ in 0..1 + rng.below(5) {
            body += &match rng.below(10) {
                0..=2 => format!(" {}", rng.pick(&names)),
                3 => format!(" \"{}\"", "x".repeat(rng.below(40))),
                4 => format!(" /{}/", regex(rng, 3).replace('/', "")),
                5 => " |".to_owned(),
                6 => format!(" ({} {})*", rng.pick(&names), rng.pick(&names)),
                7 => format!(" %json {}", schema(rng, 2)),
                8 => " <|call|>".to_owned(),
                _ => format!(" {}{{{},{}}}", rng.pick(&names), rng.below(5), rng.below(100_000)),
            };
        }
        text += &format!("{}:{body}\n", rng.pick(&names));
    }
    text
}

/// Tools with random parameters: names as clients give them, and as they should not.
pub(crate) fn tools(rng: &mut Rng) -> Vec<Tool> {
    let names = ["f", "get_weather", "a.b", "a\"b\n", "</tool_call>", "\u{1F600}", "", "f"];
    let tool = |rng: &mut Rng| {
        let mut parameters = schema(rng, 3);
        if rng.below(4) > 0 {
            // Otherwise nearly none is an object's.
            let named = (0..rng.below(5)).map(|index| (format!("p{index}"), schema(rng, 2)));
            let properties: Map<String, Value> = named.collect();
            parameters = json!({"type": "object", "properties": properties, "required": ["p0", "p1"]});
        }
        Tool {
            name: (*rng.pick(&names)).into(),
            parameters: (rng.below(20) > 0).then_some(parameters),
            is_strict: rng.below(2) == 0,
        }
    };
    (0..1 + rng.below(4)).map(|_| tool(rng)).collect()
}
