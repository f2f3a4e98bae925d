//! The activations of a step. Every width and row count is decided here, once, so that the budget printed before the load
//! and the memory taken by it are the same numbers.

use pagoda_backend::{Backend, BackendError};

use crate::{ModelConfig, RunnerConfig};

/// Rows of logits held at once, at most. 256 rows of a vocabulary of 128k are 131 MB.
const MAX_LOGIT_ROWS: usize = 256;

/// The activation matrices of a step; `n` rows are the step's tokens, `k` rows are a slice of those that need logits.
pub(crate) struct Workspace<B: Backend> {
    /// `[n, hidden]`
    pub(crate) residual: B::Tensor,
    /// `[n, hidden]`
    pub(crate) normed: B::Tensor,
    /// `[n, hidden]` what the last mixer or feed-forward part adds to the residual.
    pub(crate) delta: B::Tensor,
    /// `[n, qkv_width]`
    pub(crate) qkv: B::Tensor,
    /// `[n, q_width]`
    pub(crate) attention: B::Tensor,
    /// `[n, 2 * intermediate]`
    pub(crate) gate_up: B::Tensor,
    /// `[n, intermediate]`
    pub(crate) activated: B::Tensor,
    /// `[k, hidden]`
    pub(crate) sampled_residual: B::Tensor,
    /// `[k, hidden]`
    pub(crate) sampled_delta: B::Tensor,
    /// `[k, hidden]`
    pub(crate) sampled_normed: B::Tensor,
    /// `[k, vocab]`
    pub(crate) logits: B::Tensor,
}

/// Rows of logits held at once under these limits.
pub(crate) fn max_logit_rows(config: &RunnerConfig) -> usize {
    MAX_LOGIT_ROWS.min(config.max_num_seqs.max(16)).min(config.max_num_batched_tokens).max(1)
}

impl<B: Backend> Workspace<B> {
    /// Takes the memory.
    pub(crate) fn alloc(
        backend: &mut B,
        model: &ModelConfig,
        config: &RunnerConfig,
    ) -> Result<Self, BackendError> {
        let [residual, normed, delta, qkv, attention, gate_up, activated, rest @ ..] = shapes(model, config);
        let [sampled_residual, sampled_delta, sampled_normed, logits] = rest;
        let logits = backend.alloc_logits(logits.0, logits.1)?;
        let mut alloc = |(rows, width)| backend.alloc(rows, width);
        Ok(Workspace {
            residual: alloc(residual)?,
            normed: alloc(normed)?,
            delta: alloc(delta)?,
            qkv: alloc(qkv)?,
            attention: alloc(attention)?,
            gate_up: alloc(gate_up)?,
            activated: alloc(activated)?,
            sampled_residual: alloc(sampled_residual)?,
            sampled_delta: alloc(sampled_delta)?,
            sampled_normed: alloc(sampled_normed)?,
            logits,
        })
    }
}

/// `(rows, width)` of every matrix, in the order of the fields.
fn shapes(model: &ModelConfig, config: &RunnerConfig) -> [(usize, usize); 11] {
    let (n, k) = (config.max_num_batched_tokens, max_logit_rows(config));
    let (heads, hidden, intermediate) = (model.heads(), model.hidden_size, model.intermediate_size);
    [
        (n, hidden),
        (n, hidden),
        (n, hidden),
        (n, heads.qkv_width()),
        (n, heads.q_width()),
        (n, 2 * intermediate),
        (n, intermediate),
        (k, hidden),
        (k, hidden),
        (k, hidden),
        (k, model.vocab_size),
    ]
}

/// Numbers in all matrices together.
pub(super) fn num_elements(model: &ModelConfig, config: &RunnerConfig) -> u64 {
    shapes(model, config).iter().map(|(rows, width)| (*rows as u64).saturating_mul(*width as u64)).sum()
}
