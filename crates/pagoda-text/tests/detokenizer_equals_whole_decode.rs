//! However a text is cut into tokens, the deltas put together are the decode of the whole, and no delta runs ahead of
//! what is certain.

mod byte_vocab;
mod rng;

use std::collections::HashMap;
use std::sync::Arc;

use pagoda_text::{DetokenizeOptions, Detokenizer, TextPosition, Tokenizer};
use rng::Rng;

/// What the texts are made of: each line a way to go wrong within a character or a cluster of them.
const PARTS: &[&[u8]] = &[
    "plain text, 12 345. ".as_bytes(),
    "é ü ß ñ ".as_bytes(),
    "日本語のテキスト、漢字。".as_bytes(),
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽".as_bytes(),
    "e\u{301}\u{327}o\u{308}\u{1ab0}".as_bytes(),
    "\u{FFFD}\u{FEFF}\u{10FFFF}\u{0}\r\n".as_bytes(),
    // Cut characters, lone continuation bytes, overlong forms, surrogates, values beyond Unicode.
    b"\xF0\x9F\x91",
    b"\xE6\x97",
    b"\x80\xBF\xBF",
    b"\xC0\xAF\xE0\x80\x80",
    b"\xED\xA0\x80\xED\xBF\xBF",
    b"\xF5\x80\x80\x80\xFF\xFE",
    b"\xF0\x9F\x91\xF0\x9F\x91\xA9\xE6\x97\xA5\xC3",
];

const SPECIAL: &[&str] = &["<|end|>", "<|im_start|>", "<｜特別｜>"];

struct Bench {
    tokenizer: Arc<Tokenizer>,
    /// Token ids by their bytes.
    ids: HashMap<Vec<u8>, u32>,
}

impl Bench {
    /// Tokens are the single bytes and every piece of two to six bytes that the parts hold, so that characters are cut
    /// at each of their bytes.
    fn new() -> Self {
        let mut words: Vec<Vec<u8>> = Vec::new();
        for part in PARTS {
            words.extend((2..=6).flat_map(|len| part.windows(len)).map(<[u8]>::to_vec));
        }
        words.sort();
        words.dedup();
        let tokenizer = Arc::new(byte_vocab::tokenizer(SPECIAL, &words));
        let first_word = SPECIAL.len() as u32;
        let ids =
            (first_word..tokenizer.vocab_size() as u32).map(|id| (tokenizer.token_bytes(id).to_vec(), id));
        Self { ids: ids.collect(), tokenizer }
    }

    /// A random text as a random list of the tokens that spell it, special ones between.
    fn random_tokens(&self, rng: &mut Rng) -> Vec<u32> {
        let mut ids = Vec::new();
        for _ in 0..=rng.below(3) {
            let part = rng.pick(PARTS);
            let mut rest = &part[rng.below(part.len())..];
            while !rest.is_empty() {
                if rng.below(24) == 0 {
                    ids.push(rng.below(SPECIAL.len()) as u32);
                }
                let len = (1 + rng.below(6)).min(rest.len());
                let (word, behind) = rest.split_at(len);
                ids.push(self.ids[word]);
                rest = behind;
            }
        }
        ids
    }

    /// The definition: the tokens' bytes, read as UTF-8.
    fn whole(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special_tokens && id < SPECIAL.len() as u32));
        let bytes: Vec<u8> = kept.flat_map(|&id| self.tokenizer.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[test]
fn the_deltas_of_a_million_splits_are_the_whole_decode() {
    let bench = Bench::new();
    let mut rng = Rng(17);
    for case in 0..1_000_000 {
        let ids = bench.random_tokens(&mut rng);
        let skip_special_tokens = case % 2 == 0;
        let options = DetokenizeOptions { skip_special_tokens, position: TextPosition::Start };
        let mut detokenizer = Detokenizer::new(Arc::clone(&bench.tokenizer), options);
        let mut streamed = String::new();
        for (index, &id) in ids.iter().enumerate() {
            detokenizer.push_into(id, &mut streamed);
            if case % 64 == 0 {
                // What is held back can be no more than one character that is not complete.
                let so_far = bench.whole(&ids[..=index], skip_special_tokens);
                let held = so_far.strip_prefix(&streamed).expect("a delta ran ahead of the text");
                assert!(held.is_empty() || held == "\u{FFFD}", "case {case}: {held:?} held back");
            }
        }
        streamed += &detokenizer.finish();
        assert_eq!(streamed, bench.whole(&ids, skip_special_tokens), "case {case}, tokens {ids:?}");
        if case % 16 == 0 {
            assert_eq!(streamed, bench.tokenizer.decode(&ids, skip_special_tokens), "case {case}");
        }
    }
}

#[test]
fn an_invalid_run_is_flushed_as_soon_as_it_cannot_become_a_character() {
    let bench = Bench::new();
    let id = |bytes: &[u8]| bench.ids[bytes];
    let mut detokenizer = Detokenizer::new(Arc::clone(&bench.tokenizer), DetokenizeOptions::default());
    let pushes: [(&[u8], &str); 7] = [
        (b"\xF0\x9F", ""),
        (b"\x91", ""),
        (b"\xF0", "\u{FFFD}"),
        (b"\x9F\x91", ""),
        (b"\xA9", "👩"),
        (b"\x80", "\u{FFFD}"),
        (b"\xE6", ""),
    ];
    for (bytes, text) in pushes {
        assert_eq!(detokenizer.push(id(bytes)), text, "after {bytes:x?}");
    }
    assert_eq!(detokenizer.finish(), "\u{FFFD}");
    assert_eq!(detokenizer.finish(), "");
}

/// Prints the cost per token; the bound is far above it and holds on any machine.
#[test]
fn the_cost_of_a_token_does_not_grow_with_the_text() {
    let bench = Bench::new();
    let mut rng = Rng(3);
    let ids: Vec<u32> =
        std::iter::repeat_with(|| bench.random_tokens(&mut rng)).flatten().take(400_000).collect();
    let mut detokenizer = Detokenizer::new(Arc::clone(&bench.tokenizer), DetokenizeOptions::default());
    let mut nanos = Vec::new();
    for chunk in ids.chunks(100_000) {
        let start = std::time::Instant::now();
        let num_bytes: usize = chunk.iter().map(|&id| detokenizer.push(id).len()).sum();
        assert!(num_bytes > chunk.len());
        nanos.push(start.elapsed().as_nanos() as usize / chunk.len());
    }
    println!("ns per token in each quarter of {} tokens: {nanos:?}", ids.len());
    assert!(nanos[3] < 10 * nanos[0] + 1_000, "{nanos:?}");
}
