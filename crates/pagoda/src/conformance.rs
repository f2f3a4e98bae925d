//! `pagoda conformance`: the case table of every op on a GPU of this machine.

use anyhow::{anyhow, bail};
use pagoda_backend::Backend;
use pagoda_backend_cuda::{CudaBackend, DriverDevice, E4M3_TOLERANCE, Element, LinearPolicy, round_e4m3};
use pagoda_conformance::{Subject, cases};

use crate::args::ConformanceArgs;
use crate::environment;

/// Runs the table in both element types. Without a GPU it says so loudly, and fails under `REQUIRE_GPU=1`.
pub(crate) fn run(args: &ConformanceArgs) -> anyhow::Result<()> {
    let mut num_failed = 0;
    let types = [Element::Bf16, Element::F16].into_iter();
    for (element, is_fp8) in types.flat_map(|element| [(element, false), (element, true)]) {
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
        let mut subject = subject(device, element, is_fp8);
        let kv = subject.backend.kv_format();
        println!("{element:?}, KV {kv}, seed {}", args.seed);
        let is_wanted =
            |name: &str| args.only.is_empty() || args.only.iter().any(|start| name.starts_with(start));
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

fn subject(device: DriverDevice, element: Element, is_fp8: bool) -> Subject<CudaBackend<DriverDevice>> {
    let backend = CudaBackend::new(device, element, LinearPolicy::Fastest);
    Subject {
        backend: if is_fp8 { backend.with_fp8_kv() } else { backend },
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
