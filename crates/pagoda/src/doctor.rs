//! `pagoda doctor`: what this machine offers, in a few lines for bug reports and first steps.

use pagoda_backend_cuda::{CudaUnavailable, DeviceInfo, DriverDevice, ProductLibrary};

use crate::args::StoreArgs;
use crate::{environment, memory, products, pull::bytes_text};

/// Prints the facts.
pub(crate) fn run(args: &StoreArgs) -> anyhow::Result<()> {
    let store = environment::model_store(args)?;
    println!("version        {}", env!("CARGO_PKG_VERSION"));
    println!("CPU threads    {}", std::thread::available_parallelism().map_or(1, |threads| threads.get()));
    println!("CPU features   {}", cpu_features());
    println!("memory         {} available", bytes_text(memory::available_bytes()));
    print_gpu();
    println!("model cache    {}", store.cache.root().display());
    println!("cached models  {}", or_none(&store.cache.names()));
    for model in store.catalogue.models() {
        let mark = if model.name == store.catalogue.default { " (default)" } else { "" };
        println!(
            "known model    {}{mark}: {}, {}, {}",
            model.name,
            model.description,
            bytes_text(model.size_bytes()),
            model.license
        );
    }
    Ok(())
}

fn print_gpu() {
    let kernels = Kernels {
        num_files: pagoda_backend_cuda::embedded_kernels().len(),
        archs: pagoda_backend_cuda::embedded_archs().map(|arch| format!("sm_{arch}")).collect(),
    };
    for line in gpu_lines(pagoda_backend_cuda::probe(), &kernels, open_first) {
        println!("{line}");
    }
}

/// What the build has put into the binary.
struct Kernels {
    num_files: usize,
    archs: Vec<String>,
}

/// What `cuda:0` says once it is open.
struct Opened {
    free_bytes: u64,
    /// The library of products, or why there is none.
    products: Result<String, String>,
}

fn open_first() -> Result<Opened, String> {
    let device = DriverDevice::open(0).map_err(|why| why.to_string())?;
    let products = device
        .open_products(&products::libraries(&environment::python_folders()))
        .map(|library| library.identity().to_owned());
    Ok(Opened { free_bytes: device.free_bytes().map_err(|error| error.to_string())?, products })
}

/// One line where there is no GPU, else all that is known of them.
fn gpu_lines(
    devices: Result<Vec<DeviceInfo>, CudaUnavailable>,
    kernels: &Kernels,
    open: impl FnOnce() -> Result<Opened, String>,
) -> Vec<String> {
    let embedded = match kernels.num_files {
        0 => "no kernels are embedded".to_owned(),
        num_files => format!("{num_files} kernel files for {} are embedded", kernels.archs.join(" ")),
    };
    let devices = match devices {
        Ok(devices) => devices,
        Err(why) => return vec![format!("GPU            none: {why}; {embedded}")],
    };
    let mut lines: Vec<String> = devices.iter().map(device_line).collect();
    if let Some(device) = devices.first() {
        let (major, minor) = device.driver_version;
        // The release is the kernel module's; a container may hide it.
        let release = std::fs::read_to_string("/sys/module/nvidia/version");
        let release = release.map_or_else(|_| "of unknown release".to_owned(), |text| text.trim().to_owned());
        lines.push(format!("GPU driver     {release}, for CUDA {major}.{minor}"));
    }
    lines.push(format!("GPU kernels    {embedded}"));
    match open() {
        Ok(Opened { free_bytes, products }) => {
            lines.push(match products {
                Ok(identity) => format!("cuBLASLt       {identity}"),
                Err(why) => format!("cuBLASLt       none, the embedded kernels multiply: {why}"),
            });
            let free = bytes_text(free_bytes);
            lines.push(format!("serving        on cuda:0, {free} free; --device cpu for the CPU"));
        }
        Err(why) => lines.push(format!("serving        on the CPU: {why}")),
    }
    lines
}

fn device_line(device: &DeviceInfo) -> String {
    let (major, minor) = device.compute_capability;
    format!(
        "GPU            cuda:{} {}, compute capability {major}.{minor}, {} multiprocessors, {}",
        device.ordinal,
        device.name,
        device.num_multiprocessors,
        bytes_text(device.total_bytes)
    )
}

fn or_none(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> String {
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    or_none(&features.iter().filter(|(_, has)| *has).map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>())
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> String {
    std::env::consts::ARCH.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> Kernels {
        Kernels { num_files: 3, archs: vec!["sm_80".into(), "sm_90a".into()] }
    }

    #[test]
    fn a_machine_without_a_driver_gets_one_line() {
        let lines = gpu_lines(Err(CudaUnavailable::NoDriver), &kernels(), || unreachable!("nothing to open"));
        let line = "GPU            none: no NVIDIA driver on this machine; 3 kernel files for sm_80 sm_90a are embedded";
        assert_eq!(lines, [line]);
    }

    #[test]
    fn a_gpu_is_described_with_its_driver_kernels_and_library() {
        let device = DeviceInfo {
            ordinal: 0,
            name: "A GPU".into(),
            compute_capability: (9, 0),
            num_multiprocessors: 132,
            total_bytes: 4 << 30,
            driver_version: (13, 1),
        };
        let opened = || Ok(Opened { free_bytes: 3 << 30, products: Err("no such file".into()) });
        let text = gpu_lines(Ok(vec![device.clone()]), &kernels(), opened).join("\n");
        for part in [
            "GPU            cuda:0 A GPU, compute capability 9.0, 132 multiprocessors, 4",
            "for CUDA 13.1",
            "3 kernel files for sm_80 sm_90a",
            "cuBLASLt       none, the embedded kernels multiply: no such file",
            "serving        on cuda:0, 3",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let lines = gpu_lines(Ok(vec![device]), &kernels(), || Err("built without".into()));
        assert_eq!(lines.last().map(String::as_str), Some("serving        on the CPU: built without"));
    }
}
