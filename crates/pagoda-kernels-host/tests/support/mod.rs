//! The kernels compiled for the host, and the program that runs the case table on them.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use pagoda_kernels_host::{Sanitize, compile_all};

/// The repository's `kernels/`.
pub(crate) fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels")
}

/// The compiled kernels; `None` where they cannot be compiled or run, which is said, and a failure under `REQUIRE_ALL=1`.
pub(crate) fn compiled(test: &str) -> Option<PathBuf> {
    if !can_run_here() {
        return None;
    }
    // A folder per test: two test programs may run at the same time.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("simt-{test}"));
    compile_all(&kernels(), &out, Sanitize::Yes).unwrap_or_else(|error| panic!("g++ failed:\n{error}"));
    Some(out)
}

/// Says why not, if not; that is a failure under `REQUIRE_ALL=1`.
pub(crate) fn can_run_here() -> bool {
    let Err(why) = can_run() else { return true };
    assert!(std::env::var("REQUIRE_ALL").as_deref() != Ok("1"), "REQUIRE_ALL=1, but {why}");
    println!("skipped: {why}");
    false
}

fn sanitizer_runtime() -> String {
    let output =
        Command::new("g++").arg("-print-file-name=libasan.so").output().expect("g++ was found before");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn can_run() -> Result<(), &'static str> {
    #[cfg(target_arch = "x86_64")]
    if !is_x86_feature_detected!("f16c") {
        return Err("this CPU has no F16C");
    }
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        return Err("the fibers of the shim are for Linux on x86-64");
    }
    let probe = Command::new("g++").arg("-dumpversion").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return Err("there is no g++");
    }
    // A name without a folder is one that g++ did not find.
    if sanitizer_runtime().contains('/') { Ok(()) } else { Err("g++ has no address sanitizer") }
}

/// A seed that no earlier run had.
pub(crate) fn fresh_seed() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    time.as_nanos() as u64
}

/// Runs cases on the kernels in `folder`.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simt-conformance"))
        .arg("--kernels")
        .arg(folder)
        .args(arguments)
        // The program is not sanitized, the kernels are: their run time must be there first.
        .env("LD_PRELOAD", sanitizer_runtime())
        // Shared objects stay loaded to the end; nothing else is worth a report of leaks here.
        .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0")
        .output()
        .expect("the program was built with this test")
}
