//! 500 streams cut at random points leave nothing behind: a second later no sequence is active, every law holds, every
//! block is free or cached, and the next 100 answers equal the first 100.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pagoda_testkit::Random;
use serde_json::{Value, json};
use socket2::SockRef;
use support::{Client, JSON, Setup, TestServer, completion, request, with};
use tokio::sync::Semaphore;

const NUM_STREAMS: u64 = 500;
/// Connections at the same time, so that the process stays below the usual 1,024 file descriptors.
const NUM_AT_ONCE: usize = 200;
const NUM_ANSWERS: u64 = 100;

/// One hundred answers, asked for sixteen at a time.
async fn answers(server: &Arc<TestServer>) -> Vec<Value> {
    let permits = Arc::new(Semaphore::new(16));
    let tasks = (0..NUM_ANSWERS).map(|index| {
        let (server, permits) = (Arc::clone(server), Arc::clone(&permits));
        tokio::spawn(async move {
            let _permit = permits.acquire_owned().await.unwrap();
            let prompt = format!("question {index} {}", "and so on ".repeat(index as usize % 7));
            let fields =
                json!({"max_tokens": 24, "seed": index, "n": 1 + index % 3, "return_token_ids": true});
            let answer = server.post("/v1/completions", &with(completion(prompt), fields)).await.ok();
            answer["choices"].clone()
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

/// Starts a stream and goes away at some point.
async fn cut(server: Arc<TestServer>, seed: u64) {
    let mut random = Random::new(seed);
    let prompt = format!("storm {} {}", random.below(40), "blowing ".repeat(random.below(12)));
    let fields = json!({
        "max_tokens": random.between(1, 120),
        "n": if random.one_in(4) { random.between(2, 4) } else { 1 },
        "stream": !random.one_in(4),
        "logprobs": if random.one_in(5) { json!(3) } else { Value::Null },
        "stop": if random.one_in(5) { json!("e") } else { Value::Null },
    });
    let body = with(completion(prompt), fields).to_string();
    let mut client = Client::connect(server.address).await;
    let bytes = request("POST", "/v1/completions", &[JSON], body.as_bytes());
    match random.below(5) {
        // In the middle of its own request.
        0 => client.write(&bytes[..random.between(1, bytes.len())]).await,
        // Queued, or in prefill.
        1 => client.write(&bytes).await,
        // After some time.
        2 => {
            client.write(&bytes).await;
            tokio::time::sleep(Duration::from_millis(random.below(60) as u64)).await;
        }
        // After some lines of the answer; a short answer may end before.
        _ => {
            client.write(&bytes).await;
            let num_lines = random.between(1, 60);
            let read = async {
                for _ in 0..num_lines {
                    if client.read_line().await.is_none() {
                        break;
                    }
                }
            };
            // A finished answer leaves the connection open.
            let _ = tokio::time::timeout(Duration::from_millis(200), read).await;
        }
    }
    match random.below(3) {
        0 => client.close_sending().await,
        1 => SockRef::from(client.socket()).set_linger(Some(Duration::ZERO)).unwrap(),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_cut_streams_leave_nothing_behind() {
    let setup = Setup::hashing().with_delay(Duration::from_micros(300)).with_engine(|engine| {
        // A pool that is too small for what runs: preemption is part of the storm.
        engine.num_blocks = 300;
        engine.max_num_seqs = 24;
        engine.max_model_len = 256;
    });
    let server = Arc::new(setup.start().await);
    let before = answers(&server).await;
    let permits = Arc::new(Semaphore::new(NUM_AT_ONCE));
    let storm = (0..NUM_STREAMS).map(|seed| {
        let (server, permits) = (Arc::clone(&server), Arc::clone(&permits));
        tokio::spawn(async move {
            let _permit = permits.acquire_owned().await.unwrap();
            cut(server, seed).await;
        })
    });
    let storm: Vec<_> = storm.collect();
    for stream in storm {
        stream.await.expect("the stream was cut");
    }

    let last_cut = Instant::now();
    let kv = loop {
        let kv = server.get("/debug/kv").await.ok();
        if kv["num_unfinished_requests"] == 0 || last_cut.elapsed() > Duration::from_secs(1) {
            break kv;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let integrity = &kv["integrity"];
    assert_eq!(integrity["is_intact"], true, "{kv}");
    assert_eq!(kv["num_unfinished_requests"], 0, "{kv}");
    assert_eq!(
        (&integrity["num_sequences_running"], &integrity["num_sequences_waiting"]),
        (&json!(0), &json!(0))
    );
    let blocks = |name: &str| integrity[name].as_u64().unwrap();
    assert_eq!(blocks("kv_blocks_free") + blocks("kv_blocks_cached"), blocks("kv_blocks_total"), "{kv}");
    assert!(kv["num_aborted_requests"].as_u64().unwrap() > 100, "the storm did cut streams: {kv}");

    assert_eq!(answers(&server).await, before);
}
