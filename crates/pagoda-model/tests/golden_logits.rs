//! The logits of `models/tiny` equal those of an independent f64 forward pass (`scripts/export_golden.py`).
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::Session;
use pagoda_engine::{SamplingParams, TokenLogprobs};
use serde::Deserialize;

const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<GoldenSequence>,
}

#[derive(Deserialize)]
struct GoldenSequence {
    token_ids: Vec<u32>,
    greedy: Vec<u32>,
    logits: Vec<Vec<f64>>,
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    logits.iter().map(|logit| logit - max - sum.ln()).collect()
}

fn assert_close(found: &TokenLogprobs, expected: &[f64], place: usize) {
    assert_eq!(found.top.len(), expected.len());
    for (token, logprob) in &found.top {
        let difference = (f64::from(*logprob) - expected[*token as usize]).abs();
        assert!(difference < TOLERANCE, "place {place}, token {token}: off by {difference}");
    }
}

#[test]
fn every_logit_of_the_tiny_model_is_within_1e_4_of_the_golden_file() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny"));
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let mut session = Session::open(folder);
    assert_eq!(golden.sequences.len(), 2);
    for sequence in &golden.sequences {
        let expected: Vec<Vec<f64>> = sequence.logits.iter().map(|row| log_softmax(row)).collect();
        let vocab_size = expected[0].len() as u32;
        let found = session.prompt_logprobs(&sequence.token_ids, vocab_size);
        assert_eq!(found.len(), sequence.token_ids.len() - 1);
        for (place, found) in found.iter().enumerate() {
            assert_close(found, &expected[place], place);
            let target = sequence.token_ids[place + 1] as usize;
            assert!((f64::from(found.logprob) - expected[place][target]).abs() < TOLERANCE);
        }
        let sampling = SamplingParams { num_logprobs: Some(vocab_size), ..SamplingParams::greedy() };
        let num_tokens = sequence.greedy.len() as u32;
        let answer = session.run(common::request(&sequence.token_ids, num_tokens, None, sampling));
        let last = expected.last().unwrap();
        assert_close(answer.tokens[0].extra.as_ref().unwrap(), last, expected.len() - 1);
        assert_eq!(answer.token_ids(), sequence.greedy);
    }
}
