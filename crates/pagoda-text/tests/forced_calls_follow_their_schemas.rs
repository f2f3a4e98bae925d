//! Whatever a grammar of calls allows, the parser reads as calls whose arguments follow their schemas, in every form in
//! which models write calls.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod byte_vocab;
mod rng;
mod tool_schemas;
mod tool_templates;

use std::sync::Arc;

use pagoda_text::{
    Announce, ChatTemplate, GrammarCompiler, GrammarOptions, GrammarSource, Otherwise, SchemaBounds,
    SpecialTokens, Tokenizer, Tool, ToolCallParser, ToolDelta, ToolFormat, ToolGrammar, ToolSet, ToolSupport,
};
use rng::Rng;
use serde_json::Value;

const STOP: u32 = 0;

fn tokenizer() -> Tokenizer {
    let words = [
        &b"{\"name\": \""[..],
        b"\": ",
        b"\", \"",
        b"</parameter>",
        b"<tool_call>",
        b" the",
        b"\n</",
        b"arameters",
    ];
    byte_vocab::tokenizer(&["<|end|>", "[TOOL_CALLS]", "[ARGS]"], &words.map(<[u8]>::to_vec))
}

fn formats() -> Vec<(&'static str, Arc<ToolFormat>)> {
    let templates = [
        ("hermes", tool_templates::hermes()),
        ("qwen3_coder", tool_templates::qwen3_coder()),
        ("llama3", tool_templates::llama3()),
        ("mistral", tool_templates::mistral()),
        ("mistral_named", tool_templates::mistral_named()),
        ("pythonic", tool_templates::pythonic()),
    ];
    let format = |(name, source): (&'static str, String)| {
        let template = ChatTemplate::new(&source, SpecialTokens::default()).unwrap();
        (name, Arc::clone(ToolSupport::probe(&template).format()))
    };
    templates.into_iter().map(format).collect()
}

fn set(schemas: &[(String, Value)]) -> Arc<ToolSet> {
    let tool = |(name, schema): &(String, Value)| Tool {
        name: name.clone(),
        parameters: Some(schema.clone()),
        is_strict: true,
    };
    Arc::new(ToolSet::new(schemas.iter().map(tool).collect()))
}

/// Follows the grammar at random to its end; None if it did not end.
fn walk(tokenizer: &Tokenizer, compiler: &GrammarCompiler, lark: &str, rng: &mut Rng) -> Option<String> {
    let grammar = compiler.compile(&GrammarSource::Lark(lark.to_owned()));
    let grammar = grammar.unwrap_or_else(|error| panic!("{error}:\n{lark}"));
    let mut matcher = grammar.matcher();
    let mut ids = Vec::new();
    let mut bits = vec![0; tokenizer.vocab_size().div_ceil(32)];
    while !matcher.is_complete() && ids.len() < 20_000 {
        let filled = matcher.fill_mask(&mut bits);
        filled
            .unwrap_or_else(|error| panic!("{error} behind {:?} of\n{lark}", tokenizer.decode(&ids, false)));
        let allowed: Vec<u32> = (0..tokenizer.vocab_size() as u32)
            .filter(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 1)
            .collect();
        let id = *rng.pick(&allowed);
        if id == STOP {
            break;
        }
        matcher.advance(id).unwrap();
        ids.push(id);
    }
    matcher.is_accepting().then(|| tokenizer.decode(&ids, false))
}

/// The calls of a text, which must be nothing but calls.
fn calls(format: &Arc<ToolFormat>, tools: &Arc<ToolSet>, text: &str) -> Vec<(String, String)> {
    let mut parser = ToolCallParser::new(format, tools, Announce::AtName);
    let mut calls: Vec<(String, String)> = Vec::new();
    for delta in parser.push(text).into_iter().chain(parser.finish(false)) {
        match delta {
            ToolDelta::CallStart { name, .. } => calls.push((name, String::new())),
            ToolDelta::Arguments { index, fragment } => calls[index].1.push_str(&fragment),
            ToolDelta::Content(content) => panic!("content {content:?} in {text:?}"),
        }
    }
    calls
}

fn assert_valid(schemas: &[(String, Value)], calls: &[(String, String)], text: &str) {
    assert!(!calls.is_empty(), "no call in {text:?}");
    for (name, arguments) in calls {
        let (_, schema) = schemas.iter().find(|(other, _)| other == name).expect("a name of the set");
        let arguments: Value =
            serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        let validator = jsonschema::validator_for(schema).unwrap();
        let errors: Vec<String> = validator.iter_errors(&arguments).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?} in {text:?}");
    }
}

#[test]
fn random_walks_are_valid_calls_in_every_format() {
    let (tokenizer, schemas) = (tokenizer(), tool_schemas::schemas());
    let bounds = SchemaBounds { max_string_chars: 40, ..SchemaBounds::default() }.within(256);
    let options = GrammarOptions { eos_ids: vec![STOP], bounds, ..GrammarOptions::default() };
    let compiler = GrammarCompiler::new(&tokenizer, options).unwrap();
    let all = set(&schemas);
    for (name, format) in formats() {
        for (index, (tool, _)) in schemas.iter().enumerate() {
            for has_several_calls in [false, true] {
                let mut rng = Rng(index as u64);
                let grammar = ToolGrammar {
                    format: &format,
                    tools: &all,
                    only: (!has_several_calls).then_some(tool.as_str()),
                    has_several_calls,
                    otherwise: Otherwise::Nothing,
                    may_lead_with_space: has_several_calls,
                    tokenizer: &tokenizer,
                    stop_ids: &[STOP],
                    bounds: &bounds,
                };
                let lark = grammar.to_lark().unwrap_or_else(|error| panic!("{name}, {tool}: {error}"));
                let text = walk(&tokenizer, &compiler, &lark, &mut rng);
                let text = text.unwrap_or_else(|| panic!("{name}, {tool}: no end"));
                let calls = calls(&format, &all, &text);
                assert_valid(&schemas, &calls, &text);
                if !has_several_calls {
                    assert_eq!((calls.len(), calls[0].0.as_str()), (1, tool.as_str()));
                }
            }
        }
    }
}

/// The grammar leaves text alone and binds a call as soon as its markup has begun.
#[test]
fn free_text_turns_into_bound_calls() {
    let (tokenizer, schemas) = (tokenizer(), tool_schemas::schemas());
    let bounds = SchemaBounds { max_string_chars: 20, ..SchemaBounds::default() }.within(256);
    let options = GrammarOptions { eos_ids: vec![STOP], bounds, ..GrammarOptions::default() };
    let compiler = GrammarCompiler::new(&tokenizer, options).unwrap();
    let all = set(&schemas[..4]);
    for (name, format) in formats() {
        let grammar = ToolGrammar {
            format: &format,
            tools: &all,
            only: None,
            has_several_calls: true,
            otherwise: Otherwise::Text,
            may_lead_with_space: false,
            tokenizer: &tokenizer,
            stop_ids: &[STOP],
            bounds: &bounds,
        };
        let lark = grammar.to_lark().unwrap();
        let compiled = compiler.compile(&GrammarSource::Lark(lark.clone()));
        let compiled = compiled.unwrap_or_else(|error| panic!("{name}: {error}\n{lark}"));
        let allows = |text: &str| {
            let mut matcher = compiled.matcher();
            let ids = tokenizer.encode(text, false).unwrap();
            ids.iter().all(|id| matcher.advance(*id).is_ok()).then(|| matcher.is_accepting())
        };
        let is_anchored = matches!(name, "llama3" | "pythonic");
        assert_eq!(allows("Just text, with a < in it."), Some(true), "{name}");
        let call = match name {
            "hermes" => {
                "<tool_call>\n{\"name\": \"archival_memory_search\", \"arguments\": {\"query\": \"x\"}}\n</tool_call>"
            }
            "qwen3_coder" => {
                "<tool_call>\n<function=archival_memory_search>\n<parameter=query>\nx\n</parameter>\n</function>\n</tool_call>"
            }
            "llama3" => "{\"name\": \"archival_memory_search\", \"parameters\": {\"query\": \"x\"}}",
            "mistral" => {
                "[TOOL_CALLS][{\"name\": \"archival_memory_search\", \"arguments\": {\"query\": \"x\"}}]"
            }
            "mistral_named" => "[TOOL_CALLS]archival_memory_search[ARGS]{\"query\": \"x\"}",
            _ => "[archival_memory_search(query=\"x\")]",
        };
        assert_eq!(allows(call), Some(true), "{name}: {call}\n{lark}");
        let lead = if is_anchored { "" } else { "Let me look.\n" };
        assert_eq!(allows(&format!("{lead}{call}")), Some(true), "{name}: {call}");
        // A name that there is not, and a wrong argument.
        assert_eq!(
            allows(&format!("{lead}{}", call.replace("archival_memory_search", "archival_memory_find"))),
            None,
            "{name}"
        );
        assert_eq!(allows(&format!("{lead}{}", call.replace("query", "quest"))), None, "{name}");
    }
}
