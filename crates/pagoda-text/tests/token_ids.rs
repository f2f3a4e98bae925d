//! Token ids are those of independent implementations, and texts survive the way there and back.

mod gguf_file;
mod golden_ids;
mod rng;
mod test_cache;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pagoda_text::{GgufVocab, Tokenizer, TokenizerSource};
use rng::Rng;
use serde_json::{Value, json};

/// The SmolLM2 file: `PAGODA_TEST_MODEL`, else the model cache.
fn smollm2_vocab() -> Option<GgufVocab> {
    let cached = || test_cache::path("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("PAGODA_TEST_MODEL").map_or_else(cached, PathBuf::from);
    path.exists().then(|| gguf_file::vocab(&path))
}

const NO_MODEL: &str = "SmolLM2 is neither in the model cache nor named by PAGODA_TEST_MODEL";

fn tokenizer(vocab: &GgufVocab, pre: &str) -> Tokenizer {
    let vocab = GgufVocab { pre: pre.to_owned(), ..vocab.clone() };
    Tokenizer::new(TokenizerSource::Gguf(vocab)).expect("the vocabulary is well-formed")
}

/// Texts that put scripts, spaces, digits, marks and special tokens side by side.
fn random_texts(count: usize) -> Vec<String> {
    let pieces: &[&str] = &[
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "1",
        "23",
        "٣",
        "½",
        "²",
        "Ⅳ",
        "a",
        "The",
        " dog",
        "ing",
        "É",
        "e\u{301}",
        "\u{327}",
        "日本",
        "語",
        "한",
        "नमस्ते",
        "мир",
        "العالم",
        "👩‍👩‍👧",
        "🏳️‍🌈",
        "'s",
        "'LL",
        "’ve",
        "'",
        "\"",
        ".",
        "...",
        "!?",
        "_",
        "-",
        "/",
        "{\"",
        "}",
        "<|im_end|>",
        "<|im_",
        "\u{0}",
        "\u{FFFD}",
        "ſ",
        "İ",
        "ǅ",
        "\u{1F}",
        "\u{85}",
        "\u{200B}",
    ];
    let mut rng = Rng(41);
    let mut text = || (0..=rng.below(14)).map(|_| *rng.pick(pieces)).collect();
    (0..count).map(|_| text()).collect()
}

#[test]
fn smollm2_gives_the_golden_ids() {
    let Some(vocab) = smollm2_vocab() else { return test_cache::skip(NO_MODEL) };
    let tokenizer = tokenizer(&vocab, &vocab.pre);
    for (text, ids) in golden_ids::SMOLLM2 {
        assert_eq!(tokenizer.encode(text, true).unwrap(), *ids, "{text:?}");
        assert_eq!(tokenizer.decode(ids, false), *text);
    }
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(17));
}

#[test]
fn decoding_gives_back_the_text_that_was_encoded() {
    let Some(vocab) = smollm2_vocab() else { return test_cache::skip(NO_MODEL) };
    for pre in ["smollm", "gpt-2", "llama-bpe"] {
        let tokenizer = tokenizer(&vocab, pre);
        for text in random_texts(5_000) {
            let ids = tokenizer.encode(&text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{pre}");
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
            assert_eq!(bytes, text.as_bytes(), "{pre}");
        }
    }
}

/// What the plain BPE gives for `texts` with the same vocabulary and each kind of pre-tokenizer.
fn ids_by_oracle(vocab: &GgufVocab, kinds: &[&str], texts: &[String]) -> Value {
    let job = json!({
        "tokens": vocab.tokens, "token_types": vocab.token_types, "merges": vocab.merges, "kinds": kinds, "texts": texts,
    });
    let mut python = Command::new(test_cache::python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bpe_oracle.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python starts");
    python
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(job.to_string().as_bytes())
        .expect("python reads its job");
    let output = python.wait_with_output().expect("python ends");
    assert!(output.status.success(), "python failed: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("python answers in JSON")
}

#[test]
fn every_kind_of_pre_tokenizer_gives_the_ids_of_a_plain_bpe() {
    let Some(vocab) = smollm2_vocab().filter(|_| test_cache::python().exists()) else {
        return test_cache::skip(
            "no Python environment in the cache (run scripts/setup_tests.sh) or no SmolLM2",
        );
    };
    let mut texts = random_texts(2_000);
    texts.extend(golden_ids::SMOLLM2.iter().map(|(text, _)| (*text).to_owned()));
    let kinds = ["gpt-2", "smollm", "llama-bpe", "qwen2"];
    let expected = ids_by_oracle(&vocab, &kinds, &texts);
    for kind in kinds {
        let tokenizer = tokenizer(&GgufVocab { add_bos_token: Some(false), ..vocab.clone() }, kind);
        for (text, expected) in texts.iter().zip(expected[kind].as_array().expect("one list per kind")) {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(json!(ids), *expected, "{kind}: {text:?}");
        }
    }
}
