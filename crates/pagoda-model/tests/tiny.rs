//! `models/tiny` is what the generator writes, stays below 1 MB, and comes in every weight format.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use pagoda_backend::WeightFormat;
use pagoda_model::tiny::{self, TinyModel};
use pagoda_model::{Checkpoint, CheckpointFormat};

fn committed() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny"))
}

#[test]
fn the_committed_weights_are_what_the_generator_writes() {
    let folder = tempfile::tempdir().unwrap();
    tiny::write_safetensors(folder.path(), WeightFormat::F32).unwrap();
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let written = std::fs::read(folder.path().join(name)).unwrap();
        let kept = std::fs::read(committed().join(name)).unwrap_or_default();
        assert!(
            written == kept,
            "{name} differs; copy {} to models/tiny",
            folder.keep().join(name).display()
        );
    }
}

#[test]
fn the_committed_folder_stays_below_a_megabyte() {
    let files = std::fs::read_dir(committed()).unwrap();
    let num_bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(num_bytes < 1_000_000, "{num_bytes} bytes");
}

#[test]
fn every_gguf_opens_with_the_same_configuration_and_vocabulary_as_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let expected = Checkpoint::open(committed()).unwrap();
    let ids: Vec<u32> = vec![0, 2];
    assert_eq!(expected.text_assets().stop_token_ids, ids);
    assert_eq!(expected.generation_defaults().temperature, Some(0.8));
    for format in WeightFormat::ALL {
        let path = tiny::write_gguf(folder.path(), format).unwrap();
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.format(), CheckpointFormat::Gguf);
        assert_eq!(checkpoint.config(), expected.config(), "{format}");
        let (assets, expected) = (checkpoint.text_assets(), expected.text_assets());
        assert_eq!(assets.stop_token_ids, ids);
        assert_eq!(assets.num_token_ids, expected.num_token_ids);
        assert_eq!(assets.chat_templates, expected.chat_templates);
        assert_eq!(assets.bos_token, expected.bos_token);
        let tokenizer = assets.gguf_tokenizer.unwrap();
        assert_eq!((tokenizer.tokens.len(), tokenizer.merges.len()), (512, 253));
        assert_eq!(tokenizer.pre, "smollm");
    }
}

#[test]
fn untied_and_scaled_variants_open_from_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel { tied: false, llama3_rope: true, ..TinyModel::default() };
    let from_gguf = Checkpoint::open(model.write_gguf(folder.path(), WeightFormat::F32).unwrap()).unwrap();
    let from_folder =
        Checkpoint::open(model.write_safetensors(folder.path(), WeightFormat::F32, 1).unwrap()).unwrap();
    assert!(!from_gguf.config().tie_word_embeddings);
    let frequencies = |checkpoint: &Checkpoint| checkpoint.config().rope.inverse_frequencies();
    for (a, b) in frequencies(&from_gguf).iter().zip(frequencies(&from_folder)) {
        assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
    }
}
