//! [`Lent`]: an executor that several engines use one after the other, so that a model is loaded once for all measurements;
//! and contexts without prefill, for which every block is filled beforehand.

use std::sync::{Arc, Mutex, MutexGuard};

use pagoda_engine::{
    BlockCopy, BlockId, Executor, ExecutorError, InputId, ScheduledSequence, Slot, StepOutput, StepPlan,
};
use pagoda_model::RunnerConfig;

/// Tokens below this are used to fill blocks.
const NUM_FILL_TOKENS: u32 = 256;
/// Copies in one step.
const MAX_COPIES: usize = 4096;

/// How the prompts of an engine's requests get into the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prompts {
    /// As for a client.
    Computed,
    /// Not at all: only a prompt's last token is computed, over the K and V that [`fill_blocks`] left. The tokens that follow
    /// mean nothing and cost what they always cost.
    Filled,
}

/// An executor behind an engine that will end before the executor does.
pub(crate) struct Lent<E> {
    executor: Arc<Mutex<E>>,
    prompts: Prompts,
}

impl<E: Executor> Lent<E> {
    pub(crate) fn new(executor: &Arc<Mutex<E>>, prompts: Prompts) -> Self {
        Lent { executor: Arc::clone(executor), prompts }
    }

    /// Nobody else has it while an engine steps: the lock is free.
    fn lock(&self) -> MutexGuard<'_, E> {
        self.executor.lock().expect("a step that panicked ends the program")
    }
}

impl<E: Executor> Executor for Lent<E> {
    type Ticket = E::Ticket;
    type Extra = E::Extra;

    fn launch(&mut self, plan: &StepPlan) -> Result<E::Ticket, ExecutorError> {
        let is_decode = plan.batch.num_tokens() == plan.batch.num_sequences();
        if self.prompts == Prompts::Computed || is_decode {
            return self.lock().launch(plan);
        }
        let plan = last_rows(plan);
        self.lock().launch(&plan)
    }

    fn wait(&mut self, ticket: E::Ticket) -> Result<StepOutput<E::Extra>, ExecutorError> {
        self.lock().wait(ticket)
    }
}

/// The plan with every sequence cut to its last row.
fn last_rows(plan: &StepPlan) -> StepPlan {
    let mut cut = plan.clone();
    let ends = &plan.batch.query_start_loc[1..];
    let num_sequences = ends.len();
    let keep = |values: &[u32]| ends.iter().map(|end| values[*end as usize - 1]).collect::<Vec<u32>>();
    cut.batch.input_ids = ends.iter().map(|end| plan.batch.input_ids[*end as usize - 1]).collect();
    cut.batch.slot_mapping = ends.iter().map(|end| plan.batch.slot_mapping[*end as usize - 1]).collect();
    cut.batch.positions = keep(&plan.batch.positions);
    cut.batch.query_start_loc = (0..=num_sequences as u32).collect();
    for sequence in &mut cut.sequences {
        sequence.num_computed_tokens += sequence.num_scheduled_tokens - 1;
        sequence.num_scheduled_tokens = 1;
    }
    for sample in &mut cut.samples {
        sample.row = ends.partition_point(|end| *end <= sample.row) as u32;
    }
    cut
}

/// Puts K and V of real tokens into every block but block 0: some by computing them, the rest as copies of those.
pub(crate) fn fill_blocks<E: Executor>(executor: &mut E, config: &RunnerConfig) -> Result<(), ExecutorError> {
    let num_usable = config.num_blocks - 1;
    let per_step = (config.max_num_batched_tokens / config.block_size).min(config.max_num_seqs).max(1);
    let num_computed = num_usable.min(per_step);
    run(executor, &computed_blocks(num_computed, config.block_size))?;
    let rest: Vec<usize> = (num_computed + 1..=num_usable).collect();
    for targets in rest.chunks(MAX_COPIES) {
        let copy = |target: &usize| BlockCopy {
            source: BlockId((1 + target % num_computed) as u32),
            target: BlockId(*target as u32),
            num_slots: config.block_size as u32,
        };
        run(executor, &StepPlan { copies: targets.iter().map(copy).collect(), ..StepPlan::default() })?;
    }
    Ok(())
}

fn run<E: Executor>(executor: &mut E, plan: &StepPlan) -> Result<(), ExecutorError> {
    let ticket = executor.launch(plan)?;
    executor.wait(ticket).map(drop)
}

/// Blocks 1 to `num_blocks`, each a short sequence of its own.
fn computed_blocks(num_blocks: usize, block_size: usize) -> StepPlan {
    let mut plan = StepPlan::default();
    plan.batch.query_start_loc.push(0);
    plan.batch.block_table_starts.push(0);
    for index in 0..num_blocks {
        let block = BlockId(index as u32 + 1);
        for offset in 0..block_size {
            let token = (index * block_size + offset) as u32 * 7 % NUM_FILL_TOKENS;
            plan.batch.input_ids.push(InputId::Known(token));
            plan.batch.positions.push(offset as u32);
            plan.batch.slot_mapping.push(Slot::new(block, offset, block_size));
        }
        plan.batch.query_start_loc.push(plan.batch.input_ids.len() as u32);
        plan.batch.context_lens.push(block_size as u32);
        plan.batch.block_tables.push(block);
        plan.batch.block_table_starts.push(index as u32 + 1);
        plan.sequences.push(ScheduledSequence {
            sequence: pagoda_engine::SequenceId(index as u64),
            num_computed_tokens: 0,
            num_scheduled_tokens: block_size as u32,
            num_tokens: block_size as u32,
        });
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it is launched with.
    #[derive(Default)]
    struct Recorder(Vec<StepPlan>);

    impl Executor for Recorder {
        type Ticket = ();
        type Extra = ();

        fn launch(&mut self, plan: &StepPlan) -> Result<(), ExecutorError> {
            self.0.push(plan.clone());
            Ok(())
        }

        fn wait(&mut self, (): ()) -> Result<StepOutput<()>, ExecutorError> {
            Ok(StepOutput { samples: Vec::new(), prompt_logprobs: Vec::new() })
        }
    }

    #[test]
    fn a_prompt_keeps_its_last_row_and_its_whole_context() {
        let executor = Arc::new(Mutex::new(Recorder::default()));
        let mut plan = computed_blocks(3, 4);
        let sample = |row| pagoda_engine::SampleRow {
            row,
            sequence: pagoda_engine::SequenceId(0),
            sample_index: 0,
            position: 4,
            params: Arc::new(pagoda_engine::SamplingParams::greedy()),
            banned: Arc::new([]),
            mask: None,
            history: None,
        };
        plan.samples = vec![sample(3), sample(11)];
        Lent::new(&executor, Prompts::Filled).launch(&plan).unwrap();
        let cut = executor.lock().unwrap().0[0].clone();
        assert_eq!(cut.batch.positions, [3, 3, 3]);
        assert_eq!(cut.batch.slot_mapping, [7, 11, 15].map(Slot));
        assert_eq!(cut.batch.query_start_loc, [0, 1, 2, 3]);
        assert_eq!(cut.batch.context_lens, [4, 4, 4]);
        assert_eq!(cut.batch.block_tables, plan.batch.block_tables);
        assert_eq!(cut.samples.iter().map(|sample| sample.row).collect::<Vec<_>>(), [0, 2]);
        Lent::new(&executor, Prompts::Computed).launch(&plan).unwrap();
        assert_eq!(executor.lock().unwrap().0[1].batch.positions, plan.batch.positions);
    }

    #[test]
    fn every_block_but_the_first_is_filled_once_and_no_source_is_a_target() {
        let config = RunnerConfig {
            block_size: 4,
            num_blocks: 10_000,
            max_num_seqs: 8,
            max_num_batched_tokens: 20,
            max_model_len: 64,
        };
        let mut recorder = Recorder::default();
        fill_blocks(&mut recorder, &config).unwrap();
        let slots = &recorder.0[0].batch.slot_mapping;
        assert_eq!(slots.iter().map(|slot| slot.0).collect::<Vec<_>>(), (4..24).collect::<Vec<_>>());
        let copies: Vec<BlockCopy> = recorder.0.iter().flat_map(|plan| plan.copies.clone()).collect();
        let targets: Vec<u32> = copies.iter().map(|copy| copy.target.0).collect();
        assert_eq!(targets, (6..10_000).collect::<Vec<_>>());
        assert!(copies.iter().all(|copy| (1..6).contains(&copy.source.0) && copy.num_slots == 4));
    }
}
