//! Structured output by real weights through the real binary: SmolLM2, which is weak, and the tiny model, which is random.

#![allow(clippy::unwrap_used)]

#[path = "../../pagoda-text/tests/schema_shapes/mod.rs"]
mod schema_shapes;
mod support;

use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};
use support::server::{Server, post};

/// Small bounds, so that a test takes seconds and not minutes.
const BOUNDS: [&str; 8] = [
    "--schema-max-string-length",
    "24",
    "--schema-max-items",
    "2",
    "--schema-max-properties",
    "2",
    "--schema-max-depth",
    "2",
];

/// The shapes, less `num_left_out` of the last ones, once each, some requests at a time; the answers that ended.
fn ask_for_shapes(
    server: &Server,
    num_left_out: usize,
    request: impl Fn(usize, &str, Value) -> (&'static str, Value) + Sync,
) -> usize {
    let mut shapes: Vec<_> = schema_shapes::shapes().into_iter().enumerate().collect();
    shapes.truncate(shapes.len() - num_left_out);
    let queue = Mutex::new(shapes.into_iter());
    let num_ended = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let Some((index, (name, schema))) = queue.lock().unwrap().next() else { return };
                    let format =
                        json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
                    let (path, body) = request(index, name, format);
                    let answer = post(server.address, path, &body);
                    let choice = &answer["choices"][0];
                    let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
                    let text = text.unwrap_or_else(|| panic!("{name}: {answer}"));
                    if choice["finish_reason"] == "stop" {
                        let value: Value = serde_json::from_str(text)
                            .unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
                        let validator =
                            jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
                        let errors: Vec<String> =
                            validator.iter_errors(&value).map(|error| error.to_string()).collect();
                        assert!(errors.is_empty(), "{name}: {errors:?}: {text}");
                        *num_ended.lock().unwrap() += 1;
                    } else {
                        println!("{name} was cut: {text}");
                    }
                }
            });
        }
    });
    num_ended.into_inner().unwrap()
}

#[test]
fn smollm2_writes_valid_values_of_every_shape_but_the_largest() {
    let Some(model) = support::real_model() else { return };
    let flags = [&["--served-model-name", "small", "--max-model-len", "2048"][..], &BOUNDS].concat();
    let server = Server::start(&model, &flags);
    let num_ended = ask_for_shapes(&server, 1, |_, name, format| {
        let prompt = format!("Write an example of {name} as JSON.");
        let body = json!({"model": "small", "temperature": 0, "response_format": format, "max_tokens": 1500,
                          "messages": [{"role": "user", "content": prompt}]});
        ("/v1/chat/completions", body)
    });
    assert_eq!(num_ended, 19);
}

#[test]
fn random_weights_write_valid_values_of_every_shape_that_end() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let server = Server::start(&folder, &BOUNDS);
    for seed in 0..5 {
        let num_ended = ask_for_shapes(&server, 0, |index, _, format| {
            let body = json!({"model": "tiny", "prompt": [5, 6, 7, index], "seed": seed, "temperature": 1,
                              "response_format": format, "max_tokens": 100_000});
            ("/v1/completions", body)
        });
        assert!(num_ended >= 19, "{num_ended} of 20 ended");
    }
}
