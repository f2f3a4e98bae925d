//! What the device can do right now: a large copy and a large product, the two numbers that every figure is stated against.

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use pagoda_backend::{Backend, BackendError, Linear};
use pagoda_backend_cpu::CpuBackend;
use pagoda_backend_cuda::{CudaBackend, DriverDevice};
use serde_json::{Value, json};

use super::roof::Probe;
use super::subject::{Effort, Subject};
use crate::device::Device;

/// Bytes copied on a GPU: far beyond any cache.
const GPU_COPY_BYTES: usize = 1 << 30;
/// The same on a CPU, per thread.
const CPU_COPY_BYTES: usize = 64 << 20;
/// Rows, columns and rows of the operands of the product.
const GPU_PRODUCT: usize = 8192;
const CPU_PRODUCT: usize = 1024;
/// Copies are repeated so often; the best counts on a CPU, which others use too.
const NUM_COPIES: u32 = 8;

/// Probes an opened device.
pub(crate) fn measure(device: &mut Device) -> anyhow::Result<Probe> {
    match device {
        Device::Cpu(backend) => {
            let copy_bytes_per_s = copy_on_cpu();
            let mut subject = of_cpu(backend);
            Ok(Probe {
                copy_bytes_per_s,
                product_flop_per_s: product(&mut subject, CPU_PRODUCT, Effort::FULL)?,
            })
        }
        Device::Cuda(backend) => {
            let copy_bytes_per_s = copy_on_gpu(backend.device())?;
            let mut subject = of_gpu(backend);
            Ok(Probe {
                copy_bytes_per_s,
                product_flop_per_s: product(&mut subject, GPU_PRODUCT, Effort::FULL)?,
            })
        }
    }
}

/// The CPU backend as a subject.
pub(crate) fn of_cpu(backend: &mut CpuBackend) -> Subject<'_, CpuBackend> {
    Subject {
        backend,
        write: |_, tensor, first_row, values| {
            let width = tensor.row(0).len();
            for (row, values) in values.chunks(width).enumerate() {
                tensor.row_mut(first_row + row).copy_from_slice(values);
            }
            Ok(())
        },
        // Its ops are done when they return.
        wait: |_, _| Ok(()),
    }
}

/// A CUDA backend over any device as a subject.
pub(crate) fn of_gpu<D: pagoda_backend_cuda::Device>(
    backend: &mut CudaBackend<D>,
) -> Subject<'_, CudaBackend<D>> {
    Subject {
        backend,
        write: |backend, tensor, first_row, values| backend.write_tensor(tensor, first_row, values),
        wait: |backend, tensor| backend.read_tensor(tensor, 1).map(drop),
    }
}

/// FLOP/s of a square product of noise.
pub(crate) fn product<B: Backend>(
    subject: &mut Subject<'_, B>,
    size: usize,
    effort: Effort,
) -> Result<f64, BackendError> {
    let x = subject.noise(size, size)?;
    let weight = subject.weight(size, size)?;
    let mut out = subject.backend.alloc(size, size)?;
    let seconds = subject.time(effort, &mut out, |backend, out, _| {
        backend.linear(Linear { x: &x, weight: &weight, bias: None, num_rows: size, out })
    })?;
    Ok(2.0 * (size as f64).powi(3) / seconds)
}

fn copy_on_gpu(device: &DriverDevice) -> anyhow::Result<f64> {
    let elapsed = pagoda_backend_cuda::time_copies(device.ordinal(), GPU_COPY_BYTES, NUM_COPIES)?;
    Ok(2.0 * GPU_COPY_BYTES as f64 * f64::from(NUM_COPIES) / elapsed.as_secs_f64())
}

/// Every thread copies memory of its own; bytes read plus bytes written.
fn copy_on_cpu() -> f64 {
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut buffers: Vec<_> =
        (0..num_threads).map(|_| (vec![1u8; CPU_COPY_BYTES], vec![2u8; CPU_COPY_BYTES])).collect();
    let copy_all = |buffers: &mut Vec<(Vec<u8>, Vec<u8>)>| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in buffers {
                scope.spawn(|| {
                    to.copy_from_slice(from);
                    black_box(&to[0]);
                });
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..NUM_COPIES).map(|_| copy_all(&mut buffers)).fold(f64::INFINITY, f64::min);
    2.0 * (num_threads * CPU_COPY_BYTES) as f64 / best
}

impl Probe {
    /// For result files.
    pub(crate) fn json(&self) -> Value {
        json!({ "copy_gb_per_s": self.copy_bytes_per_s / 1e9, "product_tflop_per_s": self.product_flop_per_s / 1e12 })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "copy {:.1} GB/s (read and written), product {:.3} TFLOP/s",
            self.copy_bytes_per_s / 1e9,
            self.product_flop_per_s / 1e12
        )
    }
}
