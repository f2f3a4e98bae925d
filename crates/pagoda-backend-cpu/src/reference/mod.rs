//! One obvious function per op, accumulating in f64: the oracle of the fast path and of every other backend.
//!
//! Owns: what each op means, in the plainest words. Does not know: SIMD, threads, packed layouts, speed.
//!
//! Inputs and outputs are row-major slices; results are rounded to f32 once, at the end.

mod attention;
mod sampling;
mod weights;

pub use attention::{AttentionInput, KvCache, RopeInput, copy_blocks, paged_attention, rope_store_kv};
pub use sampling::{gumbel, log_softmax, sample};
pub use weights::dequantize;

use pagoda_backend::Activation;

/// `out[r] = table[tokens[r]] * scale`; `table` is `[vocab, width]`.
pub fn embed(table: &[f32], width: usize, tokens: &[u32], scale: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(tokens.len() * width);
    for &token in tokens {
        let row = &table[token as usize * width..][..width];
        out.extend(row.iter().map(|&value| (f64::from(value) * f64::from(scale)) as f32));
    }
    out
}

/// `out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight`
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let sum_of_squares: f64 = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        let factor = 1.0 / (sum_of_squares / width as f64 + f64::from(eps)).sqrt();
        out.extend(
            row.iter().zip(weight).map(|(&value, &w)| (f64::from(value) * factor * f64::from(w)) as f32),
        );
    }
    out
}

/// `residual += x`, then the norm of `residual`.
pub fn add_rms_norm(x: &[f32], residual: &mut [f32], weight: &[f32], eps: f32) -> Vec<f32> {
    for (sum, &value) in residual.iter_mut().zip(x) {
        *sum += value;
    }
    rms_norm(residual, weight, eps)
}

/// `out[r] = x[r] W^T + bias`; `weight` is `[rows, cols]`.
pub fn linear(x: &[f32], weight: &[f32], cols: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let rows = weight.len() / cols;
    let mut out = Vec::with_capacity(x.len() / cols * rows);
    for x_row in x.chunks_exact(cols) {
        for (index, w_row) in weight.chunks_exact(cols).enumerate() {
            let dot: f64 = x_row.iter().zip(w_row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            out.push((dot + bias.map_or(0.0, |bias| f64::from(bias[index]))) as f32);
        }
    }
    out
}

/// The gate's function.
pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

/// `out[r][i] = act(gate_up[r][i]) * gate_up[r][width + i]`
pub fn gated_activation(gate_up: &[f32], width: usize, activation: Activation) -> Vec<f32> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact(2 * width) {
        let (gate, up) = row.split_at(width);
        out.extend(
            gate.iter()
                .zip(up)
                .map(|(&gate, &up)| (activate(activation, f64::from(gate)) * f64::from(up)) as f32),
        );
    }
    out
}

/// `out[i] = x[rows[i]]`
pub fn gather_rows(x: &[f32], width: usize, rows: &[u32]) -> Vec<f32> {
    rows.iter().flat_map(|&row| &x[row as usize * width..][..width]).copied().collect()
}
