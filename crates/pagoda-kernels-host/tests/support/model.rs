//! What the tests of whole models have in common.
#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;

use pagoda_engine::{EngineConfig, Request, SamplingParams, StopCriteria};
use pagoda_kernels_host::{HostDevice, Order, Sanitize, compile_all};
use pagoda_model::{Checkpoint, RunnerConfig};

use crate::support;

/// The smallest shape that the kernels have, as a `config.json`.
pub(crate) const SMALL: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "vocab_size": 320, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}"#;

/// Room for a short answer. Steps of 16 tokens at most: the products then go to `skinny_gemm`, whose emulation is the faster one.
pub(crate) const SHORT: RunnerConfig = RunnerConfig {
    block_size: 16,
    num_blocks: 8,
    max_num_seqs: 2,
    max_num_batched_tokens: 16,
    max_model_len: 64,
};

/// A device of its own; `None` where the kernels cannot be compiled.
pub(crate) fn host() -> Option<HostDevice> {
    if !support::can_run_here() {
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simt-model");
    compile_all(&support::kernels(), &folder, Sanitize::No)
        .unwrap_or_else(|error| panic!("g++ failed:\n{error}"));
    Some(HostDevice::new(&folder, Order::Forward).unwrap_or_else(|why| panic!("{why}")))
}

/// Random weights in the shape of this `config.json`.
pub(crate) fn dummy(config: &str) -> Checkpoint {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.json");
    std::fs::write(&file, config).expect("a file");
    Checkpoint::open_dummy(&file, 7).expect("a known shape")
}

/// An engine that stays within what a runner was loaded for.
pub(crate) fn engine_config(limits: &RunnerConfig) -> EngineConfig {
    EngineConfig {
        block_size: limits.block_size,
        num_blocks: limits.num_blocks,
        max_num_seqs: limits.max_num_seqs,
        max_num_batched_tokens: limits.max_num_batched_tokens,
        max_model_len: limits.max_model_len,
        watermark_blocks: 1,
        ..EngineConfig::default()
    }
}

/// A request for so many new tokens at most.
pub(crate) fn request(prompt: Vec<u32>, max_tokens: u32, sampling: SamplingParams) -> Request {
    Request {
        prompt,
        sampling: Arc::new(sampling),
        stop: StopCriteria { max_tokens, ..StopCriteria::default() },
        num_sequences: 1,
        priority: 0,
        cache_salt: Default::default(),
        prompt_logprobs: None,
        constraint: None,
    }
}
