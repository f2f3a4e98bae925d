//! What the tests of the binary share: the command itself, a loopback hub that fails on demand, a running server.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used)]

pub(crate) mod hub;
pub(crate) mod rng;
pub(crate) mod script;
pub(crate) mod scripted;
pub(crate) mod server;
/// The binary's own way from a checkpoint to tokenizer and template.
#[path = "../../src/text.rs"]
mod text;
pub(crate) mod witness;

use std::path::PathBuf;
use std::process::Command;

/// The binary under test, with a cache folder and hub of its own and no proxy in the way.
pub(crate) fn pagoda() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pagoda"));
    command.env_remove("HF_TOKEN").env("NO_PROXY", "127.0.0.1").env("RUST_LOG", "info");
    command
}

/// The real model's file, or `None` (after saying so) where it has not been fetched. `REQUIRE_ALL=1` makes that a failure.
pub(crate) fn real_model() -> Option<PathBuf> {
    cached("PAGODA_TEST_MODEL", "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// What the variable names, else what lies in the user's model cache, or `None` after saying so.
pub(crate) fn cached(variable: &str, in_cache: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let in_cache = cache.map(|cache| cache.join("pagoda/models").join(in_cache));
    let candidates = [std::env::var_os(variable).map(PathBuf::from), in_cache];
    let found = candidates.into_iter().flatten().find(|path| path.exists());
    if found.is_none() {
        skip(&format!("neither {variable} nor the model cache has the model (pagoda pull)"));
    }
    found
}

/// A file or folder of the test cache that scripts/setup_tests.sh makes, or `None` (after saying so).
pub(crate) fn test_cache(relative: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let path = cache.join("pagoda/test").join(relative);
    if !path.exists() {
        skip(&format!("{relative} is not in the test cache (scripts/setup_tests.sh)"));
        return None;
    }
    Some(path)
}

/// Python with the packages of scripts/requirements-test.txt.
pub(crate) fn test_python() -> Option<PathBuf> {
    test_cache("venv/bin/python")
}

/// Says that a test is skipped, and why. `REQUIRE_ALL=1` makes that a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var("REQUIRE_ALL").as_deref() != Ok("1"), "REQUIRE_ALL=1, but {why}");
    println!("skipped: {why}");
}
