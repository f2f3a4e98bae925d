//! Random and hostile schemas, regexes, choices and Lark grammars: every one ends in an answer or a typed error, in bounded
//! time and memory, and no step of a sequence that follows one takes long.
//!
//! `PAGODA_FUZZ_REQUESTS` sets how many are tried.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod byte_vocab;
mod cruel_sources;
mod rng;

use std::time::{Duration, Instant};

use pagoda_text::{
    Grammar, GrammarCompiler, GrammarError, GrammarOptions, GrammarSource, MatchError, Tokenizer,
};
use rng::Rng;
use serde_json::{Map, Value, json};

/// Beyond it a step loop would notice.
const STEP_LIMIT: Duration = Duration::from_millis(50);

/// A vocabulary with tokens of several bytes, so that masks walk a trie.
fn tokenizer() -> Tokenizer {
    let mut rng = Rng(7);
    let alphabet = b"abcdefghij 0123456789{}[]\":,.-\\n\n";
    let words = (0..4000).map(|_| (0..2 + rng.below(8)).map(|_| *rng.pick(alphabet)).collect());
    let mut words: Vec<Vec<u8>> = words.collect();
    words.sort();
    words.dedup();
    byte_vocab::tokenizer(&["<|end|>", "<|call|>"], &words)
}

fn compiler(tokenizer: &Tokenizer) -> GrammarCompiler {
    let options = GrammarOptions { eos_ids: vec![0], ..GrammarOptions::default() };
    GrammarCompiler::new(tokenizer, options).unwrap()
}

/// A random value of JSON that is often nearly a schema.
fn schema(rng: &mut Rng, depth: usize) -> Value {
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
fn regex(rng: &mut Rng, depth: usize) -> String {
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

fn lark(rng: &mut Rng) -> String {
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

fn random(seed: u64) -> GrammarSource {
    let mut rng = Rng(seed);
    let rng = &mut rng;
    match rng.below(8) {
        0..=3 => GrammarSource::JsonSchema(schema(rng, 4)),
        4 | 5 => GrammarSource::Regex(regex(rng, 5)),
        6 => GrammarSource::Choice((0..rng.below(30)).map(|_| regex(rng, 2)).collect()),
        _ => GrammarSource::Lark(lark(rng)),
    }
}

#[derive(Debug, Default)]
struct Totals {
    compiled: u64,
    refused: u64,
    too_complex: u64,
    timed_out: u64,
    panicked: u64,
    steps: u64,
    completed: u64,
    failed_steps: u64,
    slowest_compile: Duration,
    slowest_step: Duration,
}

/// Follows a grammar for some steps; the slowest one.
fn follow(grammar: &Grammar, vocab_size: usize, seed: u64, totals: &mut Totals) -> Duration {
    let mut rng = Rng(seed);
    let mut matcher = grammar.matcher();
    let mut bits = vec![0; vocab_size.div_ceil(32)];
    let mut slowest = Duration::ZERO;
    for _ in 0..24 {
        let start = Instant::now();
        let filled = matcher.fill_mask(&mut bits);
        slowest = slowest.max(start.elapsed());
        if let Err(error) = filled {
            assert_ne!(error, MatchError::Failed, "seed {seed}");
            totals.failed_steps += 1;
            break;
        }
        let allowed: Vec<u32> =
            (0..vocab_size as u32).filter(|&id| bits[id as usize / 32] >> (id % 32) & 1 == 1).collect();
        assert!(!allowed.is_empty(), "seed {seed}: a mask without a token is an error");
        let start = Instant::now();
        let advanced = matcher.advance(*rng.pick(&allowed));
        slowest = slowest.max(start.elapsed());
        totals.steps += 1;
        if let Err(error) = advanced {
            assert_ne!(error, MatchError::Failed, "seed {seed}");
            totals.failed_steps += 1;
            break;
        }
        if matcher.is_complete() {
            totals.completed += 1;
            break;
        }
    }
    slowest
}

fn attempt(
    compiler: &GrammarCompiler,
    source: &GrammarSource,
    vocab_size: usize,
    seed: u64,
    totals: &mut Totals,
) {
    let start = Instant::now();
    let compiled = compiler.compile(source);
    totals.slowest_compile = totals.slowest_compile.max(start.elapsed());
    let grammar = match compiled {
        Ok(grammar) => grammar,
        Err(error) => {
            match error {
                GrammarError::TooComplex { .. } | GrammarError::TooLarge { .. } => totals.too_complex += 1,
                GrammarError::TimedOut { .. } | GrammarError::Busy => totals.timed_out += 1,
                GrammarError::Panicked => totals.panicked += 1,
                _ => totals.refused += 1,
            }
            return;
        }
    };
    totals.compiled += 1;
    // Another process may have had the core: the fastest of several runs of the same steps counts.
    if std::env::var_os("PAGODA_FUZZ_VERBOSE").is_some() {
        let slowest: Vec<Duration> = (0..3).map(|_| follow(&grammar, vocab_size, seed, totals)).collect();
        println!("{seed}: {slowest:?}");
        return;
    }
    let slowest =
        (0..5).map(|_| follow(&grammar, vocab_size, seed, totals)).find(|slowest| *slowest < STEP_LIMIT);
    let slowest = slowest.unwrap_or_else(|| panic!("seed {seed}: a step takes longer than {STEP_LIMIT:?}"));
    totals.slowest_step = totals.slowest_step.max(slowest);
}

#[test]
fn hostile_grammars_end_in_an_answer_or_an_error_and_cost_no_step_its_time() {
    let num_requests =
        std::env::var("PAGODA_FUZZ_REQUESTS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let mut totals = Totals::default();
    for (index, source) in (0..).map_while(|index| Some((index, cruel_sources::cruel(index)?))) {
        let start = Instant::now();
        let mut of_one = Totals::default();
        attempt(&compiler, &source, tokenizer.vocab_size(), index as u64, &mut of_one);
        println!("cruel {index}: {:?}, {of_one:?}", start.elapsed());
        assert_eq!(of_one.timed_out, 0, "cruel {index}");
    }
    for seed in 0..num_requests {
        attempt(&compiler, &random(seed), tokenizer.vocab_size(), seed, &mut totals);
    }
    println!("{num_requests} requests: {totals:?}, peak memory {} MiB", peak_memory_mib());
    assert!(totals.compiled > num_requests / 10 && totals.refused > num_requests / 10, "{totals:?}");
    assert!(totals.steps > num_requests && totals.completed > num_requests / 50, "{totals:?}");
    assert_eq!(totals.timed_out, 0, "{totals:?}");
    assert!(peak_memory_mib() < 2048, "{} MiB", peak_memory_mib());
}

/// The most memory that this process has had.
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().split(' ').next()?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}
