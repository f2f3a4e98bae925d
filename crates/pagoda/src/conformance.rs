//! `pagoda conformance`: the case table of every op on a GPU of this machine.

use anyhow::{anyhow, bail};
use clap::ValueEnum;
use pagoda_backend::Backend;
use pagoda_backend_cuda::{
    CudaBackend, DriverDevice, E4M3_TOLERANCE, Element, LinearPolicy, PrefillKernel, round_e4m3,
};
use pagoda_conformance::{Subject, cases};

use crate::args::ConformanceArgs;
use crate::products::Unusable;
use crate::{environment, products};

/// Runs the table in both element types. Without a GPU it says so loudly, and fails under `REQUIRE_GPU=1`.
pub(crate) fn run(args: &ConformanceArgs) -> anyhow::Result<()> {
    let mut num_failed = 0;
    let types = [Element::Bf16, Element::F16].into_iter();
    for (element, variant) in types.flat_map(|element| args.variant.iter().map(move |way| (element, *way))) {
        let device = match DriverDevice::open(args.device) {
            Ok(device) => device,
            Err(why) if environment::requires_gpu() => {
                bail!("REQUIRE_GPU=1, but there is no CUDA device: {why}")
            }
            Err(why) => {
                println!("skipped: no CUDA device: {why}");
                return Ok(());
            }
        };
        if variant == Variant::WgmmaPrefill && device.info().compute_capability != (9, 0) {
            println!("{element:?}, {variant:?}: skipped: for compute capability 9.0 only");
            continue;
        }
        let mut subject = subject(device, element, variant);
        if variant == Variant::CublasLt {
            match products::try_attach(&mut subject.backend) {
                Ok(()) => {}
                Err(Unusable::Absent(why)) => {
                    println!("{element:?}, {variant:?}: skipped: {why}");
                    continue;
                }
                Err(Unusable::Wrong(why)) => {
                    num_failed += 1;
                    println!("{element:?}, {variant:?}: FAILED: {why}");
                    continue;
                }
            }
        }
        println!("{element:?}, {variant:?}, {}, seed {}", subject.backend.describe(), args.seed);
        let is_wanted = |name: &str| {
            (args.only.is_empty() || args.only.iter().any(|start| name.starts_with(start)))
                && variant.concerns(name)
        };
        for (index, case) in cases().iter().enumerate().filter(|(_, case)| is_wanted(&case.to_string())) {
            match case.run(&mut subject, args.seed.wrapping_add(index as u64)) {
                Ok(error) => println!("{case}: {error:.1e}"),
                Err(why) => {
                    num_failed += 1;
                    println!("{case}: FAILED: {why}");
                }
            }
        }
    }
    if num_failed > 0 { Err(anyhow!("{num_failed} cases failed")) } else { Ok(()) }
}

/// `--variant`: what is run beside the plain backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Variant {
    /// As served without a library.
    Plain,
    /// K and V as e4m3 codes.
    Fp8Kv,
    /// Prompts by wgmma.
    WgmmaPrefill,
    /// Products by cuBLASLt.
    #[value(name = "cublaslt")]
    CublasLt,
    /// One kernel for the products of every number of rows.
    Deterministic,
}

impl Variant {
    /// In the order in which they run.
    pub(crate) const ALL: [Variant; 5] =
        [Variant::Plain, Variant::Fp8Kv, Variant::WgmmaPrefill, Variant::CublasLt, Variant::Deterministic];

    /// Whether a case can come out otherwise than on the plain backend.
    fn concerns(self, case: &str) -> bool {
        let starts: &[&str] = match self {
            Variant::Plain => return true,
            Variant::Fp8Kv => &["attention", "rope_store_kv", "kv_range", "copy_blocks"],
            Variant::WgmmaPrefill => &["attention"],
            Variant::CublasLt | Variant::Deterministic => &["linear"],
        };
        starts.iter().any(|start| case.starts_with(start))
    }
}

fn subject(device: DriverDevice, element: Element, variant: Variant) -> Subject<CudaBackend<DriverDevice>> {
    let policy = match variant {
        Variant::Deterministic => LinearPolicy::Deterministic,
        _ => LinearPolicy::Fastest,
    };
    let backend = CudaBackend::new(device, element, policy);
    let is_fp8 = variant == Variant::Fp8Kv;
    Subject {
        backend: match variant {
            Variant::Plain | Variant::CublasLt | Variant::Deterministic => backend,
            Variant::Fp8Kv => backend.with_fp8_kv(),
            Variant::WgmmaPrefill => backend.with_prefill(PrefillKernel::Wgmma),
        },
        write: |backend, tensor, first_row, values| backend.write_tensor(tensor, first_row, values),
        read: |backend, tensor, num_rows| backend.read_tensor(tensor, num_rows),
        read_slot: |backend, kv, layer, slot| backend.read_slot(kv, layer, slot),
        round: match element {
            Element::Bf16 => |value| Element::Bf16.round(value),
            Element::F16 => |value| Element::F16.round(value),
        },
        round_head: if is_fp8 { round_e4m3 } else { |_| () },
        tolerance: element.tolerance(),
        kv_tolerance: if is_fp8 { E4M3_TOLERANCE } else { element.tolerance() },
    }
}
