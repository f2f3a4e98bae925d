//! Law 11 under overload: whatever the pool, somebody gets a token in time, nobody is preempted without end, and everybody
//! finishes.

use std::sync::Arc;

use pagoda_engine::{Engine, EngineConfig, EngineEvent, Request, RequestId, SamplingParams, StopCriteria};
use pagoda_testkit::{Load, SimulationReport, TokenMemoryConfig, TokenMemoryExecutor, simulate};

const NUM_SEEDS: u64 = 2000;

#[test]
fn an_overloaded_engine_keeps_giving_tokens_and_finishes_everything() {
    // Asserted inside, seed by seed: at most 8 preemptions per sequence; a token within ceil(longest prompt / budget) + 64
    // steps; every request ends with its full output.
    let reports: Vec<SimulationReport> = (0..NUM_SEEDS).map(|seed| simulate(seed, Load::Overload)).collect();
    let sum = |field: fn(&SimulationReport) -> u64| reports.iter().map(field).sum::<u64>();
    let longest_wait = reports.iter().map(|report| report.longest_wait_steps).max().expect("there are seeds");
    println!(
        "{} requests, {} steps, {} preemptions, {} protected admissions, longest wait {longest_wait} steps beyond the prompt's",
        sum(|report| report.num_requests),
        sum(|report| report.stats.num_steps),
        sum(|report| report.stats.num_preemptions),
        sum(|report| report.stats.num_protected_admissions),
    );
    // Law 11 allows 64; what is reached stays far below.
    assert!(longest_wait <= 8, "{longest_wait}");
    assert!(sum(|report| report.stats.num_preemptions) > NUM_SEEDS);
}

#[test]
fn the_lowest_priority_is_served_under_an_endless_stream_of_better_ones() {
    let config = EngineConfig { max_num_seqs: 1, aging_steps: 10, ..EngineConfig::default() };
    let memory =
        TokenMemoryConfig { block_size: config.block_size, num_blocks: config.num_blocks, vocab_size: 100 };
    let mut engine = Engine::new(config, TokenMemoryExecutor::new(memory)).unwrap();
    let request = |priority| Request {
        prompt: vec![1],
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopCriteria { max_tokens: 1, ..StopCriteria::default() },
        num_sequences: 1,
        priority,
        cache_salt: Default::default(),
        prompt_logprobs: None,
        constraint: None,
    };
    let patient = RequestId(0);
    engine.add_request(patient, request(3)).unwrap();
    // In every step one request of the best priority arrives, and one is served.
    let mut num_steps = 0;
    while !engine.take_events().contains(&EngineEvent::Ended(patient)) {
        num_steps += 1;
        engine.add_request(RequestId(num_steps), request(0)).unwrap();
        engine.step();
    }
    // Three levels of priority, ten steps each.
    assert_eq!(num_steps, 31);
}
