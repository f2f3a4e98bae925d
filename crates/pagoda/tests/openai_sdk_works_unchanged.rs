//! The official `openai` Python package against the real binary and model (`sdk/openai_sdk.py` holds the checks).

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;

use support::server::Server;

#[test]
fn every_check_of_the_python_script_passes() {
    let (Some(model), Some(python)) = (support::real_model(), support::test_python()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let key = "sk-test-0123456789abcdef0123456789";
    let key_file = folder.path().join("keys");
    std::fs::write(&key_file, format!("# one key\n{key}\n")).unwrap();

    let open = Server::start(&model, &["--max-model-len", "2048"]);
    let guarded = Server::start_beside(
        &model,
        &["--max-model-len", "2048", "--api-key-file", key_file.to_str().unwrap()],
    );
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/openai_sdk.py");
    let output = Command::new(python)
        .arg(script)
        .args([open.url(), guarded.url(), key.to_owned()])
        .env("NO_PROXY", "127.0.0.1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stdout.lines().filter(|line| line.starts_with("ok ")).count(), 15, "{stdout}");
}
