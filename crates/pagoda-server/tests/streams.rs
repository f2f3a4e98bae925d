//! Clients that do not behave: readers that never read, senders that send too much, heads that make no sense.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::{Client, JSON, Setup, completion, eventually, request, with};

/// A long answer with so many logprobs that it fills every buffer between server and client.
fn endless() -> serde_json::Value {
    let fields = json!({"max_tokens": 1500, "stream": true, "n": 4, "logprobs": 20, "ignore_eos": true});
    with(completion("x"), fields)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_never_waits_for_readers_that_never_read() {
    let setup =
        Setup::hashing().with_config(|config| config.connections.write_timeout = Duration::from_secs(600));
    let setup = setup.with_engine(|engine| {
        engine.max_model_len = 2048;
        engine.num_blocks = 16 * 1024;
    });
    let server = setup.start().await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(server.address).await;
        client.write(&request("POST", "/v1/completions", &[JSON], endless().to_string().as_bytes())).await;
        stalled.push(client);
    }
    eventually("all of them run", || server.engine().stats().num_output_tokens > 100).await;
    // Another client is served at the pace of the steps: its tokens need about as many steps as there are.
    let steps_before = server.engine().stats().num_steps;
    let body = with(completion("y"), json!({"max_tokens": 100, "ignore_eos": true}));
    server.post("/v1/completions", &body).await.ok();
    let num_steps = server.engine().stats().num_steps - steps_before;
    assert!(num_steps >= 100, "{num_steps}");
    // Every sequence runs to its end although nobody has read a byte: 4 clients, 4 answers each, all in memory, which
    // max_tokens bounds.
    server.wait_until_idle().await;
    let stats = server.engine().stats();
    assert_eq!(stats.num_output_tokens, 4 * 4 * 1500 + 100);
    assert_eq!((stats.num_aborted_requests, stats.kv_blocks_referenced), (0, 0));
    // And whoever reads in the end finds everything.
    let answer = stalled.pop().unwrap().read_answer().await.unwrap();
    let events = answer.events();
    let ends = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "length").count();
    assert_eq!(ends, 4);
}

#[tokio::test]
async fn a_client_that_had_sent_too_much_is_seen_to_leave() {
    for stream in [true, false] {
        for half_closed in [true, false] {
            let server = Setup::hashing().with_delay(Duration::from_millis(5)).start().await;
            let fields = json!({"max_tokens": 400, "stream": stream, "ignore_eos": true});
            let mut bytes = request(
                "POST",
                "/v1/completions",
                &[JSON],
                with(completion("x"), fields).to_string().as_bytes(),
            );
            // Stray bytes behind the body: some with it, more once the answer is being made.
            bytes.extend_from_slice(b"stray");
            let mut client = Client::connect(server.address).await;
            client.write(&bytes).await;
            eventually("it runs", || server.engine().stats().num_output_tokens > 4).await;
            client.write(&[b'x'; 10_000]).await;
            if half_closed {
                client.close_sending().await;
            } else {
                drop(client);
            }
            server.wait_until_idle().await;
            let stats = server.engine().stats();
            assert!(stats.num_output_tokens < 400, "it was not left to finish");
            assert_eq!((stats.num_aborted_requests, stats.kv_blocks_referenced), (1, 0));
        }
    }
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_one_after_the_other() {
    let server = Setup::saying("Hello!").with_delay(Duration::from_millis(1)).start().await;
    let one = request("POST", "/v1/completions", &[JSON], completion("hi").to_string().as_bytes());
    let mut client = Client::connect(server.address).await;
    client.write(&one.repeat(5)).await;
    for _ in 0..5 {
        assert_eq!(client.read_answer().await.unwrap().ok()["choices"][0]["text"], "Hello!");
    }
    client.write(&one).await;
    assert_eq!(client.read_answer().await.unwrap().status, 200);
}

#[tokio::test]
async fn what_no_route_has_seen_is_refused_in_the_same_form() {
    let server = Setup::saying("!").start().await;
    let long = "x".repeat(20_000);
    let cases = [
        (request("GET", "/health", &[("x-long", &long)], b""), 431, "head_too_large"),
        (request("GET", "/health", &[("x-many", "1"); 70], b""), 431, "head_too_large"),
        (b"NONSENSE\r\n\r\n".to_vec(), 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n".to_vec(), 400, "malformed_request"),
    ];
    for (bytes, status, code) in cases {
        let started = Instant::now();
        let mut client = Client::connect(server.address).await;
        client.write(&bytes).await;
        let answer = client.read_answer().await.expect("a refusal");
        assert_eq!(answer.error(), (status, code.into(), "".into()));
        assert_eq!(answer.header("x-request-id").map(str::len), Some(32));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(client.read_answer().await.map(|answer| answer.status), None, "the connection is closed");
        assert!(started.elapsed() < support::PATIENCE);
    }
}
