//! `GET /metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};

use crate::error::ApiError;
use crate::metrics::Exposition;
use crate::state::{Readiness, ServerState};

/// The metrics as text. Also while draining: somebody watches the drain.
pub(crate) async fn metrics(
    State(state): State<Arc<ServerState>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let model = state.model.get().ok_or_else(|| state.unavailable(Readiness::Loading))?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let exposition = Exposition::accepted(accept);
    let embeddings = state.embeddings.get().map(|embeddings| &*embeddings.metrics);
    let text = model.metrics.encode(&model.engine.stats(), embeddings, exposition);
    Ok(([(header::CONTENT_TYPE, exposition.content_type())], text).into_response())
}
