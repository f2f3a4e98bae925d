//! The Qwen families against an independent implementation: candle-transformers' Qwen2 and Qwen3 in f32 over the weights of
//! the seeded tiny model, and the same model from a GGUF.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{qwen2, qwen3};
use common::Session;
use pagoda_backend::WeightFormat;
use pagoda_engine::TokenLogprobs;
use pagoda_model::tiny::{TinyFamily, TinyModel};
use serde::de::DeserializeOwned;

const TOLERANCE: f32 = 1e-4;
const PROMPT: [u32; 24] =
    [1, 300, 17, 17, 450, 8, 99, 203, 511, 64, 5, 260, 33, 33, 33, 482, 0, 2, 150, 270, 71, 404, 12, 350];

fn candle_config<T: DeserializeOwned>(folder: &Path) -> T {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [("sliding_window", 4096), ("max_window_layers", 3)] {
        config[key] = value.into();
    }
    for key in ["use_sliding_window", "attention_bias"] {
        config[key] = false.into();
    }
    serde_json::from_value(config).unwrap()
}

/// Candle's logprobs of what follows the prompt: it gives the last place only, so each place is a prompt of its own.
fn rows(mut forward: impl FnMut(&Tensor) -> Tensor) -> Vec<Vec<f32>> {
    let row = |len: usize| {
        let input = Tensor::new(&PROMPT[..len], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = forward(&input).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        logits.iter().map(|logit| logit - max - sum.ln() as f32).collect()
    };
    (1..PROMPT.len()).map(row).collect()
}

fn oracle(family: TinyFamily, folder: &Path) -> Vec<Vec<f32>> {
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    match family {
        TinyFamily::Llama => unreachable!(),
        TinyFamily::Qwen2 => {
            let mut model = qwen2::ModelForCausalLM::new(&candle_config(folder), weights).unwrap();
            rows(|input| {
                model.clear_kv_cache();
                model.forward(input, 0).unwrap()
            })
        }
        TinyFamily::Qwen3 => {
            let mut model = qwen3::ModelForCausalLM::new(&candle_config(folder), weights).unwrap();
            rows(|input| {
                model.clear_kv_cache();
                model.forward(input, 0).unwrap()
            })
        }
    }
}

fn logprobs(path: &Path) -> Vec<TokenLogprobs> {
    Session::open(path).prompt_logprobs(&PROMPT, 512)
}

fn largest_difference(found: &[TokenLogprobs], expected: &[Vec<f32>]) -> f32 {
    assert_eq!((found.len(), expected.len()), (PROMPT.len() - 1, PROMPT.len() - 1));
    let places = found.iter().zip(expected);
    let differences = places.flat_map(|(found, expected)| {
        assert_eq!(found.top.len(), 512);
        found.top.iter().map(|(token, logprob)| (logprob - expected[*token as usize]).abs())
    });
    differences.fold(0.0, f32::max)
}

#[test]
fn every_logprob_of_a_tiny_qwen_is_within_1e_4_of_candles() {
    for family in [TinyFamily::Qwen2, TinyFamily::Qwen3] {
        for tied in [true, false] {
            let model = TinyModel { family, tied, ..TinyModel::default() };
            let folder = tempfile::tempdir().unwrap();
            let hf = model.write_safetensors(&folder.path().join("hf"), WeightFormat::F32, 1).unwrap();
            let expected = oracle(family, &hf);
            let found = largest_difference(&logprobs(&hf), &expected);
            assert!(found < TOLERANCE, "{family:?}, tied {tied}: off by {found}");
            let gguf = model.write_gguf(folder.path(), WeightFormat::F32).unwrap();
            let found = largest_difference(&logprobs(&gguf), &expected);
            assert!(found < TOLERANCE, "{family:?} as GGUF, tied {tied}: off by {found}");
        }
    }
}

#[test]
fn biases_and_head_norms_count() {
    for (family, part) in [
        (TinyFamily::Qwen2, "q_proj.bias"),
        (TinyFamily::Qwen2, "k_proj.bias"),
        (TinyFamily::Qwen2, "v_proj.bias"),
        (TinyFamily::Qwen3, "q_norm.weight"),
        (TinyFamily::Qwen3, "k_norm.weight"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = TinyModel { family, ..TinyModel::default() };
        let hf = model.write_safetensors(folder.path(), WeightFormat::F32, 1).unwrap();
        let before = oracle(family, &hf);
        let weights = hf.join("model.safetensors");
        let mut changed = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
        for (name, tensor) in &mut changed {
            if name.ends_with(part) {
                *tensor = (tensor.zeros_like().unwrap() + 0.5).unwrap();
            }
        }
        candle_core::safetensors::save(&changed, &weights).unwrap();
        let difference = largest_difference(&logprobs(&hf), &before);
        assert!(difference > 1e-2, "{part}: {difference}");
    }
}
