//! Products with a dense weight.

use pagoda_backend::{Backend, BackendError, Linear};

use crate::bench::subject::{Effort, Subject};

/// Weights taken in turn have at least so many bytes together, unless a single call computes long: no cache holds them all.
const ROTATED_BYTES: usize = 256 << 20;
/// From so many rows on a product does not depend on where its weight comes from.
const MANY_ROWS: usize = 256;

/// `num_rows` rows by weights of `[rows, cols]`.
pub(super) fn linear<B: Backend>(
    subject: &mut Subject<'_, B>,
    effort: Effort,
    (rows, cols): (usize, usize),
    num_rows: usize,
) -> Result<f64, BackendError> {
    let is_small = rows * cols < 1 << 16;
    let num_weights = match num_rows {
        _ if is_small => 2,
        MANY_ROWS.. => 1,
        _ => (ROTATED_BYTES / (2 * rows * cols)).clamp(1, 64),
    };
    let weights: Vec<B::Weight> =
        (0..num_weights).map(|_| subject.weight(rows, cols)).collect::<Result<_, _>>()?;
    let x = subject.noise(num_rows, cols)?;
    let mut out = subject.backend.alloc(num_rows, rows)?;
    subject.time(effort, &mut out, |backend, out, call| {
        backend.linear(Linear { x: &x, weight: &weights[call % num_weights], bias: None, num_rows, out })
    })
}
