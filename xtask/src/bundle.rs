//! `cargo xtask gpu-bundle`: one folder that runs on a GPU machine without Rust and without network.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::phases::{run, run_with};

/// What the folder may weigh.
const MAX_BYTES: u64 = 40 << 20;

/// Builds the binary with kernels for every architecture (or `PAGODA_CUDA_ARCHS`) and puts it beside `run.sh`.
pub(crate) fn make(profile: &str) -> anyhow::Result<()> {
    run("bash", &["scripts/install_nvcc.sh"])?;
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    run_with(
        "cargo",
        &["build", "--profile", profile, "--workspace", "--bin", "pagoda"],
        &[("REQUIRE_KERNELS", "1")],
    )?;
    let folder = Path::new("gpu-bundle");
    fs::create_dir_all(folder).context("making gpu-bundle/")?;
    let binary = folder.join("pagoda");
    fs::copy(Path::new(&target).join(profile).join("pagoda"), &binary).context("copying the binary")?;
    let binary_text = binary.to_str().context("a path that is text")?;
    run("strip", &[binary_text])?;
    fs::copy("scripts/gpu_run.sh", folder.join("run.sh")).context("copying run.sh")?;
    let mut num_bytes = 0;
    for entry in fs::read_dir(folder)? {
        num_bytes += entry?.metadata()?.len();
    }
    println!("gpu-bundle: {:.1} MB", num_bytes as f64 / 1e6);
    if num_bytes > MAX_BYTES {
        bail!("the bundle has {num_bytes} bytes, more than {MAX_BYTES}");
    }
    Ok(())
}
