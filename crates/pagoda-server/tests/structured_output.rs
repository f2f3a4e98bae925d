//! Structured output through the whole server: whatever the model would say, the answer is what was asked for, ends where its
//! value ends, and is the same streamed or not. The model here chooses at random.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::{Value, json};
use support::{Setup, TestServer, chat, completion, with};

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "size": {"type": "integer", "minimum": 0, "maximum": 20},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "size", "tags"],
    })
}

/// The texts and finish reasons of an answer's choices.
fn choices(answer: &Value) -> Vec<(String, Value)> {
    let text = |choice: &Value| {
        choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned()
    };
    answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (text(choice), choice["finish_reason"].clone()))
        .collect()
}

/// The same from a stream.
fn streamed_choices(events: &[Value], num_choices: usize) -> Vec<(String, Value)> {
    let mut folded = vec![(String::new(), Value::Null); num_choices];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let (text, finish) = &mut folded[choice["index"].as_u64().unwrap() as usize];
        text.push_str(choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default());
        *finish = choice["finish_reason"].clone();
    }
    folded
}

async fn refusal(server: &TestServer, extra: Value) -> (String, String) {
    let answer = server.post("/v1/chat/completions", &with(chat("hi"), extra)).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = &answer.json()["error"];
    (error["param"].as_str().unwrap_or_default().to_owned(), error["message"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn every_choice_of_every_route_is_a_value_of_the_schema_streamed_or_not() {
    let server = Setup::hashing().start().await;
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "thing", "schema": schema(), "strict": true}});
    let asked = json!({"response_format": format, "n": 3, "seed": 11, "logprobs": null, "temperature": 1});
    for (path, body) in [
        ("/v1/chat/completions", with(chat("hi"), asked.clone())),
        ("/v1/completions", with(completion("hi"), with(asked, json!({"max_tokens": 450})))),
    ] {
        let whole = choices(&server.post(path, &body).await.ok());
        assert_eq!(whole.len(), 3);
        for (text, finish) in &whole {
            assert_eq!(finish, "stop", "{text}");
            let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(validator.is_valid(&value), "{text}");
        }
        assert!(whole[0] != whole[1] && whole[1] != whole[2], "{whole:?}");
        let events = server.post(path, &with(body, json!({"stream": true}))).await.events();
        assert_eq!(streamed_choices(&events, 3), whole);
    }
}

#[tokio::test]
async fn every_name_of_structured_output_shapes_the_answer() {
    let server = Setup::hashing().start().await;
    let is_json = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    let cases: [(Value, &dyn Fn(&str) -> bool); 11] = [
        (json!({"response_format": {"type": "json_object"}}), &is_json),
        (json!({"structured_outputs": {"json_object": true}}), &is_json),
        (json!({"structured_outputs": {"json": schema()}}), &is_json),
        (json!({"guided_json": schema().to_string()}), &is_json),
        (json!({"structured_outputs": {"regex": "[a-f]{3}-[0-9]{2}"}}), &|text| text.len() == 6),
        (json!({"guided_regex": "(yes|no), (sir|madam)"}), &|text| text.contains(", ")),
        (json!({"structured_outputs": {"choice": ["red", "green"]}}), &|text| {
            text == "red" || text == "green"
        }),
        (json!({"guided_choice": ["a \"b\""]}), &|text| text == "a \"b\""),
        (json!({"structured_outputs": {"grammar": "start: \"x\" DIGIT\nDIGIT: /[0-9]/"}}), &|text| {
            text.len() == 2
        }),
        (json!({"guided_grammar": "start: (\"ab\" | \"cd\"){2}"}), &|text| text.len() == 4),
        (json!({"grammar": "start: \"only this\""}), &|text| text == "only this"),
    ];
    for (extra, is_right) in cases {
        for (path, body) in [
            ("/v1/chat/completions", chat("hi")),
            ("/v1/completions", with(completion("hi"), json!({"max_tokens": 450}))),
        ] {
            let answer = server.post(path, &with(body, with(extra.clone(), json!({"seed": 3})))).await.ok();
            let (text, finish) = choices(&answer).remove(0);
            assert!(is_right(&text), "{extra}: {text}");
            assert_eq!(finish, "stop", "{extra}: {text}");
        }
    }
}

#[tokio::test]
async fn too_few_tokens_cut_the_value_and_say_so() {
    let server = Setup::hashing().start().await;
    let body = with(chat("hi"), json!({"guided_json": schema(), "max_tokens": 4}));
    let (text, finish) = choices(&server.post("/v1/chat/completions", &body).await.ok()).remove(0);
    assert_eq!(finish, "length");
    assert!("{\"name\"".starts_with(&text) && text.len() == 4, "{text}");
}

#[tokio::test]
async fn min_tokens_and_logit_bias_do_not_break_a_value() {
    let server = Setup::hashing().start().await;
    // Far more tokens than the value has, and its closing brace all but forbidden.
    let extra =
        json!({"guided_choice": ["{}"], "min_tokens": 50, "max_tokens": 60, "logit_bias": {"125": -100}});
    let answer = server.post("/v1/chat/completions", &with(chat("hi"), extra)).await.ok();
    assert_eq!(choices(&answer), [("{}".to_owned(), json!("stop"))]);
    let extra = json!({"guided_regex": "a+", "min_tokens": 30, "max_tokens": 100, "ignore_eos": true});
    let answer = server.post("/v1/chat/completions", &with(chat("hi"), extra)).await.ok();
    let (text, _) = choices(&answer).remove(0);
    assert!(text.bytes().all(|byte| byte == b'a'), "{text}");
}

#[tokio::test]
async fn a_bad_grammar_is_refused_at_its_place_and_never_queued() {
    let server = Setup::hashing().start().await;
    let nested = json!({"type": "object", "properties": {"age": {"type": "integer", "minimum": "zero"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": nested}});
    for (extra, param) in [
        (json!({"response_format": format}), "response_format.json_schema.schema.properties.age.minimum"),
        (json!({"guided_json": {"items": {"not": {}}}}), "guided_json.items.not"),
        (json!({"structured_outputs": {"json": {"$ref": "#/$defs/a"}}}), "structured_outputs.json.$ref"),
        (json!({"structured_outputs": {"regex": "(secret"}}), "structured_outputs.regex"),
        (json!({"guided_regex": "secret", "guided_choice": ["a"]}), "guided_choice"),
        (json!({"grammar": "start: secret"}), "grammar"),
        (json!({"guided_choice": [""]}), "guided_choice"),
        (json!({"guided_regex": "(a{1,1000}){1,1000}b{100}".repeat(900)}), "guided_regex"),
    ] {
        let (named, message) = refusal(&server, extra).await;
        assert_eq!(named, param, "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
    assert_eq!(server.engine().stats().num_steps, 0, "nothing reached the engine");
    let answer =
        server.post("/v1/chat/completions", &with(chat("hi"), json!({"guided_choice": ["ok"]}))).await;
    assert_eq!(choices(&answer.ok())[0].0, "ok");
}

#[tokio::test]
async fn constrained_requests_say_the_same_among_others_and_preempted() {
    let server = Setup::hashing().with_engine(|engine| engine.num_blocks = 180).start().await;
    let free = with(chat("free"), json!({"max_tokens": 40, "seed": 5}));
    let alone = choices(&server.post("/v1/chat/completions", &free).await.ok());
    let constrained =
        |seed: u64| with(chat("hi"), json!({"guided_json": schema(), "seed": seed, "max_tokens": 300}));
    let expected = choices(&server.post("/v1/chat/completions", &constrained(1)).await.ok());
    for _ in 0..5 {
        let bodies: Vec<Value> = (0..40)
            .map(|index| if index % 4 == 0 { free.clone() } else { constrained(1 + index % 3) })
            .collect();
        let posts = bodies.iter().map(|body| server.post("/v1/chat/completions", body));
        let answers = futures_util::future::join_all(posts).await;
        for (index, answer) in answers.into_iter().enumerate() {
            let answer = choices(&answer.ok());
            if index % 4 == 0 {
                assert_eq!(answer, alone);
            } else if index % 3 == 0 {
                assert_eq!(answer, expected);
            } else {
                assert_eq!(answer[0].1, "stop");
            }
        }
    }
    assert!(server.engine().stats().num_preemptions > 0, "the pool is small enough to preempt");
}
