//! LangChain, LlamaIndex, litellm and the `openai` package for Node, against a scripted model and the real small one
//! (`sdk/frameworks.py` and `sdk/openai_node.mjs` hold the checks).

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::script::run_checks;
use support::scripted::{Cast, ScriptedServer};
use support::server::Server;

/// LlamaIndex refuses names that it does not know.
const NAME: &str = "gpt-4o-mini";

fn run(program: &Path, script: &str, last_argument: Option<&str>, num_checks: usize) {
    let Some(model) = support::real_model() else { return };
    let Some(template) = support::test_cache("templates/Qwen-Qwen2.5-7B-Instruct.jinja") else { return };
    let cast = Cast { model: &model, template: Some(&template), names: &[NAME], max_model_len: 8192 };
    let scripted = ScriptedServer::start(&cast);
    let real = Server::start(&model, &["--max-model-len", "2048", "--served-model-name", NAME]);
    let mut arguments = vec![scripted.url(), scripted.stage.to_string(), real.url()];
    arguments.extend(last_argument.map(str::to_owned));
    run_checks(program, script, &arguments, num_checks);
}

#[test]
fn every_check_of_langchain_llama_index_and_litellm_passes() {
    let Some(python) = support::test_cache("clients-venv/bin/python") else { return };
    run(&python, "frameworks.py", None, 9);
}

#[test]
fn every_check_of_the_node_script_passes() {
    let Some(modules) = support::test_cache("node") else { return };
    run(Path::new("node"), "openai_node.mjs", modules.to_str(), 7);
}
