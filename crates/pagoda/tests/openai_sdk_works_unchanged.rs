//! The official `openai` Python package against the real binary and model (`sdk/openai_sdk.py` holds the checks).

#![allow(clippy::unwrap_used)]

mod support;

use support::script::run_checks;
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
    run_checks(&python, "openai_sdk.py", &[open.url(), guarded.url(), key.to_owned()], 18);
}
