//! What a grammar costs per step: `cargo run --release -p pagoda-text --example mask_cost -- MODEL.gguf`.
//!
//! Follows random walks of grammars over the model's real vocabulary and prints a table: the time per step of the masks and of
//! taking the tokens, for one sequence and for 32 in the same step, the median and the worst of 400 steps. The masks of 32
//! are filled by one thread and by two, as the engine does.

#[path = "../tests/gguf_file/mod.rs"]
mod gguf_file;
#[path = "../tests/rng/mod.rs"]
mod rng;
#[allow(dead_code, reason = "a shared list of schemas")]
#[path = "../tests/schema_shapes/mod.rs"]
mod schema_shapes;
#[path = "../tests/tool_schemas/mod.rs"]
mod tool_schemas;
#[path = "../tests/tool_templates/mod.rs"]
mod tool_templates;

use std::path::Path;
use std::time::{Duration, Instant};

use pagoda_text::{
    ChatTemplate, Grammar, GrammarCompiler, GrammarOptions, GrammarSource, Matcher, Otherwise, SpecialTokens,
    Tokenizer, TokenizerSource, Tool, ToolGrammar, ToolSet, ToolSupport,
};
use rng::Rng;

/// Steps of each measurement.
const NUM_STEPS: usize = 400;
/// A date, a time and an address: nothing of it is forced for long.
const REGEX: &str = r"20[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]Z [a-z0-9._]{1,64}@[a-z0-9-]{1,32}\.(org|net|com)";

fn main() {
    let path = std::env::args().nth(1).expect("usage: mask_cost MODEL.gguf");
    let vocab = gguf_file::vocab(Path::new(&path));
    let eos_ids: Vec<u32> = vocab.eos_token_id.into_iter().collect();
    let tokenizer = Tokenizer::new(TokenizerSource::Gguf(vocab)).expect("the vocabulary is supported");
    let start = Instant::now();
    let options = GrammarOptions { eos_ids: eos_ids.clone(), ..GrammarOptions::default() };
    let compiler = GrammarCompiler::new(&tokenizer, options).expect("the vocabulary can be laid out");
    println!("vocabulary of {} tokens laid out in {:.0?}\n", tokenizer.vocab_size(), start.elapsed());
    println!(
        "| grammar | compiled | sequences, threads | masks: median | worst | tokens: median | worst |\n|---|---|---|---|---|---|---|"
    );
    let mut shapes = schema_shapes::shapes();
    let large = shapes.pop().expect("there are several");
    let (_, medium) =
        tool_schemas::schemas().into_iter().find(|(name, _)| name == "plan").expect("it is there");
    let call = GrammarSource::Lark(forced_call(&tokenizer, &eos_ids, &compiler));
    for (name, source) in [
        ("`json_object`", GrammarSource::JsonObject),
        ("a schema of 774 bytes", GrammarSource::JsonSchema(medium)),
        ("a schema of 25,000 characters", GrammarSource::JsonSchema(large.1)),
        ("a call that must come, of 20 tools", call),
        ("a regex", GrammarSource::Regex(REGEX.to_owned())),
    ] {
        let start = Instant::now();
        let grammar = compiler.compile(&source).expect("the grammar can be followed");
        let compile = start.elapsed();
        for (num_sequences, num_threads) in [(1, 1), (32, 1), (32, 2)] {
            let cost = measure(&grammar, &tokenizer, num_sequences, num_threads);
            println!("| {name} | {compile:.1?} | {num_sequences}, {num_threads} | {cost} |");
        }
    }
}

/// The grammar of an answer that must call one of the twenty tools, several times if it likes.
fn forced_call(tokenizer: &Tokenizer, eos_ids: &[u32], compiler: &GrammarCompiler) -> String {
    let template = ChatTemplate::new(&tool_templates::hermes(), SpecialTokens::default());
    let support = ToolSupport::probe(&template.expect("the template is well-formed"));
    let tool = |(name, schema)| Tool { name, parameters: Some(schema), is_strict: true };
    let grammar = ToolGrammar {
        format: support.format(),
        tools: &ToolSet::new(tool_schemas::schemas().into_iter().map(tool).collect()),
        only: None,
        has_several_calls: true,
        otherwise: Otherwise::Nothing,
        may_lead_with_space: false,
        tokenizer,
        stop_ids: eos_ids,
        bounds: &compiler.bounds_within(1024),
    };
    grammar.to_lark().expect("the schemas can be followed")
}

/// Times per step.
struct Cost {
    masks: Vec<Duration>,
    tokens: Vec<Duration>,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let median_and_worst = |times: &[Duration]| {
            let mut sorted = times.to_vec();
            sorted.sort();
            (sorted[sorted.len() / 2], sorted[sorted.len() - 1])
        };
        let (masks, tokens) = (median_and_worst(&self.masks), median_and_worst(&self.tokens));
        write!(f, "{:.1?} | {:.1?} | {:.1?} | {:.1?}", masks.0, masks.1, tokens.0, tokens.1)
    }
}

/// Steps of `num_sequences` walks at once; a walk that ends starts anew.
fn measure(grammar: &Grammar, tokenizer: &Tokenizer, num_sequences: usize, num_threads: usize) -> Cost {
    let mut rng = Rng(3);
    let num_words = tokenizer.vocab_size().div_ceil(32);
    let mut walks: Vec<(Matcher, Vec<u32>)> =
        (0..num_sequences).map(|_| (grammar.matcher(), vec![0; num_words])).collect();
    let mut cost = Cost { masks: Vec::new(), tokens: Vec::new() };
    for _ in 0..NUM_STEPS {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let mut parts = walks.chunks_mut(num_sequences.div_ceil(num_threads));
            let own = parts.next();
            for part in parts {
                scope.spawn(move || part.iter_mut().for_each(fill));
            }
            own.into_iter().flatten().for_each(fill);
        });
        cost.masks.push(start.elapsed());
        let chosen: Vec<u32> = walks.iter().map(|(_, bits)| choose(bits, &mut rng)).collect();
        let start = Instant::now();
        for ((matcher, _), id) in walks.iter_mut().zip(chosen) {
            matcher.advance(id).expect("the mask allows it");
        }
        cost.tokens.push(start.elapsed());
        for (matcher, _) in walks.iter_mut().filter(|(matcher, _)| matcher.is_complete()) {
            *matcher = grammar.matcher();
        }
    }
    cost
}

fn fill((matcher, bits): &mut (Matcher, Vec<u32>)) {
    matcher.fill_mask(bits).expect("the grammar goes on");
}

fn choose(bits: &[u32], rng: &mut Rng) -> u32 {
    let is_set = |id: &u32| bits[*id as usize / 32] >> (id % 32) & 1 == 1;
    let allowed: Vec<u32> = (0..32 * bits.len() as u32).filter(is_set).collect();
    *rng.pick(&allowed)
}
