//! A whole model through engine, runner, backend and kernels, on the host: two steps in flight give the tokens of one, no step
//! allocates, the memory is known before the load, and a fault ends what it must and nothing else.

#[path = "support/faulty.rs"]
mod faulty;
#[path = "support/model.rs"]
mod model;
mod support;

use faulty::{Commands, Faulty, Place};
use model::host;
use pagoda_backend::{Backend, BackendError};
use pagoda_backend_cuda::{CudaBackend, Element, LinearPolicy, MeterDevice};
use pagoda_engine::{
    Engine, EngineConfig, EngineEvent, PipelineDepth, Request, RequestError, RequestEvent, RequestId,
    SamplingParams, StepOutcome,
};
use pagoda_kernels_host::HostDevice;
use pagoda_model::{Checkpoint, MemoryBudget, ModelRunner, RunnerConfig};

type Runner = ModelRunner<CudaBackend<Faulty<HostDevice>>>;

/// Steps have at most 16 rows, so that every product is one of `skinny_gemm`: its rows do not depend on each other, and its
/// emulation is the faster one.
const LIMITS: RunnerConfig = RunnerConfig {
    block_size: 16,
    num_blocks: 64,
    max_num_seqs: 8,
    max_num_batched_tokens: 16,
    max_model_len: 320,
};

fn checkpoint() -> Checkpoint {
    model::dummy(model::SMALL)
}

fn backend(commands: &Commands, device: HostDevice) -> CudaBackend<Faulty<HostDevice>> {
    CudaBackend::new(Faulty::new(device, commands), Element::Bf16, LinearPolicy::Fastest)
}

fn engine(commands: &Commands, device: HostDevice, pipeline_depth: PipelineDepth) -> Engine<Runner> {
    engine_over(backend(commands, device), pipeline_depth)
}

fn engine_over(backend: CudaBackend<Faulty<HostDevice>>, pipeline_depth: PipelineDepth) -> Engine<Runner> {
    let runner = ModelRunner::load(&checkpoint(), backend, LIMITS).expect("the model loads");
    let config = EngineConfig { pipeline_depth, ..model::engine_config(&LIMITS) };
    Engine::new(config, runner).expect("a valid configuration")
}

fn request(prompt_len: u32, max_tokens: u32, sampling: SamplingParams) -> Request {
    let prompt = (0..prompt_len).map(|i| 3 + (i * 31 + prompt_len) % 300).collect();
    model::request(prompt, max_tokens, sampling)
}

/// A few of every kind; three of them decode together for most of the time.
fn requests() -> Vec<Request> {
    let drawn =
        SamplingParams { temperature: 0.8, seed: 5, num_logprobs: Some(20), ..SamplingParams::greedy() };
    let penalised = SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.5, ..drawn.clone() };
    vec![
        request(5, 12, SamplingParams::greedy()),
        request(21, 9, penalised),
        Request { num_sequences: 2, ..request(3, 8, drawn) },
        request(1, 1, SamplingParams::greedy()),
    ]
}

/// What a request came to: tokens by sample, or why it failed.
type Answer = Result<Vec<(u32, u32)>, RequestError>;

fn run(engine: &mut Engine<Runner>, first_id: u64, requests: Vec<Request>) -> Vec<Answer> {
    let num_requests = requests.len();
    add(engine, first_id, requests);
    finish(engine, first_id, num_requests)
}

fn add(engine: &mut Engine<Runner>, first_id: u64, requests: Vec<Request>) {
    for (request, id) in requests.into_iter().zip(first_id..) {
        engine.add_request(RequestId(id), request).expect("the request fits");
    }
}

/// Steps until nothing is left to do.
fn finish(engine: &mut Engine<Runner>, first_id: u64, num_requests: usize) -> Vec<Answer> {
    let mut answers: Vec<Answer> = (0..num_requests).map(|_| Ok(Vec::new())).collect();
    loop {
        let outcome = engine.step();
        for event in engine.take_events() {
            let EngineEvent::Request(id, event) = event else { continue };
            let answer = &mut answers[(id.0 - first_id) as usize];
            match (event, answer.as_mut()) {
                (RequestEvent::Token(event), Ok(tokens)) => tokens.push((event.sample_index, event.token)),
                (RequestEvent::Failed(error), _) => *answer = Err(error),
                _ => {}
            }
        }
        if outcome != StepOutcome::Progressed {
            break;
        }
    }
    for tokens in answers.iter_mut().flatten() {
        // Siblings' tokens may come in any order.
        tokens.sort_by_key(|(sample_index, _)| *sample_index);
    }
    answers
}

#[test]
fn two_steps_in_flight_give_the_tokens_of_one_and_no_step_allocates() {
    let (Some(one), Some(two)) = (host(), host()) else { return };
    let commands = Commands::default();
    let mut alone = engine(&commands, one, PipelineDepth::One);
    let expected = run(&mut alone, 0, requests());
    assert!(expected.iter().all(|answer| answer.is_ok()), "{expected:?}");
    assert_eq!(expected[0].as_ref().map(Vec::len), Ok(12));
    let mut pipelined = engine(&commands, two, PipelineDepth::Two);
    let (num_allocs, ..) = commands.counts();
    assert_eq!(run(&mut pipelined, 0, requests()), expected);
    assert_eq!(commands.counts().0, num_allocs, "a step allocated");
}

#[test]
fn a_decode_step_makes_two_uploads() {
    let Some(device) = host() else { return };
    let commands = Commands::default();
    let mut engine = engine(&commands, device, PipelineDepth::Two);
    let everything = SamplingParams {
        temperature: 0.8,
        repetition_penalty: 1.3,
        logit_bias: [(5, 1.0), (9, -2.0)].into(),
        num_logprobs: Some(3),
        ..SamplingParams::greedy()
    };
    for (sampling, first_id) in [(SamplingParams::greedy(), 0), (everything, 100)] {
        // Prompts of different lengths have nothing in common that a cache could keep.
        let mut num_writes = |num_tokens, prompt_len, first_id| {
            let start = commands.num_writes();
            let three = Request { num_sequences: 3, ..request(prompt_len, num_tokens, sampling.clone()) };
            assert!(run(&mut engine, first_id, vec![three])[0].is_ok());
            commands.num_writes() - start
        };
        // What the prompt and the forks need, then nine decode steps more.
        let (few, many) = (num_writes(4, 6, first_id), num_writes(13, 7, first_id + 50));
        assert_eq!(many - few, 2 * 9, "{few} and {many} uploads");
    }
}

#[test]
fn a_step_that_runs_out_of_memory_fails_alone_and_leaves_what_others_need() {
    let Some(device) = host() else { return };
    let commands = Commands::default();
    let mut engine = engine(&commands, device, PipelineDepth::Two);
    let expected = run(&mut engine, 0, requests());
    // From here to the end there is no memory left. More likeliest tokens than there is room for, in the company of a request
    // that needs nothing of the kind: found out when the forward pass is under way.
    commands.exhaust_memory_after(0);
    let greedy = SamplingParams::greedy();
    let many_tops = SamplingParams { num_logprobs: Some(200), ..greedy.clone() };
    let failed =
        run(&mut engine, 10, vec![request(4, 12, greedy.clone()), request(7, 12, many_tops.clone())]);
    for answer in &failed {
        match answer {
            Err(RequestError::Executor(error)) => {
                assert!(!error.is_fatal && error.message.contains("out of memory"), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    engine.assert_integrity();
    // What was refused took nothing from those that come after it.
    assert_eq!(run(&mut engine, 20, requests()), expected);
    // And in the middle of answers: those that had begun fail with the step, the next ones do not.
    add(&mut engine, 30, vec![request(5, 20, greedy.clone()), request(2, 20, greedy)]);
    for _ in 0..4 {
        assert_eq!(engine.step(), StepOutcome::Progressed);
    }
    add(&mut engine, 32, vec![request(9, 12, many_tops)]);
    let failed = finish(&mut engine, 30, 3);
    let is_refused =
        |answer: &Answer| matches!(answer, Err(RequestError::Executor(error)) if !error.is_fatal);
    assert!(failed.iter().all(is_refused), "{failed:?}");
    assert_eq!(run(&mut engine, 50, requests()), expected);
    engine.assert_integrity();
}

#[test]
fn a_step_is_launched_before_the_host_has_read_the_ids_that_it_needs() {
    let (Some(one), Some(two)) = (host(), host()) else { return };
    let commands = Commands::default();
    let backend_of = |device| backend(&commands, device).without_graphs();
    let alone = || vec![request(4, 8, SamplingParams::greedy())];
    let mut engine = engine_over(backend_of(one), PipelineDepth::One);
    commands.take_trace();
    let expected = run(&mut engine, 0, alone());
    assert_eq!(commands.take_trace(), "er".repeat(8));
    let mut engine = engine_over(backend_of(two), PipelineDepth::Two);
    commands.take_trace();
    assert_eq!(run(&mut engine, 0, alone()), expected);
    assert_eq!(commands.take_trace(), format!("e{}r", "er".repeat(7)));
}

#[test]
fn a_stop_that_is_found_a_step_late_drops_the_step_that_ran_on() {
    let (Some(one), Some(two)) = (host(), host()) else { return };
    let commands = Commands::default();
    let backend_of = |device| backend(&commands, device).without_graphs();
    let mut alone = engine_over(backend_of(one), PipelineDepth::One);
    let unstopped = run(&mut alone, 0, requests());
    let stop = unstopped[0].as_ref().expect("no fault")[5].1;
    let stopping = || {
        let mut requests = requests();
        requests[0].stop.stop_token_ids = [stop].into();
        requests
    };
    commands.take_trace();
    let expected = run(&mut alone, 100, stopping());
    assert!(expected[0].as_ref().is_ok_and(|tokens| tokens.len() <= 6), "{expected:?}");
    assert_eq!(expected[1..], unstopped[1..]);
    let mut pipelined = engine_over(backend_of(two), PipelineDepth::Two);
    assert_eq!(run(&mut pipelined, 0, stopping()), expected);
    // Alone, so that the step which ran on shows; and its block is free for others.
    for (engine, num_steps) in [(&mut alone, 0), (&mut pipelined, 1)] {
        commands.take_trace();
        let answers = run(engine, 200, stopping().drain(..1).collect());
        assert_eq!(answers, expected[..1]);
        let num_tokens = answers[0].as_ref().map_or(0, Vec::len);
        let num_launched = commands.take_trace().matches('e').count();
        assert_eq!(num_launched, num_tokens + num_steps, "steps for {num_tokens} tokens");
        engine.assert_integrity();
        assert_eq!(run(engine, 300, requests()), unstopped);
    }
}

#[test]
fn captured_steps_give_the_tokens_of_single_launches() {
    let (Some(single), Some(captured), Some(refused)) = (host(), host(), host()) else { return };
    let commands = Commands::default();
    let backend_of = |device| backend(&commands, device);
    let mut engine = engine_over(backend_of(single).without_graphs(), PipelineDepth::Two);
    let expected = run(&mut engine, 0, requests());
    let (_, num_single, num_replays) = commands.counts();
    assert_eq!(num_replays, 0);
    let mut engine = engine_over(backend_of(captured), PipelineDepth::Two);
    // The second time every shape has been seen: the same steps, most of them as one replay.
    for round in 0..2 {
        assert_eq!(run(&mut engine, 10 * round, requests()), expected, "round {round}");
    }
    let (_, num_launches, num_replays) = commands.counts();
    assert!(num_replays > 12, "{num_replays} replays");
    assert!(
        num_launches - num_single < 2 * num_single,
        "{num_launches} launches, {num_single} without graphs"
    );
    // A device that cannot capture is no failure.
    commands.refuse_captures();
    let mut engine = engine_over(backend_of(refused), PipelineDepth::Two);
    assert_eq!(run(&mut engine, 0, requests()), expected);
    assert_eq!(commands.counts().2, num_replays);
}

#[test]
fn the_memory_of_a_load_is_known_to_the_byte_before_it() {
    let Some(device) = host() else { return };
    let checkpoint = checkpoint();
    let meter = CudaBackend::new(MeterDevice::default(), Element::Bf16, LinearPolicy::Fastest);
    let planned = MemoryBudget::measure(&checkpoint, meter, &LIMITS).expect("a shape that the kernels have");
    let mut backend = backend(&Commands::default(), device);
    // What was needed before, and is no more, is not of the load.
    drop(backend.alloc(1000, 8).expect("there is memory"));
    let runner = ModelRunner::load(&checkpoint, backend, LIMITS).expect("the model loads");
    assert_eq!(runner.memory(), planned);
    // 2 layers x (K, V) x 1 head x 64 channels x 2 bytes x 16 slots x 64 blocks.
    assert_eq!(planned.kv_bytes, 2 * 2 * 64 * 2 * 16 * 64);
}

#[test]
fn a_refused_launch_fails_its_step_and_the_next_request_is_served() {
    let Some(device) = host() else { return };
    let commands = Commands::default();
    let mut engine = engine_over(backend(&commands, device).without_graphs(), PipelineDepth::Two);
    let expected = run(&mut engine, 0, requests());
    let (num_allocs, ..) = commands.counts();
    // In the middle of a forward pass, of a later one, and at the choice of a token.
    for (index, place) in [Place::After(3), Place::After(40), Place::Kernel("sample")].into_iter().enumerate()
    {
        commands.fail_launch(place, BackendError::Refused("no room".into()));
        let first_id = 10 + 20 * index as u64;
        let failed = run(&mut engine, first_id, vec![request(4, 12, SamplingParams::greedy())]);
        match &failed[0] {
            Err(RequestError::Executor(error)) => {
                assert!(!error.is_fatal && error.message.contains("no room"))
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(run(&mut engine, first_id + 10, requests()), expected);
    }
    assert_eq!(commands.counts().0, num_allocs, "a step after a fault allocated");
    engine.assert_integrity();
}

#[test]
fn a_lost_device_stops_the_engine_and_every_request() {
    let Some(device) = host() else { return };
    let commands = Commands::default();
    let mut engine = engine_over(backend(&commands, device).without_graphs(), PipelineDepth::Two);
    commands.fail_launch(Place::After(70), BackendError::Fatal("CUDA_ERROR_ILLEGAL_ADDRESS".into()));
    let answers = run(&mut engine, 0, requests());
    let num_stopped = answers.iter().filter(|answer| answer.is_err()).count();
    assert!(num_stopped >= 2, "{answers:?}");
    assert!(
        answers
            .iter()
            .flat_map(|answer| answer.as_ref().err())
            .any(|error| { matches!(error, RequestError::Executor(error) if error.is_fatal) })
    );
    assert_eq!(engine.step(), StepOutcome::Stopped);
}

#[test]
fn a_load_without_enough_memory_says_for_what() {
    let Some(device) = host() else { return };
    let commands = Commands::default();
    commands.exhaust_memory_after(20);
    let error =
        ModelRunner::load(&checkpoint(), backend(&commands, device), LIMITS).err().expect("no memory");
    assert!(error.to_string().contains("out of memory"), "{error}");
}
