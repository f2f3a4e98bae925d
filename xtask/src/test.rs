//! The one test command. Every build uses the profile `ci`, so that dependencies are compiled once.

use anyhow::bail;

use crate::phases::{Phases, run, run_with};
use crate::{bundle, preflight, tidy};

/// Everything: rules, format, lints, tests, documentation examples.
pub(crate) fn all() -> anyhow::Result<()> {
    let mut phases = Phases::default();
    let missing = preflight::missing_tools();
    if preflight::requires_all() && !missing.is_empty() {
        bail!("REQUIRE_ALL=1, but these would be skipped: {}", missing.join("; "));
    }
    for why in missing {
        phases.skip(&why);
    }
    for why in preflight::missing_instruction_sets() {
        phases.skip(why);
    }
    phases.run("tidy", tidy::run);
    phases.run("format", || run("cargo", &["fmt", "--all", "--check"]));
    phases.run("lints", || {
        run("cargo", &["clippy", "--profile", "ci", "--workspace", "--all-targets", "--", "-D", "warnings"])
    });
    phases.run("examples", || run("cargo", &["test", "--profile", "ci", "--workspace", "--doc", "--quiet"]));
    phases.run("tests", || run_tests(&["--workspace"]));
    phases.run("gpu-bundle", bundle::check);
    phases.finish()
}

/// The tests of one crate.
pub(crate) fn area(area: &str) -> anyhow::Result<()> {
    let package = if matches!(area, "pagoda" | "xtask") { area.to_owned() } else { format!("pagoda-{area}") };
    run_tests(&["--package", &package])
}

/// The kernels without a GPU. The tests are those of `all`; here none is skipped.
pub(crate) fn kernels(update: bool) -> anyhow::Result<()> {
    run("bash", &["scripts/install_nvcc.sh"])?;
    // The same features of the dependencies as for all tests, so that nothing is built twice.
    let tests = [
        "kernel_resources",
        "wgmma",
        "params_layout",
        "conformance",
        "mutations",
        "replays_are_the_launches_of_their_step",
        "steps",
        "real_model",
    ];
    let selection = tests.iter().flat_map(|test| ["--test", test]);
    let arguments: Vec<&str> =
        ["test", "--profile", "ci", "--workspace"].into_iter().chain(selection).collect();
    let update = if update { "1" } else { "0" };
    let variables = [
        ("REQUIRE_ALL", "1"),
        ("REQUIRE_KERNELS", "1"),
        ("PAGODA_CUDA_ARCHS", "80 90a"),
        ("UPDATE_SNAPSHOTS", update),
    ];
    run_with("cargo", &arguments, &variables)
}

/// What the continuous integration script does, for people who want it before they push.
pub(crate) fn ci() -> anyhow::Result<()> {
    run("bash", &[".ci/run"])
}

fn run_tests(selection: &[&str]) -> anyhow::Result<()> {
    let nextest = ["nextest", "run", "--cargo-profile", "ci", "--no-fail-fast"];
    let cargo_test = ["test", "--profile", "ci", "--no-fail-fast", "--lib", "--bins", "--tests"];
    let command: &[&str] = if preflight::has_nextest() { &nextest } else { &cargo_test };
    run("cargo", &[command, selection].concat())
}
