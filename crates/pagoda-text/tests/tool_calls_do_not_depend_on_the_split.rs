//! Tool calls and reasoning in an answer are the same whatever its split into deltas; what is no call is content, to the
//! last character; no text takes long.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod rng;
mod tool_templates;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagoda_text::{
    Announce, AnswerDelta, AnswerParser, ChatTemplate, ReasoningParser, ReasoningTags, SpecialTokens, Tool,
    ToolCallParser, ToolFormat, ToolSet, ToolSupport,
};
use rng::Rng;
use serde_json::{Value, json};

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
        let support = ToolSupport::probe(&ChatTemplate::new(&source, SpecialTokens::default()).unwrap());
        assert!(support.is_native(), "{name}: {}", support.format());
        (name, Arc::clone(support.format()))
    };
    templates.into_iter().map(format).collect()
}

fn tools() -> Arc<ToolSet> {
    let parameters = json!({"type": "object", "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "hourly": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"type": ["string", "null"]},
    }});
    let tool =
        |name: &str| Tool { name: name.into(), parameters: Some(parameters.clone()), is_strict: false };
    Arc::new(ToolSet::new(vec![tool("get_weather"), tool("search"), tool("f")]))
}

/// An answer put together.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    reasoning: String,
    content: String,
    calls: Vec<(String, String)>,
}

impl Answer {
    fn push(&mut self, deltas: Vec<AnswerDelta>) {
        for delta in deltas {
            match delta {
                AnswerDelta::Content(text) => self.content.push_str(&text),
                AnswerDelta::Reasoning(text) => self.reasoning.push_str(&text),
                AnswerDelta::ToolCallStart { index, name } => {
                    assert_eq!(index, self.calls.len(), "calls are numbered in order");
                    self.calls.push((name, String::new()));
                }
                AnswerDelta::ToolCallArguments { index, fragment } => {
                    assert_eq!(index + 1, self.calls.len(), "arguments belong to the newest call");
                    self.calls[index].1.push_str(&fragment);
                }
            }
        }
    }
}

fn parsed<'a>(mut parser: AnswerParser, pieces: impl Iterator<Item = &'a str>, is_cut: bool) -> Answer {
    let mut answer = Answer::default();
    for piece in pieces {
        answer.push(parser.push(piece));
    }
    answer.push(parser.finish(is_cut));
    answer
}

fn whole(format: &Arc<ToolFormat>, text: &str) -> Answer {
    let tools = ToolCallParser::new(format, &tools(), Announce::WhenWhole);
    parsed(AnswerParser::new(None, Some(tools)), std::iter::once(text), false)
}

/// `text` in pieces of up to seven characters, often of one.
fn split<'a>(rng: &mut Rng, mut text: &'a str) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let num_chars = rng.below(8);
        let at = text.char_indices().nth(num_chars).map_or(text.len(), |(at, _)| at);
        let (piece, rest) = text.split_at(at);
        pieces.push(piece);
        text = rest;
    }
    pieces
}

/// Fragments of which hostile and well-meant answers are made.
const PARTS: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<tool_call>\n<function=",
    "get_weather",
    "search",
    "f",
    "nobody",
    ">\n",
    "\n",
    "<parameter=",
    "city",
    "days",
    "</parameter>",
    "</function>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    "\"name\": ",
    "\"get_weather\"",
    "\"arguments\": ",
    "\"parameters\": ",
    "{}",
    "{\"city\": \"Z\u{fc}rich\"}",
    "\"",
    "\\",
    "'",
    ",",
    ", ",
    ":",
    ": ",
    ";",
    "=",
    "1e5",
    "-",
    "null",
    "None",
    "True",
    " ",
    "   ",
    "\t",
    "text",
    "\u{1F469}\u{200d}",
    "<",
    "</",
    "<think>",
    "</think>",
    "<|python_tag|>",
    "{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"}\"}]}}",
    "f(city='x', days=[1, (2,), {'a': None}])",
    "<tool_call>\n{\"name\": \"search\", \"arguments\": {}}\n</tool_call>",
    "{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}",
    "\\ud800",
    "\\n",
    "\u{0}",
    "[[[[[[[[",
    "{{{{{{{{",
];

fn random_text(rng: &mut Rng) -> String {
    (0..rng.below(24)).map(|_| *rng.pick(PARTS)).collect()
}

fn parser(rng_bits: usize, format: &Arc<ToolFormat>, tools: &Arc<ToolSet>) -> AnswerParser {
    let announce = if rng_bits & 1 == 0 { Announce::WhenWhole } else { Announce::AtName };
    let tags = ReasoningTags { open: "<think>".into(), close: "</think>".into() };
    let reasoning = (rng_bits & 2 != 0).then(|| ReasoningParser::new(tags, rng_bits & 4 != 0));
    AnswerParser::new(reasoning, Some(ToolCallParser::new(format, tools, announce)))
}

#[test]
fn a_hundred_thousand_random_answers_parse_alike_in_every_split() {
    let (formats, tools) = (formats(), tools());
    let mut num_calls = 0;
    for seed in 0..17_000u64 {
        let mut rng = Rng(seed);
        let text = random_text(&mut rng);
        for (name, format) in &formats {
            let bits = rng.below(8);
            let is_cut = rng.below(2) == 0;
            let at_once = parsed(parser(bits, format, &tools), std::iter::once(text.as_str()), is_cut);
            let pieces = split(&mut rng, &text);
            let in_pieces = parsed(parser(bits, format, &tools), pieces.into_iter(), is_cut);
            assert_eq!(at_once, in_pieces, "seed {seed}, {name}: {text:?}");
            num_calls += at_once.calls.len();
            if bits & 1 == 0 && !is_cut {
                for (_, arguments) in &at_once.calls {
                    assert!(serde_json::from_str::<Value>(arguments).unwrap().is_object(), "{text:?}");
                }
            }
            if at_once.calls.is_empty() && bits & 2 == 0 {
                assert_eq!(at_once.content, text, "seed {seed}, {name}: what is no call is content");
            }
        }
    }
    assert!(num_calls > 1_000, "only {num_calls} calls: the texts are too random");
}

#[test]
fn hostile_answers_take_no_longer_than_others() {
    let (formats, tools) = (formats(), tools());
    for part in PARTS {
        let text = part.repeat(30_000 / part.len());
        for (name, format) in &formats {
            for bits in [0, 1, 2, 6] {
                let start = Instant::now();
                let mut parser = parser(bits, format, &tools);
                let mut num_bytes = 0;
                for piece in text.as_bytes().chunks(64) {
                    let deltas = parser.push(&String::from_utf8_lossy(piece));
                    num_bytes += deltas.len();
                }
                num_bytes += parser.finish(false).len();
                assert!(num_bytes <= text.len() + 2);
                assert!(start.elapsed() < Duration::from_secs(2), "{name}, {part:?}: {:?}", start.elapsed());
            }
        }
    }
}

fn calls(format: &Arc<ToolFormat>, text: &str) -> (String, Vec<(String, Value)>) {
    let answer = whole(format, text);
    let calls = answer.calls.into_iter();
    (
        answer.content,
        calls.map(|(name, arguments)| (name, serde_json::from_str(&arguments).unwrap())).collect(),
    )
}

#[test]
fn every_format_is_read_as_models_write_it() {
    let formats: std::collections::BTreeMap<_, _> = formats().into_iter().collect();
    let weather = |city: &str| ("get_weather".to_owned(), json!({"city": city, "days": 2}));
    let cases: &[(&str, &str, &str, Vec<(String, Value)>)] = &[
        (
            "hermes",
            "Let me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}\n</tool_call>\n\
             <tool_call>{\"arguments\": {\"city\": \"Genf\", \"days\": 2}, \"name\": \"get_weather\"}</tool_call>\n",
            "Let me look.",
            vec![weather("Bern"), weather("Genf")],
        ),
        (
            // A list within the tags, arguments as a string, a line break within a string, no closing tag.
            "hermes",
            "<tool_call>[{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Bern\\\", \\\"days\\\": 2}\"}, \
             {\"name\": \"search\", \"arguments\": {\"q\": \"a\nb\"}}]",
            "",
            vec![weather("Bern"), ("search".into(), json!({"q": "a\nb"}))],
        ),
        (
            "hermes",
            "<tool_call>\n{\"name\": \"f\"}\n</tool_call> Done.",
            " Done.",
            vec![("f".into(), json!({}))],
        ),
        (
            "hermes",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {broken}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {broken}}\n</tool_call>",
            vec![],
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n</parameter>\n\
             </function>\n</tool_call>\n<tool_call>\n<function=f>\n</function>\n</tool_call>",
            "",
            vec![weather("Bern"), ("f".into(), json!({}))],
        ),
        (
            "qwen3_coder",
            "<tool_call>\n<function=search>\n<parameter=city>\n\n7\n\n</parameter>\n<parameter=hourly>\nTrue\n</parameter>\n\
             <parameter=tags>\n[\"a\", \"<b>\"]\n</parameter>\n<parameter=note>\nnull\n</parameter>\n</function>\n</tool_call>",
            "",
            vec![(
                "search".into(),
                json!({"city": "\n7\n", "hourly": true, "tags": ["a", "<b>"], "note": null}),
            )],
        ),
        (
            "llama3",
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Bern\", \"days\": 2}}; \
             {\"name\": \"f\", \"parameters\": {}}",
            "",
            vec![weather("Bern"), ("f".into(), json!({}))],
        ),
        ("llama3", "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", "", vec![("f".into(), json!({}))]),
        // JSON that calls no tool of the request is an answer.
        (
            "llama3",
            "{\"name\": \"Ada\", \"parameters\": {}}",
            "{\"name\": \"Ada\", \"parameters\": {}}",
            vec![],
        ),
        (
            "mistral",
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}, \
             {\"name\": \"f\", \"arguments\": {}, \"id\": \"abcdefghi\"}]",
            "",
            vec![weather("Bern"), ("f".into(), json!({}))],
        ),
        (
            "mistral_named",
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Bern\", \"days\": 2}[TOOL_CALLS]f[ARGS]{}",
            "",
            vec![weather("Bern"), ("f".into(), json!({}))],
        ),
        (
            "pythonic",
            "[get_weather(city='Bern', days=2), search(q=\"it's\", n=-1.5, l=[True, None, ('a',)], d={'k': \"\\u00fc\"})]",
            "",
            vec![
                weather("Bern"),
                (
                    "search".into(),
                    json!({"q": "it's", "n": -1.5, "l": [true, null, ["a"]], "d": {"k": "\u{fc}"}}),
                ),
            ],
        ),
        ("pythonic", "[1, 2, 3]", "[1, 2, 3]", vec![]),
    ];
    for (format, text, content, expected) in cases {
        assert_eq!(
            calls(&formats[format], text),
            ((*content).to_owned(), expected.clone()),
            "{format}: {text}"
        );
    }
}

#[test]
fn a_call_that_is_cut_off_is_given_as_far_as_it_came() {
    let format = Arc::new(ToolFormat::hermes());
    let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"xy";
    for (announce, is_cut) in
        [(Announce::AtName, true), (Announce::WhenWhole, true), (Announce::AtName, false)]
    {
        let tools = ToolCallParser::new(&format, &tools(), announce);
        let answer = parsed(AnswerParser::new(None, Some(tools)), std::iter::once(text), is_cut);
        assert_eq!(answer.calls, [("f".to_owned(), "{\"a\": \"xy".to_owned())]);
        assert_eq!(answer.content, "");
    }
    assert_eq!(whole(&format, text).content, text);
}

#[test]
fn calls_that_follow_a_grammar_stream_their_arguments() {
    let format = Arc::new(ToolFormat::hermes());
    let mut parser = ToolCallParser::new(&format, &tools(), Announce::AtName);
    let text = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"xyz\"}}\n</tool_call>";
    let num_deltas: usize = text.split_inclusive(' ').map(|piece| parser.push(piece).len()).sum();
    assert!(num_deltas >= 3, "{num_deltas}");
}

#[test]
fn reasoning_comes_first_or_not_at_all() {
    let tags = || ReasoningTags { open: "<think>".into(), close: "</think>".into() };
    let cases = [
        (
            false,
            "<think>\nab </ \n\nc\n</think>\n\nHi <think>x</think>",
            ("ab </ \n\nc", "Hi <think>x</think>"),
        ),
        (true, "\nab\n</think>\n\nHi", ("ab", "Hi")),
        (true, "ab </thin", ("ab </thin", "")),
        (false, " <thinking> hi", ("", " <thinking> hi")),
        (false, "<think></think>x", ("", "x")),
    ];
    for (is_open, text, (reasoning, content)) in cases {
        for size in 1..=text.len() {
            let mut parser = AnswerParser::new(Some(ReasoningParser::new(tags(), is_open)), None);
            let mut answer = Answer::default();
            for piece in text.as_bytes().chunks(size) {
                answer.push(parser.push(std::str::from_utf8(piece).unwrap()));
            }
            answer.push(parser.finish(false));
            assert_eq!(
                (answer.reasoning.as_str(), answer.content.as_str()),
                (reasoning, content),
                "{text:?} by {size}"
            );
        }
    }
}
