//! The real binary with the real model: what it prints, how it answers, how it ends, and what it says when it cannot start.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::server::{Server, open, post, request};

fn serve_fails(flags: &[&str]) -> String {
    let Output { status, stderr, .. } = support::pagoda().arg("serve").args(flags).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!status.success(), "it started: {stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line should say it: {stderr}");
    errors[0].to_owned()
}

#[test]
fn a_port_in_use_is_one_line_naming_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = serve_fails(&["--port", &port, "smollm2-135m-instruct"]);
    assert!(error.contains("--port") && error.contains(&port), "{error}");
}

#[test]
fn a_model_that_is_none_is_one_line_naming_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.gguf");
    std::fs::write(&file, "GGUF, or rather not").unwrap();
    let error = serve_fails(&["--port", "0", file.to_str().unwrap()]);
    assert!(error.contains("broken.gguf"), "{error}");
    let error = serve_fails(&["--port", "0", "no-such-model"]);
    assert!(error.contains("known: smollm2-135m-instruct"), "{error}");
}

#[test]
fn an_open_address_without_a_key_is_refused() {
    let error = serve_fails(&["--port", "0", "--host", "0.0.0.0"]);
    assert!(error.contains("--api-key-file") && error.contains("--insecure-no-auth"), "{error}");
}

#[test]
fn a_gpu_that_is_not_there_is_refused_with_the_reason_and_auto_takes_the_cpu() {
    // No machine has that many.
    let error = serve_fails(&["--port", "0", "--device", "cuda:9999"]);
    let reasons = ["GPU kernels", "NVIDIA driver", "no cuda:9999"];
    assert!(error.contains("--device cuda:9999: ") && error.contains("--device cpu"), "{error}");
    assert!(reasons.iter().any(|reason| error.contains(reason)), "{error}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let server = Server::start(&folder, &["--device", "cpu"]);
    assert!(server.banner.contains("device     CPU"), "{}", server.banner);
}

#[test]
fn a_batch_that_cannot_be_is_one_line_naming_the_flag_before_a_model_is_looked_for() {
    for flag in ["--block-size", "--max-num-seqs", "--max-num-batched-tokens", "--max-queued-requests"] {
        let error = serve_fails(&["--port", "0", "--device", "cpu", flag, "0", "no-such-model"]);
        assert!(error.starts_with(&format!("error: {flag} 0: ")), "{error}");
    }
    let flags = ["--port", "0", "--device", "cpu", "--max-num-batched-tokens", "1", "no-such-model"];
    let error = serve_fails(&flags);
    assert!(error.contains("--max-num-batched-tokens 1 ") && error.contains("--max-num-seqs 32"), "{error}");
}

#[test]
fn too_little_kv_memory_is_one_line_naming_the_flag() {
    let Some(model) = support::real_model() else { return };
    let error = serve_fails(&["--port", "0", "--kv-cache-memory", "100k", model.to_str().unwrap()]);
    assert!(error.contains("--kv-cache-memory"), "{error}");
    let error = serve_fails(&["--port", "0", "--max-model-len", "99999999", model.to_str().unwrap()]);
    assert!(error.contains("--max-model-len"), "{error}");
}

#[test]
fn a_folder_with_safetensors_is_served_under_its_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let server = Server::start(&folder, &["--trace-steps", "-"]);
    let body = json!({ "model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0, "ignore_eos": true,
                       "return_token_ids": true });
    let answer = post(server.address, "/v1/completions", &body);
    assert_eq!(answer["choices"][0]["token_ids"].as_array().unwrap().len(), 4, "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], 3);
    let (status, error) =
        request(server.address, "POST", "/v1/completions", r#"{"model":"other","prompt":"a"}"#);
    assert_eq!(status, 404, "{error}");
}

#[test]
fn the_banner_states_exact_memory_and_a_call_that_works() {
    let Some(model) = support::real_model() else { return };
    let server =
        Server::start(&model, &["--served-model-name", "small,gpt-4o-mini", "--max-model-len", "2048"]);
    for text in
        ["small, gpt-4o-mini", "weights", "KV cache", "workspace", "context    2048 tokens", "curl http://"]
    {
        assert!(server.banner.contains(text), "{text:?} is missing: {}", server.banner);
    }
    let body = server.banner.rsplit("-d '").next().unwrap().trim_end().trim_end_matches('\'');
    let (status, stream) = request(server.address, "POST", "/v1/chat/completions", body);
    assert_eq!(status, 200, "{stream}");
    assert!(stream.trim_end().ends_with("data: [DONE]"), "{stream}");
}

#[test]
fn a_shared_prefix_of_a_thousand_tokens_is_cached_and_answers_sooner() {
    let Some(model) = support::real_model() else { return };
    let server = Server::start(&model, &["--max-model-len", "2048"]);
    // Ordinary ids, seeded per trial so that trials share nothing.
    let ids = |count: u32, seed: u32| (0..count).map(move |i| 1000 + (i * 7919 + seed * 104_729) % 40_000);
    let ttft = |prompt: &[u32]| {
        let body = json!({ "model": "x", "prompt": prompt, "max_tokens": 4, "temperature": 0, "stream": true,
                           "stream_options": { "include_usage": true }, "ignore_eos": true, "return_token_ids": true });
        first_chunk_and_usage(&server, &body)
    };
    let mut ratios = Vec::new();
    for trial in 0..3 {
        let shared: Vec<u32> = ids(1000, trial).collect();
        let (cold, usage) = ttft(&shared);
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
        let longer: Vec<u32> = shared.iter().copied().chain(ids(30, trial + 100)).collect();
        let (warm, usage) = ttft(&longer);
        assert_eq!(usage["prompt_tokens"], 1030);
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 1000, "partial tails are copied");
        ratios.push(warm.as_secs_f64() / cold.as_secs_f64());
    }
    // The machine is shared with other tests: the best of three trials is the one that was disturbed least.
    let best = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    println!("TTFT of 1,000 cached + 30 new tokens over 1,000 new ones: {ratios:.3?}");
    assert!(best <= 0.30, "{ratios:?}");
}

/// Streams a request: time to the first event, and the final usage.
fn first_chunk_and_usage(server: &Server, body: &Value) -> (Duration, Value) {
    let body = named(server, body);
    let start = Instant::now();
    let reader = BufReader::new(open(server.address, "POST", "/v1/completions", &body.to_string()));
    let (mut first, mut usage) = (None, Value::Null);
    for line in reader.lines() {
        let line = line.unwrap();
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(data).unwrap();
        let has_tokens = event["choices"][0]["token_ids"].as_array().is_some_and(|ids| !ids.is_empty());
        if has_tokens && first.is_none() {
            first = Some(start.elapsed());
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    (first.expect("a first token"), usage)
}

fn named(server: &Server, body: &Value) -> Value {
    let (_, models) = request(server.address, "GET", "/v1/models", "");
    let models: Value = serde_json::from_str(&models).unwrap();
    let mut body = body.clone();
    body["model"] = models["data"][0]["id"].clone();
    body
}

#[test]
fn sigterm_drains_and_exits_with_zero() {
    let Some(model) = support::real_model() else { return };
    let mut server = Server::start(&model, &["--max-model-len", "2048"]);
    let body = named(
        &server,
        &json!({ "prompt": "Once upon a time", "max_tokens": 60, "ignore_eos": true,
                                        "stream": true, "temperature": 0, "model": "" }),
    );
    let mut stream = BufReader::new(open(server.address, "POST", "/v1/completions", &body.to_string()));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0, "the stream ended before its first event");
    }
    server.signal("TERM");
    // The accepted stream runs to its end, and a new request is turned away politely.
    let refused =
        until(Duration::from_secs(10), || request(server.address, "GET", "/health/ready", "").0 == 503);
    assert!(refused, "the server does not say that it drains");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "the drain cut a stream: {rest}");
    assert_eq!(server.wait(Duration::from_secs(30)).code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let Some(model) = support::real_model() else { return };
    let mut server = Server::start(&model, &["--max-model-len", "2048", "--drain-timeout", "600"]);
    let body = named(
        &server,
        &json!({ "prompt": "Once", "max_tokens": 2000, "ignore_eos": true, "stream": true,
                                        "model": "" }),
    );
    let mut stream = BufReader::new(open(server.address, "POST", "/v1/completions", &body.to_string()));
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    server.signal("INT");
    assert!(until(Duration::from_secs(10), || request(server.address, "GET", "/health/ready", "").0 == 503));
    server.signal("INT");
    server.wait(Duration::from_secs(5));
}

fn until(limit: Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if is_true() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn bench_serve_counts_every_token_in_both_loops() {
    let Some(model) = support::real_model() else { return };
    let server = Server::start(&model, &["--max-model-len", "2048"]);
    let url = server.url();
    for load in [["--concurrency", "4"], ["--request-rate", "20"]] {
        let output = support::pagoda()
            .args(["bench", "serve", &url, "--num-requests", "6", "--prompt-len", "uniform:8-16"])
            .args(["--output-len", "12", "--json", "-", "--max-seconds", "120"])
            .args(load)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["num_completed"], 6);
        assert_eq!(report["num_output_tokens"], 72);
        assert!(report["ttft_ms"]["p50"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn the_same_prompt_gives_the_same_text_and_the_right_answer() {
    let Some(model) = support::real_model() else { return };
    let server = Server::start(&model, &["--max-model-len", "2048"]);
    let body = named(
        &server,
        &json!({ "model": "", "temperature": 0, "max_tokens": 24, "messages": [
        { "role": "user", "content": "What is the capital of France?" }] }),
    );
    let first = post(server.address, "/v1/chat/completions", &body);
    let text = first["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("Paris"), "{text}");
    assert_eq!(post(server.address, "/v1/chat/completions", &body)["choices"], first["choices"]);
}
