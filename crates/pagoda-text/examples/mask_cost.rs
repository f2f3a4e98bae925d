//! What a grammar costs per step: `cargo run --release -p pagoda-text --example mask_cost -- MODEL.gguf`.
//!
//! Follows random walks of several schemas over the model's real vocabulary and prints the time of a mask and of an advance,
//! for one sequence and for 32 in the same step, filled by one thread and by two as the engine does.

#[path = "../tests/gguf_file/mod.rs"]
mod gguf_file;
#[path = "../tests/rng/mod.rs"]
mod rng;
#[allow(dead_code, reason = "a shared list of schemas")]
#[path = "../tests/schema_shapes/mod.rs"]
mod schema_shapes;

use std::path::Path;
use std::time::{Duration, Instant};

use pagoda_text::{
    Grammar, GrammarCompiler, GrammarOptions, GrammarSource, Matcher, Tokenizer, TokenizerSource,
};
use rng::Rng;

/// Steps of each measurement.
const NUM_STEPS: usize = 400;

fn main() {
    let path = std::env::args().nth(1).expect("usage: mask_cost MODEL.gguf");
    let vocab = gguf_file::vocab(Path::new(&path));
    let eos_ids = vocab.eos_token_id.into_iter().collect();
    let tokenizer = Tokenizer::new(TokenizerSource::Gguf(vocab)).expect("the vocabulary is supported");
    let start = Instant::now();
    let options = GrammarOptions { eos_ids, ..GrammarOptions::default() };
    let compiler = GrammarCompiler::new(&tokenizer, options).expect("the vocabulary can be laid out");
    println!("vocabulary of {} tokens laid out in {:?}", tokenizer.vocab_size(), start.elapsed());
    let shapes = schema_shapes::shapes();
    let sources = shapes.into_iter().map(|(name, schema)| (name, GrammarSource::JsonSchema(schema)));
    for (name, source) in sources.chain([("json_object", GrammarSource::JsonObject)]) {
        let start = Instant::now();
        let grammar = compiler.compile(&source).expect("the schema can be followed");
        let compile = start.elapsed();
        let start = Instant::now();
        drop(grammar.matcher());
        let fork = start.elapsed();
        let one = measure(&grammar, &tokenizer, 1, 1);
        let many = measure(&grammar, &tokenizer, 32, 1);
        let pool = measure(&grammar, &tokenizer, 32, 2);
        println!("{name}: compile {compile:?}, matcher {fork:?}");
        println!("  batch 1: {one}");
        println!("  batch 32: {many}");
        println!("  batch 32, 2 threads: {pool}");
    }
}

/// Mean and largest time per step.
struct Cost {
    mask: Vec<Duration>,
    advance: Vec<Duration>,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mean = |times: &[Duration]| times.iter().sum::<Duration>() / times.len() as u32;
        let p99 = |times: &[Duration]| {
            let mut sorted = times.to_vec();
            sorted.sort();
            sorted[sorted.len() * 99 / 100]
        };
        write!(
            f,
            "mask {:?} mean, {:?} p99; advance {:?} mean, {:?} p99",
            mean(&self.mask),
            p99(&self.mask),
            mean(&self.advance),
            p99(&self.advance)
        )
    }
}

/// Steps of `num_sequences` walks at once; a walk that ends starts anew.
fn measure(grammar: &Grammar, tokenizer: &Tokenizer, num_sequences: usize, num_threads: usize) -> Cost {
    let mut rng = Rng(3);
    let num_words = tokenizer.vocab_size().div_ceil(32);
    let mut walks: Vec<(Matcher, Vec<u32>)> =
        (0..num_sequences).map(|_| (grammar.matcher(), vec![0; num_words])).collect();
    let mut cost = Cost { mask: Vec::new(), advance: Vec::new() };
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
        cost.mask.push(start.elapsed());
        let chosen: Vec<u32> = walks.iter().map(|(_, bits)| choose(bits, &mut rng)).collect();
        let start = Instant::now();
        for ((matcher, _), id) in walks.iter_mut().zip(chosen) {
            matcher.advance(id).expect("the mask allows it");
        }
        cost.advance.push(start.elapsed());
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
