//! `pagoda bench kernels`: every op by itself, as GB/s or TFLOP/s and as a share of a copy and a product that the same process
//! has just measured. What an op must move or compute at least is counted by formula, not by what a kernel happens to do.
//!
//! Calls are queued back to back, so that on a GPU the time of a short kernel includes its launch.

mod attention;
mod case;
mod elementwise;
mod product;

use anyhow::Context;
use pagoda_backend::{Backend, BackendError};
use pagoda_backend_cpu::{CpuBackend, CpuOptions};
use serde_json::json;

pub(crate) use self::case::{Case, Op, Scale, cases};

use super::probe;
use super::results::Results;
use super::roof::Probe;
use super::subject::{Effort, Subject};
use crate::args::{BenchKernelsArgs, KernelArgs};
use crate::device::{Device, DeviceConfig, GpuOptions};

/// Bytes of an activation on a GPU and on the CPU.
const GPU_ELEMENT_BYTES: usize = 2;
const CPU_ELEMENT_BYTES: usize = 4;

/// Whose ops are measured.
pub(crate) fn device_config(args: &BenchKernelsArgs) -> DeviceConfig {
    let num_threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let KernelArgs { dtype, .. } = args.kernels;
    DeviceConfig {
        choice: args.device,
        cpu: CpuOptions { num_threads, isa: None },
        arithmetic: pagoda_backend_cpu::Arithmetic::F32,
        gpu: GpuOptions { dtype, is_fp8_kv: false, has_graphs: true, policy: args.kernels.policy() },
        kernels: args.kernels,
    }
}

/// Measures every case asked for.
pub(crate) fn run(args: &BenchKernelsArgs) -> anyhow::Result<()> {
    let mut device = Device::open(&device_config(args))?;
    let is_gpu = matches!(device, Device::Cuda(_));
    let (scale, element_bytes) =
        if is_gpu { (Scale::Gpu, GPU_ELEMENT_BYTES) } else { (Scale::Cpu, CPU_ELEMENT_BYTES) };
    let wanted: Vec<Case> = cases(scale)
        .into_iter()
        .filter(|case| args.only.is_empty() || args.only.iter().any(|start| case.name().starts_with(start)))
        .collect();
    if args.list {
        for case in &wanted {
            let cost = case.cost(element_bytes);
            println!("{:<44} {:>14.0} bytes {:>18.0} FLOP", case.name(), cost.bytes, cost.flop);
        }
        return Ok(());
    }
    let probe = probe::measure(&mut device)?;
    let description = match &device {
        Device::Cpu(backend) => backend.describe(),
        Device::Cuda(backend) => backend.describe(),
    };
    println!("device   {description}\nprobe    {probe}");
    let common = json!({ "bench": "kernels", "device": description, "version": env!("CARGO_PKG_VERSION"),
        "kernels": format!("{:?}", args.kernels), "probe": probe.json() });
    let mut report = Report { probe, element_bytes, results: Results::open(args.json.as_deref(), common)? };
    match &mut device {
        Device::Cpu(backend) => report.run_all::<CpuBackend>(&mut probe::of_cpu(backend), &wanted),
        Device::Cuda(backend) => report.run_all(&mut probe::of_gpu(backend), &wanted),
    }
}

struct Report {
    probe: Probe,
    element_bytes: usize,
    results: Results,
}

impl Report {
    fn run_all<B: Backend>(&mut self, subject: &mut Subject<'_, B>, wanted: &[Case]) -> anyhow::Result<()> {
        for case in wanted {
            match measure(subject, case, Effort::FULL) {
                Ok(seconds) => self.add(case, seconds)?,
                // A shape that a device has no code for, or no memory: the others still count.
                Err(error @ (BackendError::Unsupported(_) | BackendError::OutOfMemory { .. })) => {
                    println!("{:<44} skipped: {error}", case.name());
                }
                Err(error) => return Err(error).with_context(|| case.name()),
            }
        }
        Ok(())
    }

    fn add(&mut self, case: &Case, seconds: f64) -> anyhow::Result<()> {
        let cost = case.cost(self.element_bytes);
        let (bytes_per_s, flop_per_s) = (cost.bytes / seconds, cost.flop / seconds);
        let (of_copy, of_product) = (
            100.0 * bytes_per_s / self.probe.copy_bytes_per_s,
            100.0 * flop_per_s / self.probe.product_flop_per_s,
        );
        let text = format!(
            "{:<44} {:>10.1} us {:>8.1} GB/s ({of_copy:>5.1} % of the copy) {:>8.3} TFLOP/s ({of_product:>5.1} % of the product)",
            case.name(),
            seconds * 1e6,
            bytes_per_s / 1e9,
            flop_per_s / 1e12
        );
        let fields = json!({
            "case": case.name(), "us": seconds * 1e6, "bytes": cost.bytes, "flop": cost.flop,
            "gb_per_s": bytes_per_s / 1e9, "tflop_per_s": flop_per_s / 1e12, "percent_of_copy": of_copy,
            "percent_of_product": of_product,
        });
        self.results.add(&text, fields)
    }
}

/// Seconds of one call.
pub(crate) fn measure<B: Backend>(
    subject: &mut Subject<'_, B>,
    case: &Case,
    effort: Effort,
) -> Result<f64, BackendError> {
    match case.op() {
        Op::RmsNorm { rows, width } => elementwise::rms_norm(subject, effort, rows, width),
        Op::AddRmsNorm { rows, width } => elementwise::add_rms_norm(subject, effort, rows, width),
        Op::Gated { rows, width } => elementwise::gated(subject, effort, rows, width),
        Op::Gather { rows, width } => elementwise::gather(subject, effort, rows, width),
        Op::Sample { rows, vocab } => elementwise::sample(subject, effort, rows, vocab),
        Op::Linear { rows, cols, num_rows } => product::linear(subject, effort, (rows, cols), num_rows),
        Op::Rope { rows, heads } => attention::rope(subject, effort, rows, heads),
        Op::CopyBlocks { num_blocks, heads } => attention::copy_blocks(subject, effort, num_blocks, heads),
        Op::Decode { heads, contexts, pages } => {
            attention::attend(subject, effort, heads, &attention::decode(contexts, pages))
        }
        Op::Prefill { heads, len } => attention::attend(subject, effort, heads, &attention::prefill(len)),
    }
}

#[cfg(test)]
mod tests {
    use pagoda_backend_cuda::{CudaBackend, Element, LinearPolicy, MeterDevice};

    use super::*;

    /// The same launches as on a GPU, on a device that checks what it is asked and does nothing.
    #[test]
    fn every_case_is_one_that_the_cuda_backend_can_launch() {
        let effort = Effort { batch: std::time::Duration::from_micros(10), num_batches: 1 };
        for case in cases(Scale::Tiny) {
            let mut backend = CudaBackend::new(MeterDevice::default(), Element::Bf16, LinearPolicy::Fastest);
            let mut subject = Subject { wait: |_, _| Ok(()), ..probe::of_gpu(&mut backend) };
            match (measure(&mut subject, &case, effort), case.op()) {
                (Ok(_), _) => {}
                // Its tokens come back from the device, and this one has none.
                (Err(BackendError::Unsupported(_)), Op::Sample { .. }) => {}
                (Err(error), _) => panic!("{}: {error}", case.name()),
            }
        }
    }

    /// Every op, at shapes that take milliseconds, on the CPU: what the measurement asks of a backend is in order.
    #[test]
    fn every_case_runs_at_a_small_scale() {
        let mut backend = CpuBackend::new(CpuOptions { num_threads: 2, isa: None }).unwrap();
        let effort = Effort { batch: std::time::Duration::from_micros(10), num_batches: 1 };
        for case in cases(Scale::Tiny) {
            let seconds = measure(&mut probe::of_cpu(&mut backend), &case, effort).unwrap();
            assert!(seconds > 0.0 && seconds < 1.0, "{}: {seconds}", case.name());
        }
    }
}
