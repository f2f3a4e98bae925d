//! The conversations that every template is rendered with. Their texts hold what templates get wrong: quotes, markup,
//! line breaks at the ends, characters beyond ASCII, numbers that Python writes in its own way.

use pagoda_text::ContentSupport;
use serde_json::{Map, Value, json};

fn weather_tool() -> Value {
    json!({"type": "function", "function": {
        "name": "get_weather",
        "description": "Gets the weather & \"feels like\" <now>.\nCelsius by default.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
                "hourly": {"type": "boolean", "default": false},
            },
            "required": ["city"],
        },
    }})
}

fn search_tool() -> Value {
    json!({"type": "function", "function": {
        "name": "search",
        "description": "Searches documents",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": ["string", "null"], "description": "What to look for"},
                "filters": {"type": "array", "items": {"type": "object", "properties": {
                    "field": {"type": "string"}, "values": {"type": "array", "items": {"type": "number"}},
                }}},
                "threshold": {"type": "number", "default": 0.5, "maximum": 1e15, "minimum": 0.001},
            },
            "required": ["query", "filters"],
            "additionalProperties": false,
        },
    }})
}

/// The conversations that every template should be able to render.
pub(crate) const REQUIRED: [&str; 6] = [
    "plain",
    "system and several turns",
    "tools",
    "tool calls and results",
    "reasoning",
    "several parts, brought into the template's form",
];

/// Arguments of the rendering by the name of the case, for a template that reads content in the forms of `support`.
pub(crate) fn cases_for(support: ContentSupport) -> Map<String, Value> {
    let mut cases = cases();
    let mut arguments = cases["several parts"].clone();
    support.normalize(&mut arguments["messages"]);
    cases.insert(REQUIRED[5].to_owned(), arguments);
    cases
}

/// Arguments of the rendering by the name of the case.
fn cases() -> Map<String, Value> {
    let cases = json!({
        "plain": {
            "messages": [{"role": "user", "content": "  Hello! What's 2 < 3 & \"why\"? 日本語 👩‍👩‍👧\n"}],
            "add_generation_prompt": true,
        },
        "system and several turns": {
            "messages": [
                {"role": "system", "content": "You are a <helpful> assistant.\n\nBe brief."},
                {"role": "user", "content": "Who wrote 'Faust'?"},
                {"role": "assistant", "content": "Goethe. \n"},
                {"role": "user", "content": "When?"},
                {"role": "assistant", "content": "1808 (part one)\tand 1832."},
                {"role": "user", "content": "And in which language?"},
            ],
            "add_generation_prompt": true,
        },
        "tools": {
            "messages": [
                {"role": "system", "content": "Use the tools."},
                {"role": "user", "content": "Is it raining in Zürich?"},
            ],
            "tools": [weather_tool(), search_tool()],
            "add_generation_prompt": true,
            "kwargs": {"datetime": "2026-03-05", "functions": "[{}]"},
        },
        "tool calls and results": {
            "messages": [
                {"role": "user", "content": "Weather in Zürich and Bern?"},
                {"role": "assistant", "content": "", "tool_calls": [{
                    "id": "abcde1234", "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "hourly": true}},
                }]},
                {"role": "tool", "tool_call_id": "abcde1234", "name": "get_weather",
                 "content": "{\"temperature\": 21.5, \"sky\": \"clear\"}"},
                {"role": "assistant", "content": "21.5 degrees in Zürich. Now Bern:", "tool_calls": [{
                    "id": "fghij5678", "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Bern", "unit": null, "limit": 1e-5}},
                }]},
                {"role": "tool", "tool_call_id": "fghij5678", "name": "get_weather", "content": "19 & <cloudy>"},
                {"role": "assistant", "content": "Zürich 21.5, Bern 19."},
                {"role": "user", "content": "Thanks!"},
            ],
            "tools": [weather_tool()],
            "add_generation_prompt": true,
        },
        "reasoning": {
            "messages": [
                {"role": "user", "content": "What is 17 * 23?"},
                {"role": "assistant", "reasoning_content": "17 * 20 = 340, 17 * 3 = 51.\nSo 391.", "content": "391"},
                {"role": "user", "content": "And 17 * 24?"},
                {"role": "assistant", "content": "<think>\n391 + 17\n</think>\n\n408"},
                {"role": "user", "content": "Sure?"},
            ],
            "add_generation_prompt": true,
            "kwargs": {"enable_thinking": true},
        },
        "several parts": {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Answer in German."}]},
                {"role": "user", "content": [
                    {"type": "text", "text": "It's \"one\"\n"},
                    {"type": "text", "text": "and two. "},
                ]},
                {"role": "assistant", "content": [{"type": "text", "text": "Gut."}]},
                {"role": "user", "content": [{"type": "text", "text": "Weiter"}]},
            ],
            "add_generation_prompt": true,
        },
        "several calls in one turn, arguments as text": {
            "messages": [
                {"role": "system", "content": "Use the tools."},
                {"role": "user", "content": "Compare."},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "call00001", "type": "function",
                     "function": {"name": "get_weather", "arguments": "{\"city\": \"Bern\"}"}},
                    {"id": "call00002", "type": "function",
                     "function": {"name": "search", "arguments": "{\"query\": null, \"filters\": []}"}},
                ]},
                {"role": "tool", "tool_call_id": "call00001", "content": "19"},
                {"role": "tool", "tool_call_id": "call00002", "content": "nothing found"},
            ],
            "tools": [weather_tool(), search_tool()],
            "add_generation_prompt": true,
        },
        "the answer goes on": {
            "messages": [
                {"role": "user", "content": "Count to five."},
                {"role": "assistant", "content": "One, two, "},
            ],
            "continue_final_message": true,
        },
        "no generation prompt, thinking off": {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello."},
            ],
            "add_generation_prompt": false,
            "kwargs": {"enable_thinking": false, "thinking": false, "reasoning_effort": "low"},
        },
    });
    match cases {
        Value::Object(cases) => cases,
        _ => unreachable!("the literal above is an object"),
    }
}
