//! The simulation: whatever else is in the batch, a request says what it says alone, and every block comes back.

use pagoda_testkit::{Load, simulate};

/// Seeds of one run. Each is some 300 checked operations; a failing one names itself and is repeated by
/// `simulate(seed, Load::Mixed)`.
const NUM_SEEDS: u64 = 10_000;

#[test]
fn every_output_equals_the_output_alone_and_every_block_comes_back() {
    let reports: Vec<_> = (0..NUM_SEEDS).map(|seed| simulate(seed, Load::Mixed)).collect();
    let sum = |field: fn(&pagoda_engine::EngineStats) -> u64| {
        reports.iter().map(|report| field(&report.stats)).sum::<u64>()
    };
    let longest_wait = reports.iter().map(|report| report.longest_wait_steps).max();
    let num_checks: u64 = reports.iter().map(|report| report.num_checks).sum();
    println!(
        "{num_checks} checks, {} protected, {} steps, {} tokens out, {} preemptions, {} copies, {} of {} prompt tokens cached, {} cut, {} failed, \
         longest wait {longest_wait:?} steps beyond the prompt's",
        sum(|stats| stats.num_protected_admissions),
        sum(|stats| stats.num_steps),
        sum(|stats| stats.num_output_tokens),
        sum(|stats| stats.num_preemptions),
        sum(|stats| stats.num_copies),
        sum(|stats| stats.prefix_cache_hits),
        sum(|stats| stats.prefix_cache_queries),
        reports.iter().map(|report| report.num_aborted).sum::<u64>(),
        reports.iter().map(|report| report.num_failed).sum::<u64>(),
    );
    // The run must have gone where it hurts.
    assert!(sum(|stats| stats.num_preemptions) > NUM_SEEDS / 2);
    assert!(sum(|stats| stats.num_protected_admissions) > NUM_SEEDS / 10);
    assert!(sum(|stats| stats.num_failed_steps) > NUM_SEEDS / 10);
    assert!(reports.iter().map(|report| report.num_complete).sum::<u64>() > NUM_SEEDS);
    assert!(sum(|stats| stats.num_copies) > NUM_SEEDS);
    assert!(sum(|stats| stats.prefix_cache_hits) > NUM_SEEDS);
    assert!(sum(|stats| stats.num_aborted_requests) > NUM_SEEDS / 2);
}
