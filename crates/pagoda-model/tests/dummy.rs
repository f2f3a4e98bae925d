//! Random weights for the shape of a configuration: as many as the real model has, the same for the same seed, and numbers
//! that a decoder can run on.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{LIMITS, Session};
use pagoda_model::{Checkpoint, ModelRunner};

fn config(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/configs")).join(name)
}

#[test]
fn the_bench_configurations_have_the_published_numbers_of_parameters() {
    for (name, num_parameters, num_vector_parameters) in [
        ("llama-3.1-8b.json", 8_030_261_248u64, 65 * 4096),
        ("llama-3.2-1b.json", 1_235_814_400, 33 * 2048),
        ("qwen3-0.6b.json", 596_049_920, 57 * 1024 + 28 * 2 * 128),
        ("qwen2.5-0.5b.json", 494_032_768, 49 * 896 + 24 * (896 + 2 * 128)),
    ] {
        let checkpoint = Checkpoint::open_dummy(config(name), 0).unwrap();
        // Two bytes for a weight, four for a number of a norm or a bias.
        assert_eq!(checkpoint.stored_weight_bytes(), 2 * (num_parameters + num_vector_parameters), "{name}");
        assert_eq!(checkpoint.num_choosable_tokens(), checkpoint.config().vocab_size);
    }
}

#[test]
fn a_seed_gives_the_same_words_and_another_seed_others() {
    let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny"));
    let answer = |path: &Path, seed| {
        let checkpoint = Checkpoint::open_dummy(path, seed).unwrap();
        let runner = ModelRunner::load(&checkpoint, common::backend(), LIMITS).unwrap();
        Session::new(runner, LIMITS).greedy(&[1, 300, 17, 450, 8, 99], 32)
    };
    let first = answer(tiny, 1);
    assert_eq!(first, answer(&tiny.join("config.json"), 1));
    assert_ne!(first, answer(tiny, 2));
    let mut distinct = first.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 8, "{first:?}");
}

#[test]
fn a_folder_keeps_its_tokenizer_and_a_file_alone_gets_one() {
    let tiny = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny"));
    let folder = Checkpoint::open_dummy(tiny, 0).unwrap().text_assets();
    assert_eq!(folder.tokenizer_json, Some(std::fs::read(tiny.join("tokenizer.json")).unwrap()));
    let file = Checkpoint::open_dummy(tiny.join("config.json"), 0).unwrap().text_assets();
    assert!(file.tokenizer_json.is_some_and(|json| Some(json) != folder.tokenizer_json));
    assert_eq!((file.stop_token_ids, file.num_token_ids), (vec![2], 512));
    assert!(Checkpoint::open_dummy(tiny.join("absent.json"), 0).is_err());
}
