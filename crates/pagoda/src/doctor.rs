//! `pagoda doctor`: what this machine offers, in a few lines for bug reports and first steps.

use crate::args::StoreArgs;
use crate::{environment, memory, pull::bytes_text};

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

/// The GPUs, or why there are none.
fn print_gpu() {
    match pagoda_backend_cuda::probe() {
        Ok(devices) => devices.iter().for_each(|device| {
            let (major, minor) = device.compute_capability;
            println!(
                "GPU            cuda:{} {}, compute capability {major}.{minor}, {} multiprocessors, {}",
                device.ordinal,
                device.name,
                device.num_multiprocessors,
                bytes_text(device.total_bytes)
            );
        }),
        Err(why) => println!("GPU            none: {why}"),
    }
    println!(
        "GPU kernels    {} files embedded; serving runs on the CPU",
        pagoda_backend_cuda::embedded_kernels().len()
    );
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
