//! One generation on its way through the engine: submits its prompts, turns the engine's events into the generation's
//! events. Dropping it ends what is left in the engine.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use pagoda_engine::{PrefixReport, Request, RequestError, RequestEvent, RequestStream};

use crate::choice::{ChoiceRules, ChoiceText};
use crate::error::ApiError;
use crate::generation::{CacheUsage, ChoiceDelta, Generation, GenerationEvent, PromptStart, Usage};
use crate::metrics::RequestClock;
use crate::model::{ServedModel, TokenPayload};
use crate::prompt::PreparedPrompt;
use crate::prompt_logprobs::{prompt_tokens, ranked};
use crate::submit::{SubmitContext, check_room, engine_request, refused};

/// A running generation: a stream of its events.
pub(crate) struct GenerationRun {
    model: Arc<ServedModel>,
    prompts: Vec<PromptRun>,
    ready: VecDeque<GenerationEvent>,
    retry_after: Duration,
    may_see_salts: bool,
    is_ended: bool,
}

/// One of its prompts.
struct PromptRun {
    index: u32,
    token_ids: Arc<[u32]>,
    echo: Echo,
    /// None once every choice has finished.
    stream: Option<RequestStream<TokenPayload>>,
    choices: Vec<ChoiceText>,
    clock: RequestClock,
    /// None before its first step.
    prefix: Option<PrefixReport>,
    prompt_logprobs: Vec<TokenPayload>,
    /// How many of the likeliest tokens to report for each place of the prompt.
    num_prompt_logprobs: Option<u32>,
    is_announced: bool,
}

/// How much of the prompt the answer repeats.
enum Echo {
    Nothing,
    Text { text: String },
    TextAndLogprobs { text: String, skip_special_tokens: bool, num_top: usize },
}

impl GenerationRun {
    /// Hands all prompts to the engine, or none.
    pub(crate) fn submit(
        model: &Arc<ServedModel>,
        generation: Generation,
        prompts: Vec<PreparedPrompt>,
        context: SubmitContext,
    ) -> Result<Self, ApiError> {
        check_room(model, &generation, prompts.len(), context)?;
        let mut runs = Vec::with_capacity(prompts.len());
        for (index, prompt) in (0..).zip(prompts) {
            // An error drops the runs so far, which ends them in the engine.
            runs.push(submit_prompt(model, &generation, index, prompt, context)?);
        }
        Ok(GenerationRun {
            model: Arc::clone(model),
            prompts: runs,
            ready: VecDeque::new(),
            retry_after: context.retry_after,
            may_see_salts: context.caller.is_admin(),
            is_ended: false,
        })
    }

    /// The tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for prompt in &self.prompts {
            usage.num_prompt_tokens += prompt.token_ids.len() as u64;
            usage.num_cached_tokens += prompt.prefix.map_or(0, |prefix| u64::from(prefix.num_cached_tokens));
            for choice in &prompt.choices {
                usage.num_completion_tokens += choice.num_tokens;
                usage.num_reasoning_tokens += choice.num_reasoning_tokens();
            }
        }
        usage.cache = self.cache_usage();
        usage
    }

    /// The prompt of which the most was not cached.
    fn cache_usage(&self) -> Option<CacheUsage> {
        let looked_up = self.cache_usages().rev();
        let worst = looked_up
            .max_by_key(|usage| usage.num_prompt_tokens - u64::from(usage.prefix.num_cached_tokens))?;
        let prefix = match self.may_see_salts {
            true => worst.prefix,
            // Salts keep the users of one key apart; only its operator may learn what happens under others.
            false => PrefixReport { num_tokens_under_other_salt: 0, ..worst.prefix },
        };
        Some(CacheUsage { prefix, ..worst })
    }

    fn cache_usages(&self) -> impl DoubleEndedIterator<Item = CacheUsage> + '_ {
        let is_one_of_several = self.prompts.len() > 1;
        self.prompts.iter().filter_map(move |prompt| {
            Some(CacheUsage {
                prompt_index: is_one_of_several.then_some(prompt.index),
                num_prompt_tokens: prompt.token_ids.len() as u64,
                prefix: prompt.prefix?,
            })
        })
    }

    /// Notes what the prefix cache knew of each prompt, under the answer's id.
    pub(crate) fn log_prefixes(&self, answer_id: &str) {
        self.cache_usages().for_each(|usage| self.model.prefix_log.push(answer_id, usage));
    }

    fn fail(&mut self, error: ApiError) {
        for prompt in &mut self.prompts {
            prompt.stream = None;
        }
        self.ready.push_back(GenerationEvent::Failed(error));
        self.is_ended = true;
    }

    /// Takes what every prompt's stream has; false if none has anything.
    fn poll_prompts(&mut self, context: &mut Context<'_>) -> bool {
        let mut has_moved = false;
        for index in 0..self.prompts.len() {
            let Some(stream) = &mut self.prompts[index].stream else { continue };
            let Poll::Ready(event) = Pin::new(stream).poll_next(context) else { continue };
            has_moved = true;
            if let Err(error) = self.take(index, event) {
                self.fail(error);
                return true;
            }
        }
        if self.prompts.iter().all(|prompt| prompt.stream.is_none()) {
            self.ready.push_back(GenerationEvent::Done(self.usage()));
            self.is_ended = true;
        }
        has_moved
    }

    fn take(&mut self, index: usize, event: Option<RequestEvent<TokenPayload>>) -> Result<(), ApiError> {
        let prompt = &mut self.prompts[index];
        match event {
            Some(RequestEvent::Scheduled { prefix }) => {
                prompt.prefix = Some(prefix);
                prompt.clock.scheduled(prefix.num_cached_tokens);
            }
            Some(RequestEvent::PromptLogprobs(logprobs)) => prompt.prompt_logprobs.extend(logprobs),
            Some(RequestEvent::Token(event)) => {
                let sample_index = event.sample_index;
                if !prompt.choices[sample_index as usize].is_finished {
                    prompt.clock.token(sample_index);
                }
                let ended_by_engine = event.finish.is_some();
                let delta = prompt.choices[sample_index as usize].push(event);
                self.announce(index);
                self.grow(index, sample_index, delta, ended_by_engine);
            }
            Some(RequestEvent::Finished { sample_index, reason }) => {
                let delta = prompt.choices[sample_index as usize].finish(reason);
                self.announce(index);
                self.grow(index, sample_index, delta, true);
            }
            Some(RequestEvent::SequenceFailed { error, .. }) => {
                tracing::error!(%error, "a sequence failed");
                return Err(ApiError::Model);
            }
            Some(RequestEvent::Failed(error)) => return Err(self.request_failed(&error)),
            None => {
                tracing::error!("a request's stream ended before its choices had finished");
                return Err(ApiError::Internal);
            }
        }
        self.announce_when_ready(index);
        Ok(())
    }

    fn request_failed(&self, error: &RequestError) -> ApiError {
        match error {
            RequestError::Executor(error) => {
                tracing::error!(%error, "a request failed");
                ApiError::Model
            }
            RequestError::EngineStopped => {
                ApiError::Unavailable { reason: "the engine has stopped", retry_after: self.retry_after }
            }
        }
    }

    /// Announces the prompt as soon as everything that the answer repeats of it is there.
    fn announce_when_ready(&mut self, index: usize) {
        let prompt = &self.prompts[index];
        let shows_logprobs = matches!(prompt.echo, Echo::TextAndLogprobs { .. });
        let needs_logprobs = shows_logprobs || prompt.num_prompt_logprobs.is_some();
        let num_wanted = if needs_logprobs { prompt.token_ids.len() - 1 } else { 0 };
        if prompt.prompt_logprobs.len() >= num_wanted {
            self.announce(index);
        }
    }

    fn announce(&mut self, index: usize) {
        let prompt = &mut self.prompts[index];
        if !std::mem::replace(&mut prompt.is_announced, true) {
            let start = prompt.start(&self.model);
            self.ready.push_back(GenerationEvent::Prompt(start));
        }
    }

    fn grow(&mut self, index: usize, sample_index: u32, delta: Option<ChoiceDelta>, ended_by_engine: bool) {
        let Some(delta) = delta else { return };
        let prompt = &mut self.prompts[index];
        if let Some(finish) = &delta.finish {
            prompt.clock.finished(sample_index, finish);
            match &prompt.stream {
                // A stop string: the engine does not know yet.
                Some(stream) if !ended_by_engine => stream.finish_sequence(sample_index),
                _ => {}
            }
            if prompt.choices.iter().all(|choice| choice.is_finished) {
                prompt.stream = None;
            }
        }
        self.ready.push_back(GenerationEvent::Delta(delta));
    }
}

impl Stream for GenerationRun {
    type Item = GenerationEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<GenerationEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            if self.is_ended {
                return Poll::Ready(None);
            }
            if !self.poll_prompts(context) && self.ready.is_empty() {
                return Poll::Pending;
            }
        }
    }
}

impl PromptRun {
    fn start(&mut self, model: &ServedModel) -> PromptStart {
        let (echo_text, echo_tokens) = match &mut self.echo {
            Echo::Nothing => (String::new(), Vec::new()),
            Echo::Text { text } => (std::mem::take(text), Vec::new()),
            Echo::TextAndLogprobs { text, skip_special_tokens, num_top } => {
                let skips = *skip_special_tokens;
                let mut tokens = prompt_tokens(model, &self.token_ids, &self.prompt_logprobs, skips);
                let details = tokens.iter_mut().filter_map(|token| token.detail.as_mut());
                details.for_each(|detail| detail.top.truncate(*num_top));
                (std::mem::take(text), tokens)
            }
        };
        PromptStart {
            prompt_index: self.index,
            token_ids: Arc::clone(&self.token_ids),
            echo_text,
            echo_tokens,
            logprobs: self
                .num_prompt_logprobs
                .map(|num_top| ranked(model, &self.token_ids, &self.prompt_logprobs, num_top as usize)),
        }
    }
}

fn submit_prompt(
    model: &Arc<ServedModel>,
    generation: &Generation,
    index: u32,
    prompt: PreparedPrompt,
    context: SubmitContext,
) -> Result<PromptRun, ApiError> {
    let num_prompt_tokens = prompt.token_ids.len();
    let token_ids: Arc<[u32]> = prompt.token_ids.into();
    let constraint = prompt.constraint;
    let request = Request { constraint, ..engine_request(model, generation, &token_ids, context.caller) };
    let max_tokens = request.stop.max_tokens;
    let stream = model.engine.submit(request).map_err(|error| refused(&error, model, context))?;
    // Started only now: a refused request is not an aborted one.
    let clock = RequestClock::start(model, num_prompt_tokens, generation.n, max_tokens);
    let output = generation.output;
    let rules = ChoiceRules::new(generation, model, &prompt.text);
    let echo = match (output.echo, output.logprobs) {
        (false, _) => Echo::Nothing,
        (true, false) => Echo::Text { text: prompt.text },
        (true, true) => Echo::TextAndLogprobs {
            text: prompt.text,
            skip_special_tokens: output.skip_special_tokens,
            num_top: generation.sampling.num_logprobs.unwrap_or(0) as usize,
        },
    };
    let offset = match &echo {
        Echo::Nothing => 0,
        Echo::Text { text } | Echo::TextAndLogprobs { text, .. } => text.chars().count(),
    };
    let first = index * generation.n;
    let choices = (first..first + generation.n).map(|index| ChoiceText::new(index, offset, &rules)).collect();
    Ok(PromptRun {
        index,
        token_ids,
        echo,
        stream: Some(stream),
        choices,
        clock,
        prefix: None,
        prompt_logprobs: Vec::new(),
        num_prompt_logprobs: output.prompt_logprobs,
        is_announced: false,
    })
}
