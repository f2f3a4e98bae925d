//! A real model on the CUDA backend, kernels and all, run on the host: it says what the CPU backend says.

#[path = "support/model.rs"]
mod model;
mod support;

use std::path::{Path, PathBuf};

use pagoda_backend::Backend;
use pagoda_backend_cpu::{CpuBackend, CpuOptions};
use pagoda_backend_cuda::{CudaBackend, Element, LinearPolicy};
use pagoda_engine::{
    Engine, EngineEvent, Request, RequestEvent, RequestId, SamplingParams, StepOutcome, TokenLogprobs,
};
use pagoda_model::{Checkpoint, ModelRunner};

/// "The capital of France is Paris. The capital of Italy is Rome. .." in SmolLM2's ids: more than one step, and a block and
/// a bit.
const PROMPT: [u32; 19] =
    [504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 7158, 314, 7268, 30, 378, 3575, 282, 3085, 314];
const NUM_NEW: u32 = 2;

#[test]
fn a_real_model_agrees_with_the_cpu() {
    let Some(model) = real_model() else { return };
    let Some(device) = model::host() else { return };
    let cpu = CpuBackend::new(CpuOptions { num_threads: 2, isa: None }).expect("memory and threads");
    let expected = run(&model, cpu);
    let actual = run(&model, CudaBackend::new(device, Element::Bf16, LinearPolicy::Fastest));

    println!("CPU {:?}, CUDA on the host {:?}", expected.tokens, actual.tokens);
    assert_eq!(actual.prompt.len(), PROMPT.len() - 1);
    let mut differences = Vec::new();
    let mut num_agree = 0;
    for (actual, expected) in actual.prompt.iter().zip(&expected.prompt) {
        differences.push((actual.logprob - expected.logprob).abs());
        num_agree += usize::from(actual.top[0].0 == expected.top[0].0);
    }
    let mean = differences.iter().sum::<f32>() / differences.len() as f32;
    let largest = differences.iter().copied().fold(0.0, f32::max);
    println!(
        "logprob difference: mean {mean:.4}, largest {largest:.4}; argmax equal at {num_agree} of {}",
        differences.len()
    );
    assert!(mean <= 0.05 && largest <= 0.2, "mean {mean}, largest {largest}");
    assert!(num_agree + 1 >= differences.len(), "argmax equal at {num_agree} of {}", differences.len());
    assert_eq!(actual.tokens, expected.tokens, "greedy continuation");
}

#[derive(Default)]
struct Answer {
    prompt: Vec<TokenLogprobs>,
    tokens: Vec<u32>,
}

fn run<B: Backend>(path: &Path, backend: B) -> Answer {
    let checkpoint = Checkpoint::open(path).expect("a readable model");
    let runner = ModelRunner::load(&checkpoint, backend, model::SHORT).expect("the model loads");
    let mut engine = Engine::new(model::engine_config(&model::SHORT), runner).expect("a valid configuration");
    let request = Request {
        prompt_logprobs: Some(1),
        ..model::request(PROMPT.to_vec(), NUM_NEW, SamplingParams::greedy())
    };
    engine.add_request(RequestId(0), request).expect("the request fits");
    let mut answer = Answer::default();
    while engine.step() == StepOutcome::Progressed {
        for event in engine.take_events() {
            match event {
                EngineEvent::Request(_, RequestEvent::PromptLogprobs(logprobs)) => {
                    answer.prompt.extend(logprobs.into_iter().flatten());
                }
                EngineEvent::Request(_, RequestEvent::Token(event)) => answer.tokens.push(event.token),
                EngineEvent::Request(
                    _,
                    event @ (RequestEvent::Failed(_) | RequestEvent::SequenceFailed { .. }),
                ) => {
                    panic!("{event:?}")
                }
                _ => {}
            }
        }
    }
    answer
}

fn real_model() -> Option<PathBuf> {
    let set = std::env::var_os("PAGODA_TEST_MODEL").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let cached = cache.map(|c| c.join("pagoda/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf"));
    let model = set.or(cached).filter(|model| model.is_file());
    if model.is_none() {
        assert!(
            std::env::var("REQUIRE_ALL").as_deref() != Ok("1"),
            "REQUIRE_ALL=1, but the real model is not there"
        );
        println!("skipped: the real model is not in the cache");
    }
    model
}
