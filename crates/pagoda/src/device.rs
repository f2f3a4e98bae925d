//! The device that a model runs on: what was asked for, what this machine has, and the executor over it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use pagoda_backend::{Backend, KvFormat};
use pagoda_backend_cpu::{Arithmetic, CpuBackend, CpuOptions};
use pagoda_backend_cuda::{
    CudaBackend, CudaUnavailable, Device as CudaDevice, DriverDevice, Element, LinearPolicy, MeterDevice,
    PrefillKernel, StepSpan,
};
use pagoda_engine::{Executor, ExecutorError, PipelineDepth, StepOutput, StepPlan};
use pagoda_model::{Checkpoint, MemoryBudget, ModelRunner, RunnerConfig, StepTicket};

use crate::args::{Dtype, KernelArgs, PrefillChoice};
use crate::products::Gemm;
use crate::{memory, products};

type Gpu = CudaBackend<DriverDevice>;

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    /// The first GPU, or the CPU where there is none.
    Auto,
    /// The CPU.
    Cpu,
    /// This GPU or none.
    Cuda(i32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(DeviceChoice::Auto),
            ("cpu", _) => Ok(DeviceChoice::Cpu),
            ("cuda", _) => Ok(DeviceChoice::Cuda(0)),
            (_, Some(Ok(ordinal))) if ordinal >= 0 => Ok(DeviceChoice::Cuda(ordinal)),
            _ => Err("auto, cpu or cuda:N".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// What the flags say about the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceConfig {
    /// Which one.
    pub(crate) choice: DeviceChoice,
    /// Threads and instruction set, if it is the CPU.
    pub(crate) cpu: CpuOptions,
    /// How the CPU multiplies quantised weights.
    pub(crate) arithmetic: Arithmetic,
    /// How it works, if it is a GPU.
    pub(crate) gpu: GpuOptions,
    /// Which of several kernels it uses then.
    pub(crate) kernels: KernelArgs,
}

/// How a GPU works.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GpuOptions {
    /// Of activations, weights, K and V.
    pub(crate) dtype: Dtype,
    /// K and V in eight bits.
    pub(crate) is_fp8_kv: bool,
    /// Decode steps as CUDA graphs.
    pub(crate) has_graphs: bool,
    /// Whether products may depend on how many rows are in a step.
    pub(crate) policy: LinearPolicy,
}

impl KernelArgs {
    /// What `--deterministic` means for products.
    pub(crate) fn policy(self) -> LinearPolicy {
        if self.deterministic { LinearPolicy::Deterministic } else { LinearPolicy::Fastest }
    }

    /// Whether a library multiplies where there is one: its algorithms differ between numbers of rows.
    pub(crate) fn uses_library(self) -> bool {
        self.gemm == Gemm::Auto && !self.deterministic
    }
}

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// Shared with everything else on the machine.
    Cpu,
    /// Its own.
    Gpu,
}

/// What a device has to give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceMemory {
    /// Whose it is.
    pub(crate) kind: DeviceKind,
    /// Bytes that may still be taken.
    pub(crate) available_bytes: u64,
    /// How it keeps K and V.
    pub(crate) kv_format: KvFormat,
}

/// A device that has been opened and holds no model yet.
pub(crate) enum Device {
    /// The CPU.
    Cpu(Box<CpuBackend>),
    /// A GPU.
    Cuda(Box<Gpu>),
}

impl Device {
    /// Opens what was asked for, with the kernels that were asked for.
    pub(crate) fn open(config: &DeviceConfig) -> anyhow::Result<Self> {
        Ok(match Self::open_plain(config)? {
            Device::Cuda(backend) => Device::Cuda(Box::new(with_kernels(*backend, config.kernels))),
            cpu => cpu,
        })
    }

    /// `auto` falls back to the CPU and says why in one line.
    fn open_plain(config: &DeviceConfig) -> anyhow::Result<Self> {
        match config.choice {
            DeviceChoice::Cpu => Self::open_cpu(config),
            DeviceChoice::Cuda(ordinal) => open_cuda(ordinal, config.gpu).map_err(|why| {
                anyhow!("--device {}: {why} (--device cpu serves without a GPU)", config.choice)
            }),
            DeviceChoice::Auto => open_cuda(0, config.gpu).or_else(|why| {
                tracing::info!("no GPU to run on, the CPU does the work: {why}");
                Self::open_cpu(config)
            }),
        }
    }

    fn open_cpu(config: &DeviceConfig) -> anyhow::Result<Self> {
        if config.gpu.is_fp8_kv {
            bail!("--kv-cache-dtype fp8: the CPU keeps K and V as f32 (auto)");
        }
        if config.gpu.dtype != Dtype::Auto {
            bail!("--dtype: the CPU computes in f32 (auto)");
        }
        let backend = CpuBackend::new(config.cpu).context("starting the CPU backend")?;
        Ok(Device::Cpu(Box::new(backend.with_arithmetic(config.arithmetic))))
    }

    /// Which kind it is.
    pub(crate) fn kind(&self) -> DeviceKind {
        match self {
            Device::Cpu(_) => DeviceKind::Cpu,
            Device::Cuda(_) => DeviceKind::Gpu,
        }
    }

    /// What may still be taken of its memory.
    pub(crate) fn memory(&self) -> anyhow::Result<DeviceMemory> {
        Ok(match self {
            Device::Cpu(backend) => DeviceMemory {
                kind: DeviceKind::Cpu,
                available_bytes: memory::available_bytes(),
                kv_format: backend.kv_format(),
            },
            Device::Cuda(backend) => DeviceMemory {
                kind: DeviceKind::Gpu,
                available_bytes: backend.device().free_bytes()?,
                kv_format: backend.kv_format(),
            },
        })
    }

    /// Loads a model: packs its weights and takes all memory.
    pub(crate) fn load(self, checkpoint: &Checkpoint, config: RunnerConfig) -> anyhow::Result<DeviceRunner> {
        Ok(match self {
            Device::Cpu(backend) => {
                DeviceRunner::Cpu(Box::new(ModelRunner::load(checkpoint, *backend, config)?))
            }
            Device::Cuda(backend) => {
                let runner = ModelRunner::load(checkpoint, *backend, config);
                DeviceRunner::Cuda(Box::new(runner.context("on the GPU (--device cpu serves without it)")?))
            }
        })
    }
}

fn open_cuda(ordinal: i32, options: GpuOptions) -> Result<Device, CudaUnavailable> {
    let device = DriverDevice::open(ordinal)?;
    Ok(Device::Cuda(Box::new(gpu_backend(device, options))))
}

/// How a GPU works, whichever it is.
fn gpu_backend<D: CudaDevice>(device: D, options: GpuOptions) -> CudaBackend<D> {
    let element = match options.dtype {
        Dtype::Auto | Dtype::Bf16 => Element::Bf16,
        Dtype::F16 => Element::F16,
    };
    let backend = CudaBackend::new(device, element, options.policy);
    let backend = if options.is_fp8_kv { backend.with_fp8_kv() } else { backend };
    if options.has_graphs { backend } else { backend.without_graphs() }
}

fn with_kernels(backend: Gpu, kernels: KernelArgs) -> Gpu {
    let mut backend = match kernels.prefill_kernel {
        PrefillChoice::Mma => backend,
        PrefillChoice::Wgmma => backend.with_prefill(PrefillKernel::Wgmma),
    };
    if kernels.uses_library() {
        products::attach(&mut backend);
    }
    backend
}

/// What a load would take of a GPU. Needs none.
pub(crate) fn measure_on_gpu(
    checkpoint: &Checkpoint,
    config: &RunnerConfig,
    kv_format: KvFormat,
) -> anyhow::Result<MemoryBudget> {
    let is_fp8_kv = kv_format == KvFormat::E4m3;
    // Both types have two bytes, and products take no memory of a step: neither changes anything here.
    let (dtype, policy) = (Dtype::Auto, LinearPolicy::Fastest);
    let options = GpuOptions { dtype, is_fp8_kv, has_graphs: true, policy };
    let backend = gpu_backend(MeterDevice::default(), options);
    let measured = MemoryBudget::measure(checkpoint, backend, config);
    measured.context("on the GPU (--device cpu serves without it)")
}

/// A loaded model on its device: what the engine runs.
pub(crate) enum DeviceRunner {
    /// On the CPU.
    Cpu(Box<ModelRunner<CpuBackend>>),
    /// On a GPU.
    Cuda(Box<ModelRunner<Gpu>>),
}

impl DeviceRunner {
    /// What was taken at load.
    pub(crate) fn memory(&self) -> MemoryBudget {
        match self {
            DeviceRunner::Cpu(runner) => runner.memory(),
            DeviceRunner::Cuda(runner) => runner.memory(),
        }
    }

    /// How many steps it is given at a time: a GPU works while the host plans, a CPU is the host.
    pub(crate) fn pipeline_depth(&self) -> PipelineDepth {
        match self {
            DeviceRunner::Cpu(_) => PipelineDepth::One,
            DeviceRunner::Cuda(_) => PipelineDepth::Two,
        }
    }

    /// From now on a GPU keeps the times of its steps. A CPU has none of its own: the host's clock is its clock.
    pub(crate) fn start_clock(&mut self) {
        if let DeviceRunner::Cuda(runner) = self {
            runner.backend_mut().start_clock();
        }
    }

    /// The steps since then, by a GPU's clock; none of a CPU.
    pub(crate) fn stop_clock(&mut self) -> anyhow::Result<Vec<StepSpan>> {
        match self {
            DeviceRunner::Cpu(_) => Ok(Vec::new()),
            DeviceRunner::Cuda(runner) => Ok(runner.backend_mut().stop_clock()?),
        }
    }

    /// One line for the start-up table.
    pub(crate) fn describe(&self) -> String {
        match self {
            DeviceRunner::Cpu(runner) => runner.describe_device(),
            DeviceRunner::Cuda(runner) => runner.describe_device(),
        }
    }
}

impl Executor for DeviceRunner {
    type Ticket = StepTicket;
    type Extra = <ModelRunner<CpuBackend> as Executor>::Extra;

    fn launch(&mut self, plan: &StepPlan) -> Result<StepTicket, ExecutorError> {
        match self {
            DeviceRunner::Cpu(runner) => runner.launch(plan),
            DeviceRunner::Cuda(runner) => runner.launch(plan),
        }
    }

    fn wait(&mut self, ticket: StepTicket) -> Result<StepOutput<Self::Extra>, ExecutorError> {
        match self {
            DeviceRunner::Cpu(runner) => runner.wait(ticket),
            DeviceRunner::Cuda(runner) => runner.wait(ticket),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{BenchCommand, Cli, Command};
    use crate::bench;

    #[test]
    fn a_device_is_read_as_it_is_printed() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn dtype_is_the_gpus_type_for_every_command_and_refused_on_the_cpu() {
        let resolve = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Serve(args) => DeviceConfig::resolve(&args.model).unwrap(),
            Command::Bench(BenchCommand::Throughput(args)) => DeviceConfig::resolve(&args.model).unwrap(),
            Command::Bench(BenchCommand::Agreement(args)) => DeviceConfig::resolve(&args.model).unwrap(),
            Command::Bench(BenchCommand::Consistency(args)) => DeviceConfig::resolve(&args.model).unwrap(),
            Command::Bench(BenchCommand::Kernels(args)) => bench::kernels_device(&args),
            other => panic!("{other:?}"),
        };
        for command in ["serve", "bench throughput", "bench agreement", "bench consistency", "bench kernels"]
        {
            for (flags, name, kv_format) in [
                ("", "Bf16 activations", KvFormat::Bf16),
                (" --dtype auto", "Bf16 activations", KvFormat::Bf16),
                (" --dtype bfloat16", "Bf16 activations", KvFormat::Bf16),
                (" --dtype f16", "F16 activations", KvFormat::F16),
                (" --dtype half", "F16 activations", KvFormat::F16),
            ] {
                let config = resolve(&format!("pagoda {command}{flags}"));
                let backend = gpu_backend(MeterDevice::default(), config.gpu);
                assert!(backend.describe().contains(name), "{command}{flags}: {}", backend.describe());
                assert_eq!(backend.kv_format(), kv_format, "{command}{flags}");
            }
            let refused = Device::open(&resolve(&format!("pagoda {command} --device cpu --dtype f16")));
            assert!(refused.is_err_and(|why| why.to_string().contains("--dtype")), "{command}");
        }
        // The exact arithmetic that a GPU is compared with is the CPU's own, whatever the GPU's type.
        let exact = bench::exact(resolve("pagoda bench agreement --dtype f16"));
        assert!(matches!(Device::open(&exact), Ok(Device::Cpu(_))));
    }

    #[test]
    fn deterministic_is_one_kernel_and_no_library_for_every_command() {
        let chosen = |line: &str| {
            let kernels = match Cli::try_parse_from(line.split(' ')).unwrap().command {
                Command::Serve(args) => DeviceConfig::resolve(&args.model).unwrap(),
                Command::Bench(BenchCommand::Throughput(args)) => DeviceConfig::resolve(&args.model).unwrap(),
                Command::Bench(BenchCommand::Agreement(args)) => DeviceConfig::resolve(&args.model).unwrap(),
                other => panic!("{other:?}"),
            };
            let backend = gpu_backend(MeterDevice::default(), kernels.gpu);
            (backend.describe().contains("deterministic"), kernels.kernels.uses_library())
        };
        for command in ["serve", "bench throughput", "bench agreement"] {
            assert_eq!(chosen(&format!("pagoda {command}")), (false, true), "{command}");
            assert_eq!(chosen(&format!("pagoda {command} --gemm own")), (false, false), "{command}");
            let deterministic = format!("pagoda {command} --deterministic --gemm auto");
            assert_eq!(chosen(&deterministic), (true, false), "{command}");
        }
        let kernels = KernelArgs { deterministic: true, ..KernelArgs::default() };
        assert_eq!(kernels.policy(), LinearPolicy::Deterministic);
        // The CPU takes it: it is so already.
        let cpu = "pagoda serve --device cpu --deterministic";
        let Command::Serve(args) = Cli::try_parse_from(cpu.split(' ')).unwrap().command else { panic!() };
        assert!(matches!(Device::open(&DeviceConfig::resolve(&args.model).unwrap()), Ok(Device::Cpu(_))));
    }
}
