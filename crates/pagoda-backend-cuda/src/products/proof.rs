//! A library's products beside the kernels' own, before the first of them is trusted.

use pagoda_backend::{Backend, BackendError, HostMatrix, Linear, WeightFormat};

use crate::backend::CudaBackend;
use crate::device::Device;

/// An odd number of tiles in every direction, and more rows than `skinny_gemm` takes.
const ROWS: usize = 136;
const COLS: usize = 72;
const NUM_ROWS: usize = 50;

impl<D: Device> CudaBackend<D> {
    /// Computes small products with the library and without it, in every type of output, with a bias and without. An error if
    /// they differ: the library must not be used then. Takes the library's workspace, so that it is gone from the free memory
    /// before that is divided.
    pub fn prove_products(&mut self) -> Result<(), BackendError> {
        let mut numbers = Numbers(1);
        let data: Vec<u8> = (0..ROWS * COLS).flat_map(|_| numbers.next().to_le_bytes()).collect();
        let matrix = HostMatrix { rows: ROWS, cols: COLS, format: WeightFormat::F32, data: data.into() };
        let weight = self.pack_weight(&[matrix])?;
        let bias: Vec<f32> = (0..ROWS).map(|_| numbers.next()).collect();
        let bias = self.upload_vector(&bias)?;
        let x_values: Vec<f32> = (0..NUM_ROWS * COLS).map(|_| numbers.next()).collect();
        let x = self.alloc(NUM_ROWS, COLS)?;
        self.write_tensor(&x, 0, &x_values)?;
        for is_f32 in [false, true] {
            let mut out =
                if is_f32 { self.alloc_logits(NUM_ROWS, ROWS)? } else { self.alloc(NUM_ROWS, ROWS)? };
            for bias in [None, Some(&bias)] {
                let product = |backend: &mut Self, out: &mut <Self as Backend>::Tensor| {
                    backend.linear(Linear { x: &x, weight: &weight, bias, num_rows: NUM_ROWS, out })?;
                    backend.read_tensor(out, NUM_ROWS)
                };
                let by_library = product(self, &mut out)?;
                let by_kernel = self.without_products(|backend| product(backend, &mut out))?;
                let error = relative_error(&by_library, &by_kernel);
                if error.is_nan() || error > 2.0 * self.element.tolerance() {
                    let what = format!("f32 out: {is_f32}, bias: {}", bias.is_some());
                    return Err(BackendError::Refused(format!(
                        "wrong products ({what}): relative error {error:.1e}"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Between -1 and 1, the same every time.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// L2 of the difference over L2 of what is expected.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let difference: f64 = found.iter().zip(expected).map(|(found, expected)| square(found - expected)).sum();
    let size: f64 = expected.iter().map(|&value| square(value)).sum();
    (difference / size).sqrt()
}
