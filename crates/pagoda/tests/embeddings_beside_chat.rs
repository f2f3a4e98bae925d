//! The real binary with the real embedding model beside a chat model: fetched names, loaded at the first call, the right
//! vectors from text, and the legacy completion agents' way of asking.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use support::server::{Server, post, request};

/// The real embedding model's folder, or `None` (after saying so) where it has not been fetched.
fn real_encoder() -> Option<PathBuf> {
    support::cached("PAGODA_TEST_ENCODER", "all-minilm-l6-v2")
}

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny")
}

fn golden() -> Vec<(String, usize, Vec<f64>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/all-minilm-l6-v2/golden.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let texts = golden["texts"].as_array().unwrap().iter();
    texts
        .map(|entry| {
            let text = entry["text"].as_str().unwrap().to_owned();
            (text, entry["token_ids"].as_array().unwrap().len(), floats(entry["vector"].as_str().unwrap()))
        })
        .collect()
}

/// Little-endian f32 in base64.
fn floats(base64: &str) -> Vec<f64> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let (mut bytes, mut bits, mut num_bits) = (Vec::new(), 0u32, 0);
    for byte in base64.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | u32::from(digit(byte));
        num_bits += 6;
        if num_bits >= 8 {
            num_bits -= 8;
            bytes.push((bits >> num_bits) as u8);
        }
    }
    bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn texts_become_the_vectors_of_sentence_transformers_in_both_encodings() {
    let Some(encoder) = real_encoder() else { return };
    let flags =
        ["--embedding-model", encoder.to_str().unwrap(), "--embedding-name", "minilm,text-embedding-3-small"];
    let server = Server::start(&tiny(), &flags);
    assert!(server.banner.contains("minilm, text-embedding-3-small"), "{}", server.banner);
    let golden = golden();
    let texts: Vec<&str> = golden.iter().map(|(text, ..)| text.as_str()).collect();
    let started = Instant::now();
    let body = json!({"model": "text-embedding-ada-002", "input": texts, "encoding_format": "base64"});
    let answer = post(server.address, "/v1/embeddings", &body);
    println!("{} texts with the load: {:?}", texts.len(), started.elapsed());
    for ((text, _, expected), entry) in golden.iter().zip(answer["data"].as_array().unwrap()) {
        let cosine = cosine(&floats(entry["embedding"].as_str().unwrap()), expected);
        assert!(cosine > 0.9999, "cosine {cosine} for {text}");
    }
    // Truncated at 256 tokens, without padding: what the reference tokenizer counted.
    let num_tokens: usize = golden.iter().map(|(_, num_tokens, _)| num_tokens).sum();
    assert_eq!(answer["usage"]["prompt_tokens"], num_tokens);
    let answer = post(server.address, "/v1/embeddings", &json!({"input": texts[1], "dimensions": 100}));
    let vector: Vec<f64> = answer["data"][0]["embedding"]
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap())
        .collect();
    assert!(cosine(&vector, &golden[1].2[..100]) > 0.9999);
    assert!((vector.iter().map(|value| value * value).sum::<f64>() - 1.0).abs() < 1e-5);
    // None of candle's own threads, which spin, stands beside ours.
    let threads = server.thread_names();
    assert!(threads.iter().any(|name| name.starts_with("encoder-")), "{threads:?}");
    assert!(!threads.iter().any(|name| name.starts_with("candle")), "{threads:?}");
    let (_, metrics) = request(server.address, "GET", "/metrics", "");
    assert!(metrics.contains("pagoda:embedding_requests_total{model_name=\"minilm\"} 2\n"), "{metrics}");
    let (_, models) = request(server.address, "GET", "/v1/models", "");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((&models["data"][0]["id"], &models["data"][1]["id"]), (&json!("tiny"), &json!("minilm")));
}

#[test]
fn embeddings_can_be_turned_off_and_any_chat_name_accepted() {
    let server = Server::start(&tiny(), &["--embedding-model", "none", "--accept-any-model"]);
    assert_eq!(request(server.address, "POST", "/v1/embeddings", r#"{"input": "a"}"#).0, 404);
    let body = json!({"model": "whatever", "prompt": [5, 6, 7], "max_tokens": 2});
    assert_eq!(post(server.address, "/v1/completions", &body)["model"], "whatever");
    let (_, props) = request(server.address, "GET", "/props", "");
    let (_, models) = request(server.address, "GET", "/models", "");
    let (props, models): (Value, Value) =
        (serde_json::from_str(&props).unwrap(), serde_json::from_str(&models).unwrap());
    assert_eq!(models["data"].as_array().unwrap().len(), 1);
    assert_eq!(props["default_generation_settings"]["n_ctx"], models["data"][0]["max_model_len"]);
}

/// The prompt that MemGPT's ChatML wrapper ends within an open JSON object, and its stop strings.
#[test]
fn a_chatml_prompt_that_ends_in_open_json_is_continued_as_json() {
    let Some(model) = support::real_model() else { return };
    let server = Server::start(&model, &["--max-model-len", "2048", "--served-model-name", "small"]);
    let prompt = "<|im_start|>system\nYou are MemGPT. Please select the most suitable function and parameters from the list \
        of available functions below, based on the ongoing conversation. Provide your response in JSON format.\n\n\
        Available functions:\nsend_message:\n  description: Sends a message to the human user.\n  params:\n    message: \
        Message contents.\n<|im_end|>\n\
        <|im_start|>user\n{\n  \"type\": \"login\",\n  \"last_login\": \"Never (first login)\"\n}<|im_end|>\n\
        <|im_start|>assistant\n{\n  \"function\": \"send_message\",\n  \"params\": {\n    \"message\": \"Welcome! How can I \
        help?\"\n  }\n}<|im_end|>\n\
        <|im_start|>user\n{\n  \"type\": \"user_message\",\n  \"message\": \"What is the capital of France?\"\n}<|im_end|>\n\
        <|im_start|>assistant\n{\n  \"function\":";
    let mut stop: Vec<String> = [
        "\nUSER:",
        "\nASSISTANT:",
        "\nFUNCTION RETURN:",
        "\nUSER",
        "\nASSISTANT",
        "\nFUNCTION RETURN",
        "\nFUNCTION",
        "\nFUNC",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_sep|>",
        "\n### ",
        "\n#",
        "  }\n}\n",
    ]
    .map(str::to_owned)
    .to_vec();
    // Wrappers add their own: some dozens in all.
    stop.extend((0..40).map(|index| format!("<|extra_{index}|>")));
    let body = json!({"model": "small", "prompt": prompt, "max_tokens": 3000, "stream": false, "user": "a-user",
        "stop": stop, "temperature": 0, "n": 1, "logprobs": false});
    let answer = post(server.address, "/v1/completions", &body);
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    let text = choice["text"].as_str().unwrap();
    println!("continued with {text:?}");
    // The agent puts the beginning back, and the braces that its last stop string cut off.
    let whole = format!("{{\n  \"function\":{text}");
    let closed = ["", "  }\n}\n", "\n  }\n}", "\n}", "}"].iter().find_map(|end| {
        let text = format!("{whole}{end}");
        let first: Option<Value> = serde_json::Deserializer::from_str(&text).into_iter().next()?.ok();
        first
    });
    let call = closed.unwrap_or_else(|| panic!("no JSON: {whole}"));
    assert!(call["function"].is_string(), "{call}");
    // A prompt that does not fit is what agents take for the sign to summarise.
    let long =
        json!({"model": "small", "prompt": prompt.repeat(20), "max_tokens": 3000, "stop": body["stop"]});
    let (status, error) = request(server.address, "POST", "/v1/completions", &long.to_string());
    let error: Value = serde_json::from_str(&error).unwrap();
    assert_eq!((status, &error["error"]["code"]), (400, &json!("context_length_exceeded")));
}
