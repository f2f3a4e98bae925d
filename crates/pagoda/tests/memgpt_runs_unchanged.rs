//! pymemgpt 0.3.25, the original MemGPT, as it was published: with a script that plays a strong model and makes every tool
//! happen, and with the real small model, where only the protocol can hold.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::script::run_checks;
use support::scripted::{Cast, ScriptedServer};
use support::server::Server;

const PYTHON: &str = "memgpt-venv/bin/python";
const TEMPLATE: &str = "templates/Qwen-Qwen2.5-7B-Instruct.jinja";

#[test]
fn every_tool_of_memgpt_happens() {
    let (Some(model), Some(python)) = (support::real_model(), support::test_cache(PYTHON)) else { return };
    let Some(template) = support::test_cache(TEMPLATE) else { return };
    let cast =
        Cast { model: &model, template: Some(&template), names: &["org/scripted"], max_model_len: 8192 };
    let server = ScriptedServer::start(&cast);
    // Archival memory is searched by meaning: its vectors come from the embedding model of the binary.
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let embeddings = Server::start(&tiny, &[]);
    let arguments = [server.url(), server.stage.to_string(), embeddings.url()];
    run_checks(&python, "memgpt_scripted.py", &arguments, 9);
}

#[test]
fn a_weak_model_keeps_the_protocol() {
    let (Some(model), Some(python)) = (support::real_model(), support::test_cache(PYTHON)) else { return };
    let Some(template) = support::test_cache(TEMPLATE) else { return };
    let template = template.to_str().unwrap();
    let flags = ["--max-model-len", "4096", "--tool-choice-auto", "required", "--chat-template", template];
    let server = Server::start(&model, &flags);
    run_checks(&python, "memgpt_smollm2.py", &[server.url()], 3);
}
