//! What the API answers: the same text, tokens and counts streamed or not, in the shapes that clients rely on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{END, MODEL, Setup, chat, completion, request, with};

const SAID: &str = "Hello, w\u{f6}rld \u{1f642}! END of it.";

/// The choices of a stream put together: (text, token ids, logprob entries, finish reason).
fn folded(events: &[Value], choice: u64) -> (String, Vec<u64>, usize, Value) {
    let (mut text, mut ids, mut num_logprobs, mut finish) = (String::new(), Vec::new(), 0, Value::Null);
    for event in events {
        for part in event["choices"].as_array().unwrap().iter().filter(|part| part["index"] == choice) {
            assert!(finish.is_null(), "nothing follows a finish reason");
            let delta = part["delta"]["content"].as_str().or(part["text"].as_str()).unwrap_or("");
            text.push_str(delta);
            ids.extend(part["token_ids"].as_array().into_iter().flatten().map(|id| id.as_u64().unwrap()));
            num_logprobs += part["logprobs"]["content"].as_array().map_or(0, Vec::len);
            num_logprobs += part["logprobs"]["tokens"].as_array().map_or(0, Vec::len);
            finish = part["finish_reason"].clone();
        }
    }
    (text, ids, num_logprobs, finish)
}

#[tokio::test]
async fn a_streamed_chat_equals_the_whole_one() {
    let server = Setup::saying(SAID).start().await;
    let body = with(chat("hi"), json!({"logprobs": true, "top_logprobs": 2, "return_token_ids": true}));
    let whole = server.post("/v1/chat/completions", &body).await.ok();
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": SAID, "refusal": null}));
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(whole["object"], "chat.completion");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let num_tokens = SAID.len() + 1;
    assert_eq!(whole["usage"]["completion_tokens"], num_tokens);
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), num_tokens);
    assert_eq!(choice["token_ids"][num_tokens - 1], END);
    assert_eq!(whole["usage"]["prompt_tokens"], whole["prompt_token_ids"].as_array().unwrap().len());

    let streamed = with(body, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = server.post("/v1/chat/completions", &streamed).await.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    let (last, others) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], num_tokens);
    assert_eq!(last["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    assert!(others.iter().all(|event| event.as_object().unwrap()["usage"].is_null()));
    let (text, ids, num_logprobs, finish) = folded(others, 0);
    assert_eq!((text.as_str(), finish), (SAID, json!("stop")));
    assert_eq!(json!(ids), choice["token_ids"]);
    assert_eq!(num_logprobs, num_tokens);
}

#[tokio::test]
async fn streamed_completions_equal_the_whole_ones_for_every_choice() {
    let server = Setup::hashing().start().await;
    let prompts = json!(["one", [116, 119, 111]]);
    let body = with(
        completion(prompts),
        json!({"n": 2, "seed": 7, "max_tokens": 40, "logprobs": 1, "return_token_ids": true, "echo": true}),
    );
    let whole = server.post("/v1/completions", &body).await.ok();
    let streamed = server.post("/v1/completions", &with(body, json!({"stream": true}))).await.events();
    assert!(streamed.iter().all(|event| event.get("usage").is_none()));
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (index, choice) in (0..).zip(choices) {
        let (text, ids, num_logprobs, finish) = folded(&streamed, index);
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], text);
        assert!(text.starts_with(if index < 2 { "one" } else { "two" }));
        assert_eq!(choice["token_ids"], json!(ids));
        assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), num_logprobs);
        assert_eq!(num_logprobs, 43);
        assert_eq!((finish.clone(), choice["finish_reason"].clone()), (json!("length"), finish));
    }
    assert_ne!(choices[0]["text"], choices[1]["text"], "the choices of one prompt are drawn apart");
    assert_eq!(whole["usage"]["prompt_tokens"], 6);
    assert_eq!(whole["usage"]["completion_tokens"], 160);
}

#[tokio::test]
async fn a_stop_string_ends_the_text_before_it_and_never_leaks() {
    let said = format!("{SAID}{}", ".".repeat(300));
    let server = Setup::saying(&said).with_delay(Duration::from_millis(1)).start().await;
    let body =
        with(chat("hi"), json!({"stop": ["nowhere", "END"], "logprobs": true, "return_token_ids": true}));
    let whole = server.post("/v1/chat/completions", &body).await.ok();
    let choice = &whole["choices"][0];
    let before = SAID.split("END").next().unwrap();
    assert_eq!(choice["message"]["content"], before);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!("END")));
    // The tokens of the stop string were generated and are counted.
    assert_eq!(whole["usage"]["completion_tokens"], before.len() + 3);
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), before.len() + 3);

    let answer = server.post("/v1/chat/completions", &with(body, json!({"stream": true}))).await;
    let events = answer.events();
    let (text, ids, _, _) = folded(&events, 0);
    assert_eq!((text.as_str(), ids.len()), (before, before.len() + 3));
    assert!(events.iter().all(|event| !event["choices"][0]["delta"].to_string().contains("E")));
    server.wait_until_idle().await;
    assert!(server.engine().stats().num_output_tokens < said.len() as u64, "the engine was told to stop");
}

#[tokio::test]
async fn the_stop_string_is_included_on_request_and_a_stop_token_is_named() {
    let server = Setup::saying(SAID).start().await;
    let body =
        with(completion("hi"), json!({"max_tokens": 99, "stop": "END", "include_stop_str_in_output": true}));
    let text = server.post("/v1/completions", &body).await.ok()["choices"][0]["text"].clone();
    assert!(text.as_str().unwrap().ends_with("END"));
    let comma = u32::from(b',');
    let body = with(completion("hi"), json!({"max_tokens": 99, "stop_token_ids": [comma]}));
    let choice = server.post("/v1/completions", &body).await.ok()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!("Hello"), &json!(comma)));
    let body = with(completion("hi"), json!({"max_tokens": 60, "ignore_eos": true}));
    let answer = server.post("/v1/completions", &body).await.ok();
    assert_eq!(answer["usage"]["completion_tokens"], 60);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn logprobs_line_up_with_the_text() {
    let server = Setup::saying(SAID).start().await;
    let body = with(chat("hi"), json!({"logprobs": true, "top_logprobs": 3}));
    let chat = server.post("/v1/chat/completions", &body).await.ok();
    let content = chat["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let bytes: Vec<u8> = content[..SAID.len()]
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(bytes, SAID.as_bytes());
    for token in &content {
        assert_eq!(token["logprob"], -0.5);
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
    }
    let body = with(completion("hi"), json!({"logprobs": 2, "max_tokens": 99}));
    let completion = server.post("/v1/completions", &body).await.ok();
    let logprobs = &completion["choices"][0]["logprobs"];
    let tokens = logprobs["tokens"].as_array().unwrap();
    let offsets = logprobs["text_offset"].as_array().unwrap();
    assert_eq!(tokens.len(), SAID.len() + 1);
    let text: Vec<char> = SAID.chars().collect();
    for (token, offset) in tokens.iter().zip(offsets).filter(|(token, _)| token.as_str().unwrap().is_ascii())
    {
        let at: String = text[offset.as_u64().unwrap() as usize..].iter().take(1).collect();
        assert!(token == "<|im_end|>" || *token == at, "{token} is not at {offset}");
    }
    assert!(logprobs["top_logprobs"][0].as_object().unwrap().len() >= 2);
}

#[tokio::test]
async fn echo_repeats_the_prompt_and_needs_no_output() {
    let server = Setup::saying(SAID).start().await;
    let body = with(completion("abc"), json!({"max_tokens": 0, "echo": true, "logprobs": 0}));
    let answer = server.post("/v1/completions", &body).await.ok();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("abc"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b", "c"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -0.5, -0.5]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let events = server.post("/v1/completions", &with(body, json!({"stream": true}))).await.events();
    assert_eq!(folded(&events, 0).0, "abc");
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let server = Setup::saying("!").start().await;
    for (prompt, num_choices) in [
        (json!("hello"), 1),
        (json!([104, 105]), 1),
        (json!(["a", "b", "c"]), 3),
        (json!([[97], [98, 99]]), 2),
    ] {
        let answer = server.post("/v1/completions", &completion(prompt)).await.ok();
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), num_choices);
        assert!(choices.iter().all(|choice| choice["text"] == "!"));
    }
}

#[tokio::test]
async fn overflow_is_refused_and_a_large_wish_is_clamped() {
    let server = Setup::saying(SAID).with_engine(|engine| engine.max_model_len = 64).start().await;
    let overflow = server.post("/v1/chat/completions", &chat(&"x".repeat(64))).await;
    assert_eq!(overflow.error(), (400, "context_length_exceeded".into(), "messages".into()));
    assert!(overflow.text().contains("maximum context length is 64 tokens"));
    for max_tokens in [json!(32_000), json!(u64::MAX), json!(1e300)] {
        let body = with(chat("hi"), json!({"max_completion_tokens": max_tokens, "ignore_eos": true}));
        let usage = server.post("/v1/chat/completions", &body).await.ok()["usage"].clone();
        assert_eq!(usage["total_tokens"], 64);
    }
    // The whole window as a prompt is fine if nothing is to follow.
    let body = with(completion("x".repeat(64)), json!({"max_tokens": 0}));
    server.post("/v1/completions", &body).await.ok();
    let body = with(completion("x".repeat(64)), json!({"max_tokens": 1}));
    assert_eq!(server.post("/v1/completions", &body).await.error().1, "context_length_exceeded");
}

#[tokio::test]
async fn cached_tokens_are_reported_and_salts_keep_prefixes_apart() {
    let server = Setup::saying("!").start().await;
    let prompt = "a long shared beginning of a prompt";
    let cached = |salt: &str| {
        let body = with(completion(prompt), json!({ "cache_salt": salt }));
        let server = &server;
        async move {
            let usage = server.post("/v1/completions", &body).await.ok()["usage"].clone();
            usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        }
    };
    assert_eq!(cached("").await, 0);
    assert!(cached("").await >= 32);
    assert_eq!(cached("tenant").await, 0);
    assert!(cached("tenant").await >= 32);
}

#[tokio::test]
async fn seeds_repeat_answers_and_no_seed_does_not() {
    let server = Setup::hashing().start().await;
    let say = |fields: Value| {
        let body = with(completion("x"), with(json!({"max_tokens": 24}), fields));
        let server = &server;
        async move { server.post("/v1/completions", &body).await.ok()["choices"][0]["text"].clone() }
    };
    assert_eq!(say(json!({"seed": 1})).await, say(json!({"seed": 1})).await);
    assert_ne!(say(json!({"seed": 1})).await, say(json!({"seed": -1})).await);
    assert_ne!(say(json!({})).await, say(json!({})).await);
}

#[tokio::test]
async fn models_are_listed_with_their_window() {
    let server = Setup::saying("!").start().await;
    let list = server.get("/v1/models").await.ok();
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][0]["max_model_len"], 512);
    assert_eq!(list["data"][1]["root"], MODEL);
    assert_eq!(server.get("/v1/models/org/tiny").await.ok()["id"], MODEL);
    assert_eq!(server.get("/v1/models/org%2Ftiny").await.ok()["id"], MODEL);
    assert_eq!(server.get("/v1/models/other").await.error(), (404, "model_not_found".into(), "model".into()));
    assert_eq!(server.get("/v1/models/%ff").await.status, 404);
    // Every served name is accepted, and reported as it was asked for; without a name there is only one model to mean.
    let alias = with(chat("hi"), json!({"model": support::ALIAS}));
    assert_eq!(server.post("/v1/chat/completions", &alias).await.ok()["model"], support::ALIAS);
    let unnamed = with(chat("hi"), json!({"model": null}));
    assert_eq!(server.post("/v1/chat/completions", &unnamed).await.ok()["model"], MODEL);
    let other = with(chat("hi"), json!({"model": "other"}));
    assert_eq!(server.post("/v1/chat/completions", &other).await.error().0, 404);
}

#[tokio::test]
async fn tokens_and_text_convert_both_ways() {
    let server = Setup::saying("!").start().await;
    let tokens =
        server.post("/tokenize", &json!({"prompt": "h\u{e9}", "return_token_strs": true})).await.ok();
    assert_eq!(tokens["tokens"], json!([104, 195, 169]));
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(3), &json!(512)));
    assert_eq!(tokens["token_strs"][0], "h");
    let text = server.post("/detokenize", &json!({"tokens": tokens["tokens"]})).await.ok();
    assert_eq!(text["prompt"], "h\u{e9}");
    let rendered = server.post("/tokenize", &chat("hi")).await.ok();
    assert_eq!(rendered["tokens"][0], 257, "the template's control tokens are tokens");
    assert_eq!(server.post("/detokenize", &json!({"tokens": [259]})).await.error().2, "tokens");
}

#[tokio::test]
async fn text_parts_are_joined_and_other_parts_are_named() {
    let server = Setup::saying("!").start().await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let split =
        server.post("/tokenize", &json!({"messages": [{"role": "user", "content": parts}]})).await.ok();
    let joined = server.post("/tokenize", &chat("a\nb")).await.ok();
    assert_eq!(split["tokens"], joined["tokens"]);
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    let error = server.post("/v1/chat/completions", &image).await.error();
    assert_eq!(error, (400, "unsupported_value".into(), "messages[0].content[0]".into()));
}

#[tokio::test]
async fn unknown_fields_and_nulls_are_accepted_and_wrong_values_are_named() {
    let server = Setup::saying("!").start().await;
    let agent = with(
        chat("hi"),
        json!({"tools": null, "tool_choice": null, "user": "", "store": false, "logprobs": false, "stop": null,
            "parallel_tool_calls": false, "temperature": null, "seed": null, "max_tokens": null, "whatever": [1],
            "response_format": {"type": "text"}, "stream_options": null, "logit_bias": null, "n": null}),
    );
    server.post("/v1/chat/completions", &agent).await.ok();
    for (field, value) in [
        ("temperature", json!(2.5)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(-0.1)),
        ("frequency_penalty", json!(3)),
        ("presence_penalty", json!([])),
        ("repetition_penalty", json!(0)),
        ("n", json!(0)),
        ("n", json!(9)),
        ("n", json!(1.5)),
        ("max_tokens", json!(-1)),
        ("seed", json!("x")),
        ("stop", json!([""])),
        ("stop", json!(7)),
        ("stop_token_ids", json!([259])),
        ("logit_bias", json!({"abc": 1})),
        ("logit_bias", json!({"259": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logprobs", json!(3)),
        ("top_logprobs", json!(21)),
        ("top_logprobs", json!(1)),
        ("stream", json!("yes")),
        ("priority", json!(1e12)),
        ("cache_salt", json!("s".repeat(1025))),
        ("min_tokens", json!(-3)),
        ("truncation_side", json!("right")),
        ("tools", json!([{}])),
        ("tool_choice", json!("required")),
        ("messages", json!("hi")),
    ] {
        let body = with(chat("hi"), json!({ field: value }));
        let (status, _, param) = server.post("/v1/chat/completions", &body).await.error();
        assert_eq!(status, 400, "{field}");
        assert!(param.starts_with(field), "{field} is blamed on {param}");
    }
    let nested = with(chat("hi"), json!({"stream": true, "stream_options": {"include_usage": 3}}));
    assert_eq!(server.post("/v1/chat/completions", &nested).await.error().2, "stream_options.include_usage");
}

#[tokio::test]
async fn bodies_of_the_wrong_type_or_size_are_refused() {
    let server = Setup::saying("!").with_config(|config| config.requests.max_body_bytes = 4096).start().await;
    let path = "/v1/chat/completions";
    let text = chat("hi").to_string();
    for headers in
        [&[][..], &[("content-type", "text/plain")], &[support::JSON, ("content-encoding", "gzip")]]
    {
        assert_eq!(server.send(&request("POST", path, headers, text.as_bytes())).await.error().0, 415);
    }
    let typed = [("content-type", "application/json; charset=utf-8")];
    assert_eq!(server.send(&request("POST", path, &typed, text.as_bytes())).await.status, 200);
    assert_eq!(
        server.post(path, &chat(&"x".repeat(5000))).await.error(),
        (413, "body_too_large".into(), "".into())
    );
    assert_eq!(
        server.send(&request("POST", path, &[support::JSON], b"{\"a\":")).await.error().1,
        "malformed_json"
    );
    assert_eq!(server.get(path).await.error().0, 405);
    assert_eq!(server.get("/nowhere").await.error().0, 404);
}

#[tokio::test]
async fn a_failing_step_ends_its_requests_with_an_error_and_the_server_lives() {
    let setup = Setup::saying(SAID).with_delay(Duration::from_millis(1));
    let faults = setup.faults.clone();
    let server = setup.start().await;
    faults.at_step(5, pagoda_testkit::Fault::WaitError);
    let streamed = server.post("/v1/chat/completions", &with(chat("hi"), json!({"stream": true}))).await;
    let events = streamed.events();
    let (last, others) = events.split_last().unwrap();
    assert_eq!(last["error"]["code"], "model_error");
    assert!(others.len() > 1, "some tokens came before");
    faults.next(pagoda_testkit::Fault::Row(0));
    let whole = server.post("/v1/chat/completions", &chat("hi")).await;
    assert_eq!(whole.error().0, 500);
    assert_eq!(whole.header("x-should-retry"), Some("false"));
    let fine = server.post("/v1/chat/completions", &chat("hi")).await.ok();
    assert_eq!(fine["choices"][0]["message"]["content"], SAID);
}

#[tokio::test]
async fn an_engine_that_dies_is_seen_by_everyone() {
    let setup = Setup::saying(SAID);
    let faults = setup.faults.clone();
    let server = setup.start().await;
    faults.next(pagoda_testkit::Fault::Fatal);
    let answer = server.post("/v1/chat/completions", &chat("hi")).await;
    assert!(answer.status == 500 || answer.status == 503, "{}", answer.status);
    support::eventually("the engine has stopped", || {
        server.engine().state() == pagoda_engine::EngineState::Stopped
    })
    .await;
    assert_eq!(server.get("/health/ready").await.error().0, 503);
    assert_eq!(server.get("/health/live").await.status, 200);
    let refused = server.post("/v1/chat/completions", &chat("hi")).await;
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_with_comments() {
    let setup =
        Setup::saying("!").with_config(|config| config.requests.sse_keep_alive = Duration::from_millis(20));
    let hang = setup.faults.hang_next();
    let server = setup.start().await;
    let mut client = support::Client::connect(server.address).await;
    let body = with(chat("hi"), json!({"stream": true})).to_string();
    client.write(&request("POST", "/v1/chat/completions", &[support::JSON], body.as_bytes())).await;
    let mut num_comments = 0;
    while num_comments < 3 {
        let line = client.read_line().await.expect("the stream is open");
        num_comments += usize::from(line == ": keep-alive");
    }
    hang.release();
    while client.read_line().await.expect("the stream goes on") != "data: [DONE]" {}
}

#[tokio::test]
async fn readiness_turns_red_when_no_step_ends() {
    let setup =
        Setup::saying("!").with_config(|config| config.requests.stall_timeout = Duration::from_millis(50));
    let hang = setup.faults.hang_next();
    let server = setup.start().await;
    assert_eq!(server.get("/health/ready").await.status, 200);
    let mut client = support::Client::connect(server.address).await;
    client
        .write(&request("POST", "/v1/completions", &[support::JSON], completion("a").to_string().as_bytes()))
        .await;
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while server.get("/health/ready").await.status != 503 {
        assert!(std::time::Instant::now() < deadline, "the standstill is seen");
    }
    hang.release();
    assert_eq!(client.read_answer().await.unwrap().status, 200);
    assert_eq!(server.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn stop_strings_count_behind_the_first_min_tokens() {
    let server = Setup::saying("abcabc").start().await;
    for (stop, min_tokens, text, reason) in [
        ("b", 0, "a", json!("b")),
        ("b", 2, "abca", json!("b")),
        // Begun within them, ended behind.
        ("ca", 3, "ab", json!("ca")),
        ("ca", 4, "abcabc", Value::Null),
    ] {
        let wanted = json!({"stop": stop, "min_tokens": min_tokens, "max_tokens": 20});
        let answer = server.post("/v1/completions", &with(completion("x"), wanted)).await.ok();
        let choice = &answer["choices"][0];
        assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(text), &reason), "{stop} {min_tokens}");
    }
}

/// A sample's value, whatever its labels.
fn sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
}

#[tokio::test]
async fn a_step_that_takes_long_counts_as_prefill_and_not_as_waiting() {
    let setup = Setup::saying("!");
    let hang = setup.faults.hang_next();
    let server = setup.start().await;
    let mut client = support::Client::connect(server.address).await;
    let started = std::time::Instant::now();
    client
        .write(&request("POST", "/v1/completions", &[support::JSON], completion("a").to_string().as_bytes()))
        .await;
    let deadline = started + support::PATIENCE;
    loop {
        let metrics = server.get("/metrics").await;
        if sample(metrics.text(), "vllm:num_requests_running") == 1.0 {
            assert_eq!(sample(metrics.text(), "vllm:num_requests_waiting"), 0.0);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the request runs");
    }
    let waited = started.elapsed();
    // The step goes on for at least as long as the request can have waited for it.
    let hung = std::time::Instant::now();
    while hung.elapsed() < waited.max(Duration::from_millis(20)) {
        server.get("/health/live").await;
    }
    hang.release();
    assert_eq!(client.read_answer().await.unwrap().status, 200);
    let metrics = server.get("/metrics").await;
    let queue_s = sample(metrics.text(), "vllm:request_queue_time_seconds_sum");
    let prefill_s = sample(metrics.text(), "vllm:request_prefill_time_seconds_sum");
    assert!(queue_s <= waited.as_secs_f64(), "{queue_s} s of waiting, of {waited:?} at most");
    assert!(prefill_s >= 0.02, "{prefill_s} s of prefill");
}

#[tokio::test]
async fn histograms_have_the_buckets_that_dashboards_add_up() {
    const LATENCY: &str = "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 \
                           1920.0 7680.0 +Inf";
    const TTFT: &str = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 \
                        640.0 2560.0 +Inf";
    const ITL: &str =
        "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 +Inf";
    // Up to the test model's 512.
    const TOKENS: &str = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 +Inf";
    const STEP: &str = "1.0 8.0 16.0 32.0 64.0 128.0 256.0 512.0 1024.0 2048.0 4096.0 8192.0 16384.0 +Inf";
    let server = Setup::saying(SAID).start().await;
    server.post("/v1/chat/completions", &chat("hi")).await.ok();
    server.wait_until_idle().await;
    let metrics = server.get("/metrics").await;
    for (name, bounds) in [
        ("e2e_request_latency_seconds", LATENCY),
        ("request_queue_time_seconds", LATENCY),
        ("request_prefill_time_seconds", LATENCY),
        ("request_decode_time_seconds", LATENCY),
        ("request_inference_time_seconds", LATENCY),
        ("time_to_first_token_seconds", TTFT),
        ("inter_token_latency_seconds", ITL),
        ("request_time_per_output_token_seconds", ITL),
        ("request_prompt_tokens", TOKENS),
        ("request_generation_tokens", TOKENS),
        ("request_max_num_generation_tokens", TOKENS),
        ("request_params_max_tokens", TOKENS),
        ("request_params_n", "1.0 2.0 5.0 10.0 20.0 +Inf"),
        ("iteration_tokens_total", STEP),
    ] {
        let of_this = format!("vllm:{name}_bucket{{");
        let lines = metrics.text().lines().filter(|line| line.starts_with(&of_this));
        let bound = |line: &str| {
            line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned)
        };
        let found: Vec<String> = lines.filter_map(bound).collect();
        assert_eq!(found.join(" "), bounds, "{name}");
    }
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_read() {
    let server = Setup::saying(SAID).start().await;
    server.post("/v1/chat/completions", &with(chat("hi"), json!({"n": 2}))).await.ok();
    server.wait_until_idle().await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    let labels = "{model_name=\"org/tiny\",engine=\"0\"";
    for sample in [
        format!("vllm:e2e_request_latency_seconds_bucket{{le=\"0.3\",{}", &labels[1..]),
        format!("vllm:inter_token_latency_seconds_sum{labels}"),
        format!("vllm:time_to_first_token_seconds_count{labels}}} 1"),
        format!("vllm:prompt_tokens_total{labels}}} "),
        format!("vllm:generation_tokens_total{labels}}} {}", 2 * (SAID.len() + 1)),
        format!("vllm:num_requests_running{labels}}} 0"),
        format!("vllm:num_requests_waiting{labels}}} 0"),
        format!("vllm:kv_cache_usage_perc{labels}}} 0"),
        format!("vllm:request_prompt_tokens_bucket{{le=\"1.0\",{}", &labels[1..]),
        format!("vllm:request_generation_tokens_bucket{{le=\"500.0\",{}", &labels[1..]),
        format!("vllm:request_success_total{{finished_reason=\"stop\",{}}} 2", &labels[1..]),
        format!("vllm:request_queue_time_seconds_sum{labels}"),
        format!("vllm:request_prefill_time_seconds_sum{labels}"),
        format!("vllm:request_decode_time_seconds_sum{labels}"),
        format!("vllm:request_max_num_generation_tokens_sum{labels}"),
        format!("vllm:cache_config_info{{block_size=\"4\",num_gpu_blocks=\"512\",{}}} 1", &labels[1..]),
        format!("vllm:num_requests_waiting_by_reason{{reason=\"capacity\",{}}} 0", &labels[1..]),
        "vllm:lora_requests_info{max_lora=\"0\"".into(),
        format!("vllm:prefix_cache_queries_total{labels}"),
        format!("vllm:prefix_cache_hits_total{labels}"),
        format!("vllm:num_preemptions_total{labels}}} 0"),
    ] {
        // The encoder may write the constant labels before or behind the others.
        let (name, rest) = sample.split_once('{').unwrap();
        let mut parts: Vec<&str> =
            rest.trim_end_matches(|end: char| end != '"' && end != '}').split(',').collect();
        let last = parts.pop().unwrap();
        let is_there = text.lines().any(|line| {
            let value = rest.split_once("} ").map_or("", |(_, value)| value);
            let last = last.split_once('}').map_or(last, |(label, _)| label);
            line.starts_with(&format!("{name}{{"))
                && parts.iter().chain([&last]).all(|part| line.contains(*part))
                && (value.is_empty()
                    || line.ends_with(&format!("}} {value}"))
                    || line.ends_with(&format!("}} {value}.0")))
        });
        assert!(is_there, "{sample} is missing in\n{text}");
    }
    for line in text.lines() {
        assert!(line.starts_with("# HELP ") || line.starts_with("# TYPE ") || parses(line), "{line}");
    }
    let newer = request("GET", "/metrics", &[("accept", "application/openmetrics-text;version=1.0.0")], b"");
    assert!(server.send(&newer).await.text().ends_with("# EOF\n"));
}

/// A sample: a name, labels, a number.
fn parses(line: &str) -> bool {
    let Some((name, value)) = line.rsplit_once(' ') else { return false };
    let name = name.split('{').next().unwrap();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    value.parse::<f64>().is_ok() && name.bytes().all(is_name)
}
