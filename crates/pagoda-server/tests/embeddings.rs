//! The embeddings route over a fake model: what goes in and comes out, how requests share it, and what happens when it
//! is full, broken, slow to load or not there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pagoda_server::{EmbedFunction, EmbeddingSource, LoadedEncoder};
use serde_json::{Value, json};
use support::{ALIAS, Answer, Client, JSON, MODEL, Setup, TestServer, eventually, request, tokenizer};

const NAME: &str = "fake-embedder";
/// Numbers in a fake vector.
const WIDTH: usize = 4;
const MAX_LEN: usize = 8;

/// The vector of a text is its first four ids, scaled to length 1: every byte of it can be told apart.
fn vector(ids: &[u32]) -> Vec<f32> {
    let mut vector: Vec<f32> = (0..WIDTH).map(|index| ids.get(index).map_or(0.0, |id| *id as f32)).collect();
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|value| *value /= norm);
    vector
}

fn encoder(embed: EmbedFunction) -> LoadedEncoder {
    LoadedEncoder { tokenizer: tokenizer(), max_len: MAX_LEN, width: WIDTH, vocab_size: 256, embed }
}

fn plain() -> EmbedFunction {
    Box::new(|sequences| Ok(sequences.iter().map(|ids| vector(ids)).collect()))
}

/// A model that waits for a word before each pass, and tells the texts' first ids.
fn stepwise() -> (EmbedFunction, Sender<()>, Receiver<Vec<u32>>) {
    let ((go, gone), (tell, told)) = (channel::<()>(), channel());
    let embed = move |sequences: &[Vec<u32>]| {
        // The test is over when nobody gives the word any more.
        let _ = tell.send(sequences.iter().map(|ids| ids[0]).collect());
        let _ = gone.recv();
        Ok(sequences.iter().map(|ids| vector(ids)).collect())
    };
    (Box::new(embed), go, told)
}

fn source(embed: EmbedFunction) -> EmbeddingSource {
    let encoder = Mutex::new(Some(encoder(embed)));
    let load = move || encoder.lock().unwrap().take().ok_or_else(|| "loaded twice".into());
    EmbeddingSource { names: vec![NAME.into(), "second-name".into()], max_len: MAX_LEN, load: Box::new(load) }
}

async fn start(setup: Setup, source: EmbeddingSource) -> TestServer {
    let server = setup.start().await;
    server.server.attach_embeddings(source).unwrap();
    server
}

async fn embed(server: &TestServer, input: impl Into<Value>) -> Answer {
    server.post("/v1/embeddings", &json!({"model": "text-embedding-ada-002", "input": input.into()})).await
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap().iter();
    data.enumerate()
        .map(|(index, entry)| {
            assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
            entry["embedding"]
                .as_array()
                .unwrap()
                .iter()
                .map(|number| number.as_f64().unwrap() as f32)
                .collect()
        })
        .collect()
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[tokio::test]
async fn every_form_of_input_gives_its_vectors_in_order_and_counts_its_tokens() {
    let server = start(Setup::saying("!"), source(plain())).await;
    let answer = embed(&server, "abcd").await.ok();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["model"], "text-embedding-ada-002");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 4, "total_tokens": 4}));
    assert_eq!(vectors(&answer), [vector(&ids("abcd"))]);
    // Longer texts run first, and come back in their places all the same.
    let answer = embed(&server, json!(["a", "bcdef", [7, 8, 9], "cd"])).await.ok();
    assert_eq!(answer["usage"]["prompt_tokens"], 11);
    let expected = [vector(&ids("a")), vector(&ids("bcde")), vector(&[7, 8, 9]), vector(&ids("cd"))];
    assert_eq!(vectors(&answer), expected);
    assert_eq!(vectors(&embed(&server, json!([5, 6])).await.ok()), [vector(&[5, 6])]);
    // Without a name the answer tells ours.
    let answer = server.post("/v1/embeddings", &json!({"input": "a", "user": "", "unknown": 1})).await.ok();
    assert_eq!(answer["model"], NAME);
}

#[tokio::test]
async fn base64_is_little_endian_f32_and_dimensions_are_the_first_ones_at_length_one() {
    let server = start(Setup::saying("!"), source(plain())).await;
    let ask = async |fields: Value| {
        server.post("/v1/embeddings", &support::with(json!({"input": "abcd"}), fields)).await.ok()
    };
    let floats = vectors(&ask(json!({"encoding_format": "float"})).await).remove(0);
    let answer = ask(json!({"encoding_format": "base64"})).await;
    let bytes = BASE64_STANDARD.decode(answer["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(decoded, floats);
    let two = vectors(&ask(json!({"dimensions": 2})).await).remove(0);
    assert_eq!(two.len(), 2);
    assert!((two.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-6);
    assert!((two[0] / two[1] - floats[0] / floats[1]).abs() < 1e-6);
}

#[tokio::test]
async fn long_texts_are_cut_and_count_what_is_left() {
    let server = start(Setup::saying("!"), source(plain())).await;
    assert_eq!(embed(&server, "abcdefghijklm").await.ok()["usage"]["prompt_tokens"], MAX_LEN);
    assert_eq!(embed(&server, json!([vec![9; 100], "ab"])).await.ok()["usage"]["prompt_tokens"], MAX_LEN + 2);
    let body = json!({"input": "abcdef", "truncate_prompt_tokens": 3});
    assert_eq!(server.post("/v1/embeddings", &body).await.ok()["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn what_cannot_be_embedded_is_a_400_that_names_it() {
    let limits = |config: &mut pagoda_server::ServerConfig| {
        config.requests.max_embedding_inputs = 3;
        config.requests.max_embedding_tokens = 20;
    };
    let server = start(Setup::saying("!").with_config(limits), source(plain())).await;
    let param = async |body: Value| {
        let (status, _, param) = server.post("/v1/embeddings", &body).await.error();
        assert_eq!(status, 400, "{body}");
        param
    };
    for (input, named) in [
        (json!(null), "input"),
        (json!(""), "input"),
        (json!([]), "input"),
        (json!(7), "input"),
        (json!({"text": "a"}), "input"),
        (json!([[]]), "input[0]"),
        (json!(["a", ""]), "input[1]"),
        (json!(["a", 7]), "input[1]"),
        (json!(["a", null]), "input[1]"),
        (json!([1, "a"]), "input"),
        (json!([1, -1]), "input"),
        (json!([1, 1.5]), "input"),
        // An id of a larger vocabulary, as tiktoken gives them.
        (json!([[100_000]]), "input[0]"),
        (json!(["a", "b", "c", "d"]), "input"),
        (json!(vec![1; 21]), "input"),
    ] {
        assert_eq!(param(json!({ "input": input })).await, named, "{input}");
    }
    for (field, value) in [
        ("dimensions", json!(0)),
        ("dimensions", json!(WIDTH + 1)),
        ("dimensions", json!("4")),
        ("encoding_format", json!("int8")),
        ("encoding_format", json!(1)),
        ("truncate_prompt_tokens", json!(0)),
        ("model", json!([])),
    ] {
        assert_eq!(param(json!({"input": "a", field: value})).await, field);
    }
}

#[tokio::test]
async fn the_model_is_loaded_once_at_the_first_call_for_everyone_who_waits() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let num_loads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&num_loads);
    let load = move || {
        counted.fetch_add(1, Ordering::SeqCst);
        released.lock().unwrap().recv().unwrap();
        Ok(encoder(plain()))
    };
    let source = EmbeddingSource { names: vec![NAME.into()], max_len: MAX_LEN, load: Box::new(load) };
    let server = Arc::new(start(Setup::saying("!"), source).await);
    assert_eq!(num_loads.load(Ordering::SeqCst), 0);
    let ask = |server: Arc<TestServer>| tokio::spawn(async move { embed(&server, "a").await.status });
    let waiting: Vec<_> = (0..5).map(|_| ask(Arc::clone(&server))).collect();
    // The first caller goes away while the model loads.
    let mut gone = Client::connect(server.address).await;
    gone.write(&request("POST", "/v1/embeddings", &[JSON], b"{\"input\": \"a\"}")).await;
    eventually("the load has begun", || num_loads.load(Ordering::SeqCst) == 1).await;
    drop(gone);
    // Chat goes on meanwhile.
    server.post("/v1/chat/completions", &support::chat("Hi")).await.ok();
    assert_eq!(state_of(&server).await, "not-loaded");
    release.send(()).unwrap();
    for status in waiting {
        assert_eq!(status.await.unwrap(), 200);
    }
    assert_eq!(num_loads.load(Ordering::SeqCst), 1);
    assert_eq!(state_of(&server).await, "loaded");
}

async fn state_of(server: &TestServer) -> String {
    let models = server.get("/api/v0/models").await.ok();
    models["data"].as_array().unwrap().last().unwrap()["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_load_that_fails_is_a_503_and_is_tried_again_later() {
    let num_loads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&num_loads);
    let load = move || match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Err("no network".into()),
        1 => panic!("a broken file"),
        _ => Ok(encoder(plain())),
    };
    let source = EmbeddingSource { names: vec![NAME.into()], max_len: MAX_LEN, load: Box::new(load) };
    let patience = Duration::from_millis(20);
    let server =
        start(Setup::saying("!").with_config(|config| config.drain.retry_after = patience), source).await;
    let answer = embed(&server, "a").await;
    assert_eq!((answer.error().0, answer.header("retry-after")), (503, Some("1")));
    assert!(!answer.text().contains("no network"), "{}", answer.text());
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while embed(&server, "a").await.status != 200 {
        assert!(std::time::Instant::now() < deadline, "the load is not tried again");
    }
    assert_eq!(num_loads.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_together_run_together_and_take_turns() {
    let (model, go, told) = stepwise();
    let server = Arc::new(start(Setup::saying("!"), source(model)).await);
    let ask = |input: Value| {
        let server = Arc::clone(&server);
        tokio::spawn(async move { embed(&server, input).await.status })
    };
    let first = ask(json!("A"));
    assert_eq!(told.recv().unwrap(), [65]);
    // While that one runs, a long list and two short requests arrive.
    let long = ask(json!(vec!["L"; 200]));
    eventually_queued(&server, 201).await;
    let short = [ask(json!("S")), ask(json!("T"))];
    eventually_queued(&server, 203).await;
    go.send(()).unwrap();
    let pass = told.recv().unwrap();
    assert_eq!(pass.len(), 64, "a pass is full");
    let num_short = pass.iter().filter(|id| **id == u32::from(b'S') || **id == u32::from(b'T')).count();
    assert_eq!(num_short, 2, "the short requests do not wait for the list");
    assert_eq!(first.await.unwrap(), 200);
    go.send(()).unwrap();
    for status in short {
        assert_eq!(status.await.unwrap(), 200);
    }
    while !long.is_finished() {
        let _ = go.send(());
        tokio::task::yield_now().await;
    }
    assert_eq!(long.await.unwrap(), 200);
}

/// Waits until so many texts wait or run.
async fn eventually_queued(server: &TestServer, num_inputs: usize) {
    let line = format!("pagoda:embedding_queued_inputs{{model_name=\"{NAME}\"}} {num_inputs}\n");
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while !server.get("/metrics").await.text().contains(&line) {
        assert!(std::time::Instant::now() < deadline, "never {num_inputs} texts in the queue");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_a_429_and_a_client_that_goes_away_makes_room() {
    let (model, go, told) = stepwise();
    let setup = Setup::saying("!").with_config(|config| config.requests.max_queued_embedding_inputs = 4);
    let server = Arc::new(start(setup, source(model)).await);
    let running = Arc::clone(&server);
    let first = tokio::spawn(async move { embed(&running, json!("A")).await.status });
    assert_eq!(told.recv().unwrap(), [65]);
    let mut leaving = Client::connect(server.address).await;
    leaving.write(&request("POST", "/v1/embeddings", &[JSON], b"{\"input\": [\"L\", \"L\", \"L\"]}")).await;
    eventually_queued(&server, 4).await;
    let refused = embed(&server, "B").await;
    assert_eq!((refused.error().0, refused.header("retry-after")), (429, Some("2")));
    // More than the whole queue holds would never find room.
    assert_eq!(embed(&server, json!(vec!["a"; 5])).await.error().0, 400);
    drop(leaving);
    eventually_queued(&server, 1).await;
    go.send(()).unwrap();
    assert_eq!(first.await.unwrap(), 200);
    // What the gone client wanted is never computed.
    let (later, asking) = (Arc::clone(&server), json!(["B", "C"]));
    let later = tokio::spawn(async move { embed(&later, asking).await.status });
    assert_eq!(told.recv().unwrap(), [67, 66]);
    go.send(()).unwrap();
    assert_eq!(later.await.unwrap(), 200);
    let metrics = server.get("/metrics").await;
    assert!(metrics.text().contains("pagoda:embedding_rejections_total{model_name=\"fake-embedder\"} 1\n"));
}

#[tokio::test]
async fn a_text_that_the_model_fails_on_fails_its_own_request_only() {
    let (go, gone) = channel::<()>();
    let embed_function = move |sequences: &[Vec<u32>]| {
        let _ = gone.recv();
        match sequences.iter().flatten().find(|id| **id == u32::from(b'X') || **id == u32::from(b'P')) {
            Some(id) if *id == u32::from(b'P') => panic!("a secret"),
            Some(_) => Err("a secret".into()),
            None => Ok(sequences.iter().map(|ids| vector(ids)).collect()),
        }
    };
    let server = Arc::new(start(Setup::saying("!"), source(Box::new(embed_function))).await);
    let ask = |input: Value| {
        let server = Arc::clone(&server);
        tokio::spawn(async move { embed(&server, input).await })
    };
    let answers = [ask(json!("A")), ask(json!(["B", "X"])), ask(json!("P")), ask(json!("C"))];
    eventually_queued(&server, 5).await;
    drop(go);
    let [good, failed, panicked, other] = answers;
    assert_eq!(vectors(&good.await.unwrap().ok()), [vector(&[65])]);
    for bad in [failed, panicked] {
        let answer = bad.await.unwrap();
        assert_eq!((answer.error().0, answer.error().1), (500, "model_error".into()));
        assert!(!answer.text().contains("secret"));
    }
    assert_eq!(other.await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drain_lets_accepted_texts_finish_and_cuts_what_takes_too_long() {
    let (model, go, told) = stepwise();
    let server = start(Setup::saying("!"), source(model)).await;
    let mut client = Client::connect(server.address).await;
    client.write(&request("POST", "/v1/embeddings", &[JSON], b"{\"input\": \"A\"}")).await;
    told.recv().unwrap();
    let report = server.shut_down();
    go.send(()).unwrap();
    client.read_answer().await.unwrap().ok();
    assert_eq!(report.await.unwrap().num_cut, 0);

    let (model, _go, told) = stepwise();
    let setup =
        Setup::saying("!").with_config(|config| config.drain.drain_timeout = Duration::from_millis(50));
    let server = start(setup, source(model)).await;
    let mut client = Client::connect(server.address).await;
    client.write(&request("POST", "/v1/embeddings", &[JSON], b"{\"input\": \"A\"}")).await;
    told.recv().unwrap();
    let report = server.shut_down();
    assert_eq!(client.read_answer().await.unwrap().error().0, 503);
    assert_eq!(report.await.unwrap().num_cut, 1);
}

#[tokio::test]
async fn the_chat_model_is_listed_first_and_each_with_its_window_under_every_name() {
    let server = start(Setup::saying("!"), source(plain())).await;
    for path in ["/v1/models", "/models"] {
        let list = server.get(path).await.ok();
        let data = list["data"].as_array().unwrap();
        let names: Vec<&str> = data.iter().map(|card| card["id"].as_str().unwrap()).collect();
        assert_eq!(names, [MODEL, ALIAS, NAME, "second-name"]);
        let kinds: Vec<&str> = data.iter().map(|card| card["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["llm", "llm", "embedding", "embedding"]);
        for (card, len, trained) in [(&data[0], 512, 4096), (&data[2], MAX_LEN, MAX_LEN)] {
            assert_eq!((&card["max_model_len"], &card["context_length"]), (&json!(len), &json!(len)));
            assert_eq!(
                (&card["meta"]["n_ctx"], &card["meta"]["n_ctx_train"]),
                (&json!(len), &json!(trained))
            );
        }
    }
    assert_eq!(server.get(&format!("/v1/models/{NAME}")).await.ok()["capabilities"], json!(["embedding"]));
    let props = server.get("/props?model=anything").await.ok();
    assert_eq!(props["default_generation_settings"]["n_ctx"], 512);
    let states = server.get("/api/v0/models").await.ok();
    let expected = json!({"id": MODEL, "object": "model", "type": "llm", "publisher": "pagoda", "state": "loaded",
        "max_context_length": 4096, "capabilities": ["tool_use"], "loaded_context_length": 512});
    assert_eq!(states["data"][0], expected);
    assert_eq!(
        (&states["data"][2]["type"], &states["data"][2]["state"]),
        (&json!("embeddings"), &json!("not-loaded"))
    );
    // The embedding model answers to any name, the chat model to its own ones.
    let body = json!({"model": NAME, "messages": [{"role": "user", "content": "Hi"}]});
    let error = server.post("/v1/chat/completions", &body).await.error();
    assert_eq!(error, (404, "model_not_found".into(), "model".into()));
}

#[tokio::test]
async fn without_an_embedding_model_the_route_says_so() {
    let server = Setup::saying("!").start().await;
    assert_eq!(embed(&server, "a").await.error(), (404, "model_not_found".into(), "model".into()));
    assert_eq!(server.get("/v1/models").await.ok()["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn any_model_name_means_the_chat_model_where_that_is_configured() {
    let server = Setup::saying("Hello").with_config(|config| config.accept_any_model = true).start().await;
    for (path, body) in [
        ("/v1/chat/completions", json!({"model": "o9", "messages": [{"role": "user", "content": "Hi"}]})),
        ("/v1/completions", json!({"model": "o9", "prompt": "Hi"})),
    ] {
        let answer = server.post(path, &body).await.ok();
        assert_eq!(answer["model"], "o9");
        let strict = Setup::saying("Hello").start().await;
        assert_eq!(strict.post(path, &body).await.error().0, 404);
    }
}
