//! The text of one sequence as it grows: detokenised, watched for stop strings, told apart into reasoning, content and tool
//! calls, with every token held back as long as its text is.

use std::sync::Arc;

use pagoda_engine::{FinishReason, TokenEvent, TokenLogprobs};
use pagoda_text::{
    AnswerDelta, AnswerParser, DetokenizeOptions, Detokenizer, StopMatcher, StopOutput, TextPosition,
    Tokenizer,
};

use crate::generation::{ChoiceDelta, Finish, Generation, OutputPart, OutputToken, TokenDetail};
use crate::model::{ServedModel, TokenPayload};
use crate::parsing::ParseRules;

/// One choice of an answer.
pub(crate) struct ChoiceText {
    index: u32,
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    stop_strings: Arc<[String]>,
    stop_token_ids: Arc<[u32]>,
    /// Stop strings count behind so many tokens.
    min_tokens: u64,
    parser: AnswerParser,
    include_reasoning: bool,
    may_reason: bool,
    /// Where each token's text begins, kept while any of it may be reasoning.
    token_starts: Vec<usize>,
    /// What the ids of the choice's tool calls begin with.
    call_id: u64,
    /// Tokens whose text has not been sent, each with the byte of the text at which its own ends.
    held: Vec<(usize, OutputToken)>,
    num_bytes_made: usize,
    /// Bytes behind the stop strings, and those of them about which the parser is certain.
    num_bytes_passed: usize,
    num_bytes_sent: usize,
    /// In characters, counted from the start of the answer's text: where the next token begins, and what was sent.
    offset: usize,
    sent_offset: usize,
    pub(crate) num_tokens: u64,
    pub(crate) is_finished: bool,
}

/// What all choices of a generation have in common.
#[derive(Clone)]
pub(crate) struct ChoiceRules {
    tokenizer: Arc<Tokenizer>,
    detokenize: DetokenizeOptions,
    stop_strings: Arc<[String]>,
    include_stop_str: bool,
    /// The client's own, to tell them from the model's.
    stop_token_ids: Arc<[u32]>,
    min_tokens: u64,
    parse: ParseRules,
    include_reasoning: bool,
}

impl ChoiceRules {
    /// `prompt` is the text that the model goes on with.
    pub(crate) fn new(generation: &Generation, model: &ServedModel, prompt: &str) -> Self {
        let output = generation.output;
        let position = if output.is_continuation { TextPosition::Continuation } else { TextPosition::Start };
        ChoiceRules {
            tokenizer: Arc::clone(&model.tokenizer),
            detokenize: DetokenizeOptions { skip_special_tokens: output.skip_special_tokens, position },
            stop_strings: generation.stop.strings.clone().into(),
            include_stop_str: generation.stop.include_stop_str,
            stop_token_ids: generation.stop.token_ids.clone().into(),
            min_tokens: generation.min_tokens,
            parse: ParseRules::new(generation, model, prompt),
            include_reasoning: output.include_reasoning,
        }
    }
}

impl ChoiceText {
    /// `offset` is the length of the echoed prompt in characters.
    pub(crate) fn new(index: u32, offset: usize, rules: &ChoiceRules) -> Self {
        ChoiceText {
            index,
            tokenizer: Arc::clone(&rules.tokenizer),
            detokenizer: Detokenizer::new(Arc::clone(&rules.tokenizer), rules.detokenize)
                .keeping(rules.parse.kept_ids()),
            stops: StopMatcher::new(rules.stop_strings.to_vec(), rules.include_stop_str),
            stop_strings: Arc::clone(&rules.stop_strings),
            stop_token_ids: Arc::clone(&rules.stop_token_ids),
            min_tokens: rules.min_tokens,
            parser: rules.parse.parser(),
            include_reasoning: rules.include_reasoning,
            may_reason: rules.parse.has_reasoning(),
            token_starts: Vec::new(),
            call_id: getrandom::u64().expect("the operating system gives random bytes"),
            held: Vec::new(),
            num_bytes_made: 0,
            num_bytes_passed: 0,
            num_bytes_sent: 0,
            offset,
            sent_offset: offset,
            num_tokens: 0,
            is_finished: false,
        }
    }

    /// Takes the next token; what it lets go, if anything. After the choice has finished, tokens that were on their way
    /// are dropped.
    pub(crate) fn push(&mut self, event: TokenEvent<TokenPayload>) -> Option<ChoiceDelta> {
        if self.is_finished {
            return None;
        }
        self.num_tokens += 1;
        if self.may_reason {
            self.token_starts.push(self.num_bytes_made);
        }
        let detail =
            event.extra.map(|logprobs| token_detail(&self.tokenizer, event.token, &logprobs, self.offset));
        // A stop token ends the text and is no part of it.
        let is_stop = event.finish == Some(FinishReason::Stop);
        let mut text = if is_stop { String::new() } else { self.detokenizer.push(event.token) };
        // A token without text waits for the text that follows: it may be the start of a character.
        let end = self.num_bytes_made + text.len().max(1);
        self.held.push((end, OutputToken { id: event.token, detail }));
        let finish = event.finish.map(|reason| match reason {
            FinishReason::Stop if self.stop_token_ids.contains(&event.token) => {
                Finish::StopToken(event.token)
            }
            FinishReason::Stop | FinishReason::Complete => Finish::EndOfText,
            FinishReason::Length => Finish::Length,
            FinishReason::Repetition => Finish::Repetition,
        });
        if finish.is_some() {
            text.push_str(&self.detokenizer.finish());
        }
        self.advance(&text, finish)
    }

    /// The choice ends without a further token.
    pub(crate) fn finish(&mut self, reason: FinishReason) -> Option<ChoiceDelta> {
        if self.is_finished {
            return None;
        }
        let text = self.detokenizer.finish();
        let finish = match reason {
            FinishReason::Stop | FinishReason::Complete => Finish::EndOfText,
            FinishReason::Length => Finish::Length,
            FinishReason::Repetition => Finish::Repetition,
        };
        self.advance(&text, Some(finish))
    }

    fn advance(&mut self, text: &str, finish: Option<Finish>) -> Option<ChoiceDelta> {
        self.num_bytes_made += text.len();
        self.offset += text.chars().count();
        let passed = if self.num_tokens > self.min_tokens {
            self.stops.push(text)
        } else {
            StopOutput { text: self.stops.push_without_end(text), matched: None }
        };
        let mut text = passed.text;
        let finish = match passed.matched {
            // The text decides: a stop string counts even if the length was reached with it.
            Some(index) => Some(Finish::StopString(self.stop_strings[index].clone())),
            None => finish,
        };
        if finish.is_some() && passed.matched.is_none() {
            text.push_str(&self.stops.finish());
        }
        self.num_bytes_passed += text.len();
        self.sent_offset += text.chars().count();
        self.is_finished = finish.is_some();
        let mut deltas = self.parser.push(&text);
        if let Some(finish) = &finish {
            let is_cut = match finish {
                Finish::Length | Finish::Repetition => true,
                // What a model wrote freely is a call only if it is whole.
                Finish::StopString(_) | Finish::StopToken(_) => self.parser.announces_at_name(),
                Finish::EndOfText => false,
            };
            deltas.extend(self.parser.finish(is_cut));
        }
        self.num_bytes_sent = self.num_bytes_passed.saturating_sub(self.parser.num_bytes_held());
        let parts = self.parts(deltas);
        if parts.is_empty() && finish.is_none() {
            return None;
        }
        let tokens = self.release();
        let ends_with_call = self.parser.num_calls() > 0 && !self.parser.ends_within_call();
        Some(ChoiceDelta { choice: self.index, parts, tokens, finish, ends_with_call })
    }

    /// The deltas as the answer has them: calls with their ids, neighbours of one kind joined.
    fn parts(&self, deltas: Vec<AnswerDelta>) -> Vec<OutputPart> {
        let mut parts: Vec<OutputPart> = Vec::with_capacity(deltas.len());
        for delta in deltas {
            match (delta, parts.last_mut()) {
                (AnswerDelta::Reasoning(_), _) if !self.include_reasoning => {}
                (AnswerDelta::Content(text), Some(OutputPart::Content(last)))
                | (AnswerDelta::Reasoning(text), Some(OutputPart::Reasoning(last))) => last.push_str(&text),
                (AnswerDelta::Content(text), _) => parts.push(OutputPart::Content(text)),
                (AnswerDelta::Reasoning(text), _) => parts.push(OutputPart::Reasoning(text)),
                (AnswerDelta::ToolCallStart { index, name }, _) => {
                    // 29 characters: there are clients that keep no more.
                    let id = format!("call_{:016x}{index:08x}", self.call_id);
                    parts.push(OutputPart::ToolCallStart { index, id, name });
                }
                (AnswerDelta::ToolCallArguments { index, fragment }, _) => {
                    parts.push(OutputPart::ToolCallArguments { index, fragment });
                }
            }
        }
        parts
    }

    /// Of the tokens so far those up to the end of the reasoning.
    pub(crate) fn num_reasoning_tokens(&self) -> u64 {
        let num_bytes = self.parser.num_bytes_reasoning();
        self.token_starts.partition_point(|&start| start < num_bytes) as u64
    }

    /// The tokens whose text has been sent; all of them at the end, so that every generated token is reported once.
    fn release(&mut self) -> Vec<OutputToken> {
        let num_bytes_sent = self.num_bytes_sent;
        let num_released = if self.is_finished {
            self.held.len()
        } else {
            self.held.iter().take_while(|(end, _)| *end <= num_bytes_sent).count()
        };
        let (is_finished, sent_offset) = (self.is_finished, self.sent_offset);
        let released = self.held.drain(..num_released).map(|(_, mut token)| {
            if let Some(detail) = token.detail.as_mut().filter(|_| is_finished) {
                // Tokens of a stop string lie behind the end of the text.
                detail.text_offset = detail.text_offset.min(sent_offset);
            }
            token
        });
        released.collect()
    }
}

/// A token with its logprobs.
pub(crate) fn token_detail(
    tokenizer: &Tokenizer,
    id: u32,
    logprobs: &TokenLogprobs,
    text_offset: usize,
) -> TokenDetail {
    TokenDetail {
        text_offset,
        bytes: tokenizer.token_bytes(id).to_vec(),
        logprob: Some(logprobs.logprob),
        top: logprobs
            .top
            .iter()
            .map(|(id, logprob)| (tokenizer.token_bytes(*id).to_vec(), *logprob))
            .collect(),
    }
}
