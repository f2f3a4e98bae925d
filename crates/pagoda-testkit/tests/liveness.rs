//! Law 11 under overload: whatever the pool, somebody gets a token in time, nobody is preempted without end, and everybody
//! finishes.

use pagoda_testkit::{Load, SimulationReport, simulate};

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
