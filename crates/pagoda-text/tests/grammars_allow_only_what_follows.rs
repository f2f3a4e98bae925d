//! Every text that a grammar's masks allow is one of the grammar, and the value ends exactly where the matcher says so.

mod byte_vocab;
mod rng;

use pagoda_text::{Grammar, GrammarCompiler, GrammarOptions, GrammarSource, Matcher, Tokenizer};
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
fn random_walks_of_a_schema_are_values_of_it_and_end() {
    let tokenizer = tokenizer();
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"enum": ["a", "bc", 7, null]}},
            "size": {"type": "integer"},
        },
        "required": ["name", "tags", "size"],
    });
    let grammar = compiler(&tokenizer).compile(&GrammarSource::JsonSchema(schema)).unwrap();
    let mut rng = Rng(1);
    for _ in 0..20 {
        let text = walk(&tokenizer, &grammar, &mut rng, 4096).expect("the value ends");
        let value: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["name", "tags", "size"]);
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
