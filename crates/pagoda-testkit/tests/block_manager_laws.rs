//! The laws of the block manager, and the fake memory that shows what a broken one would do, after every one of ten
//! million random operations.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pagoda_engine::PipelineDepth;
use pagoda_testkit::{BlockMachine, BlockMachineCounts, Random};

/// Some three quarters of them have an effect (the others find no sequence, or no step in flight).
const NUM_OPERATIONS: usize = 14_000_000;
const NUM_EFFECTIVE: u64 = 10_000_000;
/// Long enough to fill and empty the pool many times, short enough that a failing script is found and shortened quickly.
const SCRIPT_LEN: usize = 5_000;

#[test]
fn every_law_holds_after_every_operation() {
    let mut total = BlockMachineCounts::default();
    for seed in 0..(NUM_OPERATIONS / SCRIPT_LEN) as u64 {
        let depth = depth_of(seed);
        match run(depth, &script_of(seed)) {
            Ok(counts) => total = add(total, counts),
            Err(error) => {
                let script = shorten(depth, script_of(seed));
                let error = run(depth, &script).expect_err(&error);
                panic!("seed {seed}, {depth:?}: {error}\nshortest script: {script:?}");
            }
        }
    }
    println!("{total:?}");
    assert_eq!(total.num_operations, NUM_OPERATIONS as u64);
    assert!(total.num_effective >= NUM_EFFECTIVE, "{total:?}");
    // The scripts must have gone where it hurts: each of these at least once in a thousand operations.
    let often = NUM_OPERATIONS as u64 / 1000;
    let BlockMachineCounts {
        num_hits, num_partial_hits, num_copied_tails, num_exhausted, num_retired, ..
    } = total;
    for count in [num_hits, num_partial_hits, num_copied_tails, num_exhausted, num_retired] {
        assert!(count > often, "{total:?}");
    }
}

fn depth_of(seed: u64) -> PipelineDepth {
    if seed.is_multiple_of(2) { PipelineDepth::One } else { PipelineDepth::Two }
}

fn script_of(seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..SCRIPT_LEN).map(|_| random.next_u64() as u32).collect()
}

/// A broken assertion inside the manager counts as a broken law.
fn run(depth: PipelineDepth, script: &[u32]) -> Result<BlockMachineCounts, String> {
    let run = || {
        let mut machine = BlockMachine::new(depth);
        script.iter().try_for_each(|&operation| machine.run(operation))?;
        machine.finish().map(|()| machine.counts())
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().cloned();
        Err(message.unwrap_or_else(|| "the manager panicked".into()))
    })
}

/// Leaves out ever smaller pieces, as long as what remains still fails.
fn shorten(depth: PipelineDepth, mut script: Vec<u32>) -> Vec<u32> {
    let mut piece = script.len() / 2;
    while piece > 0 {
        let mut start = 0;
        while start < script.len() {
            let mut shorter = script.clone();
            shorter.drain(start..script.len().min(start + piece));
            if run(depth, &shorter).is_err() {
                script = shorter;
            } else {
                start += piece;
            }
        }
        piece /= 2;
    }
    script
}

fn add(a: BlockMachineCounts, b: BlockMachineCounts) -> BlockMachineCounts {
    BlockMachineCounts {
        num_operations: a.num_operations + b.num_operations,
        num_effective: a.num_effective + b.num_effective,
        num_hits: a.num_hits + b.num_hits,
        num_partial_hits: a.num_partial_hits + b.num_partial_hits,
        num_copied_tails: a.num_copied_tails + b.num_copied_tails,
        num_exhausted: a.num_exhausted + b.num_exhausted,
        num_retired: a.num_retired + b.num_retired,
    }
}
