//! An agent's conversation replayed against the real server, tokenizer and template: what is cached is exactly what was
//! computed before, the reason for every miss is right, and tools before the system's text survive its edits.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::server::{Server, post, request};

/// Writes the tools behind the system's text.
const TEMPLATE: &str = "templates/Qwen-Qwen2.5-7B-Instruct.jinja";

/// What MemGPT's functions look like on the wire, with less prose.
fn tools() -> Value {
    let tool = |name: &str, about: &str, parameter: &str| {
        json!({"type": "function", "function": {"name": name, "description": about, "parameters": {
        "type": "object", "required": [parameter, "request_heartbeat"],
        "properties": {
            parameter: {"type": "string", "description": format!("{about} Unicode is supported.")},
            "request_heartbeat": {"type": "boolean", "description": "Request an immediate heartbeat after execution."},
        }}}})
    };
    json!([
        tool("send_message", "Sends a message to the human user.", "message"),
        tool("core_memory_append", "Append to the contents of core memory.", "content"),
        tool("core_memory_replace", "Replace the contents of core memory.", "new_content"),
        tool("conversation_search", "Search prior conversation history.", "query"),
    ])
}

fn system(memory: &str, edited: &str) -> Value {
    let text = format!(
        "You are Pia, a companion with a memory of your own. You think before you act, and every word that you want the \
         user to read goes through send_message.\n### Memory [last modified: {edited}]\n<human>\n{memory}\n</human>"
    );
    json!({"role": "system", "content": text})
}

fn said(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn call(name: &str, arguments: Value) -> Value {
    json!({"role": "assistant", "content": "", "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments.to_string()}}]})
}

/// The requests of a conversation, each with the whole history: greeting, a tool call and its heartbeat, an edit of the
/// memory, and more turns behind it.
fn requests() -> Vec<Vec<Value>> {
    let before = system("Name: unknown.", "08:00");
    let after = system("Name: Ada. Likes engines.", "08:05");
    let heartbeat = json!({"type": "heartbeat", "reason": "request_heartbeat"}).to_string();
    let turns = [
        said("user", "I am Ada, and I build engines."),
        call("core_memory_append", json!({"content": "Name: Ada.", "request_heartbeat": true})),
        said("tool", "{\"status\": \"OK\", \"message\": \"None\"}"),
        said("user", &heartbeat),
        call("send_message", json!({"message": "Hello Ada!", "request_heartbeat": false})),
        said("tool", "{\"status\": \"OK\"}"),
        said("user", "What do I build?"),
        call("send_message", json!({"message": "Engines.", "request_heartbeat": false})),
        said("tool", "{\"status\": \"OK\"}"),
        said("user", "And what is my name?"),
    ];
    let until = |system: &Value, end: usize| [std::slice::from_ref(system), &turns[..end]].concat();
    vec![until(&before, 1), until(&before, 4), until(&after, 4), until(&after, 7), until(&after, 10)]
}

/// Everything that the server has computed under one salt.
#[derive(Default)]
struct Computed(Vec<Vec<u64>>);

impl Computed {
    /// Tokens that a prompt shares with something computed, at most all but the last; and whether that goes on otherwise.
    fn known(&self, prompt: &[u64]) -> (usize, bool) {
        let wanted = &prompt[..prompt.len() - 1];
        let common = |known: &[u64]| known.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        let longest = self.0.iter().map(|known| common(known)).max().unwrap_or(0);
        (longest, self.0.iter().any(|known| common(known) == longest && known.len() > longest))
    }
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// One request's share of the prompt that was cached.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    num_cached: u64,
    num_prompt: u64,
}

/// Sends one chat and holds its usage against what was computed before.
fn ask(server: &Server, computed: &mut Computed, body: &Value) -> (Share, Value) {
    let answer = post(server.address, "/v1/chat/completions", body);
    let prompt = numbers(&answer["prompt_token_ids"]);
    let mut sequence = prompt.clone();
    sequence.extend(numbers(&answer["choices"][0]["token_ids"]));
    // The last token was chosen and never computed.
    sequence.pop();
    let details = &answer["usage"]["prompt_tokens_details"];
    let (num_known, goes_on) = computed.known(&prompt);
    computed.0.push(sequence);
    assert_eq!(details["cached_tokens"], num_known, "{details}");
    let miss = &details["cache_miss"];
    assert_eq!(miss["known_tokens"], num_known, "{details}");
    let reason = match (num_known == prompt.len() - 1, goes_on && num_known > 0) {
        (true, _) => "none",
        (false, true) => "diverged",
        (false, false) => "first_use",
    };
    assert_eq!(miss["reason"], reason, "{details}");
    assert_eq!(miss["diverged_at"].as_u64(), (reason == "diverged").then_some(num_known as u64));
    let share = Share { num_cached: num_known as u64, num_prompt: prompt.len() as u64 };
    (share, answer)
}

fn body(messages: &[Value], fields: Value) -> Value {
    let mut body = json!({"messages": messages, "tools": tools(), "max_tokens": 6, "temperature": 0,
        "return_token_ids": true});
    fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

/// The share of all prompt tokens behind the first request that was cached, in per cent.
fn replay(server: &Server, salt: &str, tools_first: bool) -> f64 {
    let mut computed = Computed::default();
    let mut total = Share::default();
    for (index, messages) in requests().iter().enumerate() {
        let fields = json!({"cache_salt": salt, "tools_first": tools_first});
        let (share, _) = ask(server, &mut computed, &body(messages, fields));
        println!("tools_first {tools_first}, request {index}: {share:?}");
        if index > 0 {
            total.num_cached += share.num_cached;
            total.num_prompt += share.num_prompt;
        }
    }
    100.0 * total.num_cached as f64 / total.num_prompt as f64
}

fn with_template(flags: &[&str]) -> Option<Server> {
    let (model, template) = (support::real_model()?, support::test_cache(TEMPLATE)?);
    let flags = [&["--chat-template", template.to_str().unwrap()], flags].concat();
    Some(Server::start(&model, &flags))
}

/// The model's own template knows no tools: the generic rendering puts them where it is told to.
#[test]
fn a_template_without_tools_lets_them_come_first() {
    let Some(model) = support::real_model() else { return };
    let server = Server::start(&model, &["--max-model-len", "2048"]);
    compare(&server);
}

/// The replay with the tools behind the system's text and before it.
fn compare(server: &Server) {
    let behind = replay(server, "behind", false);
    let first = replay(server, "first", true);
    println!("cached behind the first request: {behind:.1} %, with tools first {first:.1} %");
    assert!(first > behind + 5.0, "an edit of the memory leaves the tools cached: {behind} %, {first} %");
}

#[test]
fn an_agents_conversation_is_cached_to_the_token_and_every_miss_has_its_reason() {
    let Some(server) = with_template(&["--max-model-len", "2048"]) else { return };
    compare(&server);

    // A turn that ends in the model's own words goes on without a seam: all of it is known.
    let mut computed = Computed::default();
    let mut messages = vec![system("Name: Ada.", "09:00"), said("user", "Count to three.")];
    let salted = |fields: Value| {
        let mut fields = fields;
        fields["cache_salt"] = json!("words");
        fields
    };
    let (_, answer) = ask(&server, &mut computed, &body(&messages, salted(json!({}))));
    messages.push(said("assistant", answer["choices"][0]["message"]["content"].as_str().unwrap()));
    let continued = salted(json!({"continue_final_message": true, "add_generation_prompt": false}));
    let (share, _) = ask(&server, &mut computed, &body(&messages, continued));
    assert!(share.num_prompt - share.num_cached <= 2, "the prompt goes on where the answer ended: {share:?}");
    messages.push(said("user", "Go on."));
    ask(&server, &mut computed, &body(&messages, salted(json!({}))));
    ask(&server, &mut computed, &body(&messages, salted(json!({}))));

    // The same under another salt: told to whoever may see the debug route, not to the client.
    let other = body(&messages, json!({"cache_salt": "other words"}));
    let (share, _) = ask(&server, &mut Computed::default(), &other);
    let (status, debug) = request(server.address, "GET", "/debug/prefix-cache", "");
    assert_eq!(status, 200, "{debug}");
    let debug: Value = serde_json::from_str(&debug).unwrap();
    let miss = &debug["recent"][0]["cache_miss"];
    assert_eq!((&miss["reason"], &miss["other_salt_tokens"]), (&json!("salt"), &json!(share.num_prompt - 1)));
}

#[test]
fn what_was_evicted_is_remembered() {
    let flags = ["--max-model-len", "512", "--kv-cache-memory", "27M"];
    let Some(server) = with_template(&flags) else { return };
    let ask = |words: &str| {
        let mut body = body(&[said("user", words)], json!({}));
        body["tools"] = Value::Null;
        post(server.address, "/v1/chat/completions", &body)
    };
    let [first, second] = ["one two three ", "four five six "].map(|words| words.repeat(100));
    let tokens = ask(&first)["usage"]["prompt_tokens"].as_u64().unwrap();
    ask(&second);
    let details = ask(&first)["usage"]["prompt_tokens_details"].clone();
    let cached = details["cached_tokens"].as_u64().unwrap();
    assert!(cached < tokens - 1, "it was evicted: {details}");
    let miss = json!({"reason": "evicted", "known_tokens": tokens - 1, "diverged_at": null});
    assert_eq!(details["cache_miss"], miss);
}

#[test]
fn the_models_own_template_goes_on_with_a_message_and_ends_without_a_prompt() {
    let Some(model) = support::real_model() else { return };
    let server = Server::start(&model, &["--max-model-len", "512"]);
    let text = |fields: Value| {
        let mut body = json!({"messages": [said("user", "Hi"), said("assistant", "Hello, my name is")]});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let tokens = post(server.address, "/tokenize", &body)["tokens"].clone();
        let text = post(server.address, "/detokenize", &json!({ "tokens": tokens }))["prompt"].clone();
        text.as_str().unwrap().to_owned()
    };
    let going_on = text(json!({"continue_final_message": true}));
    assert!(going_on.ends_with("<|im_start|>assistant\nHello, my name is"), "{going_on}");
    let ended = text(json!({"add_generation_prompt": false}));
    assert!(ended.ends_with("Hello, my name is<|im_end|>\n"), "{ended}");
    assert_eq!(text(json!({})), format!("{ended}<|im_start|>assistant\n"));
    let both = json!({"messages": [said("user", "Hi")], "continue_final_message": true, "add_generation_prompt": true});
    assert_eq!(request(server.address, "POST", "/v1/chat/completions", &both.to_string()).0, 400);
}
