//! The real embedding model against vectors of sentence-transformers itself (scripts/export_embedding_golden.py), and
//! against itself in other company.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pagoda_model::{Encoder, ModelError};
use serde_json::Value;

/// The encoder, or `None` (after saying so) where it has not been fetched. `REQUIRE_ALL=1` makes that a failure.
fn encoder() -> Option<Encoder> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let in_cache = cache.map(|cache| cache.join("pagoda/models/all-minilm-l6-v2"));
    let candidates = [std::env::var_os("PAGODA_TEST_ENCODER").map(PathBuf::from), in_cache];
    match candidates.into_iter().flatten().find(|path| path.is_dir()) {
        Some(folder) => Some(Encoder::load(folder, 2).unwrap()),
        None => {
            let why = "the embedding model is not in the cache (pagoda pull all-minilm-l6-v2)";
            assert!(std::env::var("REQUIRE_ALL").as_deref() != Ok("1"), "REQUIRE_ALL=1, but {why}");
            println!("skipped: {why}");
            None
        }
    }
}

struct Golden {
    token_ids: Vec<u32>,
    vector: Vec<f32>,
}

fn goldens() -> Vec<Golden> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/all-minilm-l6-v2/golden.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let texts = golden["texts"].as_array().unwrap().iter();
    texts
        .map(|text| {
            let bytes = BASE64_STANDARD.decode(text["vector"].as_str().unwrap()).unwrap();
            let numbers = bytes.as_chunks::<4>().0.iter();
            let ids = text["token_ids"].as_array().unwrap().iter();
            Golden {
                token_ids: ids.map(|id| id.as_u64().unwrap() as u32).collect(),
                vector: numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            }
        })
        .collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    assert_eq!(a.len(), b.len());
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn vectors_are_those_of_sentence_transformers_alone_and_together() {
    let Some(encoder) = encoder() else { return };
    assert_eq!((encoder.width(), encoder.max_len(), encoder.vocab_size()), (384, 256, 30_522));
    let goldens = goldens();
    let together: Vec<Vec<u32>> = goldens.iter().map(|golden| golden.token_ids.clone()).collect();
    let together = encoder.embed(&together).unwrap();
    let (mut worst_cosine, mut worst_company) = (1.0, 0f32);
    for (golden, in_company) in goldens.iter().zip(&together) {
        let alone = encoder.embed(std::slice::from_ref(&golden.token_ids)).unwrap().remove(0);
        let norm: f32 = alone.iter().map(|value| value * value).sum();
        assert!((norm - 1.0).abs() < 1e-5, "length {norm}");
        worst_cosine =
            cosine(&alone, &golden.vector).min(cosine(in_company, &golden.vector)).min(worst_cosine);
        worst_company = worst_company.max(largest_difference(&alone, in_company));
    }
    println!("lowest cosine {worst_cosine}, largest difference that company makes {worst_company:e}");
    assert!(worst_cosine > 0.9999, "cosine {worst_cosine}");
    assert!(worst_company < 1e-5, "company changes a vector by {worst_company}");
    // The vectors differ from each other, so that the cosines above mean something.
    assert!(cosine(&together[1], &together[7]) < 0.5);
    assert!(cosine(&together[1], &together[2]) > 0.7);
}

#[test]
fn padding_and_neighbours_change_a_vector_by_no_more_than_rounding() {
    let Some(encoder) = encoder() else { return };
    let longest = goldens().pop().unwrap().token_ids;
    // Of lengths that are padded to each other's, from one token to a full batch.
    let sequences: Vec<Vec<u32>> = [1, 2, 3, 57, 58, 61, 64, 118, 120, 127, 128, 128, 250, 256]
        .into_iter()
        .map(|len| longest[..len].to_vec())
        .collect();
    let together = encoder.embed(&sequences).unwrap();
    let mut worst = 0f32;
    for (sequence, in_company) in sequences.iter().zip(&together) {
        let alone = encoder.embed(std::slice::from_ref(sequence)).unwrap().remove(0);
        worst = worst.max(largest_difference(&alone, in_company));
    }
    println!("largest difference that padding and company make: {worst:e}");
    assert!(worst < 1e-5, "company changes a vector by {worst}");
}

#[test]
fn what_cannot_be_embedded_is_an_error_and_nothing_is_nothing() {
    let Some(encoder) = encoder() else { return };
    assert!(encoder.embed(&[]).unwrap().is_empty());
    for bad in [vec![], vec![101; 257], vec![101, 30_522, 102]] {
        let error = encoder.embed(&[vec![101, 102], bad]).unwrap_err();
        assert!(matches!(error, ModelError::Encoder(_)), "{error}");
    }
}

#[test]
fn a_folder_that_is_no_encoder_is_named() {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny");
    let error = Encoder::load(tiny, 1).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let error = Encoder::load(folder.path(), 1).unwrap_err().to_string();
    assert!(error.contains("has no config.json"), "{error}");
    let config = r#"{"vocab_size": 8, "hidden_size": 6, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 4, "hidden_act": "gelu", "hidden_dropout_prob": 0, "max_position_embeddings": 8,
        "type_vocab_size": 2, "initializer_range": 0, "layer_norm_eps": 1e-12, "pad_token_id": 0}"#;
    let refused = |config: &str| {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Encoder::load(folder.path(), 1).unwrap_err().to_string()
    };
    assert!(refused(config).contains("num_attention_heads"));
    let valid = config.replace("\"hidden_size\": 6", "\"hidden_size\": 8");
    let no_padding = valid.replace("\"pad_token_id\": 0", "\"pad_token_id\": 8");
    assert!(refused(&no_padding).contains("pad_token_id"));
    assert!(refused(&valid).contains("tokenizer.json"));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    std::fs::write(folder.path().join("model.safetensors"), "no weights").unwrap();
    assert!(refused(&valid).contains("model.safetensors"));
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    std::fs::write(folder.path().join("1_Pooling/config.json"), r#"{"pooling_mode_cls_token": true}"#)
        .unwrap();
    assert!(refused(&valid).contains("mean"));
}
