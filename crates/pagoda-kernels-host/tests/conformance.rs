//! T1: every case of the table on the CUDA kernels themselves, run on the host under the address and undefined-behaviour
//! sanitizers, with three orders of threads.

mod support;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The runs of the whole table. Orders matter more than types: both types share every line of the kernels.
const RUNS: [&[&str]; 10] = [
    &["--element", "bf16", "--order", "forward"],
    &["--element", "f16", "--order", "reverse"],
    &["--element", "bf16", "--order", "random"],
    &["--element", "f16", "--order", "random", "--only", "linear", "--deterministic"],
    &[
        "--element",
        "bf16",
        "--order",
        "reverse",
        "--fp8-kv",
        "--only",
        "attention",
        "--only",
        "rope",
        "--only",
        "kv",
        "--only",
        "copy",
    ],
    &[
        "--element",
        "f16",
        "--order",
        "random",
        "--fp8-kv",
        "--only",
        "attention/2:1/d64",
        "--only",
        "rope",
        "--only",
        "kv",
    ],
    &["--element", "bf16", "--order", "forward", "--wgmma", "--only", "attention"],
    &["--element", "f16", "--order", "random", "--wgmma", "--only", "attention/2:1/d"],
    &["--element", "bf16", "--products", "right", "--only", "linear"],
    &["--element", "f16", "--deterministic", "--products", "right", "--only", "linear"],
];
/// Processes at a time.
const NUM_PARTS: usize = 2;

/// The kernels, compiled once.
fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER.get_or_init(|| support::compiled("conformance")).as_deref()
}

#[test]
fn kernels_agree_with_the_reference_in_every_order_of_threads() {
    let Some(folder) = folder() else { return };
    for arguments in RUNS {
        run_in_parts(folder, arguments);
    }
}

#[test]
fn a_library_of_wrong_products_is_found_out_before_it_is_used() {
    let Some(folder) = folder() else { return };
    for (library, is_right) in
        [("right", true), ("no-bias", false), ("transposed", false), ("last-row", false)]
    {
        let arguments = ["--seed", "1", "--products", library, "--only", "linear/17x96"];
        let output = support::run(folder, &arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), is_right, "{library}: {text}");
        assert_eq!(text.contains("the library is not used: "), !is_right, "{library}: {text}");
    }
}

fn run_in_parts(folder: &Path, arguments: &[&str]) {
    let seed = support::fresh_seed().to_string();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let run = |part| {
            let part = format!("{part}/{NUM_PARTS}");
            support::run(folder, &[arguments, &["--seed", &seed, "--part", &part]].concat())
        };
        let jobs: Vec<_> = (0..NUM_PARTS).map(|part| scope.spawn(move || run(part))).collect();
        jobs.into_iter().map(|job| job.join().expect("the run does not panic")).collect()
    });
    for (part, output) in outputs.iter().enumerate() {
        let text = String::from_utf8_lossy(&output.stderr);
        println!("{arguments:?}, seed {seed}, part {part}\n{text}");
        assert!(
            output.status.success(),
            "{arguments:?} with seed {seed}, part {part}: {}\n{text}",
            output.status
        );
    }
}
