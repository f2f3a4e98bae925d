//! A model gives the same numbers however it is stored: every format equals its own dequantised weights, and how a
//! checkpoint is cut into files changes no bit.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use common::Session;
use pagoda_backend::WeightFormat;
use pagoda_engine::TokenLogprobs;
use pagoda_model::tiny::{self, TinyModel};

const PROMPT: [u32; 40] = [
    1, 300, 17, 17, 450, 8, 99, 203, 511, 64, 5, 260, 33, 33, 33, 482, 0, 2, 150, 270, 71, 404, 12, 350, 9,
    9, 288, 301, 77, 145, 30, 258, 450, 111, 365, 42, 420, 7, 190, 3,
];

fn logprobs(path: &Path) -> Vec<TokenLogprobs> {
    Session::open(path).prompt_logprobs(&PROMPT, 512)
}

fn largest_difference(a: &[TokenLogprobs], b: &[TokenLogprobs]) -> f32 {
    assert_eq!((a.len(), b.len()), (PROMPT.len() - 1, PROMPT.len() - 1));
    let mut largest = 0.0f32;
    for (a, b) in a.iter().zip(b) {
        let by_token: HashMap<u32, f32> = b.top.iter().copied().collect();
        assert_eq!((a.top.len(), by_token.len()), (512, 512));
        for (token, logprob) in &a.top {
            largest = largest.max((logprob - by_token[token]).abs());
        }
    }
    largest
}

/// The GGUF's numbers as an f32 safetensors folder.
fn write_dequantized(gguf: &Path, folder: &Path, model: TinyModel) {
    model.write_safetensors(folder, WeightFormat::F32, 1).unwrap();
    let tensors: HashMap<String, Tensor> =
        common::dequantized(gguf).into_iter().filter(|(name, _)| name != "rope_freqs.weight").collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

#[test]
fn every_weight_format_gives_the_logits_of_its_dequantised_weights() {
    let folder = tempfile::tempdir().unwrap();
    let full = logprobs(&tiny::write_gguf(folder.path(), WeightFormat::F32).unwrap());
    for format in WeightFormat::ALL {
        let gguf = tiny::write_gguf(folder.path(), format).unwrap();
        let dequantized = folder.path().join(format.to_string());
        write_dequantized(&gguf, &dequantized, TinyModel::default());
        let stored = logprobs(&gguf);
        let difference = largest_difference(&stored, &logprobs(&dequantized));
        assert!(difference < 1e-4, "{format}: off by {difference}");
        // The formats do differ from each other, so that the comparison above compares something.
        let loss = largest_difference(&stored, &full);
        assert_eq!(loss > 1e-3, format != WeightFormat::F32, "{format}: {loss} from the full weights");
    }
}

#[test]
fn an_untied_model_with_llama3_rope_agrees_between_gguf_and_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel { tied: false, llama3_rope: true, ..TinyModel::default() };
    let gguf = model.write_gguf(folder.path(), WeightFormat::F32).unwrap();
    let from_folder = model.write_safetensors(&folder.path().join("hf"), WeightFormat::F32, 1).unwrap();
    let (a, b) = (logprobs(&gguf), logprobs(&from_folder));
    assert!(largest_difference(&a, &b) < 1e-4);
    let plain = TinyModel { llama3_rope: false, ..model };
    let plain = plain.write_safetensors(&folder.path().join("plain"), WeightFormat::F32, 1).unwrap();
    assert!(largest_difference(&a, &logprobs(&plain)) > 1e-3, "the scaling has no effect");
}

#[test]
fn shards_and_splits_change_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel::default();
    let single = model.write_safetensors(&folder.path().join("single"), WeightFormat::Bf16, 1).unwrap();
    let sharded = model.write_safetensors(&folder.path().join("sharded"), WeightFormat::Bf16, 3).unwrap();
    assert!(!sharded.join("model.safetensors").exists());
    assert!(logprobs(&single) == logprobs(&sharded), "shards");
    let single = model.write_gguf(folder.path(), WeightFormat::Q4_1).unwrap();
    let first = model.write_split_gguf(folder.path(), WeightFormat::Q4_1, 3).unwrap();
    let expected = logprobs(&single);
    assert!(expected == logprobs(&first), "a split, named by its first part");
    assert!(expected == logprobs(&folder.path().join("tiny-00003-of-00003.gguf")), "named by its last part");
}

#[test]
fn the_two_formats_of_one_model_give_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = tiny::write_gguf(folder.path(), WeightFormat::F32).unwrap();
    let hf = tiny::write_safetensors(&folder.path().join("hf"), WeightFormat::F32).unwrap();
    assert!(logprobs(&gguf) == logprobs(&hf));
}

#[test]
fn biases_are_added_and_reordered_with_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let model = TinyModel { biases: true, ..TinyModel::default() };
    let gguf = logprobs(&model.write_gguf(folder.path(), WeightFormat::F32).unwrap());
    let hf = model.write_safetensors(&folder.path().join("hf"), WeightFormat::F32, 1).unwrap();
    assert!(gguf == logprobs(&hf));
    // Each kind of bias counts: without any one of them the logits are others.
    let weights = hf.join("model.safetensors");
    let all = candle_core::safetensors::load(&weights, &candle_core::Device::Cpu).unwrap();
    for projection in ["q", "k", "v", "o", "gate", "up", "down"] {
        let mut changed = all.clone();
        for (name, tensor) in &mut changed {
            if name.ends_with(&format!("{projection}_proj.bias")) {
                *tensor = tensor.zeros_like().unwrap();
            }
        }
        candle_core::safetensors::save(&changed, &weights).unwrap();
        let difference = largest_difference(&gguf, &logprobs(&hf));
        assert!(difference > 1e-3, "{projection}: {difference}");
    }
}
