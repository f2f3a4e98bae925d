//! Tool calls and reasoning on the wire: the same calls streamed or not, in every form in which models write them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;
#[path = "../../pagoda-text/tests/tool_templates/mod.rs"]
mod tool_templates;

use pagoda_server::AutoToolChoice;
use serde_json::{Value, json};
use support::{Setup, TestServer, chat, with};

const CHAT: &str = "/v1/chat/completions";

fn weather() -> Value {
    json!({"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    }}})
}

fn asking() -> Value {
    with(
        chat("Weather in Bern?"),
        json!({"tools": [weather()], "tool_choice": "auto", "max_tokens": 400, "seed": 5}),
    )
}

/// A model with room for a description of tools, one token a byte.
fn with_room(setup: Setup) -> Setup {
    setup.with_engine(|engine| {
        engine.max_model_len = 4096;
        engine.num_blocks = 4096;
    })
}

/// A streamed message, put together as clients do.
#[derive(Default)]
struct Folded {
    content: Option<String>,
    reasoning: String,
    calls: Vec<Value>,
    finish: Value,
    num_logprobs: usize,
    token_ids: Vec<Value>,
}

fn folded(events: &[Value]) -> Folded {
    let mut folded = Folded::default();
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        assert!(folded.finish.is_null(), "nothing follows a finish reason");
        let delta = &choice["delta"];
        if let Some(text) = delta["content"].as_str() {
            folded.content.get_or_insert_default().push_str(text);
        }
        assert_eq!(delta.get("reasoning"), delta.get("reasoning_content"));
        folded.reasoning.push_str(delta["reasoning"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if index == folded.calls.len() {
                assert!(
                    call["id"].is_string() && call["type"] == "function",
                    "a call begins with its id: {call}"
                );
                assert_eq!(call["function"]["arguments"], "");
                let (id, name) = (&call["id"], &call["function"]["name"]);
                folded
                    .calls
                    .push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}}));
                continue;
            }
            assert_eq!(index + 1, folded.calls.len());
            assert!(call.get("id").is_none() && call["function"].get("name").is_none(), "{call}");
            let arguments = &mut folded.calls[index]["function"]["arguments"];
            let fragment = call["function"]["arguments"].as_str().unwrap();
            *arguments = format!("{}{fragment}", arguments.as_str().unwrap()).into();
        }
        folded.num_logprobs += choice["logprobs"]["content"].as_array().map_or(0, Vec::len);
        folded.token_ids.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
        folded.finish = choice["finish_reason"].clone();
    }
    folded
}

fn without_ids(calls: &Value) -> Vec<Value> {
    let calls = calls.as_array().cloned().unwrap_or_default();
    calls.iter().map(|call| call["function"].clone()).collect()
}

/// The whole answer, after checking that the streamed one says the same.
async fn ask(server: &TestServer, body: &Value) -> Value {
    let body = with(body.clone(), json!({"logprobs": true, "return_token_ids": true}));
    let whole = server.post(CHAT, &body).await.ok();
    let streamed = with(body, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = server.post(CHAT, &streamed).await.events();
    let (usage, events) = events.split_last().unwrap();
    let folded = folded(events);
    let (choice, message) = (&whole["choices"][0], &whole["choices"][0]["message"]);
    if message["content"] != "" {
        assert_eq!(json!(folded.content), message["content"]);
    }
    assert_eq!(folded.reasoning, message["reasoning"].as_str().unwrap_or_default());
    assert_eq!(message.get("reasoning"), message.get("reasoning_content"));
    assert_eq!(without_ids(&json!(folded.calls)), without_ids(&message["tool_calls"]));
    assert_eq!(folded.finish, choice["finish_reason"]);
    assert_eq!(json!(folded.token_ids), choice["token_ids"]);
    assert_eq!(folded.num_logprobs, choice["logprobs"]["content"].as_array().unwrap().len());
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(usage["usage"]["completion_tokens_details"], whole["usage"]["completion_tokens_details"]);
    for call in message["tool_calls"].as_array().into_iter().flatten() {
        let id = call["id"].as_str().unwrap();
        assert!(id.starts_with("call_") && id.len() == 29, "{id}");
    }
    whole
}

fn calls(whole: &Value) -> Vec<(String, Value)> {
    let calls = whole["choices"][0]["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| {
        let function = &call["function"];
        let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        (function["name"].as_str().unwrap().to_owned(), arguments)
    };
    calls.iter().map(call).collect()
}

#[tokio::test]
async fn calls_of_every_format_reach_the_client_alike() {
    let call = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}";
    let cases = [
        (
            tool_templates::hermes(),
            format!("Looking.\n<tool_call>\n{call}\n</tool_call>\n<tool_call>\n{call}\n</tool_call>"),
            json!("Looking."),
        ),
        (tool_templates::hermes(), format!("<tool_call>\n{call}\n</tool_call>"), Value::Null),
        (tool_templates::toolless(), format!("<tool_call>\n{call}\n</tool_call>"), Value::Null),
        (
            tool_templates::qwen3_coder(),
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n</parameter>\n\
             </function>\n</tool_call>"
                .into(),
            Value::Null,
        ),
        (tool_templates::llama3(), call.replace("arguments", "parameters"), Value::Null),
        (tool_templates::mistral(), format!("[TOOL_CALLS][{call}]"), Value::Null),
        (
            tool_templates::mistral_named(),
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Bern\", \"days\": 2}".into(),
            Value::Null,
        ),
        (tool_templates::pythonic(), "[get_weather(city='Bern', days=2)]".into(), Value::Null),
    ];
    for (template, text, content) in cases {
        // Markup as plain text, and as special tokens, which an answer's text does not show otherwise.
        for specials in [&[][..], &["[TOOL_CALLS]", "[ARGS]", "<tool_call>", "</tool_call>"]] {
            let setup = with_room(Setup::saying_with(&text, specials)).with_template(template.clone());
            let server = setup.start().await;
            let whole = ask(&server, &asking()).await;
            let choice = &whole["choices"][0];
            assert_eq!(choice["message"]["content"], content, "{text}");
            assert_eq!(choice["finish_reason"], "tool_calls");
            let expected = ("get_weather".to_owned(), json!({"city": "Bern", "days": 2}));
            let found = calls(&whole);
            assert!(!found.is_empty() && found.iter().all(|call| *call == expected), "{text}: {found:?}");
        }
    }
}

#[tokio::test]
async fn without_tools_the_text_is_content() {
    let text = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>";
    let server = Setup::saying(text).with_template(tool_templates::hermes()).start().await;
    let none = json!({"tools": null, "tool_choice": null, "parallel_tool_calls": false});
    for body in [with(chat("hi"), none), with(asking(), json!({"tool_choice": "none"}))] {
        let whole = ask(&server, &body).await;
        assert_eq!(whole["choices"][0]["message"]["content"], text);
        assert_eq!(whole["choices"][0]["message"].get("tool_calls"), None);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_call_cut_off_by_length_says_so() {
    let text = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
    let server = Setup::saying(text).with_template(tool_templates::hermes()).start().await;
    let whole = ask(&server, &with(asking(), json!({"max_tokens": 62}))).await;
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"city\": \"Ber");
}

#[tokio::test]
async fn a_stop_string_within_a_call_is_no_end_of_a_call() {
    let call = |city: &str| {
        format!(
            "<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {{\"city\": \"{city}\"}}}}\n</tool_call>"
        )
    };
    let text = format!("{}\n{}", call("Bern"), call("Zug"));
    let server = Setup::saying(&text).with_template(tool_templates::hermes()).start().await;
    let whole = ask(&server, &with(asking(), json!({"stop": ["Bern"]}))).await;
    let choice = &whole["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!("Bern")));
    assert_eq!(choice["message"].get("tool_calls"), None);
    assert_eq!(choice["message"]["content"], text.split("Bern").next().unwrap());
    let whole = ask(&server, &with(asking(), json!({"stop": ["Zug"]}))).await;
    assert_eq!(calls(&whole), [("get_weather".to_owned(), json!({"city": "Bern"}))]);
}

#[tokio::test]
async fn half_a_forced_call_is_nobodys_text() {
    let server = random(tool_templates::hermes(), &[]).start().await;
    let forced = |fields| with(asking(), with(json!({"tool_choice": "required", "seed": 3}), fields));
    // Before the name is known, and within the arguments.
    for (stop, num_calls) in [("name", 0), ("arguments", 1), ("city", 1)] {
        let whole = ask(&server, &forced(json!({"stop": [stop], "max_tokens": 900}))).await;
        let choice = &whole["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{whole}");
        assert_eq!(choice["message"]["content"].as_str().unwrap_or_default(), "", "{whole}");
        let found = choice["message"]["tool_calls"].as_array().map_or(0, Vec::len);
        assert_eq!(found, num_calls, "{whole}");
    }
    let call = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
    let text = format!("{call}\n{call}");
    let server = with_room(Setup::saying(&text)).with_template(tool_templates::hermes()).start().await;
    let mut num_cut = [0; 3];
    for max_tokens in 1..text.len() {
        let whole = ask(&server, &forced(json!({"max_tokens": max_tokens}))).await;
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["content"].as_str().unwrap_or_default(), "", "{whole}");
        assert_eq!(choice["finish_reason"], "length");
        num_cut[choice["message"]["tool_calls"].as_array().map_or(0, Vec::len)] += 1;
    }
    assert!(num_cut.iter().all(|&cut| cut > 10), "cut in no call, the first, the second: {num_cut:?}");
}

#[tokio::test]
async fn what_is_no_call_is_content() {
    for text in ["<tool_call>\nnot json\n</tool_call>", "<tool_cal", "{\"name\": \"get_weather\"}", "a < b"] {
        let server = Setup::saying(text).with_template(tool_templates::hermes()).start().await;
        let whole = ask(&server, &asking()).await;
        assert_eq!(whole["choices"][0]["message"]["content"], text);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_history_with_calls_goes_back_to_the_model() {
    let server = with_room(Setup::saying("ok")).with_template(tool_templates::toolless()).start().await;
    let history = json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
            "function": {"name": "get_weather", "arguments": "{\"city\":\"Bern\"}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "19 degrees"},
        {"role": "user", "content": "And now?"},
    ], "return_token_ids": true});
    let whole = server.post(CHAT, &with(asking(), history)).await.ok();
    let prompt = server.post("/detokenize", &json!({"tokens": whole["prompt_token_ids"]})).await.ok();
    let prompt = prompt["prompt"].as_str().unwrap();
    for part in [
        "<|im_start|>system\nBe brief.\n\n# Tools",
        "{\"type\": \"function\", \"function\": {\"name\": \"get_weather\"",
        "<|im_start|>assistant\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call><|im_end|>",
        "<|im_start|>user\n<tool_response>\n19 degrees\n</tool_response><|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>",
    ] {
        assert!(prompt.contains(part), "{part}\nis not in\n{prompt}");
    }
}

#[tokio::test]
async fn reasoning_is_told_apart_and_counted() {
    let template = tool_templates::hermes;
    // The model writes both tags; the template has written the first; the tags are special tokens.
    let cases = [
        ("<think>\nabc\n</think>\n\nHi", json!({}), &[][..], 20),
        ("abc\n</think>\n\nHi", json!({"chat_template_kwargs": {"enable_thinking": true}}), &[][..], 12),
        ("abc\n</think>\n\nHi", json!({"reasoning_effort": "low"}), &[][..], 12),
        ("<think>\nabc\n</think>\n\nHi", json!({}), &["<think>", "</think>"][..], 7),
    ];
    for (text, fields, specials, num_reasoning) in cases {
        let server = Setup::saying_with(text, specials).with_template(template()).start().await;
        let whole = ask(&server, &with(chat("hi"), fields.clone())).await;
        let message = &whole["choices"][0]["message"];
        assert_eq!((&message["reasoning"], &message["content"]), (&json!("abc"), &json!("Hi")), "{text}");
        let usage = &whole["usage"];
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], num_reasoning, "{text}");
        let hidden = ask(&server, &with(chat("hi"), with(fields, json!({"include_reasoning": false})))).await;
        assert_eq!(hidden["choices"][0]["message"].get("reasoning"), None);
        assert_eq!(hidden["choices"][0]["message"]["content"], "Hi");
        assert_eq!(hidden["usage"]["completion_tokens_details"], usage["completion_tokens_details"]);
    }
}

#[tokio::test]
async fn reasoning_and_a_call_come_in_one_answer() {
    let text = "<think>\nI should look.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>";
    let server = Setup::saying(text).with_template(tool_templates::hermes()).start().await;
    let whole = ask(&server, &asking()).await;
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "I should look.");
    assert_eq!(message["content"], Value::Null);
    assert_eq!(calls(&whole), [("get_weather".to_owned(), json!({}))]);
}

#[tokio::test]
async fn wrong_tool_fields_are_named() {
    let server = Setup::saying("x").with_template(tool_templates::hermes()).start().await;
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let cases = [
        (json!({"tools": [{"type": "function"}]}), "tools[0]"),
        (
            json!({"tools": [weather(), {"type": "function", "function": {"name": ""}}]}),
            "tools[1].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
            "tools[0].function.parameters",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}),
            "tools[0].function.strict",
        ),
        (json!({"tool_choice": named("nobody")}), "tool_choice.function.name"),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
        (json!({"tool_choice": "required", "tools": []}), "tool_choice"),
        (json!({"parallel_tool_calls": "yes"}), "parallel_tool_calls"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": {"name": "f"}}), "function_call"),
        (json!({"reasoning_effort": "extreme"}), "reasoning_effort"),
        (json!({"thinking_token_budget": -1}), "thinking_token_budget"),
    ];
    for (fields, param) in cases {
        let answer = server.post(CHAT, &with(asking(), fields.clone())).await;
        let (status, _, named) = answer.error();
        assert_eq!((status, named.as_str()), (400, param), "{fields}");
    }
}

/// A model that chooses among the tokens that it may choose.
fn random(template: String, specials: &[&str]) -> Setup {
    let setup = with_room(Setup::hashing()).with_template(template);
    Setup { tokenizer: std::sync::Arc::new(support::byte_tokenizer(specials)), ..setup }
}

#[tokio::test]
async fn a_model_that_must_call_calls() {
    for template in [
        tool_templates::hermes(),
        tool_templates::qwen3_coder(),
        tool_templates::llama3(),
        tool_templates::mistral_named(),
        tool_templates::pythonic(),
        tool_templates::toolless(),
    ] {
        let server = random(template, &["[TOOL_CALLS]", "[ARGS]"]).start().await;
        let named = json!({"type": "function", "function": {"name": "get_weather"}});
        for (choice, seed) in [(json!("required"), 1), (named, 2), (json!("required"), 3)] {
            let fields = json!({"tool_choice": choice, "seed": seed, "max_tokens": 900});
            let whole = ask(&server, &with(asking(), fields)).await;
            assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls", "{whole}");
            let found = calls(&whole);
            assert!(!found.is_empty());
            for (name, arguments) in found {
                assert_eq!(name, "get_weather");
                assert!(
                    arguments["city"].is_string()
                        && arguments["days"].as_f64().is_none_or(|days| days.fract() == 0.0),
                    "{arguments}"
                );
            }
        }
    }
}

#[tokio::test]
async fn one_call_is_one_call_if_the_client_says_so() {
    let server = random(tool_templates::hermes(), &[]).start().await;
    for seed in 0..8 {
        let fields =
            json!({"tool_choice": "required", "parallel_tool_calls": false, "seed": seed, "max_tokens": 900});
        assert_eq!(calls(&ask(&server, &with(asking(), fields)).await).len(), 1);
    }
}

#[tokio::test]
async fn auto_means_required_where_the_server_says_so() {
    let setup = random(tool_templates::hermes(), &[]);
    let setup = setup.with_config(|config| config.auto_tool_choice = AutoToolChoice::Required);
    let server = setup.start().await;
    for fields in [json!({"tool_choice": "auto"}), json!({"tool_choice": null})] {
        let whole = ask(&server, &with(asking(), with(fields, json!({"max_tokens": 900})))).await;
        assert!(!calls(&whole).is_empty());
    }
    let none = ask(&server, &with(asking(), json!({"tool_choice": "none", "max_tokens": 20}))).await;
    assert_eq!(none["choices"][0]["message"].get("tool_calls"), None);
}

#[tokio::test]
async fn a_list_of_25_000_characters_is_followed() {
    let server = random(tool_templates::hermes(), &[]);
    let server = server.with_engine(|engine| {
        engine.max_model_len = 65_536;
        engine.num_blocks = 20_000;
    });
    let server = server.with_config(|config| config.requests.max_tools = 128).start().await;
    let tools: Vec<Value> = (0..100)
        .map(|index| {
            let mut tool = weather();
            tool["function"]["name"] = format!("get_weather_{index}").into();
            tool["function"]["description"] =
                "A description of some length, as tools have. ".repeat(3).into();
            tool
        })
        .collect();
    assert!(json!(tools).to_string().len() > 25_000);
    let body = with(asking(), json!({"tools": tools, "tool_choice": "required", "max_tokens": 900}));
    let start = std::time::Instant::now();
    let found = calls(&ask(&server, &body).await);
    println!("{} calls out of 100 tools after {:?}", found.len(), start.elapsed());
    assert!(found.iter().all(|(name, _)| name.starts_with("get_weather_")));
}

#[tokio::test]
async fn schemas_that_cannot_be_followed_are_named() {
    let server = random(tool_templates::hermes(), &[]).start().await;
    let tool = |parameters: Value| {
        let function = json!({"name": "f", "strict": true, "parameters": parameters});
        json!({"tools": [weather(), {"type": "function", "function": function}], "tool_choice": "required"})
    };
    let cases = [
        (json!({"type": "string"}), "tools[1].function.parameters.type"),
        (
            json!({"type": "object", "properties": {"a": {"type": "wizard"}}}),
            "tools[1].function.parameters.properties.a.type",
        ),
    ];
    for (parameters, param) in cases {
        let answer = server.post(CHAT, &with(asking(), tool(parameters))).await;
        let (status, _, named) = answer.error();
        assert_eq!((status, named.as_str()), (400, param));
    }
}

/// As pydantic, zod and MCP servers write them.
#[tokio::test]
async fn a_tool_that_is_not_strict_is_followed_without_what_cannot_be() {
    let parameters = json!({
        "type": "object",
        "properties": {
            "tags": {"type": "array", "uniqueItems": true, "maxItems": 3, "items": {"enum": ["a", "b"]}},
            "count": {"type": "integer", "minimum": -9_007_199_254_740_991i64, "maximum": 9_007_199_254_740_991i64},
            "not": {"type": "string", "maxLength": 5, "pattern": "^(?!x)"},
        },
        "required": ["tags", "count", "not"],
        "not": {"required": ["other"]},
        "if": {"required": ["tags"]},
        "then": {"required": ["count"]},
        "dependentRequired": {"tags": ["count"]},
    });
    let tool = |is_strict: bool| {
        let function = json!({"name": "f", "strict": is_strict, "parameters": parameters});
        json!({"tools": [{"type": "function", "function": function}], "tool_choice": "required", "max_tokens": 900})
    };
    for template in [tool_templates::hermes(), tool_templates::qwen3_coder(), tool_templates::pythonic()] {
        let server = random(template, &[]).start().await;
        let found = calls(&ask(&server, &with(asking(), tool(false))).await);
        assert!(!found.is_empty());
        for (name, arguments) in found {
            let keys: Vec<&str> = arguments.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!((name.as_str(), keys), ("f", vec!["tags", "count", "not"]), "{arguments}");
            let tags = arguments["tags"].as_array().unwrap();
            assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "a" || tag == "b"), "{arguments}");
            let is_whole = arguments["count"].as_f64().is_some_and(|count| count.fract() == 0.0);
            assert!(is_whole && arguments["not"].as_str().unwrap().chars().count() <= 5, "{arguments}");
        }
        let (status, _, named) = server.post(CHAT, &with(asking(), tool(true))).await.error();
        assert_eq!((status, named.as_str()), (400, "tools[0].function.parameters.not"));
    }
}

#[tokio::test]
async fn thinking_ends_when_its_budget_is_spent() {
    let thinking =
        json!({"chat_template_kwargs": {"enable_thinking": true}, "ignore_eos": true, "max_tokens": 60});
    for specials in [&[][..], &["<think>", "</think>"]] {
        let num_close = if specials.is_empty() { "</think>".len() } else { 1 };
        let server = random(tool_templates::hermes(), specials).start().await;
        for budget in [0, 1, 9] {
            let mut num_spent = 0;
            for seed in 0..8 {
                let fields = json!({"thinking_token_budget": budget, "seed": seed});
                let body = with(chat("hi"), with(thinking.clone(), fields));
                let usage = server.post(CHAT, &body).await.ok()["usage"].clone();
                assert_eq!(usage["completion_tokens"], 60);
                let num_reasoning =
                    usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() as usize;
                // A random model may also close its reasoning itself.
                assert!(num_reasoning <= budget + num_close, "{usage}");
                num_spent += usize::from(num_reasoning == budget + num_close);
            }
            assert!(num_spent >= 6, "only {num_spent} of 8 thought until the budget was spent");
        }
    }
}

#[tokio::test]
async fn rules_on_tokens_hold_while_thinking_and_behind_it() {
    let server = random(tool_templates::hermes(), &["<think>", "</think>"]).start().await;
    let letters = "abc";
    let close = server.post("/tokenize", &json!({"prompt": "</think>"})).await.ok()["tokens"][0].clone();
    let mut allowed: Vec<Value> = letters.bytes().map(|byte| json!(byte)).collect();
    allowed.push(close);
    for seed in 0..8 {
        let fields = json!({"allowed_token_ids": allowed, "bad_words": ["ab", "cc"], "seed": seed, "max_tokens": 60,
            "thinking_token_budget": 9, "chat_template_kwargs": {"enable_thinking": true}});
        let whole = ask(&server, &with(chat("hi"), fields)).await;
        let message = &whole["choices"][0]["message"];
        let num_reasoning = whole["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        assert!(num_reasoning <= 10, "{whole}");
        for said in [&message["reasoning"], &message["content"]] {
            let said = said.as_str().unwrap_or_default().replace("</think>", "");
            assert!(said.chars().all(|char| letters.contains(char)), "{said}");
            assert!(!said.contains("ab") && !said.contains("cc"), "{said}");
        }
        let num_said = message["content"].as_str().unwrap().len();
        assert!(num_said > 20, "{whole}");
    }
}

#[tokio::test]
async fn a_forced_call_may_be_thought_about() {
    let server = random(tool_templates::hermes(), &["<think>", "</think>"]).start().await;
    let fields = json!({"tool_choice": "required", "thinking_token_budget": 12, "max_tokens": 900,
        "chat_template_kwargs": {"enable_thinking": true}});
    let whole = ask(&server, &with(asking(), fields)).await;
    assert!(!calls(&whole).is_empty(), "{whole}");
    assert_eq!(whole["usage"]["completion_tokens_details"]["reasoning_tokens"], 13);
}

#[tokio::test]
async fn a_value_or_a_call_where_both_are_asked_for() {
    let server = random(tool_templates::hermes(), &[]).start().await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}}});
    let (mut num_values, mut num_calls) = (0, 0);
    for seed in 0..12 {
        let fields = json!({"response_format": format, "seed": seed, "max_tokens": 900});
        let whole = ask(&server, &with(asking(), fields)).await;
        match whole["choices"][0]["message"]["content"].as_str() {
            None => num_calls += calls(&whole).len(),
            Some(text) => {
                assert!(serde_json::from_str::<Value>(text).unwrap()["n"].is_u64(), "{text}");
                num_values += 1;
            }
        }
    }
    assert!(num_values > 0 && num_calls > 0, "{num_values} values, {num_calls} calls");
}
