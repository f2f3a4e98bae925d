//! The deterministic setting, from engine to kernels on the host: the bits of an answer are the same alone and among so many
//! others that the fastest products would be another kernel's.

#[path = "support/model.rs"]
mod model;
mod support;

use pagoda_backend_cuda::{CudaBackend, Element, LinearPolicy};
use pagoda_engine::{Engine, EngineEvent, Request, RequestEvent, RequestId, SamplingParams, StepOutcome};
use pagoda_kernels_host::HostDevice;
use pagoda_model::{ModelRunner, RunnerConfig};

/// The smallest shape that the kernels have, in one layer: a tile of `gemm` takes its time on the host.
const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
    "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 64, "vocab_size": 128, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}"#;

/// All prompts are one step.
const LIMITS: RunnerConfig = RunnerConfig {
    block_size: 16,
    num_blocks: 40,
    max_num_seqs: 24,
    max_num_batched_tokens: 64,
    max_model_len: 64,
};

/// More than `skinny_gemm` takes, in the decode steps too.
const NUM_OTHERS: u32 = 17;
const NUM_NEW: u32 = 4;

/// The id and the bits of the logprob of every token.
type Answer = Vec<(u32, u32)>;

#[test]
fn an_answer_has_the_same_bits_alone_and_in_company() {
    let (Some(one), Some(two), Some(three)) = (model::host(), model::host(), model::host()) else { return };
    let alone = answer(one, LinearPolicy::Deterministic, 0);
    assert_eq!(alone.len(), NUM_NEW as usize);
    assert_eq!(answer(two, LinearPolicy::Deterministic, NUM_OTHERS), alone);
    // The setting is needed: the kernel of few rows has other bits.
    assert_ne!(answer(three, LinearPolicy::Fastest, 0), alone);
}

/// What the watched request comes to behind `num_others` other ones.
fn answer(device: HostDevice, policy: LinearPolicy, num_others: u32) -> Answer {
    let backend = CudaBackend::new(device, Element::Bf16, policy);
    let runner = ModelRunner::load(&model::dummy(CONFIG), backend, LIMITS).expect("the model loads");
    let mut engine = Engine::new(model::engine_config(&LIMITS), runner).expect("a valid configuration");
    for id in 0..num_others {
        let prompt = (0..1 + id % 3).map(|place| 3 + id + 7 * place).collect();
        engine.add_request(RequestId(u64::from(id)), request(prompt)).expect("the request fits");
    }
    let watched = RequestId(u64::from(num_others));
    engine.add_request(watched, request(vec![9, 77, 30, 101, 5])).expect("the request fits");
    let mut answer = Answer::new();
    let mut num_tokens = 0;
    loop {
        let outcome = engine.step();
        for event in engine.take_events() {
            match event {
                EngineEvent::Request(id, RequestEvent::Token(event)) => {
                    num_tokens += 1;
                    if id == watched {
                        let logprobs = event.extra.expect("they were asked for");
                        answer.push((event.token, logprobs.logprob.to_bits()));
                    }
                }
                EngineEvent::Request(_, RequestEvent::Failed(error)) => panic!("{error}"),
                _ => {}
            }
        }
        if outcome != StepOutcome::Progressed {
            break;
        }
    }
    assert_eq!(num_tokens, (num_others + 1) * NUM_NEW, "others were there to the end");
    answer
}

fn request(prompt: Vec<u32>) -> Request {
    let sampling = SamplingParams { num_logprobs: Some(0), ..SamplingParams::greedy() };
    model::request(prompt, NUM_NEW, sampling)
}
