//! Every text that a grammar's masks allow is one of the grammar, and the value ends exactly where the matcher says so.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod byte_vocab;
mod rng;
mod schema_shapes;

use pagoda_text::{
    Grammar, GrammarCompiler, GrammarError, GrammarOptions, GrammarSource, Matcher, Tokenizer,
};
use rng::Rng;
use serde_json::{Value, json};

fn tokenizer() -> Tokenizer {
    byte_vocab::tokenizer(
        &["<|end|>", "<|call|>"],
        &[b"\"name\"".to_vec(), b"\":".to_vec(), b" the".to_vec()],
    )
}

fn compiler(tokenizer: &Tokenizer) -> GrammarCompiler {
    let eos_ids = vec![0];
    GrammarCompiler::new(tokenizer, GrammarOptions { eos_ids, ..GrammarOptions::default() }).unwrap()
}

fn allowed(matcher: &mut Matcher, num_ids: usize) -> Vec<u32> {
    let mut bits = vec![!0; num_ids.div_ceil(32) + 2];
    matcher.fill_mask(&mut bits).unwrap();
    let ids = (0..32 * bits.len() as u32).filter(|&id| bits[id as usize / 32] >> (id % 32) & 1 == 1);
    let ids: Vec<u32> = ids.collect();
    assert!(ids.iter().all(|&id| (id as usize) < num_ids), "ids beyond the vocabulary are cleared");
    ids
}

/// Follows the masks at random until the value is complete.
fn walk(tokenizer: &Tokenizer, grammar: &Grammar, rng: &mut Rng, max_tokens: usize) -> Option<String> {
    let mut matcher = grammar.matcher();
    let mut ids = Vec::new();
    while !matcher.is_complete() {
        if ids.len() == max_tokens {
            return None;
        }
        let allowed = allowed(&mut matcher, tokenizer.vocab_size());
        let id = *rng.pick(&allowed);
        matcher.advance(id).unwrap();
        ids.push(id);
    }
    Some(tokenizer.decode(&ids, true))
}

#[test]
fn random_walks_of_twenty_shapes_are_values_of_them_and_end() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let mut rng = Rng(1);
    for (name, schema) in schema_shapes::shapes() {
        let grammar = compiler.compile(&GrammarSource::JsonSchema(schema.clone()));
        let grammar = grammar.unwrap_or_else(|error| panic!("{name}: {error}"));
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        for _ in 0..5 {
            let text = walk(&tokenizer, &grammar, &mut rng, 100_000);
            let text = text.unwrap_or_else(|| panic!("{name}: the value does not end"));
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
            let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}: {text}");
            assert_in_order(&value, schema.get("properties"), name);
        }
    }
}

/// The keys come in the order of the schema.
fn assert_in_order(value: &Value, properties: Option<&Value>, name: &str) {
    let (Some(value), Some(properties)) = (value.as_object(), properties.and_then(Value::as_object)) else {
        return;
    };
    let places: Vec<usize> =
        value.keys().map(|key| properties.keys().position(|known| known == key).unwrap()).collect();
    assert!(places.is_sorted(), "{name}: {places:?}");
}

#[test]
fn a_json_object_without_a_schema_ends() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let mut rng = Rng(5);
    let grammar = compiler.compile(&GrammarSource::JsonObject).unwrap();
    for _ in 0..20 {
        let text = walk(&tokenizer, &grammar, &mut rng, 100_000).expect("the object ends");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value.is_object());
    }
}

#[test]
fn a_bad_schema_is_refused_at_its_place() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    for (schema, path) in [
        (json!([]), "$"),
        (json!({"type": "strin"}), "$.type"),
        (json!({"properties": {"a b": {"type": 7}}}), "$.properties[\"a b\"].type"),
        (json!({"properties": {"a": {"minLength": -1}}}), "$.properties.a.minLength"),
        (json!({"properties": {"a": {"pattern": "("}}}), "$.properties.a.pattern"),
        (json!({"properties": {"a": {"pattern": "(?=b)a"}}}), "$.properties.a.pattern"),
        (json!({"items": {"not": {}}}), "$.items.not"),
        (json!({"anyOf": [{"type": "null"}, {"enum": []}]}), "$.anyOf[1].enum"),
        (json!({"$ref": "#/$defs/a"}), "$.$ref"),
        (json!({"$ref": "http://example.com/schema"}), "$.$ref"),
        (
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"minItems": 3, "maxItems": 2}}}}),
            "$.$defs.a.items.minItems",
        ),
        (json!({"required": ["a"], "properties": {"a": false}}), "$"),
        (json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "$"),
        (json!({"type": "array", "uniqueItems": true}), "$.uniqueItems"),
        (json!({"allOf": [{"type": "string"}, {"type": "integer"}]}), "$.allOf[1].type"),
        (json!({"type": "array", "minItems": 1_000_000_000}), "$.minItems"),
    ] {
        match compiler.compile(&GrammarSource::JsonSchema(schema.clone())) {
            Err(GrammarError::Schema(error)) => assert_eq!(error.path, path, "{schema}: {error}"),
            other => panic!("{schema}: {other:?}"),
        }
    }
}

#[test]
fn a_choice_a_regex_and_a_lark_grammar_end_where_nothing_can_follow() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let mut rng = Rng(2);
    let choice = compiler.compile(&GrammarSource::Choice(vec!["yes".into(), "no \"\n".into()])).unwrap();
    let regex = compiler.compile(&GrammarSource::Regex("[a-c]{3}/[0-9]".into())).unwrap();
    let lark =
        compiler.compile(&GrammarSource::Lark("start: \"x\" %json {\"enum\": [1]} \"y\"".into())).unwrap();
    for _ in 0..10 {
        let text = walk(&tokenizer, &choice, &mut rng, 10).unwrap();
        assert!(text == "yes" || text == "no \"\n", "{text:?}");
        let text = walk(&tokenizer, &regex, &mut rng, 10).unwrap();
        assert!(text.len() == 5 && text.as_bytes()[3] == b'/', "{text:?}");
        assert_eq!(walk(&tokenizer, &lark, &mut rng, 10).unwrap(), "x1y");
    }
}
