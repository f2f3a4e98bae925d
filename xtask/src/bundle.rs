//! `cargo xtask gpu-bundle`: one folder that runs on a GPU machine without Rust and without network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::phases::{run, run_with};

/// What the folder may weigh.
const MAX_BYTES: u64 = 40 << 20;

/// Builds the binary with kernels for every architecture (or `PAGODA_CUDA_ARCHS`) and packs it.
pub(crate) fn make(profile: &str) -> anyhow::Result<()> {
    run("bash", &["scripts/install_nvcc.sh"])?;
    run_with(
        "cargo",
        &["build", "--profile", profile, "--workspace", "--bin", "pagoda"],
        &[("REQUIRE_KERNELS", "1")],
    )?;
    let num_bytes = pack(&target().join(profile).join("pagoda"), Path::new("gpu-bundle"))?;
    println!("gpu-bundle: {:.1} MB", num_bytes as f64 / 1e6);
    Ok(())
}

/// Packs the binary that the tests have just built, and sees what the folder does on a machine without a GPU: it says so and
/// succeeds, or fails if a GPU is required. Compiles nothing.
pub(crate) fn check() -> anyhow::Result<()> {
    let folder = target().join("gpu-bundle-check");
    let num_bytes = pack(&target().join("ci/pagoda"), &folder)?;
    println!("gpu-bundle: {:.1} MB", num_bytes as f64 / 1e6);
    let doctor = output(Command::new(folder.join("pagoda")).arg("doctor"))?;
    let has_gpu = |line: &str| line.strip_prefix("GPU ").is_some_and(|rest| rest.trim().starts_with("cuda:"));
    if doctor.text.lines().any(has_gpu) {
        // The script finds the device and runs a stage on it.
        let probe = output(Command::new("bash").arg(folder.join("run.sh")).arg("probe"))?;
        ensure!(probe.is_success && probe.text.contains("probe: ok"), "run.sh probe: {}", probe.text);
        return Ok(());
    }
    let model = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    for (half, text) in [("model.part1", "one"), ("model.part2", "two")] {
        fs::write(folder.join(half), text)?;
    }
    for requires_gpu in ["0", "1"] {
        let mut command = Command::new("bash");
        let ran = output(command.arg(folder.join("run.sh")).env("REQUIRE_GPU", requires_gpu))?;
        let says_so = ran.text.lines().any(|line| line.starts_with("skipped: no CUDA device"));
        ensure!(says_so, "run.sh said: {}", ran.text);
        ensure!(ran.is_success == (requires_gpu == "0"), "run.sh under REQUIRE_GPU={requires_gpu}");
    }
    ensure!(fs::read_to_string(&model)? == "onetwo", "run.sh did not put the model's halves together");
    let help = output(Command::new("bash").arg(folder.join("run.sh")).arg("help"))?;
    let is_whole = help.text.contains("consistency") && help.text.contains("model.part");
    ensure!(help.is_success && is_whole, "run.sh help: {}", help.text);
    let unknown = output(Command::new("bash").arg(folder.join("run.sh")).arg("sprobe"))?;
    ensure!(!unknown.is_success, "run.sh took an unknown stage");
    Ok(())
}

/// Puts binary, script, configurations and peers into `folder`; returns what it weighs.
fn pack(binary: &Path, folder: &Path) -> anyhow::Result<u64> {
    ensure!(binary.is_file(), "there is no {}", binary.display());
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    copy(binary, &folder.join("pagoda"))?;
    let stripped = folder.join("pagoda");
    run("strip", &[stripped.to_str().context("a path that is text")?])?;
    copy(Path::new("scripts/gpu_run.sh"), &folder.join("run.sh"))?;
    for (from, to, ending) in [("benches/configs", "configs", "json"), ("benches/peers", "peers", "py")] {
        let entries = fs::read_dir(from).with_context(|| format!("reading {from}"))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|found| found == ending) {
                let name = path.file_name().context("a file has a name")?;
                copy(&path, &folder.join(to).join(name))?;
            }
        }
    }
    let num_bytes = weight(folder)?;
    if num_bytes > MAX_BYTES {
        bail!("the bundle has {num_bytes} bytes, more than {MAX_BYTES}");
    }
    Ok(num_bytes)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

/// Bytes of all files below a folder.
fn weight(folder: &Path) -> anyhow::Result<u64> {
    let mut num_bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_folder = entry.file_type()?.is_dir();
        num_bytes += if is_folder { weight(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(num_bytes)
}

struct Output {
    text: String,
    is_success: bool,
}

fn output(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    Ok(Output {
        text: String::from_utf8_lossy(&output.stdout).into_owned(),
        is_success: output.status.success(),
    })
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}
