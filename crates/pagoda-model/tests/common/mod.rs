//! What the tests of this crate share: a loaded model behind a real engine, and a checkpoint dequantised by candle.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use pagoda_backend_cpu::{CpuBackend, CpuOptions};
use pagoda_engine::{
    Engine, EngineConfig, EngineEvent, PipelineDepth, Request, RequestEvent, RequestId, SamplingParams,
    StepOutcome, StopCriteria, TokenEvent, TokenLogprobs,
};
use pagoda_model::{Checkpoint, ModelRunner, RunnerConfig};

pub type Runner = ModelRunner<CpuBackend>;

/// A model behind an engine; requests run one after the other.
pub struct Session {
    engine: Engine<Runner>,
    next_id: u64,
}

/// What one request gave.
#[derive(Debug, Default)]
pub struct Answer {
    pub prompt_logprobs: Vec<TokenLogprobs>,
    pub tokens: Vec<TokenEvent<Option<TokenLogprobs>>>,
}

impl Answer {
    pub fn token_ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|event| event.token).collect()
    }
}

pub const LIMITS: RunnerConfig = RunnerConfig {
    block_size: 16,
    num_blocks: 64,
    max_num_seqs: 8,
    max_num_batched_tokens: 64,
    max_model_len: 512,
};

pub fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions { num_threads: 2, isa: None }).unwrap()
}

impl Session {
    pub fn open(path: &Path) -> Self {
        Self::with_limits(path, LIMITS)
    }

    pub fn with_limits(path: &Path, limits: RunnerConfig) -> Self {
        Self::with_depth(path, limits, PipelineDepth::One)
    }

    pub fn with_depth(path: &Path, limits: RunnerConfig, pipeline_depth: PipelineDepth) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap();
        Self::assemble(ModelRunner::load(&checkpoint, backend(), limits).unwrap(), limits, pipeline_depth)
    }

    pub fn new(runner: Runner, limits: RunnerConfig) -> Self {
        Self::assemble(runner, limits, PipelineDepth::One)
    }

    fn assemble(runner: Runner, limits: RunnerConfig, pipeline_depth: PipelineDepth) -> Self {
        let config = EngineConfig {
            block_size: limits.block_size,
            num_blocks: limits.num_blocks,
            max_num_seqs: limits.max_num_seqs,
            max_num_batched_tokens: limits.max_num_batched_tokens,
            max_model_len: limits.max_model_len,
            watermark_blocks: 1,
            pipeline_depth,
            ..EngineConfig::default()
        };
        Session { engine: Engine::new(config, runner).unwrap(), next_id: 0 }
    }

    /// Logprobs of every prompt token from the second on, and of the `num_logprobs` likeliest at each place.
    pub fn prompt_logprobs(&mut self, prompt: &[u32], num_logprobs: u32) -> Vec<TokenLogprobs> {
        self.run(request(prompt, 0, Some(num_logprobs), SamplingParams::greedy())).prompt_logprobs
    }

    /// Greedy continuation.
    pub fn greedy(&mut self, prompt: &[u32], num_tokens: u32) -> Vec<u32> {
        self.run(request(prompt, num_tokens, None, SamplingParams::greedy())).token_ids()
    }

    pub fn run(&mut self, request: Request) -> Answer {
        self.run_together(vec![request]).remove(0)
    }

    /// All of them at the same time.
    pub fn run_together(&mut self, requests: Vec<Request>) -> Vec<Answer> {
        let first_id = self.next_id;
        let mut answers: Vec<Answer> = requests.iter().map(|_| Answer::default()).collect();
        for request in requests {
            self.engine.add_request(RequestId(self.next_id), request).unwrap();
            self.next_id += 1;
        }
        loop {
            let outcome = self.engine.step();
            for event in self.engine.take_events() {
                match event {
                    EngineEvent::Request(id, RequestEvent::PromptLogprobs(logprobs)) => {
                        let answer = &mut answers[(id.0 - first_id) as usize];
                        answer.prompt_logprobs.extend(logprobs.into_iter().flatten());
                    }
                    EngineEvent::Request(id, RequestEvent::Token(event)) => {
                        answers[(id.0 - first_id) as usize].tokens.push(event);
                    }
                    EngineEvent::Request(_, event @ RequestEvent::Failed(_)) => panic!("{event:?}"),
                    EngineEvent::Request(_, event @ RequestEvent::SequenceFailed { .. }) => {
                        panic!("{event:?}")
                    }
                    _ => {}
                }
            }
            if outcome != StepOutcome::Progressed {
                return answers;
            }
        }
    }
}

pub fn request(
    prompt: &[u32],
    max_tokens: u32,
    prompt_logprobs: Option<u32>,
    sampling: SamplingParams,
) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: Arc::new(sampling),
        stop: StopCriteria { max_tokens, ..StopCriteria::default() },
        num_sequences: 1,
        priority: 0,
        cache_salt: Default::default(),
        prompt_logprobs,
        constraint: None,
    }
}

/// Every tensor of a Llama GGUF as f32 under its safetensors name, dequantised by candle, Q and K rows in halves.
pub fn dequantized(gguf: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(gguf).unwrap();
    let mut cursor = Cursor::new(&bytes);
    let content = Content::read(&mut cursor).unwrap();
    let number = |key: &str| content.metadata[key].to_u32().unwrap() as usize;
    let q_heads = number("llama.attention.head_count");
    let kv_heads = number("llama.attention.head_count_kv");
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut cursor, name, &Device::Cpu).unwrap();
        let mut tensor = tensor.dequantize(&Device::Cpu).unwrap();
        if name.ends_with("attn_q.weight") {
            tensor = halves_from_pairs(&tensor, q_heads);
        } else if name.ends_with("attn_k.weight") {
            tensor = halves_from_pairs(&tensor, kv_heads);
        }
        tensors.insert(safetensors_name(name), tensor);
    }
    tensors
}

fn halves_from_pairs(tensor: &Tensor, num_heads: usize) -> Tensor {
    let (rows, cols) = tensor.dims2().unwrap();
    let pairs = tensor.reshape((num_heads, rows / num_heads / 2, 2, cols)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
}

fn safetensors_name(gguf: &str) -> String {
    let name = gguf
        .replace("token_embd", "model.embed_tokens")
        .replace("output_norm", "model.norm")
        .replace("attn_q", "self_attn.q_proj")
        .replace("attn_k", "self_attn.k_proj")
        .replace("attn_v", "self_attn.v_proj")
        .replace("attn_output", "self_attn.o_proj")
        .replace("attn_norm", "input_layernorm")
        .replace("ffn_norm", "post_attention_layernorm")
        .replace("ffn_gate", "mlp.gate_proj")
        .replace("ffn_up", "mlp.up_proj")
        .replace("ffn_down", "mlp.down_proj")
        .replace("blk.", "model.layers.");
    if name == "output.weight" { "lm_head.weight".to_owned() } else { name }
}
