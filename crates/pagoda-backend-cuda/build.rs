//! Compiles `kernels/*.cu` with nvcc into one compressed fatbin per file, and writes the table that embeds them.
//!
//! nvcc is `$NVCC`, else the one in `PATH`, else the one that `scripts/install_nvcc.sh` put into the user's cache; older than
//! 13.0 counts as absent. Without one nothing is embedded and one warning says so, unless `REQUIRE_KERNELS=1`.
//! `PAGODA_CUDA_ARCHS` (for example "80 90a") limits the architectures; a release has all of them and PTX of the newest.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// What a release holds.
const ALL_ARCHS: &str = "80 86 89 90a 100 120";

fn main() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in ["NVCC", "PAGODA_CUDA_ARCHS", "REQUIRE_KERNELS", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let mut sources = files(&kernels, "cu");
    sources.sort();
    let mut headers = files(&kernels.join("include"), "cuh");
    headers.extend(files(&kernels.join("include"), "h"));
    for watched in sources.iter().chain(&headers).chain([&kernels]) {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let is_required = env::var("REQUIRE_KERNELS").is_ok_and(|value| value == "1");
    let nvcc = find_nvcc();
    let nvcc_path = nvcc.clone().unwrap_or_default();
    println!("cargo::rustc-env=PAGODA_NVCC={}", nvcc_path.display());
    let embedded = match nvcc {
        Some(nvcc) => {
            let compiled = compile_all(&nvcc, &kernels, &sources, &out_dir);
            compiled.unwrap_or_else(|error| panic!("nvcc failed:\n{error}"))
        }
        None if is_required => {
            panic!("REQUIRE_KERNELS=1, but no nvcc 13.0 or newer: run scripts/install_nvcc.sh")
        }
        None => {
            println!(
                "cargo::warning=no nvcc 13.0 or newer: built without GPU kernels (scripts/install_nvcc.sh)"
            );
            Vec::new()
        }
    };
    let mut table = String::from("static IMAGES: &[(&str, &Aligned<[u8]>)] = &[\n");
    let mut log = String::new();
    for (name, fatbin, resources) in &embedded {
        writeln!(table, "    ({name:?}, &Aligned(*include_bytes!({:?}))),", fatbin.display())
            .expect("a string grows");
        log += resources;
    }
    table += "];\n";
    let archs = if embedded.is_empty() { String::new() } else { wanted_archs() };
    writeln!(table, "pub(crate) static ARCHS: &str = {archs:?};").expect("a string grows");
    fs::write(out_dir.join("images.rs"), table).expect("OUT_DIR is writable");
    fs::write(out_dir.join("resources.log"), log).expect("OUT_DIR is writable");
    println!("cargo::rustc-env=PAGODA_KERNEL_RESOURCES={}", out_dir.join("resources.log").display());
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder kernels/ is part of the source");
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect()
}

fn find_nvcc() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let candidates = [
        env::var_os("NVCC").map(PathBuf::from),
        Some(PathBuf::from("nvcc")),
        Some(PathBuf::from("/usr/local/cuda/bin/nvcc")),
        cache.map(|cache| cache.join("pagoda/nvcc/bin/nvcc")),
    ];
    candidates.into_iter().flatten().find(|nvcc| is_new_enough(nvcc))
}

/// `nvcc --version` says "release 13.0,".
fn is_new_enough(nvcc: &Path) -> bool {
    let Ok(output) = Command::new(nvcc).arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    let major = text.split("release ").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= 13)
}

fn wanted_archs() -> String {
    env::var("PAGODA_CUDA_ARCHS").unwrap_or_else(|_| ALL_ARCHS.to_owned())
}

/// Name, fatbin and resource log of every kernel file. Files compile side by side: each takes seconds per architecture.
fn compile_all(
    nvcc: &Path,
    kernels: &Path,
    sources: &[PathBuf],
    out_dir: &Path,
) -> Result<Vec<(String, PathBuf, String)>, String> {
    let archs = wanted_archs();
    let num_jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut compiled = Vec::new();
    for group in sources.chunks(num_jobs) {
        let results: Vec<_> = thread::scope(|scope| {
            let jobs: Vec<_> = group
                .iter()
                .map(|source| scope.spawn(|| compile(nvcc, kernels, source, &archs, out_dir)))
                .collect();
            jobs.into_iter().map(|job| job.join().expect("a compile job does not panic")).collect()
        });
        for result in results {
            compiled.push(result?);
        }
    }
    Ok(compiled)
}

fn compile(
    nvcc: &Path,
    kernels: &Path,
    source: &Path,
    archs: &str,
    out_dir: &Path,
) -> Result<(String, PathBuf, String), String> {
    let name = source.file_stem().expect("a source has a name").to_string_lossy().into_owned();
    let fatbin = out_dir.join(format!("{name}.fatbin"));
    let mut command = Command::new(nvcc);
    command.args(["-std=c++20", "-O3", "--fatbin", "--resource-usage", "-compress-mode=size"]);
    command.arg("-I").arg(kernels.join("include"));
    for arch in archs.split_whitespace() {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    if archs == ALL_ARCHS {
        command.arg("-gencode=arch=compute_120,code=compute_120");
    }
    let output = command.arg("-o").arg(&fatbin).arg(source).output().map_err(|error| error.to_string())?;
    let log = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok((name, fatbin, log)) } else { Err(log) }
}
