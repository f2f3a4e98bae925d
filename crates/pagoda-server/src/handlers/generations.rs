//! The routes that generate: read in one dialect, run, answer in the same dialect, at once or as a stream.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::{HeaderValue, header};

use crate::RequestLimits;
use crate::body;
use crate::calls;
use crate::constraint;
use crate::dialect::{Dialect, ReadContext};
use crate::error::ApiError;
use crate::exchange::Exchange;
use crate::fields::Fields;
use crate::generation::{Answer, AnswerHead, Generation, GenerationEvent, Usage};
use crate::json;
use crate::keys::Caller;
use crate::model::ServedModel;
use crate::prompt::{PrepareContext, PreparedPrompt, prepare};
use crate::run::GenerationRun;
use crate::sse::SseBody;
use crate::state::{ServerState, unix_seconds};
use crate::submit::SubmitContext;
use crate::thinking;

pub(crate) async fn chat(
    State(state): State<Arc<ServerState>>,
    Extension(exchange): Extension<Exchange>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    Call { state, exchange, caller, dialect: Dialect::Chat }.answer(request).await
}

pub(crate) async fn completions(
    State(state): State<Arc<ServerState>>,
    Extension(exchange): Extension<Exchange>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    Call { state, exchange, caller, dialect: Dialect::Completions }.answer(request).await
}

/// One call of a generating route.
struct Call {
    state: Arc<ServerState>,
    exchange: Exchange,
    caller: Caller,
    dialect: Dialect,
}

/// A generation that was read, with its prompts in tokens.
struct Prepared {
    generation: Generation,
    prompts: Vec<PreparedPrompt>,
}

impl Prepared {
    /// Compiles what the answers must be. They may be as long as the longest prompt leaves room for.
    fn constrain(&mut self, model: &ServedModel, context: SubmitContext) -> Result<(), ApiError> {
        let longest = self.prompts.iter().map(|prompt| prompt.token_ids.len()).max().unwrap_or(0);
        let room = model.max_model_len.saturating_sub(longest);
        let room = room.min(usize::try_from(self.generation.max_tokens).unwrap_or(usize::MAX));
        let spec = calls::constraint(&self.generation, model, room)?;
        let grammar = spec.map(|spec| constraint::compile(&spec, model, room, context)).transpose()?;
        for prompt in &mut self.prompts {
            let answer = grammar.as_ref().map(constraint::constraint);
            let answer = thinking::around(&self.generation, model, &prompt.text, answer);
            prompt.constraint = self.generation.token_rules.around(answer, &model.tokenizer);
        }
        Ok(())
    }
}

impl Call {
    async fn answer(self, request: Request) -> Result<Response, ApiError> {
        let model = self.state.serving_model()?;
        let limits = self.state.config.requests;
        let bytes = body::read(request, &limits).await?;
        let context = SubmitContext {
            caller: self.caller,
            retry_after: self.state.config.drain.retry_after,
            prompt_param: self.dialect.prompt_param(),
        };
        let (state, dialect, for_reading) = (Arc::clone(&self.state), self.dialect, Arc::clone(&model));
        let work = move || {
            let mut prepared = read_and_prepare(&bytes, dialect, &state, &for_reading)?;
            prepared.constrain(&for_reading, context)?;
            Ok(prepared)
        };
        let Prepared { generation, prompts } = self.state.prompts.run(work).await?;
        let head = self.head(&generation);
        let is_streamed = generation.delivery.stream;
        let run = GenerationRun::submit(&model, generation, prompts, context)?;
        let noted = NotedRun { run, exchange: self.exchange };
        if is_streamed {
            Ok(streamed(noted, self.dialect, head, &limits))
        } else {
            whole(noted, self.dialect, head).await
        }
    }

    fn head(&self, generation: &Generation) -> AnswerHead {
        AnswerHead {
            id: self.exchange.id().to_owned(),
            created: unix_seconds(),
            model: generation.model.clone().unwrap_or_else(|| self.state.model_name().to_owned()),
            n: generation.n,
            output: generation.output,
            include_usage: generation.delivery.include_usage,
            continuous_usage: generation.delivery.continuous_usage,
        }
    }
}

/// Everything between the body's bytes and the engine; runs off the reactor.
fn read_and_prepare(
    bytes: &Bytes,
    dialect: Dialect,
    state: &ServerState,
    model: &ServedModel,
) -> Result<Prepared, ApiError> {
    let limits = &state.config.requests;
    let fields = Fields::of_body(json::parse(bytes, limits.max_json_depth)?)?;
    let context = ReadContext {
        limits,
        defaults: &model.sampling_defaults,
        vocab_size: model.tokenizer.vocab_size(),
        tools_first: state.config.tools_first,
        random_seed: random_seed(),
        auto_tool_choice: state.config.auto_tool_choice,
    };
    let mut generation = dialect.read(fields, &context)?;
    state.check_model_name(generation.model.as_deref())?;
    let context = PrepareContext {
        model,
        param: dialect.prompt_param(),
        max_tokens: generation.max_tokens,
        truncation: generation.truncation,
        skip_special_tokens: generation.output.skip_special_tokens,
    };
    let sources = std::mem::take(&mut generation.prompts);
    let prompts: Result<_, _> = sources.into_iter().map(|source| prepare(source, context)).collect();
    Ok(Prepared { generation, prompts: prompts? })
}

fn random_seed() -> u64 {
    getrandom::u64().expect("the operating system gives random bytes")
}

/// A run that notes its tokens in the exchange's log line, however it ends.
pub(crate) struct NotedRun {
    pub(crate) run: GenerationRun,
    exchange: Exchange,
}

impl Drop for NotedRun {
    fn drop(&mut self) {
        let usage: Usage = self.run.usage();
        self.exchange.note_usage(usage);
        self.run.log_prefixes(self.exchange.id());
    }
}

async fn whole(mut noted: NotedRun, dialect: Dialect, head: AnswerHead) -> Result<Response, ApiError> {
    let mut answer = Answer::default();
    loop {
        match noted.run.next().await {
            Some(event) => {
                let is_last = matches!(event, GenerationEvent::Done(_));
                answer.push(event)?;
                if is_last {
                    break;
                }
            }
            None => return Err(ApiError::Internal),
        }
    }
    let json = dialect.answer(&head, answer);
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}

fn streamed(noted: NotedRun, dialect: Dialect, head: AnswerHead, limits: &RequestLimits) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies must not collect the stream.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    let body = SseBody::new(noted, dialect, head, limits.sse_keep_alive);
    (headers, Body::new(body)).into_response()
}
