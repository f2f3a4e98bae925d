//! Ops that treat every row by itself.

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BatchMetadata, Embed, GatedActivation, GatherRows, InputToken, RmsNorm,
    Sample, SampleRow, WeightFormat,
};
use pagoda_backend_cpu::reference;

use crate::compare::{equal, worst_row};
use crate::random::Random;
use crate::subject::{Subject, text};

const EPS: f32 = 1e-5;

pub(super) fn rms_norm<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    rows: usize,
    width: usize,
) -> Result<f64, String> {
    let x = random.rounded(rows * width, subject.round);
    let weight = random.rounded(width, subject.round);
    let expected = reference::rms_norm(&x, &weight, EPS);
    let x = subject.tensor(&x, width)?;
    let weight = subject.backend.upload_vector(&weight).map_err(text)?;
    let mut out = subject.poisoned(rows, width)?;
    let op = RmsNorm { x: &x, weight: &weight, eps: EPS, num_rows: rows, out: &mut out };
    subject.backend.rms_norm(op).map_err(text)?;
    let actual = subject.output(&out, rows, width)?;
    subject.accept(worst_row(&actual, &expected, width)?, 1.0)
}

pub(super) fn add_rms_norm<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    rows: usize,
    width: usize,
) -> Result<f64, String> {
    let x = random.rounded(rows * width, subject.round);
    let mut expected_residual = random.rounded(rows * width, subject.round);
    let weight = random.rounded(width, subject.round);
    let (x_tensor, mut residual) = (subject.tensor(&x, width)?, subject.tensor(&expected_residual, width)?);
    let expected = reference::add_rms_norm(&x, &mut expected_residual, &weight, EPS);
    let weight = subject.backend.upload_vector(&weight).map_err(text)?;
    let mut out = subject.poisoned(rows, width)?;
    let op = AddRmsNorm {
        x: &x_tensor,
        residual: &mut residual,
        weight: &weight,
        eps: EPS,
        num_rows: rows,
        out: &mut out,
    };
    subject.backend.add_rms_norm(op).map_err(text)?;
    let residual = subject.output(&residual, rows, width)?;
    let actual = subject.output(&out, rows, width)?;
    subject.accept(worst_row(&residual, &expected_residual, width)?, 1.0)?;
    subject.accept(worst_row(&actual, &expected, width)?, 1.5)
}

pub(super) fn gated<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    (rows, width): (usize, usize),
    activation: Activation,
) -> Result<f64, String> {
    let round = subject.round;
    let gate_up: Vec<f32> = (0..rows * 2 * width).map(|_| round(random.number() * 4.0)).collect();
    let expected = reference::gated_activation(&gate_up, width, activation);
    let gate_up = subject.tensor(&gate_up, 2 * width)?;
    let mut out = subject.poisoned(rows, width)?;
    let op = GatedActivation { gate_up: &gate_up, activation, num_rows: rows, out: &mut out };
    subject.backend.gated_activation(op).map_err(text)?;
    let actual = subject.output(&out, rows, width)?;
    subject.accept(worst_row(&actual, &expected, width)?, 1.0)
}

pub(super) fn gather<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    rows: usize,
    width: usize,
) -> Result<f64, String> {
    let x = random.rounded(9 * width, subject.round);
    let wanted: Vec<u32> = (0..rows).map(|_| random.below(9) as u32).collect();
    let expected = reference::gather_rows(&x, width, &wanted);
    let x = subject.tensor(&x, width)?;
    let mut out = subject.poisoned(rows, width)?;
    subject.backend.gather_rows(GatherRows { x: &x, rows: &wanted, out: &mut out }).map_err(text)?;
    let actual = subject.output(&out, rows, width)?;
    equal(&actual, &expected, "gathered rows").map(|()| 0.0)
}

/// Tokens of two kinds: known ones, and entries of a sample that was just taken.
pub(super) fn embed<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    (rows, width): (usize, usize),
    format: WeightFormat,
) -> Result<f64, String> {
    const VOCAB: usize = 24;
    let matrix = random.matrix(VOCAB, width, format, subject.round);
    let table = reference::dequantize(&matrix);
    let sampled = [random.below(VOCAB) as u32, random.below(VOCAB) as u32];
    take_samples(subject, &sampled, VOCAB)?;
    let mut metadata =
        BatchMetadata { query_start_loc: vec![0], block_table_starts: vec![0], ..Default::default() };
    let mut tokens = Vec::new();
    for row in 0..rows {
        let known = random.below(VOCAB) as u32;
        let (input, token) = match row % 3 {
            2 => (InputToken::LastSampled(row as u32 / 3 % 2), sampled[row / 3 % 2]),
            _ => (InputToken::Known(known), known),
        };
        tokens.push(token);
        metadata.input_tokens.push(input);
        metadata.positions.push(0);
        metadata.slot_mapping.push(0);
    }
    let expected = reference::embed(&table, width, &tokens, 0.5);
    let table = subject.backend.pack_weight(&[matrix]).map_err(text)?;
    let mut batch = subject.backend.alloc_batch(rows, 1, 1).map_err(text)?;
    subject.backend.upload_batch(&mut batch, &mut metadata).map_err(text)?;
    let mut out = subject.poisoned(rows, width)?;
    subject.backend.embed(Embed { batch: &batch, table: &table, scale: 0.5, out: &mut out }).map_err(text)?;
    let actual = subject.output(&out, rows, width)?;
    subject.accept(worst_row(&actual, &expected, width)?, 1.0)
}

/// Makes the backend choose exactly these tokens.
fn take_samples<B: Backend>(subject: &mut Subject<B>, tokens: &[u32], vocab: usize) -> Result<(), String> {
    let mut logits = vec![0.0; tokens.len() * vocab];
    for (row, &token) in tokens.iter().enumerate() {
        logits[row * vocab + token as usize] = 1.0;
    }
    let logits = subject.logits(&logits, vocab)?;
    let rows: Vec<SampleRow<'_>> = (0..tokens.len() as u32).map(SampleRow::greedy).collect();
    // All at once, which makes room for all; then one after the other, as a step with many rows does.
    let mut samples = Vec::new();
    for (num_rows, first) in std::iter::once((rows.len(), 0)).chain((0..rows.len()).map(|row| (1, row))) {
        let rows = &rows[first..first + num_rows];
        let op = Sample { logits: &logits, vocab_size: vocab, rows, first };
        let pending = subject.backend.sample(op).map_err(text)?;
        samples.extend(subject.backend.read_back(pending).map_err(text)?);
    }
    let samples = &samples[rows.len()..];
    let chosen: Vec<u32> =
        samples.iter().map(|sample| sample.as_ref().map_or(u32::MAX, |s| s.token)).collect();
    if chosen == tokens { Ok(()) } else { Err(format!("greedy chose {chosen:?} instead of {tokens:?}")) }
}
