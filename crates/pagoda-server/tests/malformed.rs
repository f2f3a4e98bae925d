//! 10,000 malformed requests: no panic, no answer of the 500s, and a healthy request is answered after each thousand.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagoda_testkit::Random;
use support::{Client, JSON, Setup, TestServer, chat, request};

const NUM_ROUNDS: u64 = 10;
const NUM_WORKERS: u64 = 4;
const NUM_PER_WORKER: usize = 250;

/// The fields of the generating routes, and where they count.
const FIELDS: [&str; 40] = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "n",
    "stop",
    "stop_token_ids",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "ignore_eos",
    "min_tokens",
    "echo",
    "stream",
    "stream_options",
    "return_token_ids",
    "user",
    "priority",
    "cache_salt",
    "tools",
    "tool_choice",
    "response_format",
    "chat_template_kwargs",
    "continue_final_message",
    "add_generation_prompt",
    "skip_special_tokens",
    "best_of",
    "suffix",
    "tokens",
    "return_token_strs",
    "unknown_field",
];

/// Fields of a message and of a content part.
const INNER: [&str; 7] = ["role", "content", "name", "tool_calls", "tool_call_id", "type", "text"];

const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];

/// A JSON value, or something that pretends to be one.
fn value(random: &mut Random) -> String {
    const ATOMS: [&str; 38] = [
        "null",
        "true",
        "false",
        "0",
        "-0.0",
        "1",
        "-1",
        "0.5",
        "8",
        "9",
        "1e308",
        "-1e308",
        "1e-320",
        "1e999",
        "NaN",
        "-Infinity",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "18446744073709551616",
        "\"\"",
        "\"x\"",
        "\"-1\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "\"\u{202e}\u{feff}\"",
        "[]",
        "{}",
        "[null]",
        "[[]]",
        "[1,\"a\"]",
        "{\"a\":{}}",
        "[{}]",
        "{\"type\":\"json_schema\"}",
        "{\"0\":1e309}",
        "[4294967295]",
        "{\"include_usage\":7}",
    ];
    match random.below(60) {
        0 => format!("{}{}", "[".repeat(200), "]".repeat(200)),
        1 => format!("{}1{}", "{\"a\":".repeat(120), "}".repeat(120)),
        2 => format!("{}1{}", "[".repeat(50_000), "]".repeat(random.below(50_001))),
        3 => format!("\"{}\"", "\u{e9}x".repeat(random.below(4_000))),
        4 => format!("[{}]", vec!["7"; random.between(1, 3_000)].join(",")),
        5 => format!("[{}]", vec!["\"stop\""; random.between(1, 100)].join(",")),
        6 => {
            let entries: Vec<String> = (0..400).map(|id| format!("\"{id}\":1")).collect();
            format!("{{{}}}", entries.join(","))
        }
        7 => format!("\"{}\"", "<|im_start|>".repeat(random.below(100))),
        _ => ATOMS[random.below(ATOMS.len())].to_owned(),
    }
}

/// A body that is fine but for one to three fields.
fn body(random: &mut Random, path: &str) -> Vec<u8> {
    let mut fields: Vec<(String, String)> = match path {
        "/v1/completions" => vec![("prompt".into(), "\"hi\"".into()), ("max_tokens".into(), "3".into())],
        "/detokenize" => vec![("tokens".into(), "[104,105]".into())],
        _ => {
            let message = "[{\"role\":\"user\",\"content\":\"hi\"}]";
            vec![("messages".into(), message.into()), ("max_tokens".into(), "3".into())]
        }
    };
    for _ in 0..random.between(1, 3) {
        let name = FIELDS[random.below(FIELDS.len())];
        match random.below(10) {
            0 => fields.retain(|(known, _)| known != name),
            // Twice the same key.
            1 => fields.push((name.into(), value(random))),
            2 => {
                let (inner, wrong) = (INNER[random.below(INNER.len())], value(random));
                let message = format!("{{\"role\":\"user\",\"content\":\"a\",\"{inner}\":{wrong}}}");
                fields.push(("messages".into(), format!("[{message}]")));
            }
            3 => {
                let (inner, wrong) = (INNER[random.below(INNER.len())], value(random));
                let part = format!("{{\"type\":\"text\",\"text\":\"a\",\"{inner}\":{wrong}}}");
                fields.push(("messages".into(), format!("[{{\"role\":\"user\",\"content\":[{part}]}}]")));
            }
            _ => {
                fields.retain(|(known, _)| known != name);
                fields.push((name.into(), value(random)));
            }
        }
    }
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    let mut body = format!("{{{}}}", fields.join(",")).into_bytes();
    match random.below(20) {
        0 => body.truncate(random.below(body.len())),
        1 => {
            let at = random.below(body.len());
            body[at] = random.below(256) as u8;
        }
        2 => body.extend_from_slice(b"}{"),
        _ => {}
    }
    body
}

/// Bytes that are no request, or one that breaks its own rules.
fn broken_framing(random: &mut Random) -> Vec<u8> {
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let body = chat("hi").to_string();
    match random.below(14) {
        0 => format!("{head}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").into_bytes(),
        1 => format!("{head}content-length: -1\r\n\r\n{body}").into_bytes(),
        2 => format!("{head}content-length: 99999999999999999999\r\n\r\n{body}").into_bytes(),
        3 => format!("{head}content-length: 3\r\ncontent-length: 4\r\n\r\nabcd").into_bytes(),
        4 => format!("{head}transfer-encoding: chunked\r\n\r\n{}", "1\r\nx\r\n".repeat(500)).into_bytes(),
        5 => format!("{head}transfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\nx").into_bytes(),
        6 => format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n").into_bytes(),
        7 => format!("{head}content-length: {}\r\n\r\n{body}", body.len() + 10).into_bytes(),
        8 => b"GET /health HTTP/9.9\r\n\r\n".to_vec(),
        9 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting".to_vec(),
        10 => b"GET /v1/models/%00%ff%2e%2e%2f HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        11 => b"G\0T / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        12 => format!("{head}x-bad\r: 1\r\n\r\n").into_bytes(),
        _ => (0..random.between(1, 400)).map(|_| random.below(256) as u8).collect(),
    }
}

/// Sends `num` malformed requests over as few connections as the server lets it.
async fn attack(server: Arc<TestServer>, seed: u64, num: usize) -> Verdicts {
    let mut verdicts = Verdicts::default();
    let mut random = Random::new(seed);
    let mut client = Client::connect(server.address).await;
    for index in 0..num {
        if random.one_in(8) {
            let bytes = broken_framing(&mut random);
            let mut client = Client::connect(server.address).await;
            client.write(&bytes).await;
            client.close_sending().await;
            let (answer, _) = client.read_to_end().await;
            let status = answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.first().copied());
            assert!(
                status != Some(b'5'),
                "seed {seed}, request {index}: {}",
                String::from_utf8_lossy(&answer)
            );
            continue;
        }
        let path = PATHS[random.below(PATHS.len())];
        let bytes = request("POST", path, &[JSON], &body(&mut random, path));
        client.write(&bytes).await;
        let sent = String::from_utf8_lossy(&bytes[..bytes.len().min(600)]).into_owned();
        let answer = match client.read_answer().await {
            Some(answer) => answer,
            None => {
                // The answer before it had closed the connection. On a fresh one every whole body is answered.
                client = Client::connect(server.address).await;
                client.write(&bytes).await;
                let answer = client.read_answer().await;
                answer.unwrap_or_else(|| panic!("seed {seed}, request {index}: no answer to {sent}"))
            }
        };
        assert!(answer.status < 500, "seed {seed}, request {index}: {sent}\n{}", answer.text());
        let has_failed = answer.text().contains("data: {\"error\"");
        assert!(!has_failed, "seed {seed}, request {index}: {sent}\n{}", answer.text());
        verdicts.num_accepted += usize::from(answer.status == 200);
        verdicts.num_refused += usize::from(answer.status != 200);
    }
    verdicts
}

/// What became of bodies that arrived whole.
#[derive(Default)]
struct Verdicts {
    num_accepted: usize,
    num_refused: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_malformed_requests_hurt_nobody() {
    let num_panics = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&num_panics);
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        counter.fetch_add(1, Ordering::SeqCst);
        earlier(info);
    }));
    let server = Setup::saying("Hello!").with_engine(|engine| engine.max_model_len = 128).start().await;
    let server = Arc::new(server);
    let (mut num_accepted, mut num_refused) = (0, 0);
    for round in 0..NUM_ROUNDS {
        let attacks = (0..NUM_WORKERS).map(|worker| {
            let seed = round * NUM_WORKERS + worker;
            tokio::spawn(attack(Arc::clone(&server), seed, NUM_PER_WORKER))
        });
        let attacks: Vec<_> = attacks.collect();
        for attack in attacks {
            let verdicts = attack.await.expect("the attack found nothing");
            num_accepted += verdicts.num_accepted;
            num_refused += verdicts.num_refused;
        }
        let healthy = server.post("/v1/chat/completions", &chat("hi")).await.ok();
        assert_eq!(healthy["choices"][0]["message"]["content"], "Hello!", "after round {round}");
    }
    println!("{num_accepted} accepted, {num_refused} refused");
    // Both kinds occur in number: the generator reaches what lies behind the first check.
    assert!(num_accepted > 1_000 && num_refused > 3_000, "{num_accepted} accepted, {num_refused} refused");
    server.wait_until_idle().await;
    let kv = server.get("/debug/kv").await.ok();
    assert_eq!(kv["integrity"]["is_intact"], true, "{kv}");
    assert_eq!(num_panics.load(Ordering::SeqCst), 0);
}
