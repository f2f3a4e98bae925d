//! What the metrics say of the device under a model.

use pagoda_backend_cuda::DeviceInfo;
use pagoda_model::MemoryBudget;
use pagoda_server::DeviceReport;

use crate::device::{Device, DeviceChoice};

/// What is known before the load, which takes the device away.
pub(crate) fn of(device: &Device) -> DeviceReport {
    match device {
        Device::Cpu(_) => DeviceReport { name: DeviceChoice::Cpu.to_string(), ..DeviceReport::default() },
        Device::Cuda(backend) => {
            let meter = backend.device().memory_meter();
            let report = of_gpu(backend.device().info());
            DeviceReport { free_bytes: Some(Box::new(move || meter.free_bytes())), ..report }
        }
    }
}

fn of_gpu(info: &DeviceInfo) -> DeviceReport {
    let version = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    DeviceReport {
        name: DeviceChoice::Cuda(info.ordinal).to_string(),
        facts: vec![
            ("gpu", info.name.clone()),
            ("compute_capability", version(info.compute_capability)),
            ("cuda_driver", version(info.driver_version)),
        ],
        total_bytes: Some(info.total_bytes),
        ..DeviceReport::default()
    }
}

/// The rest, after the load.
pub(crate) fn loaded(report: DeviceReport, description: String, memory: MemoryBudget) -> DeviceReport {
    let taken_bytes = vec![
        ("weights", memory.weight_bytes),
        ("kv_cache", memory.kv_bytes),
        ("workspace", memory.workspace_bytes),
    ];
    DeviceReport { description, taken_bytes, ..report }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_with_its_driver_and_its_memory() {
        let report = of_gpu(&DeviceInfo {
            ordinal: 1,
            name: "A GPU".into(),
            compute_capability: (8, 9),
            num_multiprocessors: 1,
            total_bytes: 7,
            driver_version: (13, 0),
        });
        let memory = MemoryBudget { weight_bytes: 1, kv_bytes: 2, workspace_bytes: 3 };
        let report = loaded(report, "a line".into(), memory);
        assert_eq!((report.name.as_str(), report.total_bytes), ("cuda:1", Some(7)));
        assert_eq!(report.facts[1], ("compute_capability", "8.9".to_owned()));
        assert_eq!(report.facts[2], ("cuda_driver", "13.0".to_owned()));
        assert_eq!(report.taken_bytes, [("weights", 1), ("kv_cache", 2), ("workspace", 3)]);
    }
}
