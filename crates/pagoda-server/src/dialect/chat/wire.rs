//! Chat completions on the wire: events to one answer, or to the chunks of a stream.

use serde::Serialize;

use crate::dialect::prompt_logprobs::PromptLogprobs;
use crate::dialect::usage::{StopReason, UsageFields, chunk_usage};
use crate::dialect::{finite, to_json};
use crate::generation::{
    Answer, AnswerChoice, AnswerHead, ChoiceDelta, Finish, GenerationEvent, OutputPart, OutputToken,
    TokenDetail, ToolCall, Usage,
};

#[derive(Serialize)]
struct Completion<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: Vec<Choice<'a>>,
    usage: UsageFields,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
    stop_reason: StopReason<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    /// Null if the turn only calls tools: there are clients that look for calls only then.
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    /// The two names in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<WholeCall<'a>>,
}

#[derive(Serialize)]
struct WholeCall<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: WholeFunction<'a>,
}

#[derive(Serialize)]
struct WholeFunction<'a> {
    name: &'a str,
    arguments: &'a str,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<&'a str>,
    choices: Vec<ChunkChoice<'a>>,
    /// Absent unless asked for; then null until the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageFields>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [u32]>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    /// One call at a time, although the field is a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

#[derive(Serialize)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: Vec<TokenLogprob<'a>>,
    refusal: Option<&'a str>,
}

#[derive(Serialize)]
struct TokenLogprob<'a> {
    token: String,
    logprob: f32,
    bytes: &'a [u8],
    top_logprobs: Vec<TopLogprob<'a>>,
}

#[derive(Serialize)]
struct TopLogprob<'a> {
    token: String,
    logprob: f32,
    bytes: &'a [u8],
}

/// Events to wire: one answer.
pub(crate) fn answer(head: &AnswerHead, answer: Answer) -> String {
    let prompt_token_ids = answer.prompts.first().map(|prompt| &*prompt.token_ids);
    to_json(&Completion {
        id: chat_id(head),
        object: "chat.completion",
        created: head.created,
        model: &head.model,
        system_fingerprint: None,
        choices: (0..)
            .zip(&answer.choices)
            .map(|(index, choice)| whole_choice(head, index, choice))
            .collect(),
        usage: answer.usage.into(),
        prompt_logprobs: answer.prompts.first().and_then(PromptLogprobs::of),
        prompt_token_ids: prompt_token_ids.filter(|_| head.output.return_token_ids),
    })
}

fn whole_choice<'a>(head: &AnswerHead, index: u32, choice: &'a AnswerChoice) -> Choice<'a> {
    Choice {
        index,
        message: message(choice),
        logprobs: logprobs(head, &choice.tokens),
        finish_reason: finish_reason(choice.finish.as_ref(), choice.ends_with_call),
        stop_reason: StopReason(choice.finish.as_ref()),
        token_ids: token_ids(head, &choice.tokens),
    }
}

fn message(choice: &AnswerChoice) -> Message<'_> {
    let reasoning = (!choice.reasoning.is_empty()).then_some(choice.reasoning.as_str());
    Message {
        role: "assistant",
        content: (!choice.text.is_empty() || choice.tool_calls.is_empty()).then_some(&choice.text),
        refusal: None,
        reasoning_content: reasoning,
        reasoning,
        tool_calls: choice.tool_calls.iter().map(whole_call).collect(),
    }
}

fn whole_call(call: &ToolCall) -> WholeCall<'_> {
    let function = WholeFunction { name: &call.name, arguments: &call.arguments };
    WholeCall { id: &call.id, kind: "function", function }
}

/// An answer that ends with a whole call ended for that, unless it was cut off.
fn finish_reason(finish: Option<&Finish>, ends_with_call: bool) -> Option<&'static str> {
    match finish? {
        finish @ (Finish::Length | Finish::Repetition) => Some(finish.reason()),
        _ if ends_with_call => Some("tool_calls"),
        finish => Some(finish.reason()),
    }
}

/// Events to wire: chunks of a stream.
pub(crate) fn chunks(head: &AnswerHead, event: &GenerationEvent, so_far: Usage) -> Vec<String> {
    let id = chat_id(head);
    let chunk = |choices, usage, prompt_token_ids| {
        to_json(&Chunk {
            id: &id,
            object: "chat.completion.chunk",
            created: head.created,
            model: &head.model,
            system_fingerprint: None,
            choices,
            usage,
            prompt_token_ids,
        })
    };
    let usage_to_come = || chunk_usage(head, so_far);
    match event {
        GenerationEvent::Prompt(prompt) => {
            let token_ids = head.output.return_token_ids.then_some(&*prompt.token_ids);
            (0..head.n)
                .map(|index| chunk(vec![role_choice(head, index)], usage_to_come(), token_ids))
                .collect()
        }
        GenerationEvent::Delta(delta) => {
            let choices = delta_choices(head, delta).into_iter();
            choices.map(|choice| chunk(vec![choice], usage_to_come(), None)).collect()
        }
        GenerationEvent::Done(usage) if head.include_usage => {
            vec![chunk(Vec::new(), Some(Some((*usage).into())), None)]
        }
        GenerationEvent::Done(_) => Vec::new(),
        GenerationEvent::Failed(error) => vec![error.to_json()],
    }
}

fn role_choice<'a>(head: &AnswerHead, index: u32) -> ChunkChoice<'a> {
    // A turn that only calls tools has no content, and whether this is one is not known yet.
    let content = if head.output.has_tools { None } else { Some("") };
    ChunkChoice {
        index,
        delta: Delta { role: Some("assistant"), content: Some(content), ..Delta::default() },
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    }
}

/// One choice per part; tokens and the end go with the last. The end of tool calls stands alone.
fn delta_choices<'a>(head: &AnswerHead, delta: &'a ChoiceDelta) -> Vec<ChunkChoice<'a>> {
    let ends_calls = delta.finish.is_some() && matches!(delta.parts.last(), Some(part) if is_call(part));
    let ending = (delta.parts.is_empty() || ends_calls).then(Delta::default);
    let deltas = delta.parts.iter().map(part_delta).chain(ending);
    let mut choices: Vec<ChunkChoice<'a>> = deltas
        .map(|part| ChunkChoice {
            index: delta.choice,
            delta: part,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        })
        .collect();
    let last = choices.last_mut().expect("there is an ending if there are no parts");
    last.logprobs = logprobs(head, &delta.tokens);
    last.finish_reason = finish_reason(delta.finish.as_ref(), delta.ends_with_call);
    last.stop_reason = delta.finish.as_ref().map(|finish| StopReason(Some(finish)));
    last.token_ids = token_ids(head, &delta.tokens);
    choices
}

fn is_call(part: &OutputPart) -> bool {
    matches!(part, OutputPart::ToolCallStart { .. } | OutputPart::ToolCallArguments { .. })
}

fn part_delta(part: &OutputPart) -> Delta<'_> {
    let call = |index, id, kind, function| Delta {
        tool_calls: Some([CallDelta { index, id, kind, function }]),
        ..Delta::default()
    };
    match part {
        OutputPart::Content(text) => Delta { content: Some(Some(text)), ..Delta::default() },
        OutputPart::Reasoning(text) => {
            Delta { reasoning_content: Some(text), reasoning: Some(text), ..Delta::default() }
        }
        OutputPart::ToolCallStart { index, id, name } => {
            call(*index, Some(id), Some("function"), FunctionDelta { name: Some(name), arguments: "" })
        }
        OutputPart::ToolCallArguments { index, fragment } => {
            call(*index, None, None, FunctionDelta { name: None, arguments: fragment })
        }
    }
}

fn chat_id(head: &AnswerHead) -> String {
    format!("chatcmpl-{}", head.id)
}

fn token_ids(head: &AnswerHead, tokens: &[OutputToken]) -> Option<Vec<u32>> {
    head.output.return_token_ids.then(|| tokens.iter().map(|token| token.id).collect())
}

fn logprobs<'a>(head: &AnswerHead, tokens: &'a [OutputToken]) -> Option<Logprobs<'a>> {
    let content = || tokens.iter().filter_map(|token| token.detail.as_ref()).map(token_logprob).collect();
    head.output.logprobs.then(|| Logprobs { content: content(), refusal: None })
}

fn token_logprob(detail: &TokenDetail) -> TokenLogprob<'_> {
    let top = detail.top.iter().map(|(bytes, logprob)| TopLogprob {
        token: String::from_utf8_lossy(bytes).into_owned(),
        logprob: finite(*logprob),
        bytes,
    });
    TokenLogprob {
        token: String::from_utf8_lossy(&detail.bytes).into_owned(),
        logprob: finite(detail.logprob.unwrap_or(0.0)),
        bytes: &detail.bytes,
        top_logprobs: top.collect(),
    }
}
