//! The form of tool calls that is recognised in each real template, and the tag that opens reasoning.
//!
//! `generic`: the template shows no tools, or calls in a form that cannot be read; then tools, calls and results are written
//! by us.

pub(crate) const FORMATS: &[(&str, &str)] = &[
    ("Apertus-8B-Instruct", "generic | <|inner_prefix|>"),
    ("Apriel-1.6-15b-Thinker-fixed", r#""<tool_calls>[" {name, arguments} "]</tool_calls>" | -"#),
    ("Bielik-11B-v3.0-Instruct", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | <think>"#),
    (
        "ByteDance-Seed-OSS",
        r#""<seed:tool_call>\n<function=" name "<parameter=" key ">" value "</function>\n</seed:tool_call>" | <seed:think>"#,
    ),
    (
        "Cohere2MoE",
        r#""<|START_ACTION|>[\n    " {tool_name, parameters} "\n]<|END_ACTION|>" | <|START_THINKING|>"#,
    ),
    ("CohereForAI-c4ai-command-r-plus-tool_use", "generic | -"),
    (
        "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
        r#""<|START_ACTION|>[\n    " {tool_name, parameters} "\n]<|END_ACTION|>" | <|START_THINKING|>"#,
    ),
    (
        "GLM-4.6",
        r#""<tool_call>" name "<arg_key>" key "</arg_key>\n<arg_value>" value "</tool_call>" | <think>"#,
    ),
    (
        "GLM-4.7-Flash",
        r#""<tool_call>" name "<arg_key>" key "</arg_key><arg_value>" value "</tool_call>" | <think>"#,
    ),
    ("GigaChat3-10B-A1.8B", r#""<|message_sep|>\n\nfunction call<|role_sep|>\n" {name, arguments} "" | -"#),
    ("GigaChat3.1-10B-A1.8B", r#""<|function_call|>" {name, arguments} "" | -"#),
    ("HuggingFaceTB-SmolLM3-3B", "generic | <think>"),
    ("Kimi-K2-Instruct", "generic | -"),
    ("Kimi-K2-Thinking", "generic | <think>"),
    ("Kimi-K3", "generic | -"),
    ("LFM2-8B-A1B", r#""<|tool_call_start|>[" name(key=value) "]<|tool_call_end|>" | -"#),
    ("LFM2.5-8B-A1B", r#""<|tool_call_start|>[" name(key=value) "]<|tool_call_end|>" | <think>"#),
    ("LFM2.5-Instruct", "generic | -"),
    ("MiMo-VL", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | -"#),
    ("MiniMax-M1", r#""<tool_calls>\n" {name, arguments} "\n</tool_calls>" | -"#),
    (
        "MiniMax-M2",
        r#""<minimax:tool_call>\n<invoke name=\"" name "<parameter name=\"" key "\">" value "</invoke>\n</minimax:tool_call>" | <think>"#,
    ),
    ("MiniMax-M3", "generic | <mm:think>"),
    ("Mistral-Small-3.2-24B-Instruct-2506", r#""[TOOL_CALLS]" name id "[ARGS]" {..} "" | -"#),
    (
        "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        r#""<tool_call>\n<function=" name "<parameter=" key ">\n" value "</function>\n</tool_call>" | <think>"#,
    ),
    ("NVIDIA-Nemotron-Nano-v2", r#""<TOOLCALL>[" {name, arguments} "]</TOOLCALL><SPECIAL_12>" | <think>"#),
    (
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
        r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | -"#,
    ),
    (
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | -"#,
    ),
    ("Qwen-QwQ-32B", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | <think>"#),
    ("Qwen-Qwen2.5-7B-Instruct", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | -"#),
    ("Qwen-Qwen3-0.6B", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | <think>"#),
    (
        "Qwen3-Coder",
        r#""<tool_call>\n<function=" name "<parameter=" key ">\n" value "</function>\n</tool_call>" | -"#,
    ),
    (
        "Qwen3.5-4B",
        r#""<tool_call>\n<function=" name "<parameter=" key ">\n" value "</function>\n</tool_call>" | <think>"#,
    ),
    ("Reka-Edge", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | <think>"#),
    (
        "Spark2.5",
        r#""<tool_call>" name "<arg_key>" key "</arg_key><arg_value>" value "</tool_call>" | <think>"#,
    ),
    (
        "StepFun3.5-Flash",
        r#""<tool_call>\n<function=" name "<parameter=" key ">\n" value "</function>\n</tool_call>" | <think>"#,
    ),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "generic | <think>"),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "generic | <think>"),
    ("deepseek-ai-DeepSeek-V3.1", "generic | <think>"),
    ("deepseek-ai-DeepSeek-V3.2", "generic | <think>"),
    ("deepseek-ai-DeepSeek-V4", "generic | <think>"),
    ("deepseek-ai-DeepSeek-V4-Flash-0731", "generic | <think>"),
    ("fireworks-ai-llama-3-firefunction-v2", "generic | -"),
    ("google-gemma-2-2b-it", "generic | -"),
    ("google-gemma-4-31B-it", "generic | <|channel>thought"),
    ("google-gemma-4-31B-it-interleaved", "generic | <|channel>thought"),
    ("ibm-granite-granite-3.3-2B-Instruct", "generic | <think>"),
    ("ibm-granite-granite-4.0", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | -"#),
    ("ibm-granite-granite-4.1", r#""<tool_call>\n" {name, arguments} "\n</tool_call>" | -"#),
    (
        "inclusionai-ling-3.0-flash",
        r#""<tool_call>" name "<arg_key>" key "</arg_key>\n<arg_value>" value "\n</tool_call>" | <think>"#,
    ),
    (
        "llama-cpp-deepseek-r1",
        r#""<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>" name "\n```json\n" {..} "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>" | <think>"#,
    ),
    ("llama-cpp-rwkv-world", "generic | <think>"),
    ("meetkai-functionary-medium-v3.1", r#""<function=" name ">" {..} "</function><|eom_id|>" | -"#),
    ("meetkai-functionary-medium-v3.2", "generic | -"),
    ("meta-llama-Llama-3.1-8B-Instruct", r#""" {name, parameters} "" | -"#),
    ("meta-llama-Llama-3.2-3B-Instruct", r#""" {name, parameters} "" | -"#),
    ("meta-llama-Llama-3.3-70B-Instruct", r#""" {name, parameters} "" | -"#),
    ("microsoft-Phi-3.5-mini-instruct", "generic | -"),
    ("mistralai-Ministral-3-14B-Reasoning-2512", r#""[TOOL_CALLS]" name "[ARGS]" {..} "" | [THINK]"#),
    ("mistralai-Mistral-Nemo-Instruct-2407", r#""[TOOL_CALLS][" {name, arguments} "]" | -"#),
    (
        "moonshotai-Kimi-K2",
        r#""<|tool_calls_section_begin|><|tool_call_begin|>functions." name id "<|tool_call_argument_begin|>" {..} "<|tool_call_end|><|tool_calls_section_end|>" | -"#,
    ),
    ("muse-glimmer", "generic | -"),
    ("openai-gpt-oss-120b", "generic | -"),
    (
        "openbmb-MiniCPM5-1B",
        r#""<function name=\"" name "<param name=\"" key "\">" value "</function>" | <think>"#,
    ),
    (
        "poolside-Laguna-S-2.1",
        r#""<tool_call>" name "<arg_key>" key "</arg_key><arg_value>" value "</tool_call>" | <think>"#,
    ),
    (
        "poolside-Laguna-XS-2.1",
        r#""<tool_call>" name "<arg_key>" key "</arg_key>\n<arg_value>" value "</tool_call>" | <think>"#,
    ),
    (
        "poolside-Laguna-XS.2",
        r#""<tool_call>" name "<arg_key>" key "</arg_key>\n<arg_value>" value "</tool_call>" | <think>"#,
    ),
    (
        "tencent-Hy3",
        r#""<tool_calls:opensource>\n<tool_call:opensource>" name "<arg_key:opensource>" key "</arg_key:opensource>\n<arg_value:opensource>" value "</tool_call:opensource>\n</tool_calls:opensource><｜hy_eos:opensource｜>" | <think:opensource>"#,
    ),
    ("unsloth-Apriel-1.5", r#""<tool_calls>[" {name, arguments} "]</tool_calls>" | -"#),
    ("unsloth-mistral-Devstral-Small-2507", r#""[TOOL_CALLS]" name "[ARGS]" {..} "" | -"#),
    ("upstage-Solar-Open-100B", "generic | -"),
];
