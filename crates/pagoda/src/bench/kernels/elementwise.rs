//! Ops that read rows and write rows, and sampling.

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BackendError, GatedActivation, GatherRows, RmsNorm, Sample, SampleRow,
};

use crate::bench::subject::{Effort, Subject};

const EPS: f32 = 1e-5;

pub(super) fn rms_norm<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    num_rows: usize,
    width: usize,
) -> Result<f64, BackendError> {
    let x = subject.noise(num_rows, width)?;
    let weight = subject.backend.upload_vector(&vec![1.0; width])?;
    let mut out = subject.backend.alloc(num_rows, width)?;
    subject.time(effort, &mut out, |backend, out, _| {
        backend.rms_norm(RmsNorm { x: &x, weight: &weight, eps: EPS, num_rows, out })
    })
}

pub(super) fn add_rms_norm<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    num_rows: usize,
    width: usize,
) -> Result<f64, BackendError> {
    // What is added again and again must not grow: zeros are as fast to move as other numbers.
    let x = subject.backend.alloc(num_rows, width)?;
    let mut residual = subject.noise(num_rows, width)?;
    let weight = subject.backend.upload_vector(&vec![1.0; width])?;
    let mut out = subject.backend.alloc(num_rows, width)?;
    subject.time(effort, &mut out, |backend, out, _| {
        let residual = &mut residual;
        backend.add_rms_norm(AddRmsNorm { x: &x, residual, weight: &weight, eps: EPS, num_rows, out })
    })
}

pub(super) fn gated<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    num_rows: usize,
    width: usize,
) -> Result<f64, BackendError> {
    let gate_up = subject.noise(num_rows, 2 * width)?;
    let mut out = subject.backend.alloc(num_rows, width)?;
    subject.time(effort, &mut out, |backend, out, _| {
        let activation = Activation::Silu;
        backend.gated_activation(GatedActivation { gate_up: &gate_up, activation, num_rows, out })
    })
}

/// The rows in an order that no prefetcher guesses.
pub(super) fn gather<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    num_rows: usize,
    width: usize,
) -> Result<f64, BackendError> {
    let x = subject.noise(num_rows, width)?;
    let rows: Vec<u32> = (0..num_rows).map(|row| (row * 7919 % num_rows) as u32).collect();
    let mut out = subject.backend.alloc(num_rows, width)?;
    subject
        .time(effort, &mut out, |backend, out, _| backend.gather_rows(GatherRows { x: &x, rows: &rows, out }))
}

/// Greedy, with the way of the tokens to the host.
pub(super) fn sample<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    num_rows: usize,
    vocab_size: usize,
) -> Result<f64, BackendError> {
    let mut logits = subject.backend.alloc_logits(num_rows, vocab_size)?;
    for row in 0..num_rows {
        let values: Vec<f32> = (0..vocab_size).map(|id| ((id * 7919 + row) % 1013) as f32 / 100.0).collect();
        (subject.write)(subject.backend, &mut logits, row, &values)?;
    }
    let rows: Vec<SampleRow<'_>> = (0..num_rows).map(|row| SampleRow::greedy(row as u32)).collect();
    subject.time(effort, &mut logits, |backend, logits, _| {
        let pending = backend.sample(Sample { logits, vocab_size, rows: &rows, first: 0 })?;
        backend.read_back(pending).map(drop)
    })
}
