//! `pagoda conformance`: the case table of every op on a GPU of this machine.

use anyhow::{anyhow, bail};
use pagoda_backend_cuda::{CudaBackend, DriverDevice, Element, LinearPolicy};
use pagoda_conformance::{Subject, cases};

use crate::args::ConformanceArgs;
use crate::environment;

type Backend = CudaBackend<DriverDevice>;

/// Runs the table in both element types. Without a GPU it says so loudly, and fails under `REQUIRE_GPU=1`.
pub(crate) fn run(args: &ConformanceArgs) -> anyhow::Result<()> {
    let mut num_failed = 0;
    for element in [Element::Bf16, Element::F16] {
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
        let mut subject = subject(device, element);
        println!("{element:?}, seed {}", args.seed);
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

fn subject(device: DriverDevice, element: Element) -> Subject<Backend> {
    Subject {
        backend: CudaBackend::new(device, element, LinearPolicy::Fastest),
        write: |backend, tensor, first_row, values| backend.write_tensor(tensor, first_row, values),
        read: |backend, tensor, num_rows| backend.read_tensor(tensor, num_rows),
        read_slot: |backend, kv, layer, slot| backend.read_slot(kv, layer, slot),
        round: match element {
            Element::Bf16 => |value| Element::Bf16.round(value),
            Element::F16 => |value| Element::F16.round(value),
        },
        tolerance: element.tolerance(),
    }
}
