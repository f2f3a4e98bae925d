//! The runner does what a plan says: any cut of a prompt gives the same bits, n > 1 shares rows, and a plan it cannot run is
//! an error of that step.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{LIMITS, Session, backend, request};
use pagoda_backend::{KvFormat, WeightFormat};
use pagoda_engine::{
    Executor, InputId, PipelineDepth, Request, SampleRow, SamplingParams, SequenceId, Slot, StepPlan,
};
use pagoda_model::{Checkpoint, MemoryBudget, ModelRunner, RunnerConfig, kv_bytes_per_block, tiny};

const PROMPT: [u32; 33] = [
    1, 87, 260, 400, 12, 12, 511, 3, 99, 2, 301, 77, 145, 0, 258, 450, 5, 5, 5, 317, 288, 401, 33, 190, 9,
    310, 44, 45, 46, 501, 211, 8, 300,
];

fn checkpoint(folder: &tempfile::TempDir) -> Checkpoint {
    Checkpoint::open(tiny::write_gguf(folder.path(), WeightFormat::Q4_1).unwrap()).unwrap()
}

/// A plan that computes `ids` from position 0 in blocks 1, 2, .. and samples the last row.
fn plan(ids: &[u32]) -> StepPlan {
    let mut plan = StepPlan::default();
    let batch = &mut plan.batch;
    batch.input_ids = ids.iter().map(|id| InputId::Known(*id)).collect();
    batch.positions = (0..ids.len() as u32).collect();
    batch.slot_mapping = (16..16 + ids.len() as u32).map(Slot).collect();
    batch.query_start_loc = vec![0, ids.len() as u32];
    batch.context_lens = vec![ids.len() as u32];
    let num_blocks = ids.len().div_ceil(16) as u32;
    batch.block_tables = (1..=num_blocks).map(pagoda_engine::BlockId).collect();
    batch.block_table_starts = vec![0, num_blocks];
    plan.samples = vec![sample_row(ids.len() as u32 - 1, 0)];
    plan
}

fn sample_row(row: u32, sample_index: u32) -> SampleRow {
    let params = SamplingParams { temperature: 1.0, num_logprobs: Some(3), ..SamplingParams::greedy() };
    SampleRow {
        row,
        sequence: SequenceId(0),
        sample_index,
        position: row + 1,
        params: Arc::new(params),
        banned: Arc::new([]),
        mask: None,
        history: None,
    }
}

#[test]
fn any_cut_of_a_prompt_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny::write_gguf(folder.path(), WeightFormat::Q4_1).unwrap();
    let answer = |max_num_batched_tokens| {
        let limits = RunnerConfig { max_num_seqs: 1, max_num_batched_tokens, ..LIMITS };
        let mut session = Session::with_limits(&path, limits);
        let sampling =
            SamplingParams { temperature: 0.9, seed: 7, num_logprobs: Some(5), ..SamplingParams::greedy() };
        let answer = session.run(request(&PROMPT, 20, Some(4), sampling));
        assert_eq!(answer.prompt_logprobs.len(), PROMPT.len() - 1);
        assert_eq!(answer.tokens.len(), 20);
        format!("{answer:?}")
    };
    let whole = answer(64);
    assert_eq!(whole, answer(7));
    assert_eq!(whole, answer(1));
}

/// Requests of every kind that looks at earlier tokens: penalties, several samples, prompt logprobs, prompts longer than a step.
fn mixed_requests() -> Vec<Request> {
    let drawn = SamplingParams { temperature: 0.8, seed: 11, ..SamplingParams::greedy() };
    let penalised = SamplingParams {
        repetition_penalty: 1.4,
        frequency_penalty: 0.5,
        presence_penalty: 0.3,
        num_logprobs: Some(2),
        ..drawn.clone()
    };
    let several = Request { num_sequences: 3, ..request(&PROMPT[..9], 12, None, drawn.clone()) };
    vec![
        request(&PROMPT, 24, Some(2), SamplingParams::greedy()),
        request(&PROMPT[3..], 17, None, penalised.clone()),
        several,
        request(&PROMPT[..5], 30, None, penalised),
        request(&PROMPT[1..20], 1, None, drawn),
    ]
}

#[test]
fn a_pipeline_of_two_steps_gives_the_bits_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny::write_gguf(folder.path(), WeightFormat::Q4_1).unwrap();
    let answers = |depth, max_num_batched_tokens| {
        let limits = RunnerConfig { max_num_batched_tokens, ..LIMITS };
        let mut answers = Session::with_depth(&path, limits, depth).run_together(mixed_requests());
        for answer in &mut answers {
            // Siblings may come in any order.
            answer.tokens.sort_by_key(|event| event.sample_index);
        }
        format!("{answers:?}")
    };
    let one = answers(PipelineDepth::One, 64);
    assert_eq!(one, answers(PipelineDepth::Two, 64));
    assert_eq!(one, answers(PipelineDepth::Two, 8));
}

#[test]
fn samples_of_one_row_draw_independently_and_repeatably() {
    let folder = tempfile::tempdir().unwrap();
    let mut runner = ModelRunner::load(&checkpoint(&folder), backend(), LIMITS).unwrap();
    let mut plan = plan(&PROMPT);
    plan.samples = (0..300).map(|sample_index| sample_row(PROMPT.len() as u32 - 1, sample_index)).collect();
    let mut draw = || {
        let ticket = runner.launch(&plan).unwrap();
        let output = runner.wait(ticket).unwrap();
        output.samples.into_iter().map(|sample| sample.unwrap()).collect::<Vec<_>>()
    };
    let first = draw();
    assert_eq!(first.len(), 300);
    assert_eq!(first, draw());
    let mut tokens: Vec<u32> = first.iter().map(|sample| sample.token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    assert!(tokens.len() > 3, "300 draws gave {tokens:?}");
    let top = &first[0].extra.as_ref().unwrap().top;
    assert!(first.iter().all(|sample| &sample.extra.as_ref().unwrap().top == top));
}

#[test]
fn logits_of_more_rows_than_a_slice_holds_are_answered_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut runner = ModelRunner::load(&checkpoint(&folder), backend(), LIMITS).unwrap();
    let mut plan = plan(&PROMPT);
    plan.samples = (0..PROMPT.len() as u32).map(|row| sample_row(row, 0)).collect();
    let ticket = runner.launch(&plan).unwrap();
    let all = runner.wait(ticket).unwrap().samples;
    for row in [0, 15, 16, 17, 31, 32] {
        plan.samples = vec![sample_row(row as u32, 0)];
        let ticket = runner.launch(&plan).unwrap();
        assert_eq!(runner.wait(ticket).unwrap().samples[0], all[row], "row {row}");
    }
}

#[test]
fn a_plan_that_cannot_run_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut runner = ModelRunner::load(&checkpoint(&folder), backend(), LIMITS).unwrap();
    let mut error = |plan: &StepPlan| runner.launch(plan).map(|_| ()).unwrap_err();
    let outside = error(&plan(&[1, 512]));
    assert_eq!(outside.message, "token id 512 is outside of the vocabulary of 512");
    assert!(!outside.is_fatal);
    let mut in_flight = plan(&[1, 2]);
    in_flight.batch.input_ids[1] = InputId::LastSampled(0);
    assert!(error(&in_flight).message.contains("names token 0 of the step before"));
    assert!(error(&plan(&[1; 65])).message.contains("65 rows"));
    let ticket = runner.launch(&plan(&[1, 2])).unwrap();
    assert!(runner.wait(ticket).unwrap().samples[0].is_ok());
}

#[test]
fn the_memory_is_known_before_the_load() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(&folder);
    let planned = MemoryBudget::plan(&checkpoint, KvFormat::F32, &LIMITS);
    let loaded = ModelRunner::load(&checkpoint, backend(), LIMITS).unwrap().memory();
    assert_eq!((planned.kv_bytes, planned.workspace_bytes), (loaded.kv_bytes, loaded.workspace_bytes));
    // 3 layers x (K, V) x 2 heads x 16 channels x 4 bytes x 16 slots.
    assert_eq!(kv_bytes_per_block(checkpoint.config(), KvFormat::F32, 16), 3 * 2 * 2 * 16 * 4 * 16);
    assert_eq!(loaded.kv_bytes, 64 * 3 * 2 * 2 * 16 * 4 * 16);
    // 64 rows of 3 x 64 + 128 + 64 + 320 + 160, 16 rows of 3 x 64 + 512, 512 positions of 16 rope numbers.
    assert_eq!(loaded.workspace_bytes, 4 * (64 * 864 + 16 * 704 + 512 * 16));
    assert!(loaded.weight_bytes > 0 && planned.weight_bytes > 0);
}
