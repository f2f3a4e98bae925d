//! Fields beyond OpenAI's own: logprobs of the prompt, truncation, repetition, usage on the way, tools before the system's text.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::{Value, json};
use support::{Setup, chat, completion, request, with};

const USER_KEY: &str = "sk-user-0123456789abcdef0123456789";
const ADMIN_KEY: &str = "sk-admin-0123456789abcdef012345678";

#[tokio::test]
async fn prompt_logprobs_have_one_entry_per_token_and_null_first() {
    let server = Setup::saying("!").start().await;
    let body = with(completion("abc"), json!({"prompt_logprobs": 2, "max_tokens": 1}));
    let list = server.post("/v1/completions", &body).await.ok()["choices"][0]["prompt_logprobs"].clone();
    // The executor's likeliest token is the one that follows, then its successors.
    let place = |own: u32, text: &str, next: &str| {
        json!({
            own.to_string(): {"logprob": -0.5, "rank": 1, "decoded_token": text},
            (own + 1).to_string(): {"logprob": -1.5, "rank": 2, "decoded_token": next},
        })
    };
    assert_eq!(list, json!([null, place(98, "b", "c"), place(99, "c", "d")]));

    let only_own = with(chat("hi"), json!({"prompt_logprobs": 0, "return_token_ids": true}));
    let answer = server.post("/v1/chat/completions", &only_own).await.ok();
    let ids = answer["prompt_token_ids"].as_array().unwrap();
    let list = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!(list.len(), ids.len());
    for (id, place) in ids.iter().zip(list).skip(1) {
        assert_eq!(place.as_object().unwrap().keys().collect::<Vec<_>>(), [&id.to_string()]);
    }
    // Every position must be computed, though the same prompt was here before.
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let reason = &answer["usage"]["prompt_tokens_details"]["cache_miss"]["reason"];
    assert_eq!(reason, "not_looked_up");

    let without = server.post("/v1/chat/completions", &chat("hi")).await.ok();
    assert!(without.get("prompt_logprobs").is_none());
    let streamed = with(chat("hi"), json!({"prompt_logprobs": 1, "stream": true}));
    let error = server.post("/v1/chat/completions", &streamed).await.error();
    assert_eq!(error, (400, "invalid_value".into(), "prompt_logprobs".into()));
}

#[tokio::test]
async fn echoed_logprobs_do_not_mix_with_those_of_the_prompt() {
    let server = Setup::saying("!").start().await;
    let fields = json!({"prompt_logprobs": 3, "logprobs": 1, "echo": true, "max_tokens": 1});
    let choice =
        server.post("/v1/completions", &with(completion("abc"), fields)).await.ok()["choices"][0].clone();
    assert_eq!(choice["prompt_logprobs"][1].as_object().unwrap().len(), 3);
    assert_eq!(choice["logprobs"]["top_logprobs"][1].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn truncation_keeps_the_end_of_the_prompt() {
    let server = Setup::saying("!").with_engine(|engine| engine.max_model_len = 32).start().await;
    let ask = |prompt: &str, fields: Value| {
        let body = with(completion(prompt), with(json!({"max_tokens": 2, "echo": true}), fields));
        let server = &server;
        async move { server.post("/v1/completions", &body).await }
    };
    let kept = ask("abcdef", json!({"truncate_prompt_tokens": 3})).await.ok();
    assert_eq!(kept["choices"][0]["text"], "def!");
    assert_eq!(kept["usage"]["prompt_tokens"], 3);
    let short = ask("ab", json!({"truncate_prompt_tokens": 3})).await.ok();
    assert_eq!(short["choices"][0]["text"], "ab!");
    let long = "x".repeat(100);
    assert_eq!(ask(&long, json!({})).await.error().1, "context_length_exceeded");
    let fitted = ask(&long, json!({"truncate_prompt_tokens": -1})).await.ok();
    assert_eq!(fitted["usage"]["prompt_tokens"], 30, "the window less the tokens wanted");
    for wrong in [json!(0), json!(-2), json!(33), json!("3")] {
        let error = ask("ab", json!({ "truncate_prompt_tokens": wrong })).await.error();
        assert_eq!((error.0, error.2.as_str()), (400, "truncate_prompt_tokens"));
    }
    let chatted = with(chat(&long), json!({"truncate_prompt_tokens": -1}));
    let usage = server.post("/v1/chat/completions", &chatted).await.ok()["usage"].clone();
    assert_eq!(usage["prompt_tokens"], 31);
}

#[tokio::test]
async fn an_answer_that_goes_round_in_circles_ends_on_request() {
    let server = Setup::saying("so, la la la la la la la la").start().await;
    let rule =
        |max: u32, count: u32| json!({"max_pattern_size": max, "min_pattern_size": 2, "min_count": count});
    let ask = |fields: Value| {
        let body = with(completion("x"), with(json!({"max_tokens": 60}), fields));
        let server = &server;
        async move { server.post("/v1/completions", &body).await }
    };
    let choice = ask(json!({"repetition_detection": rule(4, 3)})).await.ok()["choices"][0].clone();
    assert_eq!(choice["text"], "so, la la la");
    assert_eq!(choice["finish_reason"], "repetition");
    assert_eq!(choice["stop_reason"], "repetition_detected");
    let whole = ask(json!({"repetition_detection": rule(2, 3)})).await.ok();
    assert_eq!(whole["choices"][0]["finish_reason"], "stop", "patterns of 3 were not looked for");
    let later = ask(json!({"repetition_detection": rule(4, 3), "min_tokens": 16})).await.ok();
    assert_eq!(later["choices"][0]["text"], "so, la la la la l", "not before min_tokens");
    for (wrong, param) in [
        (rule(4, 1), "repetition_detection.min_count"),
        (rule(1, 3), "repetition_detection.min_pattern_size"),
        (rule(1000, 3), "repetition_detection.max_pattern_size"),
        (json!(3), "repetition_detection"),
    ] {
        let error = ask(json!({ "repetition_detection": wrong })).await.error();
        assert_eq!((error.0, error.2.as_str()), (400, param));
    }
    server.wait_until_idle().await;
    assert!(server.get("/metrics").await.text().contains("finished_reason=\"repetition\""));
}

#[tokio::test]
async fn usage_so_far_comes_with_every_chunk_on_request() {
    let server = Setup::saying("abc").start().await;
    for (path, body) in [("/v1/chat/completions", chat("hi")), ("/v1/completions", completion("hi"))] {
        let options = json!({"include_usage": true, "continuous_usage_stats": true});
        let body = with(body, json!({"stream": true, "stream_options": options}));
        let events = server.post(path, &body).await.events();
        let counts: Vec<u64> =
            events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
        assert!(counts.is_sorted() && counts.last() == Some(&4), "{counts:?}");
        let first = &events[0]["usage"];
        assert!(first["prompt_tokens"].as_u64() > Some(0));
        assert_eq!(first["prompt_tokens"], events.last().unwrap()["usage"]["prompt_tokens"]);
        // Without `include_usage` the other option means nothing.
        let body = with(body, json!({"stream_options": {"continuous_usage_stats": true}}));
        assert!(server.post(path, &body).await.events().iter().all(|event| event.get("usage").is_none()));
    }
}

/// Writes the tools behind everything else.
const TOOLS_LAST: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
{% for call in m.tool_calls or [] %}{{ '\n' if not loop.first }}<tool_call>\n{\"name\": \"{{ call.function.name }}\", \
\"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}";

#[tokio::test]
async fn a_template_without_a_place_for_them_refuses_tools_first() {
    let setup = Setup::saying("!").with_template(TOOLS_LAST.into());
    let server = setup.with_config(|config| config.tools_first = true).start().await;
    let tool =
        json!([{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]);
    let messages = json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]);
    let ask = |tools_first: Value| {
        let body = json!({"messages": messages, "tools": tool, "tools_first": tools_first});
        let server = &server;
        async move { server.post("/v1/chat/completions", &body).await }
    };
    // The server's default is a wish, the client's field a demand.
    assert_eq!(ask(Value::Null).await.status, 200);
    assert_eq!(ask(json!(false)).await.status, 200);
    assert_eq!(ask(json!(true)).await.error(), (400, "unsupported_value".into(), "tools_first".into()));
    let plain = with(chat("hi"), json!({"tools_first": true}));
    assert_eq!(server.post("/v1/chat/completions", &plain).await.status, 200, "nothing to order");
}

/// What a prompt's usage says of the cache, and the same from the debug route.
#[tokio::test]
async fn only_an_admin_learns_what_lies_under_other_salts() {
    let text = format!("{USER_KEY}\nadmin {ADMIN_KEY}");
    let keys = pagoda_server::ApiKeys::parse(&text).unwrap();
    let server = Setup::saying("!").with_config(|config| config.api_keys = keys).start().await;
    let send = |key: &str, method: &str, path: &str, body: String| {
        let authorization = format!("Bearer {key}");
        let headers = [support::JSON, ("authorization", authorization.as_str())];
        let bytes = request(method, path, &headers, body.as_bytes());
        let server = &server;
        async move { server.send(&bytes).await }
    };
    let ask = |key: &'static str, salt: &str| {
        let body = with(completion("a prompt of some blocks"), json!({ "cache_salt": salt })).to_string();
        let send = &send;
        async move {
            let answer = send(key, "POST", "/v1/completions", body).await.ok();
            answer["usage"]["prompt_tokens_details"]["cache_miss"].clone()
        }
    };
    let unknown = json!({"reason": "first_use", "known_tokens": 0, "diverged_at": null});
    for key in [USER_KEY, ADMIN_KEY] {
        assert_eq!(ask(key, "one").await, unknown, "another key's prompts are not looked at");
        assert_eq!(ask(key, "one").await["reason"], "none");
    }
    assert_eq!(ask(USER_KEY, "two").await, unknown, "another salt of the same key is kept apart");
    let salt = json!({"reason": "salt", "known_tokens": 0, "diverged_at": null, "other_salt_tokens": 22});
    assert_eq!(ask(ADMIN_KEY, "two").await, salt);

    assert_eq!(send(USER_KEY, "GET", "/debug/prefix-cache", String::new()).await.status, 403);
    server.wait_until_idle().await;
    let debug = send(ADMIN_KEY, "GET", "/debug/prefix-cache", String::new()).await.ok();
    let recent = debug["recent"].as_array().unwrap();
    assert_eq!(recent.len(), 6);
    assert_eq!((&recent[0]["cache_miss"], &recent[1]["cache_miss"]), (&salt, &salt));
    assert_eq!((&recent[0]["prompt_tokens"], &recent[0]["cached_tokens"]), (&json!(23), &json!(0)));
    let counted =
        json!({"none": 2, "first_use": 2, "evicted": 0, "diverged": 0, "salt": 2, "not_looked_up": 0});
    assert_eq!(debug["requests"], counted);
    let metrics = send(ADMIN_KEY, "GET", "/metrics", String::new()).await;
    let has = |name: &str, label: &str, value: &str| {
        let mut lines = metrics.text().lines();
        lines.any(|line| line.starts_with(name) && line.contains(label) && line.ends_with(value))
    };
    assert!(has("pagoda:prefix_cache_requests_total", "reason=\"salt\"", " 2"), "{}", metrics.text());
    assert!(has("vllm:iteration_tokens_total_bucket", "le=\"1.0\"", ""), "{}", metrics.text());
    assert!(has("vllm:iteration_tokens_total_count", "engine=\"0\"", ""), "{}", metrics.text());
}

#[tokio::test]
async fn of_several_prompts_the_one_with_the_largest_miss_is_explained() {
    let server = Setup::saying("!").start().await;
    // Nothing in common: whether the second one is planned when the first has been computed must not matter.
    let body = completion(json!(["abcdefgh", "no part of the other, and longer"]));
    let miss = |answer: Value| answer["usage"]["prompt_tokens_details"]["cache_miss"].clone();
    let first = miss(server.post("/v1/completions", &body).await.ok());
    assert_eq!((&first["prompt_index"], &first["reason"]), (&json!(1), &json!("first_use")));
    let body = completion(json!(["abcdXfgh", "no part of the other, and longer"]));
    let second = miss(server.post("/v1/completions", &body).await.ok());
    let wanted = json!({"reason": "diverged", "known_tokens": 4, "diverged_at": 4, "prompt_index": 0});
    assert_eq!(second, wanted);
}

#[tokio::test]
async fn bad_words_are_never_completed_and_other_tokens_never_chosen() {
    let server = Setup::saying("a cat, a dog and a bird.").start().await;
    let ask = |fields: Value| {
        let body = with(completion("x"), with(json!({"max_tokens": 24}), fields));
        let server = &server;
        async move { server.post("/v1/completions", &body).await }
    };
    let text = |answer: Value| answer["choices"][0]["text"].as_str().unwrap().to_owned();
    assert_eq!(text(ask(json!({})).await.ok()), "a cat, a dog and a bird.");
    // Where the last token of a bad word is due the script's executor takes the next one that may be chosen.
    let without = text(ask(json!({"bad_words": ["cat", " dog"]})).await.ok());
    assert_eq!(without, "a cau, a doh and a bird.");
    let allowed: Vec<u32> = "abcdr ".bytes().map(u32::from).collect();
    let only = ask(json!({"allowed_token_ids": allowed, "max_tokens": 40})).await.ok();
    let said = text(only.clone());
    assert!(said.len() == 40 && said.bytes().all(|byte| allowed.contains(&u32::from(byte))), "{said}");
    assert_eq!(only["choices"][0]["finish_reason"], "length", "the end token was not allowed");
    // Beside a grammar both count.
    let choices = json!(["cat", "dog"]);
    let both = ask(json!({"guided_choice": choices, "bad_words": ["cat"], "max_tokens": 9})).await;
    assert_eq!(both.status, 200, "{}", both.text());
    for (wrong, param) in [
        (json!({"bad_words": [" "]}), "bad_words"),
        (json!({"bad_words": "cat"}), "bad_words"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [100_000]}), "allowed_token_ids"),
    ] {
        let error = ask(wrong).await.error();
        assert_eq!((error.0, error.2.as_str()), (400, param));
    }
}
