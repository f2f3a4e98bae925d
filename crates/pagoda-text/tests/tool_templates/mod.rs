//! Small chat templates, one for each way of writing tool calls.
#![allow(dead_code, unreachable_pub, reason = "every test file is a crate that uses its own part of it")]

/// A template of ChatML in which `calls` writes the calls of a turn, from `message.tool_calls`.
fn chatml(calls: &str) -> String {
    format!(
        "{{%- if tools %}}<|im_start|>system\nTools:{{% for tool in tools %}}\n{{{{ tool | tojson }}}}{{% endfor %}}<|im_end|>\n{{% endif -%}}\
         {{%- for message in messages %}}<|im_start|>{{{{ message.role }}}}\n{{{{ message.content }}}}\
         {{%- if message.tool_calls %}}{calls}{{% endif %}}<|im_end|>\n{{% endfor -%}}\
         {{%- if add_generation_prompt %}}<|im_start|>assistant\n{{% if enable_thinking %}}<think>\n{{% endif %}}{{% endif %}}"
    )
}

pub fn hermes() -> String {
    chatml(
        "{%- for call in message.tool_calls %}{{ '\n' if not loop.first }}<tool_call>\n{\"name\": \"{{ call.function.name }}\", \
         \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}",
    )
}

pub fn qwen3_coder() -> String {
    chatml(
        "{%- for call in message.tool_calls %}{{ '\n' if not loop.first }}<tool_call>\n<function={{ call.function.name }}>\n\
         {%- for key, value in call.function.arguments | items %}{{ '\n' }}<parameter={{ key }}>\n\
         {{ value if value is string else value | tojson }}\n</parameter>{% endfor %}{{ '\n' }}</function>\n</tool_call>{% endfor %}",
    )
}

pub fn llama3() -> String {
    chatml(
        "{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call') }}{% endif %}\
         {%- set call = message.tool_calls[0].function %}{\"name\": \"{{ call.name }}\", \
         \"parameters\": {{ call.arguments | tojson }}}",
    )
}

pub fn mistral() -> String {
    chatml(
        "[TOOL_CALLS][{% for call in message.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('ids') }}{% endif %}\
         {\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}, \
         \"id\": \"{{ call.id }}\"}{{ ', ' if not loop.last }}{% endfor %}]",
    )
}

pub fn mistral_named() -> String {
    chatml(
        "{%- for call in message.tool_calls %}[TOOL_CALLS]{{ call.function.name }}[ARGS]\
         {{ call.function.arguments | tojson }}{% endfor %}",
    )
}

pub fn pythonic() -> String {
    chatml(
        "[{% for call in message.tool_calls %}{{ call.function.name }}(\
         {%- for key, value in call.function.arguments | items %}{{ key }}={{ value | tojson }}{{ ', ' if not loop.last }}{% endfor %})\
         {{- ', ' if not loop.last }}{% endfor %}]",
    )
}

/// Knows neither tools nor the role of their results: as SmolLM2's own.
pub fn toolless() -> String {
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a \
     helpful AI assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
     '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        .to_owned()
}
