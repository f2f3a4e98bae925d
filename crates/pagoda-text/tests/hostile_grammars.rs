//! Random and hostile schemas, regexes, choices and Lark grammars: every one ends in an answer or a typed error, in bounded
//! time and memory, and no step of a sequence that follows one takes long.
//!
//! `PAGODA_FUZZ_REQUESTS` sets how many are tried, from the seed `PAGODA_FUZZ_FIRST` on; `PAGODA_FUZZ_VERBOSE` prints each.
//! Set a limit on the process's memory (`ulimit -v`) before trying many.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod byte_vocab;
mod cruel_sources;
mod hostile_sources;
mod rng;
mod tool_templates;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagoda_text::{
    ChatTemplate, Grammar, GrammarCompiler, GrammarError, GrammarOptions, GrammarSource, MatchError,
    Otherwise, SchemaBounds, SpecialTokens, Tokenizer, ToolFormat, ToolGrammar, ToolSet, ToolSupport,
};
use rng::Rng;

/// Beyond it a step loop would notice.
const STEP_LIMIT: Duration = Duration::from_millis(50);
/// Steps of a random request; those that were worked out by hand may need more of them to hurt.
const NUM_STEPS: usize = 24;
const NUM_CRUEL_STEPS: usize = 300;
/// What the requests may add to the process's memory, whatever their number: the grammars that are kept, two that are being
/// compiled, a sequence.
const MEMORY_LIMIT_MIB: u64 = 256;

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

/// What a request may ask for.
struct Requests {
    tokenizer: Tokenizer,
    formats: Vec<Arc<ToolFormat>>,
}

impl Requests {
    fn new() -> Self {
        let templates = [
            tool_templates::hermes(),
            tool_templates::qwen3_coder(),
            tool_templates::llama3(),
            tool_templates::mistral(),
            tool_templates::mistral_named(),
            tool_templates::pythonic(),
        ];
        let format = |source: String| {
            let template = ChatTemplate::new(&source, SpecialTokens::default()).unwrap();
            Arc::clone(ToolSupport::probe(&template).format())
        };
        Requests { tokenizer: tokenizer(), formats: templates.into_iter().map(format).collect() }
    }

    /// The request of that seed; None if its tools are refused.
    fn random(&self, seed: u64) -> Option<GrammarSource> {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        Some(match rng.below(9) {
            0..=3 => GrammarSource::JsonSchema(hostile_sources::schema(rng, 4)),
            4 | 5 => GrammarSource::Regex(hostile_sources::regex(rng, 5)),
            6 => GrammarSource::Choice((0..rng.below(30)).map(|_| hostile_sources::regex(rng, 2)).collect()),
            7 => GrammarSource::Lark(hostile_sources::lark(rng)),
            _ => GrammarSource::Lark(self.calls(rng)?),
        })
    }

    /// The grammar of calls of random tools, in a random form.
    fn calls(&self, rng: &mut Rng) -> Option<String> {
        let tools = ToolSet::new(hostile_sources::tools(rng));
        let grammar = ToolGrammar {
            format: rng.pick::<Arc<ToolFormat>>(&self.formats),
            tools: &tools,
            only: (rng.below(2) == 0).then_some(tools.tools()[0].name.as_str()),
            has_several_calls: rng.below(2) == 0,
            otherwise: if rng.below(2) == 0 { Otherwise::Nothing } else { Otherwise::Text },
            may_lead_with_space: rng.below(2) == 0,
            tokenizer: &self.tokenizer,
            stop_ids: &[0],
            bounds: &SchemaBounds::default().within(1 << rng.below(12)),
        };
        grammar.to_lark().ok()
    }
}

/// For reading: what [`GrammarSource`]'s own `Debug` does not show.
fn describe(source: &GrammarSource) -> String {
    match source {
        GrammarSource::JsonObject => "any object".into(),
        GrammarSource::JsonSchema(schema) => format!("schema {schema}"),
        GrammarSource::Regex(regex) => format!("regex {regex}"),
        GrammarSource::Choice(texts) => format!("choice {texts:?}"),
        GrammarSource::Lark(text) => format!("lark {text}"),
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
    largest_kib: u64,
    slowest_compile: Duration,
    slowest_step: Duration,
}

/// Follows a grammar for some steps; the slowest one.
fn follow(grammar: &Grammar, vocab_size: usize, attempt: &Attempt<'_>, totals: &mut Totals) -> Duration {
    let mut rng = Rng(attempt.seed);
    let mut matcher = grammar.matcher();
    let mut bits = vec![0; vocab_size.div_ceil(32)];
    let mut slowest = Duration::ZERO;
    for _ in 0..attempt.num_steps {
        let start = Instant::now();
        let filled = matcher.fill_mask(&mut bits);
        slowest = slowest.max(start.elapsed());
        if let Err(error) = filled {
            assert_ne!(error, MatchError::Failed, "seed {}", attempt.seed);
            totals.failed_steps += 1;
            break;
        }
        let allowed: Vec<u32> =
            (0..vocab_size as u32).filter(|&id| bits[id as usize / 32] >> (id % 32) & 1 == 1).collect();
        assert!(!allowed.is_empty(), "seed {}: a mask without a token is an error", attempt.seed);
        // The answer goes on for as long as it can.
        let goes_on = &allowed[usize::from(allowed[0] == 0 && allowed.len() > 1)..];
        let start = Instant::now();
        let advanced = matcher.advance(*rng.pick(goes_on));
        slowest = slowest.max(start.elapsed());
        totals.steps += 1;
        totals.largest_kib = totals.largest_kib.max(matcher.num_bytes() as u64 / 1024);
        if let Err(error) = advanced {
            assert_ne!(error, MatchError::Failed, "seed {}", attempt.seed);
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

/// One request.
struct Attempt<'a> {
    source: &'a GrammarSource,
    seed: u64,
    num_steps: usize,
}

impl Attempt<'_> {
    fn run(&self, compiler: &GrammarCompiler, vocab_size: usize, totals: &mut Totals) {
        let seed = self.seed;
        if std::env::var_os("PAGODA_FUZZ_VERBOSE").is_some() {
            println!("{seed}: {}", describe(self.source));
        }
        let start = Instant::now();
        let compiled = compiler.compile(self.source);
        totals.slowest_compile = totals.slowest_compile.max(start.elapsed());
        let grammar = match compiled {
            Ok(grammar) => grammar,
            Err(error) => {
                match error {
                    GrammarError::TooComplex { .. } | GrammarError::TooLarge { .. } => {
                        totals.too_complex += 1
                    }
                    GrammarError::TimedOut { .. } | GrammarError::Busy => totals.timed_out += 1,
                    GrammarError::Panicked => totals.panicked += 1,
                    _ => totals.refused += 1,
                }
                return;
            }
        };
        totals.compiled += 1;
        // Another process may have had the core: of several runs of the same steps the one with the fastest slowest counts.
        let runs = (0..5).map(|_| follow(&grammar, vocab_size, self, totals));
        let mut fastest = Duration::MAX;
        for slowest in runs {
            fastest = fastest.min(slowest);
            if fastest < STEP_LIMIT / 2 {
                break;
            }
        }
        assert!(fastest < STEP_LIMIT, "seed {seed}: a step takes {fastest:?}");
        totals.slowest_step = totals.slowest_step.max(fastest);
    }
}

#[test]
fn hostile_grammars_end_in_an_answer_or_an_error_and_cost_no_step_its_time() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let num_requests = number("PAGODA_FUZZ_REQUESTS").unwrap_or(1000);
    let first = number("PAGODA_FUZZ_FIRST").unwrap_or(0);
    let requests = Requests::new();
    let compiler = compiler(&requests.tokenizer);
    let vocab_size = requests.tokenizer.vocab_size();
    let memory_before = peak_memory_mib();
    for (index, source) in (0..).map_while(|index| Some((index, cruel_sources::cruel(index)?))) {
        let start = Instant::now();
        let mut of_one = Totals::default();
        let attempt = Attempt { source: &source, seed: index as u64, num_steps: NUM_CRUEL_STEPS };
        attempt.run(&compiler, vocab_size, &mut of_one);
        println!("cruel {index}: {:?}, {of_one:?}", start.elapsed());
        assert_eq!((of_one.timed_out, of_one.panicked), (0, 0), "cruel {index}");
    }
    let mut totals = Totals::default();
    for seed in first..first + num_requests {
        match requests.random(seed) {
            Some(source) => {
                let attempt = Attempt { source: &source, seed, num_steps: NUM_STEPS };
                attempt.run(&compiler, vocab_size, &mut totals);
            }
            None => totals.refused += 1,
        }
    }
    let grown = peak_memory_mib() - memory_before;
    println!("{num_requests} requests: {totals:?}, memory grew by {grown} MiB from {memory_before}");
    assert!(totals.compiled > num_requests / 10 && totals.refused > num_requests / 10, "{totals:?}");
    assert!(totals.steps > num_requests && totals.completed > num_requests / 50, "{totals:?}");
    assert_eq!((totals.timed_out, totals.panicked), (0, 0), "{totals:?}");
    assert!(grown < MEMORY_LIMIT_MIB, "{grown} MiB");
}

/// The most memory that this process has had.
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().split(' ').next()?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}
