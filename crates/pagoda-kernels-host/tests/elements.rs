//! Both element types through engine, runner and kernels on the host: f16 has three bits of fraction more than bf16, and what it answers
//! is that much nearer to exact arithmetic.

#[path = "support/model.rs"]
mod model;
mod support;

use pagoda_backend::Backend;
use pagoda_backend_cpu::{CpuBackend, CpuOptions};
use pagoda_backend_cuda::{CudaBackend, Element, LinearPolicy};
use pagoda_engine::{Engine, EngineEvent, Request, RequestEvent, RequestId, SamplingParams, StepOutcome};
use pagoda_model::ModelRunner;

#[test]
fn f16_is_nearer_to_exact_arithmetic_than_bf16() {
    let (Some(one), Some(two)) = (model::host(), model::host()) else { return };
    let exact = logprobs(CpuBackend::new(CpuOptions { num_threads: 1, isa: None }).expect("a thread"));
    assert_eq!(exact.len(), 39);
    let difference = |device, element| {
        let backend = CudaBackend::new(device, element, LinearPolicy::Fastest);
        assert!(backend.describe().contains(&format!("{element:?}")));
        let found = logprobs(backend);
        assert_eq!(found.len(), exact.len());
        found.iter().zip(&exact).map(|(found, exact)| (found - exact).abs()).sum::<f32>() / exact.len() as f32
    };
    let (bf16, f16) = (difference(one, Element::Bf16), difference(two, Element::F16));
    println!("mean difference of logprobs: bf16 {bf16:.5}, f16 {f16:.5}");
    assert!(bf16 < 0.1 && f16 < bf16 / 3.0, "bf16 {bf16}, f16 {f16}");
}

/// Of every token of a prompt but the first.
fn logprobs<B: Backend>(backend: B) -> Vec<f32> {
    let runner =
        ModelRunner::load(&model::dummy(model::SMALL), backend, model::SHORT).expect("the model loads");
    let mut engine = Engine::new(model::engine_config(&model::SHORT), runner).expect("a valid configuration");
    let prompt = (0..40).map(|place| 3 + place * 37 % 300).collect();
    let request = Request { prompt_logprobs: Some(0), ..model::request(prompt, 1, SamplingParams::greedy()) };
    engine.add_request(RequestId(0), request).expect("the request fits");
    let mut found = Vec::new();
    while engine.step() == StepOutcome::Progressed {
        for event in engine.take_events() {
            match event {
                EngineEvent::Request(_, RequestEvent::PromptLogprobs(logprobs)) => {
                    found.extend(logprobs.into_iter().flatten().map(|logprobs| logprobs.logprob));
                }
                EngineEvent::Request(_, RequestEvent::Failed(error)) => panic!("{error}"),
                _ => {}
            }
        }
    }
    found
}
