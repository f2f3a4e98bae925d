//! `POST /v1/embeddings`: read, tokenise, queue for the embedding model, answer.

use std::sync::Arc;
use std::time::Instant;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

use crate::RequestLimits;
use crate::body;
use crate::dialect::embeddings::{self, EmbeddingContext, EmbeddingHead, EmbeddingInput, EmbeddingRequest};
use crate::embedding::{Embeddings, Encoder};
use crate::error::ApiError;
use crate::exchange::Exchange;
use crate::fields::Fields;
use crate::generation::Usage;
use crate::json;
use crate::state::{ServerState, unix_seconds};

pub(crate) async fn embeddings(
    State(state): State<Arc<ServerState>>,
    Extension(exchange): Extension<Exchange>,
    request: Request,
) -> Result<Response, ApiError> {
    let embeddings = Arc::clone(state.embeddings.get().ok_or(ApiError::NoEmbeddingModel)?);
    let call = Call { state, exchange, embeddings: Arc::clone(&embeddings) };
    embeddings.unless_cut(call.answer(request)).await
}

/// One call of the route.
struct Call {
    state: Arc<ServerState>,
    exchange: Exchange,
    embeddings: Arc<Embeddings>,
}

impl Call {
    async fn answer(self, request: Request) -> Result<Response, ApiError> {
        // Before the body: while the model loads, bodies wait with their senders.
        let encoder = self.embeddings.encoder().await?;
        let started = Instant::now();
        let config = &self.state.config;
        let limits = config.requests;
        let bytes = body::read(request, &limits).await?;
        let for_reading = Arc::clone(&encoder);
        let work = move || read_and_tokenise(&bytes, &limits, &for_reading);
        let (request, sequences) = self.state.prompts.run(work).await?;
        let (num_inputs, num_tokens) =
            (sequences.len() as u64, sequences.iter().map(|ids| ids.len() as u64).sum());
        let vectors = encoder.queue.embed(sequences, config.drain.retry_after).await?;
        self.exchange.note_usage(Usage { num_prompt_tokens: num_tokens, ..Usage::default() });
        let metrics = &self.embeddings.metrics;
        metrics.requests.inc();
        metrics.inputs.inc_by(num_inputs);
        metrics.tokens.inc_by(num_tokens);
        metrics.request_seconds.observe(started.elapsed().as_secs_f64());
        // Two thousand vectors are 8 MB of text, which the reactor must not write.
        let answer = move || {
            let model = request.model.as_deref().unwrap_or(&self.embeddings.names[0]);
            let head = EmbeddingHead { id: self.exchange.id(), created: unix_seconds(), model, num_tokens };
            embeddings::answer(&head, vectors, request.form)
        };
        let json = tokio::task::spawn_blocking(answer).await.map_err(|_panicked| ApiError::Internal)?;
        Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
    }
}

/// Everything between the body's bytes and the queue; runs off the reactor.
fn read_and_tokenise(
    bytes: &Bytes,
    limits: &RequestLimits,
    encoder: &Encoder,
) -> Result<(EmbeddingRequest, Vec<Vec<u32>>), ApiError> {
    let fields = Fields::of_body(json::parse(bytes, limits.max_json_depth)?)?;
    let context = EmbeddingContext {
        limits,
        max_len: encoder.max_len,
        width: encoder.width,
        vocab_size: encoder.vocab_size,
    };
    let mut request = embeddings::read(fields, context)?;
    let inputs = std::mem::take(&mut request.inputs);
    let sequences: Result<_, _> =
        inputs.into_iter().map(|input| token_ids(input, &request, encoder)).collect();
    Ok((request, sequences?))
}

/// An input as the model takes it: cut to its length, the closing special token kept.
fn token_ids(
    input: EmbeddingInput,
    request: &EmbeddingRequest,
    encoder: &Encoder,
) -> Result<Vec<u32>, ApiError> {
    let (mut ids, closing) = match input {
        EmbeddingInput::TokenIds(ids) => (ids, None),
        EmbeddingInput::Text(text) => {
            let ids = encoder.tokenizer.encode(&text, request.add_special_tokens);
            let ids = ids.map_err(|_refused| ApiError::invalid("input", "cannot be tokenised"))?;
            let last = ids.last().copied().filter(|id| encoder.tokenizer.is_special(*id));
            (ids, last.filter(|_| request.add_special_tokens))
        }
    };
    if ids.is_empty() {
        return Err(ApiError::invalid("input", "must have at least one token"));
    }
    if ids.len() > request.max_len {
        ids.truncate(request.max_len);
        if let (Some(last), Some(closing)) = (ids.last_mut(), closing) {
            *last = closing;
        }
    }
    Ok(ids)
}
