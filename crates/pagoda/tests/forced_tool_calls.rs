//! A thousand tool calls that random weights are made to write through the real binary: each follows its schema, none is
//! cut off, and each is the same object streamed and not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;
#[path = "../../pagoda-text/tests/tool_schemas/mod.rs"]
mod tool_schemas;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::server::{Server, post, request};

const NUM_CALLS: usize = 1_000;
const CHAT: &str = "/v1/chat/completions";

/// A named call, or a required one of three tools; sometimes several calls in one answer.
fn body(schemas: &[(String, Value)], index: usize) -> Value {
    let tool = |index: usize| {
        let (name, parameters) = &schemas[index % schemas.len()];
        let mut function = json!({"name": name, "strict": true});
        if parameters != &json!({}) {
            function["parameters"] = parameters.clone();
        }
        json!({"type": "function", "function": function})
    };
    let tools: Vec<Value> = (index..index + 3).map(tool).collect();
    let round = index / schemas.len();
    let named = json!({"type": "function", "function": {"name": schemas[index % schemas.len()].0}});
    json!({
        "model": "tiny", "seed": index, "temperature": 1, "max_tokens": 1_600,
        "messages": [{"role": "user", "content": "Call."}],
        "tools": tools,
        "tool_choice": if round.is_multiple_of(2) { named } else { json!("required") },
        "parallel_tool_calls": round % 4 == 3,
    })
}

/// Name and arguments of each call of a whole answer.
fn whole_calls(answer: &Value) -> Vec<(String, String)> {
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    assert_eq!(choice["message"]["content"], Value::Null);
    let calls = choice["message"]["tool_calls"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    calls.map(|call| (text(&call["function"]["name"]), text(&call["function"]["arguments"]))).collect()
}

/// The same of a stream.
fn streamed_calls(events: &str) -> Vec<(String, String)> {
    let mut calls: Vec<(String, String)> = Vec::new();
    let mut finish = Value::Null;
    let data = events.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    for event in data.filter(|data| *data != "[DONE]") {
        let event: Value = serde_json::from_str(event).unwrap();
        let choice = &event["choices"][0];
        finish = choice["finish_reason"].clone();
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let function = &call["function"];
            if index == calls.len() {
                assert!(call["id"].as_str().unwrap().len() == 29 && call["type"] == "function");
                calls.push((function["name"].as_str().unwrap().to_owned(), String::new()));
            }
            calls[index].1.push_str(function["arguments"].as_str().unwrap());
        }
    }
    assert_eq!(finish, "tool_calls");
    calls
}

fn assert_valid(schemas: &[(String, Value)], calls: &[(String, String)]) {
    assert!(!calls.is_empty());
    for (name, arguments) in calls {
        let (_, schema) = schemas.iter().find(|(other, _)| other == name).expect("a tool of the request");
        let value: Value = serde_json::from_str(arguments).unwrap();
        let validator = jsonschema::validator_for(schema).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(value.is_object() && errors.is_empty(), "{name}: {errors:?}: {arguments}");
    }
}

#[test]
fn a_thousand_forced_calls_of_random_weights_are_valid_whole_and_the_same_streamed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let server = Server::start(&folder, &[]);
    let (schemas, next, num_calls) = (tool_schemas::schemas(), AtomicUsize::new(0), AtomicUsize::new(0));
    assert_eq!(schemas.len(), 20);
    let (num_tokens, start) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= NUM_CALLS {
                        return;
                    }
                    let mut body = body(&schemas, index);
                    let answer = post(server.address, CHAT, &body);
                    let whole = whole_calls(&answer);
                    assert_valid(&schemas, &whole);
                    body["stream"] = true.into();
                    let (status, events) = request(server.address, "POST", CHAT, &body.to_string());
                    assert_eq!(status, 200, "{events}");
                    assert_eq!(streamed_calls(&events), whole, "request {index}");
                    num_calls.fetch_add(whole.len(), Ordering::Relaxed);
                    let tokens = answer["usage"]["completion_tokens"].as_u64().unwrap() as usize;
                    num_tokens.fetch_add(2 * tokens, Ordering::Relaxed);
                }
            });
        }
    });
    let (num_calls, num_tokens) = (num_calls.into_inner(), num_tokens.into_inner());
    println!("{num_calls} calls twice, {num_tokens} tokens in {:.1} s", start.elapsed().as_secs_f64());
    assert!(num_calls >= NUM_CALLS);
    assert!(start.elapsed() < Duration::from_secs(300));
}
