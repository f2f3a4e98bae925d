//! What a strong model would do, played by a script to the official `openai` package: plain text, tools, JSON, under the
//! real grammar (`sdk/openai_scripted.py` holds the checks).

#![allow(clippy::unwrap_used)]

mod support;

use support::script::run_checks;
use support::scripted::{Cast, ScriptedServer};

#[test]
fn every_check_of_the_python_script_passes() {
    let (Some(model), Some(python)) = (support::real_model(), support::test_python()) else { return };
    let Some(template) = support::test_cache("templates/Qwen-Qwen2.5-7B-Instruct.jinja") else { return };
    let cast = Cast {
        model: &model,
        template: Some(&template),
        names: &["org/scripted", "gpt-4o-mini"],
        max_model_len: 8192,
    };
    let server = ScriptedServer::start(&cast);
    run_checks(&python, "openai_scripted.py", &[server.url(), server.stage.to_string()], 10);
}
