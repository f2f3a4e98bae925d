//! The device under measurement: a backend, and the two things that `trait Backend` does not offer because no model needs
//! them. And the one way in which anything is timed.

use std::time::{Duration, Instant};

use pagoda_backend::{Backend, BackendError, HostMatrix, WeightFormat};

use super::lengths::Random;

/// Numbers drawn for an operand; a larger one repeats them. No multiple of any row's length.
const PATTERN_LEN: usize = (1 << 20) + 12;

/// A backend to measure.
pub(crate) struct Subject<'a, B: Backend> {
    pub(crate) backend: &'a mut B,
    /// Writes rows of a tensor from the given row on.
    pub(crate) write: fn(&mut B, &mut B::Tensor, usize, &[f32]) -> Result<(), BackendError>,
    /// Waits until the tensor's last value is there, and with it everything that was queued before.
    pub(crate) wait: fn(&mut B, &B::Tensor) -> Result<(), BackendError>,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Calls are queued without waiting for about this long.
    pub(crate) batch: Duration,
    /// So many times; the median counts.
    pub(crate) num_batches: usize,
}

impl Effort {
    /// What figures to be kept need.
    pub(crate) const FULL: Effort = Effort { batch: Duration::from_millis(50), num_batches: 5 };
}

impl<B: Backend> Subject<'_, B> {
    /// Rows of noise. Not zeros: a device computes those faster.
    pub(crate) fn noise(&mut self, num_rows: usize, width: usize) -> Result<B::Tensor, BackendError> {
        let mut tensor = self.backend.alloc(num_rows, width)?;
        let mut random = Random::new((num_rows * 31 + width) as u64);
        // The same piece again and again: drawing a large matrix would take longer than measuring with it.
        let rows_at_once = (PATTERN_LEN / width).clamp(1, num_rows);
        let values: Vec<f32> =
            (0..rows_at_once * width).map(|_| (random.unit() as f32 - 0.5) * 3.46).collect();
        for first in (0..num_rows).step_by(rows_at_once) {
            let len = rows_at_once.min(num_rows - first) * width;
            (self.write)(self.backend, &mut tensor, first, &values[..len])?;
        }
        Ok(tensor)
    }

    /// A bf16 weight of noise.
    pub(crate) fn weight(&mut self, rows: usize, cols: usize) -> Result<B::Weight, BackendError> {
        let mut random = Random::new((rows * 31 + cols) as u64);
        // Random signs, exponents between 2^-11 and 2^-8, and fractions.
        let number = |bits: u64| (bits as u16 & 0x81ff) | 0x3a00;
        let mut data: Vec<u8> = Vec::with_capacity(2 * rows * cols);
        while data.len() < 2 * PATTERN_LEN.min(rows * cols) {
            let bits = random.bits();
            data.extend(
                [bits, bits >> 16, bits >> 32, bits >> 48]
                    .iter()
                    .flat_map(|bits| number(*bits).to_le_bytes()),
            );
        }
        while data.len() < 2 * rows * cols {
            data.extend_from_within(..data.len().min(2 * rows * cols - data.len()));
        }
        data.truncate(2 * rows * cols);
        let matrix = HostMatrix { rows, cols, format: WeightFormat::Bf16, data: data.into() };
        self.backend.pack_weight(&[matrix])
    }

    /// Seconds of one call of `op`. Calls are queued back to back, as many as fill a batch; what is timed is the whole batch and
    /// the wait for `out`. `op` is given the number of the call, to take turns among copies of its operands that no cache
    /// holds together.
    pub(crate) fn time(
        &mut self,
        effort: Effort,
        out: &mut B::Tensor,
        mut op: impl FnMut(&mut B, &mut B::Tensor, usize) -> Result<(), BackendError>,
    ) -> Result<f64, BackendError> {
        let mut run = |num_calls: usize, subject: &mut Self| {
            let start = Instant::now();
            for call in 0..num_calls {
                op(subject.backend, out, call)?;
            }
            (subject.wait)(subject.backend, out)?;
            Ok::<f64, BackendError>(start.elapsed().as_secs_f64())
        };
        run(2, self)?;
        let mut num_calls = 1;
        let mut elapsed = run(num_calls, self)?;
        while elapsed < effort.batch.as_secs_f64() && num_calls < 1 << 20 {
            let factor = (1.2 * effort.batch.as_secs_f64() / elapsed.max(1e-9)).clamp(2.0, 16.0);
            num_calls = (num_calls as f64 * factor) as usize;
            elapsed = run(num_calls, self)?;
        }
        let mut batches: Vec<f64> =
            (0..effort.num_batches.max(1)).map(|_| run(num_calls, self)).collect::<Result<_, _>>()?;
        batches.sort_unstable_by(f64::total_cmp);
        Ok(batches[(batches.len() - 1) / 2] / num_calls as f64)
    }
}
