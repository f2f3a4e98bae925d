//! The backend under test, and the few things that `trait Backend` does not offer because no model needs them.

use pagoda_backend::{Backend, BackendError};

/// K, then V, of one slot: `[kv heads, head_dim]` each.
pub type SlotReader<B> = fn(
    &mut B,
    &<B as Backend>::KvCache,
    layer: usize,
    slot: usize,
) -> Result<(Vec<f32>, Vec<f32>), BackendError>;

/// A backend under test.
pub struct Subject<B: Backend> {
    /// Runs the ops.
    pub backend: B,
    /// Writes rows of a tensor from the given row on.
    pub write: fn(&mut B, &mut B::Tensor, usize, &[f32]) -> Result<(), BackendError>,
    /// The first rows of a tensor.
    pub read: fn(&mut B, &B::Tensor, usize) -> Result<Vec<f32>, BackendError>,
    /// K and V of a slot.
    pub read_slot: SlotReader<B>,
    /// The number that an activation holds for a number.
    pub round: fn(f32) -> f32,
    /// Replaces a head of K or V by what the cache keeps of it; numbers that `round` leaves as they are.
    pub round_head: fn(&mut [f32]),
    /// Largest relative L2 error of a row.
    pub tolerance: f64,
    /// Largest relative L2 error of a head in the cache, which may be rounded the other way.
    pub kv_tolerance: f64,
}

/// Rows of NaN behind every output.
const SPARE_ROWS: usize = 2;

impl<B: Backend> Subject<B> {
    /// A tensor with these rows, and NaN behind them.
    pub(crate) fn tensor(&mut self, values: &[f32], width: usize) -> Result<B::Tensor, String> {
        let tensor = self.backend.alloc(values.len() / width + SPARE_ROWS, width).map_err(text)?;
        self.fill(tensor, values, width)
    }

    /// As [`Subject::tensor`], of logits.
    pub(crate) fn logits(&mut self, values: &[f32], width: usize) -> Result<B::Tensor, String> {
        let tensor = self.backend.alloc_logits(values.len() / width + SPARE_ROWS, width).map_err(text)?;
        self.fill(tensor, values, width)
    }

    /// All NaN, so that an output that an op forgets shows.
    pub(crate) fn poisoned(&mut self, num_rows: usize, width: usize) -> Result<B::Tensor, String> {
        self.tensor(&vec![f32::NAN; num_rows * width], width)
    }

    fn fill(&mut self, mut tensor: B::Tensor, values: &[f32], width: usize) -> Result<B::Tensor, String> {
        (self.write)(&mut self.backend, &mut tensor, 0, values).map_err(text)?;
        let spare = vec![f32::NAN; SPARE_ROWS * width];
        (self.write)(&mut self.backend, &mut tensor, values.len() / width, &spare).map_err(text)?;
        Ok(tensor)
    }

    /// The first `num_rows` rows of an output, once it is certain that the rows behind them are untouched.
    pub(crate) fn output(
        &mut self,
        tensor: &B::Tensor,
        num_rows: usize,
        width: usize,
    ) -> Result<Vec<f32>, String> {
        let mut values = (self.read)(&mut self.backend, tensor, num_rows + SPARE_ROWS).map_err(text)?;
        let behind = values.split_off(num_rows * width);
        if behind.iter().any(|value| !value.is_nan()) {
            return Err(format!("the op wrote behind its {num_rows} rows"));
        }
        Ok(values)
    }

    /// Whether an error is within the tolerance, times `factor` for ops that round more than once.
    pub(crate) fn accept(&self, error: f64, factor: f64) -> Result<f64, String> {
        let limit = self.tolerance * factor;
        if error <= limit { Ok(error) } else { Err(format!("relative L2 {error:.3e} > {limit:.1e}")) }
    }
}

/// A backend's error as a case's failure.
pub(crate) fn text(error: BackendError) -> String {
    format!("the backend failed: {error}")
}
