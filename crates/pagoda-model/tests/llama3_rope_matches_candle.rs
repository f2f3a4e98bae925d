//! Llama 3's rope scaling against an independent implementation: candle-transformers' Llama in f32 over the weights of the seeded
//! tiny model, untied, at every place of a text twice as long as the context before the stretch; from a folder and from a
//! GGUF, which keeps the scaling as divisors.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use common::Session;
use pagoda_backend::WeightFormat;
use pagoda_engine::TokenLogprobs;
use pagoda_model::tiny::TinyModel;

/// At the first place.
const TOLERANCE: f32 = 1e-4;
/// And so much more at each further one: candle's angles are f32 products, whose error grows with the position. Found are 0.00005
/// within the first 50 places and 0.001 at the 415th; without the scaling it is at least 4.
const TOLERANCE_PER_PLACE: f32 = 1e-5;
/// Tokens of the context before the stretch. Waves of more than 64 and less than 256 positions are blended: those of one channel
/// pair in eight, with three below and four above.
const ORIGINAL_LEN: usize = 256;
const PROMPT_LEN: usize = 500;
const VOCAB_SIZE: usize = 512;

fn model() -> TinyModel {
    TinyModel { tied: false, llama3_rope: true, ..TinyModel::default() }
}

fn prompt() -> Vec<u32> {
    (0..PROMPT_LEN as u32).map(|i| i.wrapping_mul(2_654_435_761) >> 23).collect()
}

/// Candle's logprobs of what follows each token but the last, one token at a time.
fn oracle(folder: &Path, is_scaled: bool) -> Vec<Vec<f32>> {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config = serde_json::from_str::<LlamaConfig>(&text).unwrap().into_config(false);
    assert!(!config.tie_word_embeddings && config.rope_scaling.is_some());
    if !is_scaled {
        config.rope_scaling = None;
    }
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let model = Llama::load(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu), &config).unwrap();
    let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
    let row = |(position, token): (usize, &u32)| {
        let input = Tensor::new(&[*token], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = model.forward(&input, position, &mut cache).unwrap();
        let logits = logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        logits.iter().map(|logit| logit - max - sum.ln() as f32).collect()
    };
    prompt()[..PROMPT_LEN - 1].iter().enumerate().map(row).collect()
}

fn logprobs(path: &Path) -> Vec<TokenLogprobs> {
    Session::open(path).prompt_logprobs(&prompt(), VOCAB_SIZE as u32)
}

/// Of each place.
fn largest_differences(found: &[TokenLogprobs], expected: &[Vec<f32>]) -> Vec<f32> {
    assert_eq!((found.len(), expected.len()), (PROMPT_LEN - 1, PROMPT_LEN - 1));
    let places = found.iter().zip(expected);
    let difference = |(found, expected): (&TokenLogprobs, &Vec<f32>)| {
        assert_eq!(found.top.len(), VOCAB_SIZE);
        let differences =
            found.top.iter().map(|(token, logprob)| (logprob - expected[*token as usize]).abs());
        differences.fold(0.0, f32::max)
    };
    places.map(difference).collect()
}

#[test]
fn every_logprob_under_scaled_rope_is_candles() {
    let folder = tempfile::tempdir().unwrap();
    let hf = model().write_safetensors(&folder.path().join("hf"), WeightFormat::F32, 1).unwrap();
    let gguf = model().write_gguf(folder.path(), WeightFormat::F32).unwrap();
    let expected = oracle(&hf, true);
    for path in [&hf, &gguf] {
        let differences = largest_differences(&logprobs(path), &expected);
        for (place, difference) in differences.iter().enumerate() {
            let tolerance = TOLERANCE + place as f32 * TOLERANCE_PER_PLACE;
            assert!(*difference < tolerance, "{}: off by {difference} at {place}", path.display());
        }
    }
}

#[test]
fn without_the_scaling_the_logprobs_are_others_within_and_beyond_the_original_context() {
    let folder = tempfile::tempdir().unwrap();
    let hf = model().write_safetensors(folder.path(), WeightFormat::F32, 1).unwrap();
    let differences = largest_differences(&logprobs(&hf), &oracle(&hf, false));
    let (within, beyond) = differences.split_at(ORIGINAL_LEN);
    for places in [&within[ORIGINAL_LEN / 2..], beyond] {
        let least = places.iter().copied().fold(f32::INFINITY, f32::min);
        let most = places.iter().copied().fold(0.0, f32::max);
        assert!(least > 1.0, "off by {least} to {most} only");
    }
}
