//! Which optional tools are there. Tests that need an absent one pass without testing; this is where that is said.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// One line for everything that will be skipped.
pub(crate) fn missing_tools() -> Vec<String> {
    let mut missing = Vec::new();
    let model = std::env::var_os("PAGODA_TEST_MODEL")
        .map(PathBuf::from)
        .or_else(|| Some(cache()?.join("models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")));
    if !model.is_some_and(|model| model.is_file()) {
        missing.push(
            "tests with the real model: it is not in the cache (cargo run --release -- pull)".to_owned(),
        );
    }
    let encoder = std::env::var_os("PAGODA_TEST_ENCODER")
        .map(PathBuf::from)
        .or_else(|| Some(cache()?.join("models/all-minilm-l6-v2")));
    if !encoder.is_some_and(|encoder| encoder.is_dir()) {
        missing.push(
            "tests with the embedding model: it is not in the cache (pagoda pull all-minilm-l6-v2)"
                .to_owned(),
        );
    }
    for (what, place) in [
        ("Python libraries", "test/venv/bin/python"),
        ("LangChain, LlamaIndex and litellm", "test/clients-venv/bin/python"),
        ("MemGPT", "test/memgpt-venv/bin/python"),
        ("the openai package for Node", "test/node/node_modules/openai"),
    ] {
        if !cache().is_some_and(|cache| cache.join(place).exists()) {
            missing.push(format!("tests against {what}: not in the cache (scripts/setup_tests.sh)"));
        }
    }
    if !cache().is_some_and(|cache| cache.join("test/templates").is_dir()) {
        missing.push(
            "chat templates against Python: they are not there (scripts/fetch_chat_templates.sh)".to_owned(),
        );
    }
    if !cache().is_some_and(|cache| cache.join("nvcc/bin/nvcc").is_file()) && !can_run("nvcc") {
        missing
            .push("the kernels' registers and spills: there is no nvcc (scripts/install_nvcc.sh)".to_owned());
    }
    if !can_run("g++") {
        missing.push("the kernels on the host: there is no g++".to_owned());
    }
    missing
}

fn can_run(program: &str) -> bool {
    let probe = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// One line for each instruction set whose kernels cannot run here. No script can install these: never a failure.
pub(crate) fn missing_instruction_sets() -> Vec<&'static str> {
    let mut missing = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        if !is_x86_feature_detected!("avx2") {
            missing.push("tests of the AVX2 kernels: not on this CPU");
        }
        if !is_x86_feature_detected!("avx512f") {
            missing.push("tests of the AVX-512 kernels: not on this CPU");
        }
    }
    missing
}

/// Whether `cargo nextest` can be called.
pub(crate) fn has_nextest() -> bool {
    let probe = Command::new("cargo")
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}

/// Whether a skip is a failure.
pub(crate) fn requires_all() -> bool {
    std::env::var("REQUIRE_ALL").is_ok_and(|value| value == "1")
}

fn cache() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(cache.join("pagoda"))
}
