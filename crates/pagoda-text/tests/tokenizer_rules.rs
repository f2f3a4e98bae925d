//! Special tokens, BOS, the exact bytes of tokens, and what happens with vocabularies and prompts made to do harm.

mod byte_vocab;

use std::sync::Arc;

use pagoda_text::{
    DetokenizeOptions, Detokenizer, EncodeOptions, GgufVocab, TextPosition, Tokenizer, TokenizerError,
    TokenizerLimits, TokenizerSource,
};
use serde_json::{Value, json};

fn from_gguf(vocab: GgufVocab) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::new(TokenizerSource::Gguf(vocab))
}

fn from_json(json: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::new(TokenizerSource::Json(json.to_string().into_bytes()))
}

#[test]
fn special_tokens_in_a_text_are_read_or_split_as_asked() {
    let tokenizer = byte_vocab::tokenizer(&["<|end|>"], &[]);
    let encode = |parse_special_tokens| {
        tokenizer
            .encode_with("a<|end|>", EncodeOptions { add_special_tokens: false, parse_special_tokens })
            .unwrap()
    };
    let byte_id = |byte: u8| 1 + u32::from(byte);
    assert_eq!(encode(true), [byte_id(b'a'), 0]);
    assert_eq!(encode(false), b"a<|end|>".map(byte_id));
    assert_eq!(tokenizer.decode(&encode(true), true), "a");
    assert_eq!(tokenizer.decode(&encode(true), false), "a<|end|>");
    assert_eq!(tokenizer.decode(&encode(false), true), "a<|end|>");
    assert_eq!(tokenizer.special_ids(), [0]);
    assert_eq!(tokenizer.count("a<|end|>", true).unwrap(), 2);
}

#[test]
fn bos_and_eos_are_inserted_where_the_file_or_the_custom_of_its_kind_says() {
    let encode = |pre: &str, add_bos_token, add_eos_token, add_special_tokens| {
        let mut vocab = byte_vocab::gguf(&["<s>", "</s>"], &[]);
        vocab.pre = pre.to_owned();
        (vocab.bos_token_id, vocab.eos_token_id) = (Some(0), Some(1));
        (vocab.add_bos_token, vocab.add_eos_token) = (add_bos_token, add_eos_token);
        from_gguf(vocab).unwrap().encode("ab", add_special_tokens).unwrap()
    };
    let ab = 258;
    assert_eq!(encode("gpt-2", None, None, true), [ab]);
    assert_eq!(encode("llama-bpe", None, None, true), [0, ab]);
    assert_eq!(encode("llama-bpe", Some(false), None, true), [ab]);
    assert_eq!(encode("smollm", Some(true), Some(true), true), [0, ab, 1]);
    assert_eq!(encode("smollm", Some(true), Some(true), false), [ab]);
}

#[test]
fn every_token_knows_its_exact_bytes() {
    let mut vocab = byte_vocab::gguf(&["<|é|>"], &[vec![0xF0, 0x9F], b" the".to_vec()]);
    vocab.tokens.extend(["  two ".into(), "[PAD]".into()]);
    vocab.token_types.extend([4, 5]);
    let tokenizer = from_gguf(vocab).unwrap();
    assert_eq!(tokenizer.token_bytes(0), "<|é|>".as_bytes());
    for byte in 0..=255u8 {
        assert_eq!(tokenizer.token_bytes(1 + u32::from(byte)), [byte]);
    }
    assert_eq!(tokenizer.token_bytes(257), [0xF0, 0x9F]);
    assert_eq!(tokenizer.token_text(257), "\u{FFFD}");
    assert_eq!(tokenizer.token_bytes(258), b" the");
    assert_eq!(tokenizer.token_bytes(260), b"  two ");
    assert_eq!(tokenizer.token_bytes(261), b"", "an unused entry stands for nothing");
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_bytes(262)), (262, &b""[..]));
    assert_eq!(tokenizer.encode("a  two b", false).unwrap(), [1 + u32::from(b'a'), 260, 1 + u32::from(b'b')]);
    assert!(!tokenizer.is_special(260));
}

#[test]
fn kinds_of_vocabulary_that_are_not_known_are_refused_by_name() {
    let with = |model: &str, pre: &str| {
        let vocab = GgufVocab { model: model.into(), pre: pre.into(), ..byte_vocab::gguf(&[], &[]) };
        from_gguf(vocab).map(|_| ()).unwrap_err()
    };
    assert_eq!(with("llama", ""), TokenizerError::UnsupportedModel { model: "llama".into() });
    assert_eq!(with("gpt2", "tekken"), TokenizerError::UnsupportedPreTokenizer { pre: "tekken".into() });
    assert_eq!(with("gpt2", ""), TokenizerError::UnsupportedPreTokenizer { pre: "".into() });
}

#[test]
fn a_gguf_vocabulary_that_contradicts_itself_is_malformed() {
    let good = || byte_vocab::gguf(&["<s>"], &[]);
    let broken = [
        GgufVocab { tokens: Vec::new(), token_types: Vec::new(), ..good() },
        GgufVocab { merges: Vec::new(), ..good() },
        GgufVocab { merges: vec!["ab".into()], ..good() },
        GgufVocab { merges: vec!["a ".into()], ..good() },
        GgufVocab { merges: vec!["a c".into()], ..good() },
        GgufVocab { merges: vec!["zz y".into()], ..good() },
        GgufVocab { token_types: vec![1], ..good() },
        GgufVocab { bos_token_id: Some(9999), ..good() },
    ];
    for vocab in broken {
        let error = from_gguf(vocab).map(|_| ()).unwrap_err();
        assert!(matches!(error, TokenizerError::Malformed { .. }), "{error:?}");
    }
    let doubled = GgufVocab { tokens: vec!["a".into(); 300], token_types: vec![1; 300], ..good() };
    assert!(from_gguf(doubled).is_err());
}

/// A `tokenizer.json` with a SentencePiece vocabulary as converters write it.
fn sentencepiece() -> Value {
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [
            {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": 0.9, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": {"<unk>": 0, "<s>": 1, "<0xC3>": 2, "<0xA9>": 3, "▁": 4, "a": 5, "b": 6, "▁a": 7, "▁ab": 8},
            "merges": [["▁", "a"], ["▁a", "b"]]},
    })
}

#[test]
fn a_sentencepiece_vocabulary_decodes_byte_by_byte_and_drops_only_the_first_space() {
    let tokenizer = Arc::new(from_json(&sentencepiece()).unwrap());
    let ids = tokenizer.encode("ab ab é", true).unwrap();
    assert_eq!(ids, [1, 8, 8, 4, 2, 3], "not truncated, not padded, no merge dropped");
    assert_eq!(tokenizer.token_bytes(2), [0xC3]);
    assert_eq!(tokenizer.token_bytes(8), b" ab");
    assert_eq!(tokenizer.decode(&ids, true), "ab ab é");
    assert_eq!(tokenizer.decode(&ids, false), "<s> ab ab é");
    let stream = |position| {
        let options = DetokenizeOptions { skip_special_tokens: true, position };
        let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer), options);
        ids.iter().map(|&id| detokenizer.push(id)).collect::<Vec<String>>()
    };
    assert_eq!(stream(TextPosition::Start), ["", "ab", " ab", " ", "", "é"]);
    assert_eq!(stream(TextPosition::Continuation), ["", " ab", " ab", " ", "", "é"]);
}

#[test]
fn a_byte_level_tokenizer_json_keeps_added_tokens_as_plain_text() {
    let tokenizer = from_json(&json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 3, "content": "<é>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": false}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": {"Ã": 0, "©": 1, "Ã©": 2}, "merges": ["Ã ©"]},
    }))
    .unwrap();
    assert_eq!(tokenizer.encode("é<é>", false).unwrap(), [2, 3]);
    assert_eq!(tokenizer.decode(&[0, 1, 3, 0], false), "é<é>\u{FFFD}");
    assert_eq!(tokenizer.token_bytes(3), "<é>".as_bytes());
}

/// `sentencepiece()` with the value at `pointer` replaced.
fn damaged(pointer: &str, value: Value) -> Value {
    let mut file = sentencepiece();
    *file.pointer_mut(pointer).expect("the pointer leads somewhere") = value;
    file
}

#[test]
fn a_file_made_to_do_harm_gives_an_error_or_a_tokenizer_that_survives() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !pagoda_text::is_within_panic_boundary() {
            print(info);
        }
    }));
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let files = [
        damaged("/model/vocab", json!({"a": u32::MAX})),
        damaged("/model/vocab", json!({"a": 4_000_000_000u32, "b": -1})),
        damaged("/model/vocab", json!({})),
        damaged("/model/merges", json!([["a", "zz"]])),
        damaged("/model/merges", json!(["a"])),
        damaged("/model/continuing_subword_prefix", json!("a very long prefix")),
        damaged("/model/unk_token", json!("absent")),
        damaged("/model/dropout", json!(17)),
        damaged("/added_tokens/0/id", json!(u32::MAX)),
        damaged("/added_tokens/0/content", json!("")),
        damaged("/pre_tokenizer", split("(")),
        damaged("/pre_tokenizer", split("")),
        damaged("/pre_tokenizer", split("(a+)+$")),
        damaged("/pre_tokenizer", split("(?=(a*)*b)")),
        damaged("/pre_tokenizer", split("a{0,1000}{0,1000}")),
        damaged("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        damaged("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        damaged("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        damaged("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "b"})),
        damaged("/post_processor/special_tokens", json!({})),
        damaged("/decoder", json!({"type": "Sequence", "decoders": [{"type": "Fuse"}]})),
        json!({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "?"}}),
        json!({"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}}),
        json!({"model": {"type": "Unigram", "unk_id": null, "vocab": []}}),
        json!([]),
        json!({"model": 1}),
    ];
    let prompts = ["", "a", "ab é", &"a".repeat(5_000), &"ab ".repeat(2_000), "\u{0}\u{FFFD}👩‍👩‍👧", "<s><s> <s"];
    let (mut num_refused, mut num_failed) = (0, 0);
    for file in &files {
        match from_json(file) {
            Err(_) => num_refused += 1,
            Ok(tokenizer) => {
                for prompt in prompts {
                    num_failed += usize::from(tokenizer.encode(prompt, true).is_err());
                }
            }
        }
    }
    println!("{} files: {num_refused} refused, {num_failed} prompts failed with the others", files.len());
    assert!(num_refused >= 10, "{num_refused}");
    for cut in [0, 1, 100, 500] {
        let text = sentencepiece().to_string();
        assert!(Tokenizer::new(TokenizerSource::Json(text.as_bytes()[..cut].to_vec())).is_err());
    }
    let deep = "[".repeat(100_000);
    assert!(Tokenizer::new(TokenizerSource::Json(deep.into_bytes())).is_err());
    assert!(Tokenizer::new(TokenizerSource::Json(vec![0xFF; 100])).is_err());
}

#[test]
fn files_and_texts_beyond_the_limits_are_refused_before_work_is_done() {
    let limits = TokenizerLimits { max_file_bytes: 10, max_text_bytes: 4 };
    let error =
        Tokenizer::with_limits(TokenizerSource::Json(vec![b' '; 11]), limits).map(|_| ()).unwrap_err();
    assert_eq!(error, TokenizerError::FileTooLarge { num_bytes: 11, limit_bytes: 10 });
    let tokenizer =
        Tokenizer::with_limits(TokenizerSource::Gguf(byte_vocab::gguf(&[], &[])), limits).unwrap();
    assert_eq!(tokenizer.encode("abab", false).unwrap(), [256, 256]);
    let error = TokenizerError::TextTooLarge { num_bytes: 5, limit_bytes: 4 };
    assert_eq!(tokenizer.encode("ababa", false), Err(error));
}
