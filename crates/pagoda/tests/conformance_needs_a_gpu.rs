//! `pagoda conformance` on a machine without a GPU says so, and fails only where a GPU is required.

use std::process::{Command, Output};

fn conformance(requires_gpu: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pagoda"))
        .args(["conformance", "--only", "rms_norm/1x8"])
        .env("REQUIRE_GPU", requires_gpu)
        .output()
        .expect("the binary was built with this test")
}

#[test]
fn without_a_gpu_it_skips_loudly_and_fails_where_one_is_required() {
    let output = conformance("0");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    if !text.starts_with("skipped: no CUDA device: ") {
        assert!(text.contains("rms_norm/1x8: "), "it skipped nothing and ran nothing:\n{text}");
        return;
    }
    let output = conformance("1");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("REQUIRE_GPU=1"), "{text}");
}
